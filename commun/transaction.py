"""Transactions Kafka : ouvrir un producteur, valider, et relire les positions écrites avec les lignes.

Une position écrite dans la transaction des lignes qu'elle suit est lisible avec elles, ou pas du
tout : la relire après une coupure dit exactement ce qui est parti.
"""

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from commun.cli import Stop
from commun.errors import PipelineError
from commun.kafka import Config, admin_config, connect

CALL_SECONDS = 1.0  # attente d'une réponse de Kafka avant de regarder si l'arrêt est demandé
FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)

POSITIONS_CONFIG = {
    "cleanup.policy": "compact",  # Kafka garde la dernière position de chaque source
    "segment.bytes": "1048576",  # les anciennes sont effacées tôt : la relecture reste courte
    "min.cleanable.dirty.ratio": "0.1",
}
_READER = {
    "group.id": "positions",  # exigé par le client ; rien n'y est validé
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # la fin de la partition se sait tout de suite
    "fetch.queue.backoff.ms": 10,
}
_ABSENT = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._UNKNOWN_PARTITION)


class Stopped(Exception):
    """L'arrêt est demandé et Kafka ne répond pas : ce qui n'est pas confirmé repartira la prochaine fois."""


def open_producer(config: Config, stop: Stop) -> Producer:
    """Un producteur qui prend la place du précédent (même ``transactional.id``), et annule sa transaction en cours."""
    producer: Producer = connect(Producer, config)
    while True:
        try:
            producer.init_transactions(CALL_SECONDS)
            return producer
        except KafkaException as error:
            if not error.args[0].retriable():
                raise PipelineError(f"Kafka refuse une transaction : {error.args[0].str()}.") from error
            if stop:
                raise Stopped from None


def commit(producer: Producer, stop: Stop) -> None:
    """Valide la transaction, en attendant Kafka s'il le faut. Lève KafkaException si elle est à annuler."""
    while True:
        try:
            return producer.commit_transaction(CALL_SECONDS)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            if stop:
                raise Stopped from None


def load_positions(config: Config, topic: str, stop: Stop) -> dict[str, bytes]:
    """Dernière valeur confirmée de chaque clé de ``topic`` (une partition).

    Attend la fin des transactions en cours dans ``topic`` : s'arrêter à la première encore ouverte
    donnerait des positions périmées. Kafka absent, attend son retour ; lève Stopped si l'arrêt vient avant.
    """
    reader = admin_config(config) | _READER
    reached, end = _bounds(reader, TopicPartition(topic, 0), stop)
    consumer = connect(Consumer, reader)
    found: dict[str, bytes] = {}
    try:
        consumer.assign([TopicPartition(topic, 0, reached)])
        while reached < end:
            for message in consumer.consume(1000, 0.05):
                error = message.error()
                if error is None:
                    found[message.key().decode()] = message.value()
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = message.offset()  # au-delà des marques de fin de transaction, qui sont invisibles
            if stop:
                raise Stopped
    finally:
        consumer.close()
    return found


def _bounds(reader: Config, partition: TopicPartition, stop: Stop) -> tuple[int, int]:
    """Début et fin de la partition, transactions encore ouvertes comprises."""
    consumer = connect(Consumer, reader | {"isolation.level": "read_uncommitted"})
    try:
        while True:
            try:
                low, high = consumer.get_watermark_offsets(partition, timeout=CALL_SECONDS)
                return int(low), int(high)
            except KafkaException as error:
                if error.args[0].code() not in _ABSENT and not error.args[0].retriable():
                    raise PipelineError(f"Kafka refuse de lire {partition.topic} : {error.args[0].str()}.") from error
                if stop:
                    raise Stopped from None
    finally:
        consumer.close()
