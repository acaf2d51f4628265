"""Où consumer_resilient.py écrit, et comment il valide sa place : au moins une fois, ou exactement une fois.

AtLeastOnce    les sorties sont confirmées par Kafka, puis la place est validée. Un arrêt net entre les
               deux fait refaire le travail : les mêmes octets, sous le même identifiant.
ExactlyOnce    les sorties et la place sont dans une même transaction Kafka : lisibles ensemble, ou pas du tout.
"""

from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from commun.cli import Stop
from commun.errors import PipelineError
from commun.kafka import Config, Headers, connect
from commun.transaction import CALL_SECONDS, FENCED, Stopped, commit, open_producer, patiently


class Aborted(Exception):
    """La transaction est annulée : ce qui n'était pas validé est à refaire."""


class Sink(Protocol):
    """Les sorties d'un consommateur."""

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Confie un message au client Kafka ; file pleine, attend."""

    def checkpoint(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Rend durables les sorties, puis les places. Lève Aborted si tout est à refaire."""

    def abort(self) -> None:
        """Oublie ce qui n'est pas validé."""


class AtLeastOnce:
    """Sorties confirmées, puis place validée."""

    def __init__(self, config: Config, stop: Stop) -> None:
        self.stop = stop
        self.refusal: KafkaError | None = None
        self.producer: Producer = connect(Producer, config | {"on_delivery": self._on_delivery})

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        self.refusal = error or self.refusal

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Sink."""
        while True:
            try:
                self.producer.produce(topic, value, key, headers=headers)
                self.producer.poll(0)
                return
            except BufferError:
                if self.stop:
                    raise Stopped from None
                self.producer.poll(0.1)

    def checkpoint(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Sink."""
        while self.producer.flush(1.0):
            if self.stop:
                raise Stopped
        if self.refusal:
            raise PipelineError(f"Kafka refuse une sortie : {self.refusal.str()}. Sa place n'est pas validée.")
        try:
            consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:  # la partition est passée à un autre, qui refera ce travail
            raise Aborted(error.args[0].name()) from error

    def abort(self) -> None:
        """Voir Sink : rien à défaire, une redite est sans effet."""


class ExactlyOnce:
    """Sorties et place dans une même transaction."""

    def __init__(self, config: Config, stop: Stop) -> None:
        self.config, self.stop = config, stop
        self.producer = open_producer(config, stop)
        self.open = False

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Sink."""
        try:
            self._begin()
            while True:
                try:
                    return self.producer.produce(topic, value, key, headers=headers)
                except BufferError:
                    if self.stop:
                        raise Stopped from None
                    self.producer.poll(0.1)
        except KafkaException as error:
            raise Aborted(error.args[0].name()) from error

    def checkpoint(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Sink."""
        try:
            self._begin()
            group = consumer.consumer_group_metadata()
            patiently(lambda: self.producer.send_offsets_to_transaction(places, group, CALL_SECONDS), self.stop)
            commit(self.producer, self.stop)
            self.open = False
        except KafkaException as error:
            raise Aborted(error.args[0].name()) from error

    def _begin(self) -> None:
        if not self.open:
            self.producer.begin_transaction()
            self.open = True

    def abort(self) -> None:
        """Voir Sink. Une transaction que Kafka a déjà condamnée se remplace par un producteur neuf."""
        try:
            if self.open:
                self.producer.abort_transaction(5.0)
        except KafkaException as error:
            if error.args[0].code() in FENCED and "group.instance.id" in self.config:
                raise PipelineError("Un autre consommateur a le même --instance-id : je m'arrête.") from error
            self.producer.purge()
            self.producer = open_producer(self.config, self.stop)
        self.open = False
