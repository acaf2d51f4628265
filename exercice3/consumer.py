"""Lit les ventes dans Kafka (topic ventes-stream) et les écrit dans MongoDB (ventes_db.ventes).

    python consumer.py                    sans fin ; Ctrl-C pour arrêter
    python consumer.py --idle-timeout 10  s'arrête après 10 s sans message
    python consumer.py --from-beginning   relit tout : rien n'est doublé
    python consumer.py --prepare          crée la collection et ses index, puis fin

Garantit : chaque vente est une fois dans MongoDB, quoi qu'il arrive à ce script, à Kafka
ou à MongoDB, et quel que soit le nombre de consommateurs : la vente est écrite et
journalisée avant que sa position soit validée, et son identifiant est la clé unique _id.
Une correction est un document de plus : rien n'est jamais récrit. Un topic effacé puis
recréé est relu depuis son début.
Ce qui n'est pas une vente va dans ventes-stream-dlq, avec la raison et l'origine.
Ne garantit pas : qu'une lettre morte n'y est qu'une fois après une coupure ; ses en-têtes
dlq.partition et dlq.offset la reconnaissent.
Ensuite : schedule_export.py exporte ces ventes en CSV. L'écriture elle-même est dans
arrivages.py, la forme d'un document dans collection.py, les règles d'une vente dans ventes.py.
"""

import argparse
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from commun.cli import Parser, Stop, Stopped, positive, run
from commun.errors import PipelineError
from commun.kafka import (
    DEAD_LETTER_BYTES,
    DEAD_LETTER_TOPIC,
    FromBeginning,
    Lag,
    client_config,
    connect,
    dead_letter_of,
    ensure_topics,
    kafka_options,
    place,
    readable,
    send,
)
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from commun.topics import IDENTITY_SECONDS, Recreated, SameTopic
from exercice3.arrivages import Outcome, write
from exercice3.collection import Document, account_error, explain, key, open_client, open_database, prepare
from exercice3.producer import PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG
from exercice3.ventes import InvalidVente, Vente, parse

log = logging.getLogger("pipeline")

GROUP = "ventes-consumer-group"
BATCH_SIZE = 1000
BATCH_BYTES = 8_000_000  # un message peut peser 1 Mo
READ_SIZE = 100
BATCH_SECONDS = 0.5  # un lot incomplet n'attend pas plus
ASSIGNED_SECONDS = 60.0  # sans partition au bout de ce temps, il n'y en a pas pour nous
STOP_SECONDS = 5.0  # ce que l'arrêt laisse à Kafka pour valider la dernière position, puis pour quitter le groupe
RETRY_SECONDS = (0.5, 1, 2, 5)  # attentes successives quand MongoDB ne répond pas ; la dernière se répète
REPORT_SECONDS = 5.0

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la position n'avance qu'après l'écriture dans MongoDB
    "auto.offset.reset": "earliest",  # un groupe nouveau lit tout, il ne saute rien
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 10_000,  # un membre tué est remplacé au bout de 10 s
    "fetch.queue.backoff.ms": 10,  # 1 s par défaut, qui plafonne le débit
    "queued.max.messages.kbytes": 16_384,  # borne la mémoire : ce qui est lu d'avance, par partition
}
DEAD_LETTER_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": 0,  # jamais abandonnée : Kafka absent, elle attend son retour
    "message.max.bytes": DEAD_LETTER_BYTES,
}
GUARANTEED = (
    "enable.auto.commit", "auto.offset.reset", "isolation.level", "partition.assignment.strategy", "acks",
    "enable.idempotence", "message.timeout.ms",
)  # fmt: skip

Batch = dict[str, tuple[Vente, list[Message]]]  # par clé : la vente et les messages qui la portent
Rejected = list[tuple[Message, str]]  # messages refusés, avec la raison


@dataclass
class Counts:
    """Ce que le script a fait depuis son démarrage."""

    read: int = 0
    written: int = 0
    dead_letters: int = 0

    def __str__(self) -> str:
        already_there = self.read - self.written - self.dead_letters
        return (
            f"{self.read} messages lus, {self.written} ventes écrites, {already_there} déjà là, "
            f"{self.dead_letters} lettres mortes"
        )


def sort_messages(messages: list[Message], now: datetime) -> tuple[list[Batch], Rejected]:
    """Range les ventes valides en lots, et les autres messages avec leur raison.

    Un seul lot suffit presque toujours ; deux ventes différentes sous un même identifiant vont
    dans deux lots, écrits l'un après l'autre. ``now`` est l'heure locale, comme ``date_vente`` ; si cette horloge
    retarde, l'heure d'envoi des messages dit ce qui n'est pas dans le futur.
    """
    batches: list[Batch] = [{}]
    rejected: Rejected = []
    for message in messages:
        try:
            vente = parse(message.value(), max(now, sent_at(message)))
        except InvalidVente as error:
            rejected.append((message, str(error)))
            continue
        for batch in batches:
            known, origins = batch.setdefault(key(vente), (vente, []))
            if known == vente:
                origins.append(message)
                break
        else:
            batches.append({key(vente): (vente, [message])})
    return batches, rejected


