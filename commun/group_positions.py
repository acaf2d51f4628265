"""Les positions d'un groupe de consommateurs dans un topic : les lire, les régler avant d'y entrer.

Une position porte avec elle, dans ses métadonnées, l'identité du topic : Kafka en donne une autre au topic effacé puis
recréé sous le même nom. Une position d'un autre topic ne vaut rien : le nouveau est à lire depuis son début.

Les départs (--reset, --from-offsets) se règlent une fois, avant d'entrer dans le groupe, et sont validés aussitôt. Un
membre ne voit ensuite que des positions validées ; une partition qui n'en a pas est née depuis : son début.
"""

import argparse
import logging
import time
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from commun import PipelineError
from commun.cli import Stop, Stopped
from commun.kafka import Config, refusal
from commun.topics import CALL_SECONDS, Identity, bounds, read_topic

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

log = logging.getLogger("pipeline")
T = TypeVar("T")

Reset = str | datetime  # earliest, latest, ou un instant
EMPTY_SECONDS = 15.0  # un membre tué compte encore dans son groupe le temps de sa session (10 s)
SHORT_SECONDS = 0.1
SOURCE = "source.topic"  # en-tête d'une sortie : l'identité du topic d'où elle est tirée
PLAIN_CHARS = 1000  # plus longues, des métadonnées sont comprimées : Kafka les borne à 4 096 octets
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
BUSY = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.ILLEGAL_GENERATION)


