"""Les deux façons de valider une position : après ses sorties, ou avec elles.

AtLeastOnce    les sorties sont confirmées par Kafka, puis la position est validée. Un arrêt net entre les deux
               fait refaire le travail : les mêmes octets, sous le même identifiant.
ExactlyOnce    les sorties et la position sont dans une même transaction Kafka : lisibles ensemble, ou pas du tout.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Protocol, TypeVar

from commun import Aborted, PipelineError
from commun.cli import Stop, Stopped
from commun.exactly_once import TransactionalProducer
from commun.kafka import Config, Headers, connect, refusal, send
from commun.topics import CALL_SECONDS

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

T = TypeVar("T")


class Outputs(Protocol):
    """Les sorties d'un membre. ``atomic`` : elles sont lisibles avec leur position, ou pas du tout."""

    atomic: bool
    stuck: bool  # un appel n'a pas rendu la main : le consommateur ne peut plus être fermé

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
    """Sorties confirmées par Kafka, puis positions validées. Un arrêt net entre les deux fait refaire le travail.

    Coordinateur muet, ``Consumer.commit`` ne rend pas la main, et n'entend pas Ctrl-C : il est fait dans un fil à part,
    que l'on abandonne avec son consommateur (``stuck``) si l'arrêt est demandé.
    """

    atomic = open = False

    def __init__(self, config: Config, stop: Stop) -> None:
        self.stop, self.stuck = stop, False
        self.refusal: tuple[str, KafkaError] | None = None
        self.producer: Producer = connect(Producer, config | {"on_delivery": self._on_delivery})

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.refusal = str(message.topic()), error

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Voir Outputs."""
        try:
            send(self.producer, self.stop, topic, value, key=key, headers=headers)
        except KafkaException as error:
            self.refusal = topic, error.args[0]
        self.producer.poll(0)

    def commit(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Voir Outputs."""
        while not self.refusal and self.producer.flush(CALL_SECONDS):
            if self.stop:
                raise Stopped
        if self.refusal:
            topic, error = self.refusal
            raise PipelineError(f"Kafka refuse d'écrire dans {topic} : {refusal(error)}. Rien n'est validé.")
        answer = Future[None]()
        call = partial(consumer.commit, offsets=places, asynchronous=False)
        Thread(target=answer_with, args=(answer, call), daemon=True).start()
        while True:
            try:
                return answer.result(CALL_SECONDS)
            except TimeoutError:
                if self.stop:
                    self.stuck = True
                    raise Stopped from None
            except KafkaException as error:  # la partition est passée à un autre, qui refera ce travail
                raise Aborted(error.args[0].name()) from error

    def abort(self) -> None:
        """Voir Outputs : rien à défaire, une redite est sans effet."""

    close = abort


class ExactlyOnce:
    """Sorties et positions dans une même transaction Kafka. ``permanent`` : un seul membre porte ce nom à la fois."""

    atomic, stuck = True, False

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


def answer_with(answer: "Future[T]", call: Callable[[], T]) -> None:
    """``call()`` dans un autre fil : sa réponse, ou ce qu'il lève."""
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)
