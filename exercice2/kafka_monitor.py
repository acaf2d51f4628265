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
Ensuite : la fiche de l'exercice dit comment. Les fenêtres sont dans fenetres/windows.py, leur calcul en deux
étages dans partials.py, ce que chacun lit et écrit dans counting.py et merging.py.
"""

import argparse
import gc
import hashlib
import logging
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from commun import Aborted, PipelineError
from commun.cli import Parser, Stop, Stopped, positive, run
from commun.group_member import GroupMember
from commun.kafka import Config, client_config, count_partitions, ensure_topics, kafka_options
from commun.metrics import Measures, metrics_option, serve_metrics
from commun.outputs import ExactlyOnce
from exercice2.fenetres.counting import Reading
from exercice2.fenetres.merging import Merging
from exercice2.fenetres.published import alert_option
from exercice2.fenetres.screen import Numbers, Screen
from exercice2.topic import TOPIC, letters, single, stream, topic_options

from confluent_kafka import Message

log = logging.getLogger("pipeline")

OUTPUT, ALERTS = "transactions-fenetres", "transactions-alertes"
PARTIAL_BYTES = 33_554_432
PARTIAL_TOPIC = {"retention.ms": "-1", "max.message.bytes": str(PARTIAL_BYTES)}  # purgé par celui qui le lit
EVENT = "event"
BATCH, PARTIALS_BATCH = 10_000, 32  # messages lus à la fois : des transactions, des comptes
SETTLED_SECONDS = 10.0  # plus que la session d'un moniteur mort (6 s) : ses partitions ne sont plus à lui
GC_THRESHOLDS = (200_000, 50, 50)  # par défaut, Python cherche mille fois par seconde des cycles dans chaque lot lu
MOST_PARTITIONS = 500  # leurs watermarks voyagent avec une position, que Kafka borne à 4 096 octets
WAIT_SECONDS = 0.05  # ce qu'on attend un lot incomplet
# Durée d'une transaction, donc ce qu'attend un lecteur : courte quand on suit le flux, longue quand on le rattrape.
LIVE_SECONDS, BEHIND_SECONDS = 0.2, 1.0

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la place est validée avec les résultats
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",  # jamais une transaction annulée
    "partition.assignment.strategy": "cooperative-sticky",  # un moniteur arrive sans arrêter les autres
    "session.timeout.ms": 6_000,  # un moniteur tué est remplacé au bout de 6 s
    "heartbeat.interval.ms": 2_000,
    "auto.offset.reset": "error",  # une position perdue se dit, et se décide ici : le client n'en choisit pas une autre
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
    "partition.assignment.strategy",
)  # fmt: skip


class Monitor:
    """Les deux étages, l'un après l'autre, et l'écran."""

    def __init__(self, args: argparse.Namespace, stop: Stop, config: Config, producer: Config) -> None:
        self.args, self.stop = args, stop
        self.numbers = Numbers()
        counts, results = (
            ExactlyOnce(producer | {"transactional.id": f"{topic}-{uuid.uuid4().hex}"}, stop)
            for topic in (args.topic, args.partials)
        )
        second = config | {"group.id": f"{args.group}-fusion"}
        self.reading = Reading(args, counts, self.numbers)
        self.merging = Merging(args, config, results, self.numbers, stop)
        self.first = GroupMember(args.topic, config | {"group.id": args.group}, counts, stop, self.reading)
        self.second = GroupMember(args.partials, second, results, stop, self.merging)
        self.reading.member = self.first

    def join(self) -> None:
        """Entre dans les deux groupes."""
        self.first.positions.start_from(None, {}, [self.args.partials])
        self.second.positions.start_from("earliest", {})
        self.first.join()
        self.second.join()

    def run(self, screen: Screen) -> None:
        """Jusqu'à l'arrêt."""
        behind = False
        while not self.stop:
            behind = self.step(behind)
            self._show(screen)

    def step(self, behind: bool) -> bool:
        """Un tour des deux étages ; ``behind``, avant et après : il reste sûrement à lire."""
        behind = turn(self.first, self.reading.process, BATCH, 0 if behind else WAIT_SECONDS)
        self.reading.align()
        self.reading.tick(self.args.idle_timeout)
        return turn(self.second, self.merging.process, PARTIALS_BATCH, 0) or behind

    def run_once(self, screen: Screen) -> None:
        """--once : jusqu'au bout du topic, tel qu'il est au démarrage."""
        ends = {partition: self.first.positions.bounds(partition)[1] for partition in range(self.args.partitions)}
        self._until(self.first, ends, screen)
        self._until(self.second, {0: self.second.positions.bounds(0)[1]}, screen)
        self._show(screen)

    def _until(self, member: GroupMember, ends: dict[int, int], screen: Screen) -> None:
        """Tourne jusqu'à ce que les partitions de ``member`` soient lues jusqu'à ``ends``, et cela validé.

        Toutes, ou celles qui sont à nous si d'autres moniteurs ont le reste depuis assez longtemps pour être vivants.
        """
        first = member is self.first
        process, count = (self.reading.process, BATCH) if first else (self.merging.process, PARTIALS_BATCH)
        while not self.stop:
            turn(member, process, count, WAIT_SECONDS)
            self.reading.align()
            self._show(screen)
            settled = member.rebalanced_at and time.monotonic() - member.rebalanced_at > SETTLED_SECONDS
            read = all(member.ended.get(partition, -1) >= ends.get(partition, 0) for partition in member.owned)
            if read and (len(member.owned) >= len(ends) or settled):
                if first:
                    self.reading.tick(self.args.idle_timeout, once=True)
                member.checkpoint()
                if not member.must_abort:
                    return

    def measures(self) -> Measures:
        """Pour --metrics-port."""
        numbers, members = self.numbers, (self.first, self.second)
        return Measures(
            numbers.read, numbers.lag, sum(one.commits for one in members), sum(one.aborts for one in members),
            numbers.late_by(), numbers.batches,
        )  # fmt: skip

    def _show(self, screen: Screen) -> None:
        self.numbers.lag, self.numbers.merging = self.first.lag(), self.merging.merger is not None
        screen.show(self.merging.ready, self.numbers, self.merging.preview)
        self.merging.ready.clear()