def sent_at(message: Message) -> datetime:
    """Heure locale d'envoi d'un message, que Kafka garde ; la plus ancienne qui soit s'il n'en a pas."""
    try:
        return datetime.fromtimestamp(message.timestamp()[1] / 1000)  # noqa: DTZ006 - heure locale, comme date_vente
    except (ValueError, OverflowError, OSError):
        return datetime.min  # noqa: DTZ901


def write_until_done(consumer: Consumer, database: Database[Document], batch: Batch, stop: Stop) -> Outcome | None:
    """``write``, répété jusqu'à ce que MongoDB réponde ; None si l'arrêt est demandé avant."""
    said, attempt = "", 0
    while True:
        try:
            outcome = write(database, [vente for vente, _ in batch.values()], datetime.now(UTC))
            break
        except PyMongoError as error:
            if fault := account_error(error):
                raise fault from error
            now_said = explain(error) if isinstance(error, OperationFailure) else "MongoDB ne répond plus"
            if now_said != said:
                said = now_said
                log.warning("%s : j'attends, rien n'est perdu.", said)
            if stop:
                return None
            wait_paused(consumer, RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
    if attempt:
        log.info("MongoDB répond de nouveau.")
        consumer.resume(consumer.assignment())
    return outcome


def wait_paused(consumer: Consumer, seconds: float) -> None:
    """Attend sans quitter le groupe : partitions en pause, mais ``poll`` continue de battre."""
    consumer.pause(consumer.assignment())
    message = consumer.poll(seconds)
    if message is not None and not message.error():
        # D'une partition arrivée pendant l'attente : on la relira, rien n'est sauté.
        consumer.seek(place(message))


def bury(producer: Producer, topic: str, rejected: Rejected, stop: Stop) -> bool:
    """Range les messages refusés tels quels dans ``topic`` et attend leur confirmation ; faux si l'arrêt vient avant.

    Un refus définitif de Kafka lève PipelineError : rien n'est jeté en silence.
    """

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            raise PipelineError(f"Kafka refuse une lettre morte : {error.str()}. Sa position n'avance pas.")

    for message, reason in rejected:
        headers = dead_letter_of(message, reason)
        try:
            send(producer, stop, topic, message.value(), key=message.key(), headers=headers, on_delivery=on_delivery)
        except Stopped:
            return False
        log.warning("Lettre morte (partition %s, offset %s) : %s", message.partition(), message.offset(), reason)
    while rejected and producer.flush(1):
        if stop:
            return False
    return True


def commit(consumer: Consumer, messages: list[Message], stop: Stop) -> None:
    """Valide la position qui suit le dernier message de chaque partition."""
    following = {message.partition(): place(message, 1) for message in messages}

    def ask() -> None:
        try:
            consumer.commit(offsets=list(following.values()), asynchronous=False)
        except (KafkaException, RuntimeError) as error:
            # Partition passée à un autre membre entre-temps : il relira ces ventes, MongoDB les reconnaîtra.
            reason = error.args[0].name() if isinstance(error, KafkaException) else error
            log.info("Position non validée (%s) : ces messages seront relus sans doublon.", reason)

    wait_for(ask, stop)


def wait_for(call: Callable[[], object], stop: Stop) -> None:
    """Attend la fin de ``call``, que Kafka absent ou gelé fait durer ; l'arrêt n'attend pas plus de STOP_SECONDS.

    ``commit`` et ``close`` n'ont pas de délai : dans un fil à part, Ctrl-C est entendu.
    """
    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    left = STOP_SECONDS
    while calling.is_alive() and left > 0:
        calling.join(0.1)
        left -= 0.1 if stop else 0


@dataclass
class Sink:
    """Où vont les messages : la base, la file des lettres mortes ; le compte de ce qui est fait, et en combien."""

    database: Database[Document]
    producer: Producer
    dead_letter_topic: str
    source: SameTopic
    counts: Counts
    batches: Durations = field(default_factory=Durations)
    lag: Lag = field(default_factory=Lag)


def process(consumer: Consumer, sink: Sink, messages: list[Message], stop: Stop) -> bool:
    """Écrit, range les lettres mortes, et seulement alors valide la position ; faux si l'arrêt vient avant."""
    with sink.batches:
        return _process(consumer, sink, messages, stop)


def _process(consumer: Consumer, sink: Sink, messages: list[Message], stop: Stop) -> bool:
    batches, rejected = sort_messages(messages, datetime.now())  # noqa: DTZ005 - heure locale, comme date_vente
    written = 0
    for batch in batches:
        outcome = write_until_done(consumer, sink.database, batch, stop)
        if outcome is None:
            return False
        written += outcome.written
        rejected += [(message, reason) for id, reason in outcome.refused.items() for message in batch[id][1]]
    if not bury(sink.producer, sink.dead_letter_topic, rejected, stop):
        return False
    sink.source.check()
    commit(consumer, messages, stop)
    sink.counts.read += len(messages)
    sink.counts.written += written
    sink.counts.dead_letters += len(rejected)
    return True


def read_batch(consumer: Consumer, room: int) -> list[Message]:
    """Au plus ``room`` messages, BATCH_BYTES octets, BATCH_SECONDS d'attente."""
    batch: list[Message] = []
    size, deadline = 0, time.monotonic() + BATCH_SECONDS
    while len(batch) < room and size < BATCH_BYTES and (left := deadline - time.monotonic()) > 0:
        messages = consumer.consume(min(READ_SIZE, room - len(batch)), left)
        batch += filter(readable, messages)
        size += sum(len(message.value() or b"") for message in messages)
    return batch


class Assigned:
    """Rappel d'attribution : le silence ne se compte qu'une fois des partitions reçues."""

    def __init__(self, from_beginning: bool) -> None:
        self._since = time.monotonic()
        self._then = FromBeginning() if from_beginning else None
        self._done = False

    def __call__(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """``partitions`` arrivent ; sans rappel de plus, le client les prend lui-même."""
        self._done = self._done or bool(partitions)
        if self._then:
            self._then(consumer, partitions)

    def __bool__(self) -> bool:
        return self._done or time.monotonic() - self._since > ASSIGNED_SECONDS


def consume(consumer: Consumer, sink: Sink, args: argparse.Namespace, stop: Stop, assigned: Assigned) -> None:
    """La boucle : un lot après l'autre, jusqu'à l'arrêt, --max-messages ou --idle-timeout."""
    counts = sink.counts
    active = reported = time.monotonic()
    while not stop and (args.max_messages is None or counts.read < args.max_messages):
        room = BATCH_SIZE if args.max_messages is None else min(BATCH_SIZE, args.max_messages - counts.read)
        messages = read_batch(consumer, room)
        sink.lag.after(consumer, messages)
        sink.source.check(IDENTITY_SECONDS)
        if messages and not process(consumer, sink, messages, stop):
            log.warning("Arrêt : %d messages non traités seront relus au prochain démarrage.", len(messages))
            break
        if messages or not assigned:
            active = time.monotonic()
        elif args.idle_timeout and time.monotonic() - active > args.idle_timeout:
            break
        if messages and time.monotonic() - reported > REPORT_SECONDS:
            log.info("%s", counts)
            reported = time.monotonic()


def join(consumer: Consumer, sink: Sink, args: argparse.Namespace, stop: Stop) -> bool:
    """Un membre du groupe, de son entrée à sa sortie ; vrai si le topic, recréé, est à relire par un client neuf."""
    assigned = Assigned(args.from_beginning)
    try:
        consumer.subscribe([args.topic], on_assign=assigned, on_revoke=sink.lag.forget, on_lost=sink.lag.forget)
        consume(consumer, sink, args, stop, assigned)
    except Recreated:
        return True
    finally:
        wait_for(consumer.close, stop)  # quitte le groupe tout de suite : un autre membre prend la suite
    return False


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--group", env="VENTES_GROUP", default=GROUP, help="groupe de consommateurs")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--prepare", action="store_true", help="crée ce qui manque dans MongoDB (rôle dbAdmin), puis fin")
    parser.option("--from-beginning", action="store_true", help="relit le topic depuis son début")
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages")
    parser.option(
        "--idle-timeout", type=positive(float), help="s'arrête après S secondes sans message, une fois des partitions "
        "reçues",
    )  # fmt: skip
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    if args.prepare:
        with open_client() as client:
            prepare(open_database(client))
        return 0
    config = client_config(CONSUMER_CONFIG | {"group.id": args.group}, GUARANTEED, args)
    producer_config = client_config(DEAD_LETTER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-dlq", 1, REPLICATION_FACTOR, config=DEAD_LETTER_TOPIC),
    )
    with open_client() as client:
        database = open_database(client)
        prepare(database)
        producer = connect(Producer, producer_config)
        sink = Sink(database, producer, args.topic + "-dlq", SameTopic(config, args.topic), Counts())
        log.info("Lecture de %s (groupe %s), écriture dans MongoDB (%s).", args.topic, args.group, database.name)
        serve_metrics(args.metrics_port, lambda: Measures(sink.counts.read, sink.lag.left, batches=sink.batches))
        while join(connect(Consumer, config), sink, args, stop):
            args.from_beginning = True
    log.info("Terminé : %s.", sink.counts)
    return 0


if __name__ == "__main__":
    run(main)
