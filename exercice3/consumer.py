"""Lit les ventes dans Kafka (topic ventes-stream) et les écrit dans MongoDB (ventes_db.ventes).

    python consumer.py                    sans fin ; Ctrl-C pour arrêter
    python consumer.py --idle-timeout 10  s'arrête après 10 s sans message
    python consumer.py --from-beginning   relit tout : rien n'est doublé
    python consumer.py --prepare          crée la collection et ses index, puis fin

Garantit : chaque vente est une fois dans MongoDB, quoi qu'il arrive à ce script, à Kafka, au
topic ou à MongoDB, et quel que soit le nombre de consommateurs : la vente est écrite et
journalisée avant que sa position soit validée, et son identifiant est la clé unique _id.
Une correction est un document de plus : rien n'est jamais récrit.
Ce qui n'est pas une vente va dans ventes-stream-dlq, avec la raison et l'origine.
Ne garantit pas : qu'une lettre morte n'y est qu'une fois après une coupure ; ses en-têtes
dlq.partition et dlq.offset la reconnaissent.
Ensuite : schedule_export.py exporte ces ventes en CSV. L'écriture elle-même est dans
arrivages.py, la forme d'un document dans collection.py, les règles d'une vente dans ventes.py,
le membre du groupe dans commun/group_member.py.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from commun.cli import Parser, Stop, Stopped, positive, run
from commun.group_member import GroupMember, Owned
from commun.kafka import (
    DEAD_LETTER_BYTES,
    DEAD_LETTER_TOPIC,
    client_config,
    dead_letter,
    ensure_topics,
    kafka_options,
    place,
)
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from commun.outputs import AtLeastOnce, Outputs
from exercice3.arrivages import Outcome, write
from exercice3.collection import Document, account_error, explain, key, open_client, open_database, prepare
from exercice3.producer import PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG
from exercice3.ventes import InvalidVente, Vente, parse

from confluent_kafka import Message
from confluent_kafka.cimpl import NewTopic
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

log = logging.getLogger("pipeline")

GROUP = "ventes-consumer-group"
BATCH_SIZE = 1000
BATCH_BYTES = 8_000_000  # un message peut peser 1 Mo
READ_SIZE = 100
BATCH_SECONDS = 0.5  # un lot incomplet n'attend pas plus
RETRY_SECONDS = (0.5, 1, 2, 5)  # attentes successives quand MongoDB ne répond pas ; la dernière se répète
REPORT_SECONDS = 5.0

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la position n'avance qu'après l'écriture dans MongoDB
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 10_000,  # un membre tué est remplacé au bout de 10 s
    "auto.offset.reset": "error",  # une position perdue se dit, et se décide ici : le client n'en choisit pas une autre
    "enable.partition.eof": True,  # pour savoir qu'une partition n'a plus rien
    "topic.metadata.refresh.interval.ms": 5_000,  # partitions ajoutées, topic recréé : vus sans attendre cinq minutes
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
    "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "isolation.level", "enable.partition.eof",
    "partition.assignment.strategy", "acks", "enable.idempotence", "message.timeout.ms",
)  # fmt: skip

Batch = dict[str, tuple[Vente, list[Message]]]  # par clé : la vente et les messages qui la portent
Rejected = list[tuple[Message, str]]  # messages refusés, avec la raison


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


class Worker:
    """La boucle : lire un lot, l'écrire dans MongoDB, ranger ce qui n'est pas une vente, valider la position."""

    def __init__(
        self, args: argparse.Namespace, member: GroupMember, outputs: Outputs, database: Database[Document], stop: Stop
    ) -> None:
        self.args, self.member, self.outputs, self.database, self.stop = args, member, outputs, database, stop
        self.read = self.written = self.dead_letters = 0
        self.batches = Durations()
        self.lag: dict[int, int] = {}  # messages qui restent à traiter, par partition

    def run(self) -> None:
        """Jusqu'à l'arrêt, --max-messages ou --idle-timeout."""
        reported = time.monotonic()
        while not self.stop and (room := self._room()):
            if found := self._read(room):
                with self.batches:
                    self._process(found)
            elif self.args.idle_timeout and self.member.idle(self.args.idle_timeout):
                break
            self.member.checkpoint()
            self.lag = self.member.lag()
            if found and time.monotonic() - reported > REPORT_SECONDS:
                log.info("%s", self)
                reported = time.monotonic()

    def _room(self) -> int:
        return BATCH_SIZE if self.args.max_messages is None else min(BATCH_SIZE, self.args.max_messages - self.read)

    def _read(self, room: int) -> dict[Owned, list[Message]]:
        """Au plus ``room`` messages, BATCH_BYTES octets, BATCH_SECONDS d'attente, des partitions qui sont à nous."""
        found: dict[Owned, list[Message]] = {}
        count = size = 0
        deadline = time.monotonic() + BATCH_SECONDS
        while count < room and size < BATCH_BYTES and (left := deadline - time.monotonic()) > 0:
            for owned, messages in self.member.read(min(READ_SIZE, room - count), left).items():
                found.setdefault(owned, []).extend(messages)
                count += len(messages)
                size += sum(len(message.value() or b"") for message in messages)
        return {owned: messages for owned, messages in found.items() if self.member.holds(owned)}

    def _process(self, found: dict[Owned, list[Message]]) -> None:
        """Écrit, range les lettres mortes, et seulement alors avance."""
        messages = [message for taken in found.values() for message in taken]
        batches, rejected = sort_messages(messages, datetime.now())  # noqa: DTZ005 - heure locale, comme date_vente
        written = 0
        for batch in batches:
            outcome = self._write(batch)
            if outcome is None:
                log.warning("Arrêt : %d messages non traités seront relus au prochain démarrage.", len(messages))
                return
            written += outcome.written
            rejected += [(message, reason) for id, reason in outcome.refused.items() for message in batch[id][1]]
        for message, reason in rejected:
            log.warning("Lettre morte (partition %s, offset %s) : %s", message.partition(), message.offset(), reason)
            self.outputs.write(f"{self.args.topic}-dlq", *dead_letter(message, reason))
        for owned, taken in found.items():
            owned.next = place(taken[-1], 1).offset
        self.read += len(messages)
        self.written += written
        self.dead_letters += len(rejected)

    def _write(self, batch: Batch) -> Outcome | None:
        """Écrit ce lot, et insiste jusqu'à ce que MongoDB réponde ; None si l'arrêt est demandé avant."""
        ventes = [vente for vente, _ in batch.values()]
        try:
            return write(self.database, ventes, datetime.now(UTC))
        except PyMongoError as error:
            first = error
        outcome = self.member.work(lambda: self._insist(ventes, first))
        if outcome is not None:
            log.info("MongoDB répond de nouveau.")
        return outcome

    def _insist(self, ventes: list[Vente], error: PyMongoError) -> Outcome | None:
        said, attempt = "", 0
        while True:
            if fault := account_error(error):
                raise fault from error
            now_said = explain(error) if isinstance(error, OperationFailure) else "MongoDB ne répond plus"
            if now_said != said:
                said = now_said
                log.warning("%s : j'attends, rien n'est perdu.", said)
            if self.stop.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
                return None
            try:
                return write(self.database, ventes, datetime.now(UTC))
            except PyMongoError as again:
                error, attempt = again, attempt + 1

    def measures(self) -> Measures:
        """Pour --metrics-port."""
        return Measures(self.read, self.lag, batches=self.batches)

    def __str__(self) -> str:
        already_there = self.read - self.written - self.dead_letters
        return (
            f"{self.read} messages lus, {self.written} ventes écrites, {already_there} déjà là, "
            f"{self.dead_letters} lettres mortes"
        )


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--group", env="VENTES_GROUP", default=GROUP, help="groupe de consommateurs")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--prepare", action="store_true", help="crée ce qui manque dans MongoDB (rôle dbAdmin), puis fin")
    parser.option("--from-beginning", action="store_true", help="ramène le groupe, arrêté, au début du topic")
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages")
    parser.option(
        "--idle-timeout", type=positive(float), help="s'arrête après S secondes sans message, une fois des partitions "
        "reçues",
    )  # fmt: skip
    return parser.parse(argv)


def consume(args: argparse.Namespace, database: Database[Document], stop: Stop) -> None:
    """Du groupe à la base, jusqu'à l'arrêt."""
    config = client_config(CONSUMER_CONFIG | {"group.id": args.group}, GUARANTEED, args)
    producer_config = client_config(DEAD_LETTER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-dlq", 1, REPLICATION_FACTOR, config=DEAD_LETTER_TOPIC),
    )
    outputs = AtLeastOnce(producer_config, stop)
    with GroupMember(args.topic, config, outputs, stop) as member:
        worker = Worker(args, member, outputs, database, stop)
        serve_metrics(args.metrics_port, worker.measures)
        if args.from_beginning:
            member.positions.start_from_beginning()
        member.join()
        log.info("Lecture de %s (groupe %s), écriture dans MongoDB (%s).", args.topic, args.group, database.name)
        worker.run()
    log.info("Terminé : %s.", worker)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    with open_client() as client:
        database = open_database(client)
        prepare(database)
        try:
            if not args.prepare:
                consume(args, database, stop)
        except Stopped as stopped:
            log.warning("%s", stopped)
    return 0


if __name__ == "__main__":
    run(main)
