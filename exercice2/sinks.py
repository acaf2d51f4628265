"""Où consumer_resilient.py écrit, et comment il valide sa place : au moins une fois, ou exactement une fois.

AtLeastOnce    les sorties sont confirmées par Kafka, puis la place est validée. Un arrêt net entre les
               deux fait refaire le travail : les mêmes octets, sous le même identifiant.
ExactlyOnce    les sorties et la place sont dans une même transaction Kafka : lisibles ensemble, ou pas du tout.
"""

from concurrent.futures import Future
from threading import Thread
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from commun.cli import Stop
from commun.errors import PipelineError
from commun.kafka import Config, Headers, connect
from commun.transaction import CALL_SECONDS, FENCED, Stopped, commit, open_producer, patiently

MUTE_SECONDS = 15.0  # plus que la durée permise d'une transaction : elle est perdue de toute façon


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
        self.open = False  # une transaction est ouverte
        self.mute = False  # le producteur ne répond plus : il est à remplacer

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
            self._send_places(consumer, places)
            commit(self.producer, self.stop)
            self.open = False
        except KafkaException as error:
            raise Aborted(error.args[0].name()) from error

    def _begin(self) -> None:
        if not self.open:
            self.producer.begin_transaction()
            self.open = True

    def _send_places(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Les places, dans la transaction ; le groupe dit de quelle génération elles sont.

        Quand le coordinateur du groupe meurt, cet appel peut ne jamais rendre la main, malgré son délai
        (librdkafka, anomalie 5456) : il est fait dans un fil à part, que l'on abandonne avec son producteur.
        """
        producer, group = self.producer, consumer.consumer_group_metadata()
        answer: Future[None] = Future()

        def call() -> None:
            try:
                patiently(lambda: producer.send_offsets_to_transaction(places, group, CALL_SECONDS), self.stop)
                answer.set_result(None)
            except (KafkaException, Stopped) as error:
                answer.set_exception(error)

        Thread(target=call, daemon=True).start()
        try:
            answer.result(MUTE_SECONDS)
        except TimeoutError:
            self.mute = True
            raise Aborted("le coordinateur du groupe ne répond pas") from None

    def abort(self) -> None:
        """Voir Sink. Une transaction que Kafka a déjà condamnée se remplace par un producteur neuf."""
        if self.mute:
            self.producer, self.mute, self.open = open_producer(self.config, self.stop), False, False
        try:
            if self.open:
                self.producer.abort_transaction(5.0)
        except KafkaException as error:
            if error.args[0].code() in FENCED and "group.instance.id" in self.config:
                raise PipelineError("Un autre consommateur a le même --instance-id : je m'arrête.") from error
            self.producer.purge()
            self.producer = open_producer(self.config, self.stop)
        self.open = False
