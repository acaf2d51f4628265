"""Où consumer_resilient.py écrit, et comment il valide sa place : au moins une fois, ou exactement une fois.

AtLeastOnce    les sorties sont confirmées par Kafka, puis la place est validée. Un arrêt net entre les
               deux fait refaire le travail : les mêmes octets, sous le même identifiant.
ExactlyOnce    les sorties et la place sont dans une même transaction Kafka : lisibles ensemble, ou pas du tout.
"""

from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from commun.cli import Stop, Stopped
from commun.errors import PipelineError
from commun.exactly_once import Aborted, TransactionalProducer
from commun.kafka import Config, Headers, connect, send


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
        send(self.producer, self.stop, topic, value, key=key, headers=headers)
        self.producer.poll(0)

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
        self.producer = TransactionalProducer(config, stop)
        self._instance = "group.instance.id" in config

    @property
    def open(self) -> bool:
        """Vrai si une transaction est ouverte."""
        return self.producer.open

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Sink."""
        self.producer.write(topic, value, key, headers)

    def checkpoint(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Sink."""
        self.producer.send_offsets(consumer, places)
        self.producer.commit()

    def abort(self) -> None:
        """Voir Sink."""
        if self.producer.abort() and self.producer.fenced and self._instance:
            raise PipelineError("Un autre consommateur a le même --instance-id : je m'arrête.")
