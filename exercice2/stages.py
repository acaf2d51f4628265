"""Un étage de kafka_monitor.py : lit un topic dans un groupe ; ses sorties et sa place valent ensemble, ou pas du tout.

La place d'une partition est un offset et un texte, ses « métadonnées », que Kafka garde avec lui : de quoi
reprendre le calcul là où il en était. Après une annulation, un rééquilibrage ou un ``kill -9``, tout repart de la
dernière place validée.
"""

import logging
import time
import uuid
from itertools import groupby
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from commun.cli import Stop
from commun.exactly_once import Aborted
from commun.kafka import Config, Headers, connect, readable
from exercice2.sinks import ExactlyOnce

log = logging.getLogger("pipeline")

CALL_SECONDS = 5.0
# Durée d'une transaction, donc ce qu'attend un lecteur : courte quand on suit le flux, longue quand on le rattrape.
LIVE_SECONDS, BEHIND_SECONDS = 0.2, 1.0

Place = tuple[int, str]  # offset du prochain message à lire, métadonnées


class Handler(Protocol):
    """Ce qu'un étage calcule."""

    def restore(self, partition: int, offset: int, metadata: str) -> None:
        """La partition est à nous ; elle va être lue à partir de ``offset``."""

    def forget(self, partition: int) -> None:
        """La partition n'est plus à nous."""

    def process(self, partition: int, messages: list[Message]) -> None:
        """Des messages consécutifs d'une partition."""

    def places(self) -> dict[int, Place]:
        """Où en est chaque partition."""

    def published(self) -> None:
        """Ce qui était écrit est validé."""


class Stage:
    """La boucle d'un étage ; ``step`` en fait un tour. ``batch`` : messages lus à la fois."""

    def __init__(self, topic: str, consumer: Config, producer: Config, stop: Stop, batch: int) -> None:
        self.topic, self.stop, self.batch = topic, stop, batch
        self.sink = ExactlyOnce(producer | {"transactional.id": f"{topic}-{uuid.uuid4().hex}"}, stop)
        self.consumer: Consumer = connect(Consumer, consumer)
        self.committed: dict[int, Place] = {}
        self.ended: dict[int, int] = {}  # partitions lues jusqu'au bout, et ce bout
        self.rebalanced_at: float | None = None  # jamais encore
        self._handler: Handler
        self._must_abort = False
        self._commit_at = time.monotonic()

    def start(self, handler: Handler) -> None:
        """Entre dans le groupe."""
        self._handler = handler
        self.consumer.subscribe(
            [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def step(self, seconds: float) -> bool:
        """Un tour : lire, ``seconds`` au plus, calculer, valider s'il est temps ; vrai s'il reste sûrement à lire."""
        self.recover()
        messages = self.consumer.consume(self.batch, seconds)
        behind = len(messages) == self.batch
        if any(map(Message.error, messages)):
            messages = [message for message in messages if self._is_data(message)]
        else:
            for partition in set(map(Message.partition, messages)):
                self.ended.pop(partition or 0, None)
        by_partition: dict[int, list[Message]] = {}
        for partition, run in groupby(messages, Message.partition):
            by_partition.setdefault(partition or 0, []).extend(run)
        for partition, found in by_partition.items():
            if partition in self.committed and not self._must_abort:
                self._process(partition, found)
        self._commit_in_time(behind)
        return behind

    def _is_data(self, message: Message) -> bool:
        """Vrai pour un message ; une nouvelle du client Kafka peut être la fin d'une partition."""
        error, partition = message.error(), message.partition() or 0
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            self.ended[partition] = message.offset() or 0
            return False
        self.ended.pop(partition, None)
        return readable(message)

    def _process(self, partition: int, messages: list[Message]) -> None:
        """Des messages, puis la validation s'il est temps : une transaction ne dure jamais beaucoup plus."""
        try:
            self._handler.process(partition, messages)
        except Aborted as error:
            self._abort_later(error)
        self._commit_in_time(behind=True)

    def _commit_in_time(self, behind: bool) -> None:
        if time.monotonic() - self._commit_at >= (BEHIND_SECONDS if behind else LIVE_SECONDS):
            self.checkpoint()

    def write(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers | None = None) -> None:
        """Une sortie, dans la transaction en cours."""
        self.sink.write(topic, value, key, headers or [])

    # --- Valider, ou tout refaire ---

    def checkpoint(self) -> None:
        """Valide les sorties et les places qui ont changé."""
        self._commit_at = time.monotonic()
        places = {p: place for p, place in self._handler.places().items() if self.committed.get(p) != place}
        if self._must_abort or not (places or self.sink.open):
            return
        try:
            self.sink.checkpoint(self.consumer, [TopicPartition(self.topic, p, *place) for p, place in places.items()])
        except Aborted as error:
            self._abort_later(error)
            return
        self.committed |= places
        self._handler.published()

    def _abort_later(self, error: Aborted) -> None:
        log.info("Validation refusée (%s) : je reprends à la dernière place validée.", error)
        self._must_abort = True

    def recover(self) -> None:
        """Défait ce qui n'est pas validé, et relit depuis la dernière place validée."""
        if not self._must_abort:
            return
        self.sink.abort()
        self._must_abort = False
        for partition, (offset, metadata) in self.committed.items():
            self._handler.restore(partition, offset, metadata)
            self.consumer.seek(TopicPartition(self.topic, partition, offset))

    def close(self) -> None:
        """Valide ce qui est fait et quitte le groupe."""
        self.checkpoint()
        self.recover()
        self.consumer.close()

    # --- Les partitions arrivent et repartent (rappels, pendant consume) ---

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalanced_at = time.monotonic()
        while partitions and not self.stop:
            try:
                found = consumer.committed(partitions, CALL_SECONDS)
                if any(place.error for place in found):
                    continue
            except KafkaException as error:
                log.debug("Places illisibles (%s), nouvel essai.", error.args[0].name())
                continue
            for place in found:
                place.offset = max(place.offset, 0)
                self.committed[place.partition] = (place.offset, place.metadata or "")
                self._handler.restore(place.partition, *self.committed[place.partition])
            consumer.incremental_assign(found)
            return

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalanced_at = time.monotonic()
        self.checkpoint()
        self._forget(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalanced_at = time.monotonic()
        log.warning("Partitions perdues : %s.", ", ".join(str(partition.partition) for partition in partitions))
        self._must_abort = True
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self.committed.pop(partition.partition, None)
            self.ended.pop(partition.partition, None)
            self._handler.forget(partition.partition)