class GroupPositions:
    """Les positions d'un groupe dans un topic. Chaque question est répétée tant que Kafka est muet.

    Lèvent Stopped si l'arrêt vient avant la réponse, PipelineError si Kafka refuse.
    """

    def __init__(self, topic: str, config: Config, consumer: Consumer, stop: Stop) -> None:
        self.topic, self.group, self.consumer, self.stop = topic, str(config["group.id"]), consumer, stop
        self._config = config
        self._identity = Identity(config, topic)
        self._admin = self._identity.admin

    def topic_id(self, seconds: float = 0.0) -> str:
        """Identité du topic ; vide s'il n'existe pas, même au bout de ``seconds``, ou si le cluster n'en donne pas."""
        deadline = time.monotonic() + seconds
        while True:
            found = self._ask(self._identity)
            if found is not None or time.monotonic() >= deadline or self.stop.wait(SHORT_SECONDS):
                return found or ""

    def committed(self, numbers: Sequence[int]) -> dict[int, tuple[int, str, str]]:
        """Pour chaque partition : sa position validée (négative : aucune), l'identité et les métadonnées jointes."""
        there = [TopicPartition(self.topic, number) for number in numbers]
        found = self._ask(lambda: _committed(self.consumer, there))
        return {one.partition: (int(one.offset), *split(one.metadata)) for one in found}

    def bounds(self, number: int) -> tuple[int, int]:
        """Début et fin d'une partition."""
        there = TopicPartition(self.topic, number)
        low, high = self._ask(lambda: self.consumer.get_watermark_offsets(there, CALL_SECONDS))
        return int(low), int(high)

    # --- Le départ ---

    def start_from_beginning(self) -> None:
        """--from-beginning : le groupe, arrêté, revient au début de chaque partition."""
        numbers = self._ask(lambda: _partitions(self._admin, self.topic))
        self.start_from(None, {number: self.bounds(number)[0] for number in numbers})

    def start_from(self, reset: Reset | None, offsets: Mapping[int, int], written: Sequence[str] = ()) -> None:
        """``offsets`` : les positions que le groupe prend, quelle que soit la sienne. ``reset`` : sa première.

        ``written`` : les topics où il n'écrit qu'une fois. S'il y a déjà écrit ce qu'il a tiré de ce topic-ci, avec
        des positions qu'il n'a plus, il ne recommence pas en silence : il faut lui dire d'où.
        """
        while not self._start_from(self.topic_id(), reset, offsets, written):
            log.info("Le topic %s vient d'être recréé : je cherche de nouveau d'où lire.", self.topic)

    def _start_from(
        self, topic_id: str, reset: Reset | None, offsets: Mapping[int, int], written: Sequence[str]
    ) -> bool:
        """Faux si le topic a été recréé pendant ce temps."""
        numbers = self._ask(lambda: _partitions(self._admin, self.topic))
        self._check(offsets, numbers)
        starts, forgotten = dict(offsets), False
        if not self._any(numbers):
            wrote = reset is None and not offsets and any(self._has_messages(topic, topic_id) for topic in written)
            forgotten = wrote and not self._any(
                numbers
            )  # demandé de nouveau : un autre membre vient peut-être d'écrire
            if reset not in (None, "earliest"):  # du début : c'est là que commence une partition sans position
                starts = {number: self._first(number, reset) for number in numbers} | starts
        if self.topic_id() != topic_id:
            return False
        if forgotten:
            raise PipelineError(
                f"Le groupe {self.group} n'a plus de position dans {self.topic} (Kafka efface celles d'un groupe "
                f"longtemps sans membre), mais {', '.join(written)} garde ce qui en a été tiré : tout relire le "
                "publierait une seconde fois. Dites d'où lire (--reset), ou prenez une autre sortie (--output)."
            )
        if starts:
            self._set(starts, numbers, topic_id, forced=bool(offsets))
        return True

    def _check(self, offsets: Mapping[int, int], numbers: Sequence[int]) -> None:
        for number, offset in offsets.items():
            low, high = self.bounds(number) if number in numbers else (0, -1)
            if not low <= offset <= high:
                known = f"va de {low} à {high}" if number in numbers else f"n'existe pas dans {self.topic}"
                raise PipelineError(f"--from-offsets {number}:{offset} : la partition {number} {known}.")

    def _any(self, numbers: Sequence[int]) -> bool:
        return any(offset >= 0 for offset, _, _ in self.committed(numbers).values())

    def _has_messages(self, topic: str, topic_id: str) -> bool:
        """Vrai si ce qui y a été validé vient de ce topic-ci, ou peut-être : effacé depuis, ou sans en-tête."""
        numbers = self._ask(lambda: _partitions(self._admin, topic))
        sources = (source_of(message) for message in read_topic(self._config, topic, numbers, self.stop))
        return any(source in (None, topic_id.encode()) for source in sources) or any(
            low == high > 0
            for low, high in (bounds(self._config, TopicPartition(topic, n), self.stop) for n in numbers)
        )

    def _first(self, number: int, reset: Reset | None) -> int:
        _, high = self.bounds(number)
        if isinstance(reset, datetime):
            instant = TopicPartition(self.topic, number, int(reset.timestamp() * 1000))
            (found,) = self._ask(lambda: self.consumer.offsets_for_times([instant], CALL_SECONDS))
            return int(found.offset) if found.offset >= 0 else high
        return high

    def _set(self, starts: Mapping[int, int], numbers: Sequence[int], topic_id: str, *, forced: bool) -> None:
        """Kafka ne change les positions que d'un groupe sans membre : un membre tué l'est encore quelques secondes."""
        mark = joined(topic_id, "")
        places = [TopicPartition(self.topic, number, offset, mark) for number, offset in starts.items()]
        deadline, said = time.monotonic() + EMPTY_SECONDS, False
        while forced or not self._any(numbers):
            if self._ask(lambda: _alter(self._admin, self.group, places)):
                return
            if not said:
                log.info("Le groupe %s a encore des membres : j'attends leur départ.", self.group)
                said = True
            if not forced and time.monotonic() > deadline:
                return
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"Le groupe {self.group} a des membres en marche, et ses positions ne se changent qu'à l'arrêt : "
                    "arrêtez-les, ou retirez l'option."
                )
            if self.stop.wait(SHORT_SECONDS):
                raise Stopped

    def _ask(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except KafkaException as error:
                if error.args[0].code() in REFUSED:
                    raise PipelineError(f"Kafka refuse de décrire {self.topic} : {refusal(error.args[0])}.") from error
                log.debug("Kafka ne répond pas (%s), nouvel essai.", error.args[0].name())
                if self.stop.wait(SHORT_SECONDS):
                    raise Stopped from None


# --- Une question à Kafka ; lèvent KafkaException ---


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Attend la fin des transactions en cours qui portent une position."""
    found = consumer.committed(partitions, CALL_SECONDS)
    for one in found:
        if one.error:
            raise KafkaException(one.error)
    return list(found)


def source_of(message: Message) -> bytes | str | None:
    """L'identité du topic d'où une sortie a été tirée ; None si elle ne la porte pas."""
    return dict(message.headers() or []).get(SOURCE)


def _partitions(admin: AdminClient, topic: str) -> list[int]:
    found = admin.list_topics(topic, CALL_SECONDS).topics[topic]
    if found.error or not found.partitions:
        raise KafkaException(found.error or KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    return sorted(found.partitions)


def _alter(admin: AdminClient, group: str, places: list[TopicPartition]) -> bool:
    """Change les positions d'un groupe ; faux s'il a des membres."""
    wanted = [ConsumerGroupTopicPartitions(group, places)]
    try:
        (future,) = admin.alter_consumer_group_offsets(wanted, request_timeout=CALL_SECONDS).values()
        refusals = [one.error for one in future.result().topic_partitions if one.error]
    except KafkaException as error:
        refusals = [error.args[0]]
    for one in refusals:
        if one.code() not in BUSY:
            raise KafkaException(one)
    return not refusals


# --- Les métadonnées d'une position : l'identité du topic, puis celles du script ---


def joined(topic_id: str, metadata: str) -> str:
    """Ce qui est validé avec une position."""
    if len(metadata) > PLAIN_CHARS:
        metadata = "z" + b85encode(zlib.compress(metadata.encode(), 9)).decode()
    return f"{topic_id} {metadata}"


def split(text: str | None) -> tuple[str, str]:
    """Le retour de ``joined`` ; une position d'une version plus ancienne n'a pas d'identité."""
    if not text or text.startswith("{"):
        return "", text or ""
    topic_id, _, metadata = text.partition(" ")
    if metadata.startswith("z"):
        metadata = zlib.decompress(b85decode(metadata[1:])).decode()
    return topic_id, metadata


# --- Options ---


def reset_option(text: str) -> Reset:
    """Type d'option : ``earliest``, ``latest`` ou une date ISO (UTC si elle ne dit pas son fuseau)."""
    if text in ("earliest", "latest"):
        return text
    try:
        date = datetime.fromisoformat(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} : earliest, latest ou une date ISO (2026-01-31T08:00Z)") from None


def offsets_option(text: str) -> dict[int, int]:
    """Type d'option : ``0:1500,3:12`` donne ``{0: 1500, 3: 12}``."""
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        return {int(partition): int(offset) for partition, offset in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} : écrivez PARTITION:OFFSET,… (0:1500,3:12)") from None
