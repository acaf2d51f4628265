"""Montre les lettres mortes de transactions-topic-dlq, et renvoie celles qui sont réparées.

    python dead_letters.py                       une ligne JSON par lettre : origine, raison, octets
    python dead_letters.py > lettres.jsonl       … à réparer dans un éditeur : corrigez « valeur »
    python dead_letters.py --resend lettres.jsonl

Garantit : une lettre n'est renvoyée que si elle est maintenant une transaction valide ; toutes le sont, en
une transaction Kafka, ou aucune.
Ne garantit pas : qu'une lettre renvoyée deux fois n'entre qu'une fois ; son identifiant la reconnaît.
Ensuite : consumer_resilient.py traite ce qui est renvoyé, comme le reste.
"""

import argparse
import csv
import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient

from commun.cli import Parser, Stop, Stopped, run
from commun.errors import START_HINT, PipelineError
from commun.exactly_once import Aborted, TransactionalProducer
from commun.kafka import Config, admin_config, client_config, kafka_options
from commun.topics import read_topic
from exercice2.topic import TOPIC
from exercice2.transactions import FIELDS, InvalidTransaction, Transaction, from_fields, parse, to_json

log = logging.getLogger("pipeline")

PRODUCER_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "transaction.timeout.ms": 60_000,  # toutes les lettres d'un fichier sont dans une transaction
    "message.timeout.ms": 60_000,
    "partitioner": "murmur2_random",  # comme producer_resilient.py : une clé, une partition
    "compression.type": "lz4",
}
GUARANTEED = ("acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms", "message.timeout.ms")


def read_letters(config: Config, topic: str, stop: Stop) -> Iterator[Message]:
    """Les lettres de ``topic``, dans l'ordre. Lève PipelineError si Kafka ne répond pas."""
    try:
        known = AdminClient(admin_config(config)).list_topics(timeout=10).topics
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond pas sur {config['bootstrap.servers']} : {START_HINT}.") from error
    return read_topic(config, topic, known[topic].partitions if topic in known else [], stop)


def as_line(message: Message) -> dict[str, Any]:
    """Une lettre en JSON : ses en-têtes ``dlq.…`` sans ce préfixe, et sa valeur (octets illisibles échappés)."""
    headers = {
        name.removeprefix("dlq."): value.decode("utf-8", "replace")
        for name, value in dict(message.headers() or []).items()
        if name.startswith("dlq.") and isinstance(value, bytes)
    }
    return headers | {"valeur": (message.value() or b"").decode("utf-8", "backslashreplace")}


def repaired(path: Path, now: datetime) -> list[tuple[str, bytes]]:
    """Clé et message de chaque lettre du fichier ; lève PipelineError à la première qui n'est pas valide."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # « splitlines » coupe aussi dans les textes (U+2028…)
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"Impossible de lire {path} : {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            transaction = read_again(json.loads(line), now)
        except InvalidTransaction as error:
            raise PipelineError(f"{path}, ligne {number} : {error}. Rien n'est renvoyé.") from error
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise PipelineError(f"{path}, ligne {number} : ce n'est pas une lettre. Rien n'est renvoyé.") from error
        found.append((transaction.compte, to_json(transaction)))
    return found


def read_again(letter: dict[str, Any], now: datetime) -> Transaction:
    """La transaction d'une lettre : un message, ou une ligne de CSV si elle vient d'un fichier."""
    value = letter["valeur"]
    if "line" not in letter or value.lstrip().startswith("{"):
        return parse(value.encode(), now)
    cells = next(csv.reader([value], delimiter=";" if value.count(";") > value.count(",") else ",", strict=True), [])
    if len(cells) != len(FIELDS):
        raise InvalidTransaction(f"{len(cells)} champs au lieu de {len(FIELDS)} ({', '.join(FIELDS)})")
    return from_fields(dict(zip(FIELDS, cells, strict=True)), now)


def resend(config: Config, topic: str, letters: list[tuple[str, bytes]], stop: Stop) -> None:
    """Envoie toutes les lettres dans ``topic`` en une transaction Kafka."""
    try:
        producer = TransactionalProducer(config | {"transactional.id": f"dead-letters-{uuid.uuid4().hex}"}, stop)
        for key, value in letters:
            producer.write(topic, value, key)
        producer.commit()
    except (Stopped, Aborted) as error:
        raise PipelineError("Kafka n'a pas confirmé : rien n'est renvoyé. Relancez la même commande.") from error


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic des transactions")
    kafka_options(parser)
    parser.option("--resend", type=Path, metavar="FICHIER", help="renvoie les lettres réparées de ce fichier")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    if args.resend:
        letters = repaired(args.resend, datetime.now(UTC))
        resend(config, args.topic, letters, stop)
        log.info("%d transactions renvoyées dans %s.", len(letters), args.topic)
        return 0
    count = 0
    with suppress(Stopped):
        for count, message in enumerate(read_letters(config, f"{args.topic}-dlq", stop), 1):  # noqa: B007
            print(json.dumps(as_line(message), ensure_ascii=False))
    if not count:
        log.info("Aucune lettre morte dans %s-dlq.", args.topic)
    return 0


if __name__ == "__main__":
    run(main)
