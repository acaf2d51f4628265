"""Fabrique des ventes et les envoie dans Kafka (topic ventes-stream).

    python producer.py                        10 ventes par seconde, sans fin
    python producer.py --count 1000 --rate 0  1 000 ventes, au plus vite
    python producer.py --seed 42 --count 100  toujours les mêmes 100 ventes
    python producer.py --corrections 2        corrige ou annule ensuite 2 % des ventes

Garantit : toute vente annoncée « confirmée » est écrite sur deux brokers au moins ;
Ctrl-C et SIGTERM attendent les confirmations en vol ; Kafka absent, le script attend. Ce qui
est confirmé est inscrit dans ventes-stream-confirmees, où reconcile.py le lit.
Ne garantit pas : qu'une vente n'est qu'une fois dans Kafka si vous relancez la même
graine. C'est sans effet plus loin : son identifiant est le même, MongoDB n'en garde qu'une.
Ensuite : consumer.py lit ce topic et écrit dans MongoDB.
"""

import argparse
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from itertools import islice

from commun import PipelineError
from commun.cli import Parser, Stop, french_number, positive, run
from commun.contracts import SALE, header
from commun.kafka import client_config, connect, ensure_topics, kafka_options
from commun.metrics import Measures, metrics_option, serve_metrics
from exercice3.confirmations import Confirmed, new_topic
from exercice3.ventes import SEED_MAX, Vente, generate, to_json, with_corrections

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

TOPIC = "ventes-stream"
PARTITIONS = 6
REPLICATION_FACTOR = 3
TOPIC_CONFIG = {
    "retention.ms": "-1",  # rien ne s'efface au bout de sept jours
    "min.insync.replicas": "2",  # « confirmée » veut dire écrite sur deux brokers, sur ce cluster ou un autre
}
REPORT_SECONDS = 5.0
FLUSH_SECONDS = 30.0
# Fin de la période d'une suite rejouable (--seed) : fixe, pour que les dates le soient aussi.
REPLAY_END = datetime(2026, 1, 1)  # noqa: DTZ001 - heure locale du magasin, sans fuseau

PRODUCER_CONFIG = {
    "acks": "all",  # confirmé = écrit sur toutes les copies synchronisées (deux au moins)
    "enable.idempotence": True,  # un renvoi après une coupure ne crée ni doublon ni désordre
    "message.timeout.ms": 0,  # jamais abandonné : Kafka absent, la vente attend son retour
    "partitioner": "murmur2_random",  # le même choix de partition que les clients Java
    "compression.type": "lz4",
    "linger.ms": 20,  # 20 ms d'attente font des lots : bien moins de requêtes
    "queue.buffering.max.messages": 20_000,  # borne la mémoire ; file pleine, on ralentit
}
GUARANTEED = ("acks", "enable.idempotence", "message.timeout.ms", "delivery.report.only.error")
CONTRACT = [header(SALE)]  # commun/contrats/vente.json


class Deliveries:
    """Compte les confirmations de Kafka ; ``on_delivery`` est le rappel de chaque vente."""

    def __init__(self, suite: Confirmed) -> None:
        self.suite = suite
        self.sent = self.confirmed = self.failed = 0
        self.confirmed_amount = Decimal(0)

    def on_delivery(self, error: KafkaError | None, vente: Vente) -> None:
        """Une vente vient d'être confirmée, ou refusée pour de bon."""
        if error is None:
            self.confirmed += 1
            self.confirmed_amount += vente.montant
            self.suite.add(vente)
        else:
            self.failed += 1
            log.error("Vente refusée par Kafka : %s", error.str())

    def __str__(self) -> str:
        amount = french_number(float(self.confirmed_amount), 2)
        refused = f", {self.failed} refusées" if self.failed else ""
        return f"{self.sent} envoyées, {self.confirmed} confirmées ({amount} €){refused}"


