"""Montre dans la console ce qui arrive dans Kafka (topic csv-topic).

    python consumer.py                          ce qui est nouveau pour ce groupe, sans fin ; Ctrl-C pour arrêter
    python consumer.py --from-beginning         tout, depuis le début du topic, sans rien prendre aux autres
    python consumer.py --show partition,offset  avec la place de chaque message
    python consumer.py --filter region=Bretagne --format json

Garantit : seules les lignes des transactions confirmées sont montrées (read_committed) ; la position
du groupe n'avance que pour ce qui est montré. Ce qui n'est pas du JSON, comme les lignes brutes de
Kafka Connect, est montré tel quel.
Ne garantit pas : qu'une ligne n'est montrée qu'une fois ; tué net, ce script peut remontrer la
dernière seconde ; le topic effacé puis recréé, il le montre depuis son début, en quelques secondes.
Ensuite : exercice3/consumer.py fait la même lecture, et écrit dans une base.
"""

import argparse
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from commun.cli import Parser, Stop, positive, run
from commun.kafka import FromBeginning, Lag, client_config, connect, ensure_topics, kafka_options, place, readable
from commun.metrics import Measures, metrics_option, serve_metrics
from commun.systems import reader_gone, write_out
from commun.topics import IDENTITY_SECONDS, Recreated, SameTopic
from exercice1.display import Record, Table, as_json, as_raw, read, selected
from exercice1.topic import PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

GROUP = "csv-consumer-group"
BATCH_SIZE = 500
BATCH_SECONDS = 0.1  # une ligne arrivée seule est montrée au plus tard après ce temps
DETAILS = ("partition", "offset", "time", "key", "headers")

CONSUMER_CONFIG = {
    "isolation.level": "read_committed",  # une transaction annulée ou en cours ne se voit pas
    "auto.offset.reset": "earliest",  # un groupe nouveau voit tout
    "enable.auto.offset.store": False,  # la position retenue est celle de ce qui a été montré…
    "enable.auto.commit": True,  # … et le client la valide toutes les secondes, et en partant
    "auto.commit.interval.ms": 1000,
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 10_000,
    "topic.metadata.refresh.interval.ms": 5_000,  # une partition ajoutée au topic est vue au bout de ce temps
    "fetch.queue.backoff.ms": 10,  # 1 s par défaut, qui plafonne le débit
}
GUARANTEED = (
    "isolation.level", "auto.offset.reset", "enable.auto.offset.store", "enable.auto.commit",
    "partition.assignment.strategy",
)  # fmt: skip


def details(message: Message, wanted: Sequence[str]) -> dict[str, Any]:
    """Ce que --show demande d'un message, dans l'ordre demandé."""
    found: dict[str, Any] = {}
    for name in wanted:
        match name:
            case "partition":
                found[name] = message.partition()
            case "offset":
                found[name] = message.offset()
            case "time":
                found[name] = _local_time(*message.timestamp())
            case "key":
                key = message.key()
                found[name] = None if key is None else key.decode("utf-8", "replace")
            case _:
                found |= {header: _readable(value) for header, value in dict(message.headers() or {}).items()}
    return found


def _local_time(kind: int, milliseconds: int) -> str | None:
    """L'heure de qui regarde. Sans heure, Kafka dit -1, dont Windows ne sait pas faire une date."""
    if kind == TIMESTAMP_NOT_AVAILABLE:
        return None
    return datetime.fromtimestamp(milliseconds / 1000).isoformat(timespec="milliseconds")  # noqa: DTZ006


