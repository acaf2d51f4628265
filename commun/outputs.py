"""Les deux façons de valider une position : après ses sorties, ou avec elles.

AtLeastOnce    les sorties sont confirmées par Kafka, puis la position est validée. Un arrêt net entre les deux
               fait refaire le travail : les mêmes octets, sous le même identifiant.
ExactlyOnce    les sorties et la position sont dans une même transaction Kafka : lisibles ensemble, ou pas du tout.
"""

from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from commun.cli import Stop, Stopped
from commun.errors import PipelineError
from commun.exactly_once import Aborted, TransactionalProducer
from commun.kafka import Config, Headers, connect, refusal, send
from commun.topics import CALL_SECONDS


class Outputs(Protocol):
    """Les sorties d'un membre. ``atomic`` : elles sont lisibles avec leur position, ou pas du tout."""

    atomic: bool

    @property
    def open(self) -> bool:
        """Vrai si quelque chose est écrit et pas encore validé, qu'il y ait ou non une position à valider."""

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Confie un message au client Kafka ; file pleine, attend."""

    def commit(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Rend durables les sorties, puis les positions. Lève Aborted si tout est à refaire."""

    def abort(self) -> None:
        """Oublie ce qui n'est pas validé."""

    def close(self) -> None:
        """De même, sans attendre Kafka s'il est muet."""


class AtLeastOnce:
    """Sorties confirmées par Kafka, puis positions validées. Un arrêt net entre les deux fait refaire le travail."""

    atomic = open = False

    def __init__(self, config: Config, stop: Stop) -> None:
        self.stop = stop
        self.refusal: KafkaError | None = None
        self.producer: Producer = connect(Producer, config | {"on_delivery": self._on_delivery})

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        self.refusal = error or self.refusal

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Outputs."""
        try:
            send(self.producer, self.stop, topic, value, key=key, headers=headers)
        except KafkaException as error:
            self.refusal = error.args[0]
        self.producer.poll(0)

    def commit(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Outputs."""
        while not self.refusal and self.producer.flush(CALL_SECONDS):
            if self.stop:
                raise Stopped
        if self.refusal:
            raise PipelineError(f"Kafka refuse une sortie : {refusal(self.refusal)}. Sa position n'est pas validée.")
        try:
            consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:  # la partition est passée à un autre, qui refera ce travail
            raise Aborted(error.args[0].name()) from error

    def abort(self) -> None:
        """Voir Outputs : rien à défaire, une redite est sans effet."""

    close = abort


class ExactlyOnce:
    """Sorties et positions dans une même transaction Kafka. ``permanent`` : un seul membre porte ce nom à la fois."""

    atomic = True

    def __init__(self, config: Config, stop: Stop, *, permanent: bool = False) -> None:
        self.producer, self.permanent = TransactionalProducer(config, stop), permanent

    @property
    def open(self) -> bool:
        """Voir Outputs."""
        return self.producer.open

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Outputs."""
        self.producer.write(topic, value, key, headers)

    def commit(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Outputs."""
        if places:
            self.producer.send_offsets(consumer, places)
        self.producer.commit()

    def abort(self) -> None:
        """Voir Outputs."""
        if self.producer.abort() and self.producer.fenced and self.permanent:
            raise PipelineError("Un autre consommateur a le même --instance-id : je m'arrête.")

    def close(self) -> None:
        """Voir Outputs."""
        self.producer.close()