def send(producer: Producer, topic: str, vente: Vente, deliveries: Deliveries, stop: Stop) -> bool:
    """Confie une vente au client Kafka ; faux si l'arrêt est demandé pendant que sa file est pleine."""

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        deliveries.on_delivery(error, vente)

    while True:
        try:
            producer.produce(topic, value=to_json(vente), key=vente.id, headers=CONTRACT, on_delivery=on_delivery)
            deliveries.sent += 1
            return True
        except BufferError:  # file pleine : on attend des confirmations, sans rien jeter
            producer.poll(0.1)
            if stop:
                return False


def produce(
    producer: Producer, ventes: Iterable[Vente], args: argparse.Namespace, stop: Stop, deliveries: Deliveries
) -> None:
    """Envoie ces ventes, au rythme de ``args.rate`` par seconde (0 : au plus vite)."""
    deliveries.suite.publish(producer, args.topic)  # rien encore : mais cette suite est connue
    start = reported = time.monotonic()
    for vente in ventes:
        if stop or not send(producer, args.topic, vente, deliveries, stop):
            break
        producer.poll(0)  # sert les rappels de confirmation
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS:
            log.info("%s", deliveries)
            deliveries.suite.publish(producer, args.topic)
            reported = now
        # La n-ième vente part à start + n/rate : un retard se rattrape, le rythme ne dérive pas.
        while args.rate and not stop and (ahead := start + deliveries.sent / args.rate - time.monotonic()) > 0:
            producer.poll(min(ahead, 0.2))


def finish(producer: Producer, deliveries: Deliveries, topic: str) -> None:
    """Attend les dernières confirmations ; PipelineError s'il en manque au bout de FLUSH_SECONDS."""
    left = producer.flush(FLUSH_SECONDS)
    if not left:
        deliveries.suite.publish(producer, topic)
        producer.flush(FLUSH_SECONDS)
    log.info("Terminé : %s dans %s.", deliveries, topic)
    if left or deliveries.failed:
        raise PipelineError(
            f"{left + deliveries.failed} ventes n'ont pas été confirmées par Kafka. Avec --seed, relancez "
            "la même commande : les ventes déjà confirmées ne seront pas doublées dans MongoDB."
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic où écrire")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--count", type=positive(), help="nombre de ventes, puis fin ; sans lui : sans fin")
    parser.option("--rate", type=positive(float, zero=True), default=10.0, help="ventes par seconde, 0 : au plus vite")
    parser.option("--seed", type=positive(zero=True), help="graine : la même donne les mêmes ventes")
    parser.option("--start", type=positive(), default=1, help="numéro de la première vente de la suite")
    parser.option("--days", type=positive(), default=90, help="ventes datées des N derniers jours")
    parser.option("--corrections", type=positive(float, zero=True), default=0.0, help="pour cent de ventes corrigées")
    args = parser.parse(argv)
    if args.seed is not None and args.seed > SEED_MAX:
        parser.error("--seed : un nombre inférieur à 4294967296 est attendu")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        new_topic(args.topic, REPLICATION_FACTOR),
    )
    seed, clock = (secrets.randbits(32), datetime.now) if args.seed is None else (args.seed, lambda: REPLAY_END)
    log.info("Envoi vers %s, graine %d.", args.topic, seed)
    producer, deliveries = connect(Producer, config), Deliveries(Confirmed(seed, args.start))
    # Une première question ouvre la connexion : sans elle, le client demande son numéro de producteur trop tôt, et
    # attend une demi-seconde avant de le redemander.
    with suppress(KafkaException):
        producer.list_topics(args.topic, 1.0)
    serve_metrics(args.metrics_port, lambda: Measures(deliveries.confirmed))
    ventes: Iterable[Vente] = islice(generate(seed, clock, args.days, args.start), args.count)
    if args.corrections:
        ventes = with_corrections(ventes, args.corrections, seed)
    try:
        produce(producer, ventes, args, stop, deliveries)
    except KafkaException as error:
        raise PipelineError(f"Kafka refuse l'envoi : {error.args[0].str()}.") from error
    finish(producer, deliveries, args.topic)
    return 0


if __name__ == "__main__":
    run(main)