def _readable(value: bytes | str | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Screen:
    """La sortie standard, dans le format demandé ; ``shown`` messages montrés, ``lag`` : ce qui reste à montrer."""

    def __init__(self, wanted: str) -> None:
        self.shown, self.lag = 0, Lag()
        self._format, self._table = wanted, Table()

    def show(self, records: Sequence[Record]) -> None:
        """Écrit ``records`` et attend que ce soit parti ; lève BrokenPipeError si plus personne ne lit."""
        match self._format:
            case "table":
                lines = [line.encode("utf-8", "replace") for line in self._table.lines(records)]
            case "json":
                lines = [as_json(record) for record in records]
            case _:
                lines = [as_raw(record) for record in records]
        write_out(b"".join(line + b"\n" for line in lines))
        self.shown += len(records)


class Reading:
    """Où en est ce membre du groupe : le topic qu'il lit (``source``), et ce qui est retenu de ce qu'il a montré.

    ``apart`` : un regard à part (--from-beginning, sans --group). Sa position n'est gardée qu'ici : validée, elle
    resterait sept jours dans Kafka, comme un retard que personne ne rattrape.
    """

    def __init__(self, source: SameTopic, from_beginning: bool, *, apart: bool) -> None:
        self.source, self._apart = source, apart
        self._beginning = FromBeginning() if from_beginning else None
        self._active_at: float | None = None

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """``partitions`` arrivent."""
        self._active_at = self._active_at or time.monotonic()
        if self._beginning:
            self._beginning(consumer, partitions)
        else:
            consumer.incremental_assign(partitions)

    def remember(self, consumer: Consumer, messages: Sequence[Message]) -> None:
        """Retient la position qui suit ``messages`` ; le client valide de lui-même celle d'un groupe."""
        self._active_at = time.monotonic()
        if self._apart and self._beginning:
            self._beginning.after(messages)
            return
        following = {message.partition(): place(message, 1) for message in messages}
        try:
            consumer.store_offsets(offsets=list(following.values()))
        except KafkaException as error:
            log.debug("Partition passée à un autre membre, qui remontrera ces lignes : %s", error)

    def idle(self, seconds: float) -> bool:
        """Vrai si rien n'est arrivé depuis ``seconds`` ; le temps d'entrer dans le groupe ne compte pas."""
        return self._active_at is not None and time.monotonic() - self._active_at > seconds


def watch(consumer: Consumer, screen: Screen, reading: Reading, args: argparse.Namespace, stop: Stop) -> None:
    """La boucle : lire, montrer, retenir la position."""
    while not stop and not reader_gone() and (args.max_messages is None or screen.shown < args.max_messages):
        room = BATCH_SIZE if args.max_messages is None else min(BATCH_SIZE, args.max_messages - screen.shown)
        messages = [message for message in consumer.consume(room, BATCH_SECONDS) if readable(message)]
        screen.lag.after(consumer, messages)
        records = [read(message.value(), details(message, args.show)) for message in messages]
        wanted = [record for record in records if selected(record, args.filter)]
        if wanted:
            screen.show(wanted)
        reading.source.check(IDENTITY_SECONDS)
        if messages:
            reading.remember(consumer, messages)
        elif args.idle_timeout and reading.idle(args.idle_timeout):
            break


def join(consumer: Consumer, screen: Screen, reading: Reading, args: argparse.Namespace, stop: Stop) -> bool:
    """Un membre du groupe, de son entrée à sa sortie ; vrai si le topic, recréé, est à relire par un client neuf."""
    try:
        forget = screen.lag.forget
        consumer.subscribe([args.topic], on_assign=reading.on_assign, on_revoke=forget, on_lost=forget)
        watch(consumer, screen, reading, args, stop)
    except Recreated:
        return True
    finally:
        consumer.close()  # valide la position et quitte le groupe tout de suite
    return False


# --- Options ---


def _details(text: str) -> list[str]:
    wanted = [name.strip() for name in text.split(",")]
    if not set(wanted) <= set(DETAILS):
        raise argparse.ArgumentTypeError(f"{text!r} : choisissez parmi {', '.join(DETAILS)}")
    return wanted


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise argparse.ArgumentTypeError(f"{text!r} : écrivez COLONNE=VALEUR")
    return column, value


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="CSV_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--group", env="CSV_GROUP", default=GROUP,
                  help="groupe de consommateurs ; sans cette option, --from-beginning en a un à lui")  # fmt: skip
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--from-beginning", action="store_true", help="relit le topic depuis son début")
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages montrés")
    parser.option("--idle-timeout", type=positive(float),
                  help="s'arrête après S secondes sans message, une fois dans le groupe")  # fmt: skip
    parser.option("--format", choices=("table", "json", "raw"),
                  help="table alignée, JSON ou octets ; par défaut table dans un terminal, sinon json")  # fmt: skip
    parser.option("--show", type=_details, default=[], metavar="DÉTAIL,…", help=f"montre aussi : {', '.join(DETAILS)}")
    parser.option("--filter", type=_condition, action="append", default=[], metavar="COLONNE=VALEUR",
                  help="ne montre que ces lignes ; répétable")  # fmt: skip
    args = parser.parse(argv)
    args.apart = args.from_beginning and args.group == GROUP
    if args.apart:  # qui regarde tout ne prend pas leurs lignes aux autres
        args.group = f"{GROUP}-{uuid.uuid4().hex[:8]}"
    args.filter = dict(args.filter)
    args.format = args.format or ("table" if sys.stdout.isatty() else "json")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    identity = {"group.id": args.group, "enable.auto.commit": not args.apart}
    config = client_config(CONSUMER_CONFIG | identity, GUARANTEED, args)
    ensure_topics(config, NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG))
    screen, reading = Screen(args.format), Reading(SameTopic(config, args.topic), args.from_beginning, apart=args.apart)
    log.info("Lecture de %s (groupe %s).", args.topic, args.group)
    serve_metrics(args.metrics_port, lambda: Measures(screen.shown, screen.lag.left))
    while join(connect(Consumer, config), screen, reading, args, stop):
        reading = Reading(reading.source, True, apart=args.apart)
    log.info("Terminé. Messages montrés : %d.", screen.shown)
    return 0


if __name__ == "__main__":
    run(main)
