"""Les topics de l'exercice, et leurs réglages."""

import argparse
from typing import Any

from commun.cli import Parser, positive
from commun.kafka import DEAD_LETTER_TOPIC

from confluent_kafka.cimpl import NewTopic

TOPIC = "transactions-topic"
VALID_TOPIC = "transactions-validees"
PARTITIONS = 6
REPLICATION_FACTOR = 3
# Rien n'est effacé ; confirmé = écrit sur deux brokers au moins.
TOPIC_CONFIG = {"retention.ms": "-1", "min.insync.replicas": "2"}
BROKERS_CHOICE = -1  # le nombre que donne le cluster


def topic_options(parser: Parser) -> None:
    """Les options des topics à créer."""
    parser.option("--partitions", type=positive(), dest="new_partitions", metavar="N",
                  help="partitions d'un topic à créer : sans l'option, ce que dit le cluster")  # fmt: skip
    parser.option("--replication-factor", type=positive(), metavar="N",
                  help="copies d'un topic à créer : sans l'option, ce que dit le cluster")  # fmt: skip


def stream(args: argparse.Namespace, name: str) -> NewTopic:
    """Un topic de transactions ou de résultats."""
    return NewTopic(
        name, args.new_partitions or BROKERS_CHOICE, args.replication_factor or BROKERS_CHOICE, config=TOPIC_CONFIG
    )


def single(args: argparse.Namespace, name: str, config: dict[str, Any] = TOPIC_CONFIG) -> NewTopic:
    """Un topic d'une seule partition."""
    return NewTopic(name, 1, args.replication_factor or BROKERS_CHOICE, config=config)


def letters(args: argparse.Namespace, name: str) -> NewTopic:
    """Une file de lettres mortes."""
    return single(args, name, DEAD_LETTER_TOPIC)
