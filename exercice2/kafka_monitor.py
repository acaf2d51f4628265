"""Compte les transactions par fenêtres glissantes d'une minute, et publie chaque fenêtre une fois, juste.

    python kafka_monitor.py                            une minute, toutes les dix secondes, toutes ensemble
    python kafka_monitor.py --by type --slide 1        par type de transaction, toutes les secondes
    python kafka_monitor.py --slide event --by compte  pour chaque transaction, la minute qui la précède
    python kafka_monitor.py --alert "montant_total > 10000"

Le temps est celui des transactions (timestamp), pas celui de l'horloge. Une fenêtre se ferme quand le watermark
l'atteint : l'instant le plus avancé de chaque partition moins --max-delay, la plus lente décide. Une transaction
plus en retard compte encore dans ses fenêtres ouvertes ; s'il n'en reste aucune, elle va dans
transactions-fenetres-dlq, comme ce qui n'est pas une transaction ou vient de trop loin dans le futur.
Garantit : chaque fenêtre est publiée une fois et une seule dans transactions-fenetres, complète, quoi qu'il
arrive aux moniteurs et aux brokers, et qu'un, deux ou trois moniteurs se partagent les partitions.
Ne garantit pas : la fenêtre en cours à l'arrêt ; elle sera publiée par le prochain démarrage.
Ensuite : la fiche de l'exercice dit comment. Les fenêtres sont dans windows.py, leur calcul en
deux étages dans partials.py, ce que chacun lit et écrit dans handlers.py, sa boucle dans stages.py.
"""

import argparse
import gc
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from commun.cli import Parser, Stop, Stopped, positive, run
from commun.kafka import (
    ADMIN_SECONDS,
    DEAD_LETTER_TOPIC,
    Config,
    admin_config,
    client_config,
    ensure_topics,
)
from commun.topics import bounds
from exercice2.handlers import Merging, Reading
from exercice2.producer_resilient import PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG
from exercice2.results import alert_option
from exercice2.screen import Numbers, Screen
from exercice2.stages import Stage

log = logging.getLogger("pipeline")

OUTPUT, ALERTS = "transactions-fenetres", "transactions-alertes"
PARTIAL_BYTES = 33_554_432
PARTIAL_TOPIC = {"retention.ms": "-1", "max.message.bytes": str(PARTIAL_BYTES)}  # purgé par celui qui le lit
EVENT = "event"
BATCH, PARTIALS_BATCH = 10_000, 32  # messages lus à la fois : des transactions, des comptes
SETTLED_SECONDS = 10.0  # plus que la session d'un moniteur mort (6 s) : ses partitions ne sont plus à lui
GC_THRESHOLDS = (200_000, 50, 50)  # par défaut, Python cherche mille fois par seconde des cycles dans chaque lot lu
WAIT_SECONDS = 0.05  # ce qu'on attend un lot incomplet

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la place est validée avec les résultats
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",  # jamais une transaction annulée
    "partition.assignment.strategy": "cooperative-sticky",  # un moniteur arrive sans arrêter les autres
    "session.timeout.ms": 6_000,  # un moniteur tué est remplacé au bout de 6 s
    "heartbeat.interval.ms": 2_000,
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,  # pour savoir qu'une partition n'a plus rien
    "topic.metadata.refresh.interval.ms": 5_000,  # un topic à peine créé se voit sans attendre cinq minutes
    "fetch.queue.backoff.ms": 10,  # 1 s par défaut, qui plafonne le débit
}
PRODUCER_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": 10_000,
    "transaction.timeout.ms": 10_000,  # tué net, il ne bloque pas les autres plus longtemps
    "message.max.bytes": PARTIAL_BYTES,
    "partitioner": "murmur2_random",
    "linger.ms": 100,  # la validation n'attend pas : elle envoie tout
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 500_000,
    "compression.type": "lz4",
}
GUARANTEED = (
    "enable.auto.commit", "enable.auto.offset.store", "isolation.level", "auto.offset.reset", "acks",
    "enable.idempotence", "message.timeout.ms", "transaction.timeout.ms", "transactional.id", "enable.partition.eof",
)  # fmt: skip


def count_partitions(config: Config, topic: str) -> int:
    """Nombre de partitions de ``topic`` ; attend qu'un topic à peine créé soit connu de tous les brokers."""
    admin = AdminClient(admin_config(config))
    while True:
        if count := len(admin.list_topics(topic, ADMIN_SECONDS).topics[topic].partitions):
            return count
        time.sleep(0.1)