def turn(member: GroupMember, process: Callable[[int, list[Message]], None], count: int, seconds: float) -> bool:
    """Lire, ``seconds`` au plus, calculer, valider s'il est temps ; vrai s'il reste sûrement à lire."""
    found = member.read(count, seconds)
    behind = sum(map(len, found.values())) == count
    for owned, messages in found.items():
        if member.holds(owned):
            try:
                process(owned.partition, messages)
            except Aborted as error:
                member.undo(error)
            owned.next = owned.read
        commit_in_time(member, behind=True)  # une transaction ne dure jamais beaucoup plus
    commit_in_time(member, behind)
    return behind


def commit_in_time(member: GroupMember, behind: bool) -> None:
    """Valide s'il est temps."""
    if time.monotonic() - member.checkpoint_at >= (BEHIND_SECONDS if behind else LIVE_SECONDS):
        member.checkpoint()


# --- Options ---


def _slide(text: str) -> int | None:
    return None if text == EVENT else milliseconds(text)


def milliseconds(text: str, *, zero: bool = False) -> int:
    """Type d'option : des secondes, en millisecondes entières."""
    found: int = round(positive(float, zero=zero)(text) * 1000)
    if not found and not zero:
        raise argparse.ArgumentTypeError(f"{text!r} : au moins une milliseconde (0.001)")
    return found


