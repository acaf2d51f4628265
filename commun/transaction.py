"""Transactions Kafka : ouvrir un producteur, valider, et les positions écrites avec les lignes.

Une position écrite dans la transaction des lignes qu'elle suit est lisible avec elles, ou pas du
tout : la relire après une coupure dit exactement ce qui est parti.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from commun.cli import Stop
from commun.errors import PipelineError
from commun.kafka import Config, admin_config, connect

log = logging.getLogger("pipeline")
T = TypeVar("T")

CALL_SECONDS = 1.0  # attente d'une réponse de Kafka avant de regarder si l'arrêt est demandé
QUIET_SECONDS = 12.0  # silence dont on ne parle pas : un broker mort est remplacé en neuf secondes
FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
# Refus que le temps n'arrange pas.
HOPELESS = (
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError._UNKNOWN_TOPIC, KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_RECORD,
)  # fmt: skip

POSITIONS_CONFIG = {
    "cleanup.policy": "compact",  # Kafka garde la dernière position de chaque source
    "segment.bytes": "1048576",  # les anciennes sont effacées tôt : la relecture reste courte
    "min.cleanable.dirty.ratio": "0.1",
}
_READER = {
    "group.id": "read-topic",  # exigé par le client ; rien n'y est validé
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # la fin de la partition se sait tout de suite
    "fetch.queue.backoff.ms": 10,
}


class Stopped(Exception):
    """L'arrêt est demandé et Kafka ne répond pas : ce qui n'est pas confirmé repartira la prochaine fois."""


def patiently(call: Callable[[], T], stop: Stop) -> T:
    """``call()``, répété jusqu'à ce que Kafka réponde ; le dit une fois s'il tarde.

    Lève Stopped si l'arrêt vient avant, KafkaException si répéter n'y changera rien.
    """
    since, said = time.monotonic(), False
    while True:
        try:
            result = call()
            if said:
                log.info("Kafka confirme de nouveau.")
            return result
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            if stop:
                raise Stopped from None
            if not said and time.monotonic() - since > QUIET_SECONDS:
                said = True
                log.warning("Kafka ne confirme plus rien : j'attends son retour, rien n'est perdu.")


def open_producer(config: Config, stop: Stop) -> Producer:
    """Un producteur qui prend la place du précédent (même ``transactional.id``), et annule sa transaction en cours."""
    producer: Producer = connect(Producer, config)
    try:
        patiently(lambda: producer.init_transactions(CALL_SECONDS), stop)
    except KafkaException as error:
        raise PipelineError(f"Kafka refuse une transaction : {error.args[0].str()}.") from error
    return producer


def commit(producer: Producer, stop: Stop) -> None:
    """Valide la transaction, en attendant Kafka s'il le faut. Lève KafkaException si elle est à annuler."""
    patiently(lambda: producer.commit_transaction(CALL_SECONDS), stop)


class Positions:
    """Le topic des positions (une partition) : où en est chaque source, et qui l'envoie.

    Deux producteurs d'une même source (même ``transactional.id``) : le dernier qui s'est annoncé la garde.
    L'annonce précède ``open_producer`` : celui dont Kafka refuse une transaction sait donc aussitôt si un
    autre a pris sa place, ou si elle a seulement duré trop longtemps.
    """

    CLAIM = "producteur:"  # préfixe des clés d'annonce ; les autres clés sont des positions

    def __init__(self, config: Config, topic: str, stop: Stop) -> None:
        self.config, self.topic, self.stop = config, topic, stop
        self.session = uuid.uuid4().hex

    def load(self) -> dict[str, bytes]:
        """Dernière position confirmée de chaque source."""
        return {source: value for source, value in self._read().items() if not source.startswith(self.CLAIM)}

    def claim(self, *sources: str) -> None:
        """Annonce que ce processus envoie désormais ``sources``. Lève Stopped si l'arrêt vient avant Kafka."""
        producer = connect(Producer, admin_config(self.config) | {"enable.idempotence": True, "delivery.timeout.ms": 0})
        for source in sources:
            producer.produce(self.topic, self.session, self.CLAIM + source, on_delivery=_refuse)
        while producer.flush(CALL_SECONDS):
            if self.stop:
                raise Stopped

    def is_mine(self, source: str) -> bool:
        """Vrai si personne ne s'est annoncé pour ``source`` après ce processus.

        L'annonce est hors transaction : la lire n'attend la fin d'aucune.
        """
        return self._read("read_uncommitted").get(self.CLAIM + source) == self.session.encode()

    def _read(self, isolation: str = "read_committed") -> dict[str, bytes]:
        messages = read_topic(self.config, self.topic, [0], self.stop, isolation)
        return {(message.key() or b"").decode(): message.value() or b"" for message in messages}


def _refuse(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        raise PipelineError(f"Kafka refuse d'écrire dans {message.topic()} : {error.str()}.")


def read_topic(
    config: Config, topic: str, partitions: Iterable[int], stop: Stop | None = None, isolation: str = "read_committed"
) -> Iterator[Message]:
    """Les messages de ``topic``, jusqu'à la fin qu'il a maintenant ; dans l'ordre de chaque partition.

    Attend la fin des transactions en cours : Kafka répond à une validation avant que ses lecteurs ne
    la voient. Kafka absent, attend son retour ; lève Stopped si l'arrêt vient avant.
    """
    reader = admin_config(config) | _READER | {"isolation.level": isolation}
    limits = {partition: bounds(reader, TopicPartition(topic, partition), stop) for partition in partitions}
    ends = {partition: high for partition, (low, high) in limits.items() if low < high}
    consumer = connect(Consumer, reader)
    try:
        consumer.assign([TopicPartition(topic, partition, limits[partition][0]) for partition in ends])
        while ends:
            for message in consumer.consume(1000, 0.05):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF and message.offset() >= ends.get(message.partition(), 0):
                    ends.pop(message.partition(), None)  # les marques de fin de transaction, invisibles, sont passées
            if stop:
                raise Stopped
    finally:
        consumer.close()


def bounds(config: Config, partition: TopicPartition, stop: Stop | None) -> tuple[int, int]:
    """Début et fin de la partition, transactions encore ouvertes comprises."""
    consumer = connect(Consumer, admin_config(config) | _READER | {"isolation.level": "read_uncommitted"})
    try:
        while True:
            try:
                low, high = consumer.get_watermark_offsets(partition, timeout=CALL_SECONDS)
                return int(low), int(high)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise PipelineError(f"Kafka refuse de lire {partition.topic} : {error.args[0].str()}.") from error
                if stop:
                    raise Stopped from None
    finally:
        consumer.close()