class Monitor:
    """Les deux étages, l'un après l'autre, et l'écran."""

    def __init__(self, args: argparse.Namespace, stop: Stop, config: Config, producer: Config) -> None:
        self.args, self.stop, self.config = args, stop, config
        self.numbers = Numbers()
        self.first = Stage(args.topic, config | {"group.id": args.group}, producer, stop, BATCH)
        second = config | {"group.id": f"{args.group}-fusion"}
        self.second = Stage(args.partials, second, producer, stop, PARTIALS_BATCH)
        self.reading = Reading(args, self.first, self.numbers)
        self.merging = Merging(args, config, self.second, self.numbers)
        self.first.start(self.reading)
        self.second.start(self.merging)

    def run(self, screen: Screen) -> None:
        """Jusqu'à l'arrêt."""
        behind = False
        while not self.stop:
            behind = self.first.step(0 if behind else WAIT_SECONDS)
            self.reading.align()
            self.reading.tick(self.args.idle_timeout)
            behind |= self.second.step(0)
            self._show(screen)

    def run_once(self, screen: Screen) -> None:
        """--once : jusqu'au bout du topic, tel qu'il est au démarrage."""
        ends = {p: self._end(self.args.topic, p) for p in range(self.args.partitions)}
        self._until(self.first, ends, screen)
        self.reading.empty()
        self.first.checkpoint()
        self._until(self.second, {0: self._end(self.args.partials, 0)}, screen)
        self.second.checkpoint()
        self._show(screen)

    def _until(self, stage: Stage, ends: dict[int, int], screen: Screen) -> None:
        """Tourne jusqu'à ce que les partitions de ``stage`` soient lues jusqu'à ``ends``.

        Toutes, ou celles qui sont à nous si d'autres moniteurs ont le reste depuis assez longtemps pour être vivants.
        """
        while not self.stop:
            stage.step(WAIT_SECONDS)
            self.reading.align()
            self._show(screen)
            ours = stage.committed
            settled = stage.rebalanced_at and time.monotonic() - stage.rebalanced_at > SETTLED_SECONDS
            read = all(stage.ended.get(partition, -1) >= ends[partition] for partition in ours)
            if read and (len(ours) == len(ends) or settled):
                return

    def _end(self, topic: str, partition: int) -> int:
        return bounds(self.config, TopicPartition(topic, partition), self.stop)[1]

    def _show(self, screen: Screen) -> None:
        self.numbers.lag, self.numbers.merging = self.reading.lag(), self.merging.merger is not None
        screen.show(self.merging.ready, self.numbers, self.merging.preview)
        self.merging.ready.clear()

    def close(self) -> None:
        """Valide ce qui est fait, et quitte les groupes."""
        self.first.close()
        self.second.close()
        self.merging.close()


# --- Options ---


def _slide(text: str) -> int | None:
    return None if text == EVENT else int(positive(float)(text) * 1000) or 1


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--output", env="TRANSACTIONS_FENETRES", default=OUTPUT, help="topic des fenêtres")
    parser.option("--alerts", env="TRANSACTIONS_ALERTES", default=ALERTS, help="topic des alertes")
    parser.option("--group", env="TRANSACTIONS_MONITOR_GROUP",
                  help="groupe des moniteurs qui se partagent le travail ; sans lui, un par réglage")  # fmt: skip
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option("--size", type=positive(float), default=60.0, help="longueur d'une fenêtre, en secondes")
    parser.option("--slide", type=_slide, default="10", metavar="S|event",
                  help="une fenêtre toutes les S secondes, ou une par transaction")  # fmt: skip
    parser.option("--by", choices=("type", "region", "compte", "canal"), help="une fenêtre par valeur de ce champ")
    parser.option("--max-delay", type=positive(float, zero=True), default=5.0,
                  help="retard attendu d'une transaction, en secondes")  # fmt: skip
    parser.option("--max-future", type=positive(float, zero=True), default=60.0,
                  help="avance acceptée sur l'horloge, en secondes")  # fmt: skip
    parser.option("--idle-timeout", type=positive(float), default=10.0,
                  help="une partition muette depuis S secondes ne retient plus les autres")  # fmt: skip
    parser.option("--grace", type=positive(float, zero=True), default=0.0,
                  help="les retards de moins de S secondes corrigent une fenêtre publiée")  # fmt: skip
    parser.option("--alert", type=alert_option, action="append", default=[], metavar="CONDITION",
                  help="signale les fenêtres où elle est vraie (montant_total > 10000) ; répétable")  # fmt: skip
    parser.option("--once", action="store_true", help="lit le topic jusqu'au bout, puis s'arrête")
    parser.option("--format", choices=("table", "json"),
                  help="tableau vivant ou lignes JSON ; par défaut table dans un terminal, sinon json")  # fmt: skip
    args = parser.parse(argv)
    args.format = args.format or ("table" if sys.stdout.isatty() else "json")
    args.slide_ms = args.slide
    for name in ("size", "max_delay", "max_future", "grace"):
        setattr(args, f"{name}_ms", int(getattr(args, name) * 1000))
    if args.slide_ms is None and args.grace:
        parser.error("--grace ne va pas avec --slide event")
    slide = EVENT if args.slide_ms is None else f"{args.slide_ms / 1000:g}"
    args.group = args.group or f"fenetres-{args.topic}-{args.size:g}-{slide}-{args.by or 'toutes'}"
    args.partials, args.dead_letters = f"{args.group}-partiels", f"{args.output}-dlq"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(CONSUMER_CONFIG, GUARANTEED, args.bootstrap_servers)
    producer = client_config(PRODUCER_CONFIG, GUARANTEED, args.bootstrap_servers)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(args.partials, 1, REPLICATION_FACTOR, config=PARTIAL_TOPIC),
        NewTopic(args.output, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(args.alerts, 1, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(args.dead_letters, 1, REPLICATION_FACTOR, config=DEAD_LETTER_TOPIC),
    )
    args.partitions = count_partitions(config, args.topic)
    log.info("Fenêtres de %s (groupe %s), publiées dans %s.", args.topic, args.group, args.output)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    monitor = Monitor(args, stop, config, producer)
    try:
        with closing(monitor), Screen(args.format) as screen:
            (monitor.run_once if args.once else monitor.run)(screen)
    except Stopped:
        log.warning("Arrêt sans réponse de Kafka : ce qui n'est pas validé sera refait au prochain démarrage.")
    log.info("Terminé : %s.", monitor.numbers)
    return 0


if __name__ == "__main__":
    run(main)