def milliseconds_or_zero(text: str) -> int:
    """De même, zéro compris."""
    return milliseconds(text, zero=True)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--output", env="TRANSACTIONS_FENETRES", default=OUTPUT, help="topic des fenêtres")
    parser.option("--alerts", env="TRANSACTIONS_ALERTES", default=ALERTS, help="topic des alertes")
    parser.option("--group", env="TRANSACTIONS_MONITOR_GROUP",
                  help="groupe des moniteurs qui se partagent le travail ; sans lui, un par réglage")  # fmt: skip
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--size", type=milliseconds, dest="size_ms", default="60", help="longueur d'une fenêtre, en secondes")
    parser.option("--slide", type=_slide, dest="slide_ms", default="10", metavar="S|event",
                  help="une fenêtre toutes les S secondes, ou une par transaction")  # fmt: skip
    parser.option("--by", choices=("type", "region", "compte", "canal"), help="une fenêtre par valeur de ce champ")
    parser.option("--max-delay", type=milliseconds_or_zero, dest="max_delay_ms", default="5",
                  help="retard attendu d'une transaction, en secondes")  # fmt: skip
    parser.option("--max-future", type=milliseconds_or_zero, dest="max_future_ms", default="60",
                  help="avance acceptée sur l'horloge, en secondes")  # fmt: skip
    parser.option("--idle-timeout", type=positive(float), default=10.0,
                  help="une partition muette depuis S secondes ne retient plus les autres")  # fmt: skip
    parser.option("--grace", type=milliseconds_or_zero, dest="grace_ms", default="0",
                  help="les retards de moins de S secondes corrigent une fenêtre publiée")  # fmt: skip
    parser.option("--alert", type=alert_option, action="append", default=[], metavar="CONDITION",
                  help="signale les fenêtres où elle est vraie (montant_total > 10000) ; répétable")  # fmt: skip
    parser.option("--once", action="store_true", help="lit le topic jusqu'au bout, puis s'arrête")
    parser.option("--format", choices=("table", "json"),
                  help="tableau vivant ou lignes JSON ; par défaut table dans un terminal, sinon json")  # fmt: skip
    topic_options(parser)
    args = parser.parse(argv)
    args.format = args.format or ("table" if sys.stdout.isatty() else "json")
    if args.slide_ms is None and args.grace_ms:
        parser.error("--grace ne va pas avec --slide event")
    args.group = args.group or group_name(args)
    args.partials, args.dead_letters = f"{args.group}-partiels", f"{args.output}-dlq"
    return args


def group_name(args: argparse.Namespace) -> str:
    """Un groupe par réglage : deux moniteurs réglés autrement ne se partagent pas le travail.

    Un réglage laissé à son défaut n'y paraît pas : le nom reste celui des versions d'avant.
    """
    slide = EVENT if args.slide_ms is None else f"{args.slide_ms / 1000:g}"
    name = f"fenetres-{args.topic}-{args.size_ms / 1000:g}-{slide}-{args.by or 'toutes'}"
    wanted = {
        "output": args.output, "alerts": args.alerts, "max-delay": args.max_delay_ms, "max-future": args.max_future_ms,
        "grace": args.grace_ms, "idle-timeout": args.idle_timeout, "alert": [alert.text for alert in args.alert],
    }  # fmt: skip
    changed = sorted(f"{option}={value}" for option, value in wanted.items() if value != USUAL[option])
    return name + (f"-{hashlib.sha256(' '.join(changed).encode()).hexdigest()[:8]}" if changed else "")


USUAL: dict[str, object] = {
    "output": OUTPUT, "alerts": ALERTS, "max-delay": 5_000, "max-future": 60_000, "grace": 0, "idle-timeout": 10.0,
    "alert": [],
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(CONSUMER_CONFIG, GUARANTEED, args)
    producer = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        stream(args, args.topic),
        single(args, args.partials, PARTIAL_TOPIC),
        stream(args, args.output),
        single(args, args.alerts),
        letters(args, args.dead_letters),
    )
    args.partitions = count_partitions(config, args.topic)
    if args.partitions > MOST_PARTITIONS:
        raise PipelineError(f"{args.topic} a {args.partitions} partitions : au plus {MOST_PARTITIONS} ici.")
    log.info("Fenêtres de %s (groupe %s), publiées dans %s.", args.topic, args.group, args.output)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with ExitStack() as closed:
            monitor = Monitor(args, stop, config, producer)
            for client in (closing(monitor.merging), monitor.second, monitor.first):
                closed.enter_context(client)
            serve_metrics(args.metrics_port, monitor.measures)
            monitor.join()
            screen = closed.enter_context(Screen(args.format))
            (monitor.run_once if args.once else monitor.run)(screen)
        log.info("Terminé : %s.", monitor.numbers)
    except Stopped as stopped:
        log.warning("%s", stopped)
    return 0


if __name__ == "__main__":
    run(main)
