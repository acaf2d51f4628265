"""Où en est la lecture de chaque fichier : la dernière valeur, par chemin, d'un topic compacté.

Les positions sont écrites dans la transaction des lignes qu'elles suivent (producer.py) : les deux
sont lisibles ensemble, ou aucune. Les relire après une coupure dit donc exactement ce qui est parti.
"""

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from commun.cli import Stop
from commun.errors import PipelineError
from commun.kafka import Config, admin_config, connect
from exercice1.follow import Saved

TOPIC_CONFIG = {
    "cleanup.policy": "compact",  # Kafka garde la dernière position de chaque fichier
    "segment.bytes": "1048576",  # les anciennes sont effacées tôt : la relecture reste courte
    "min.cleanable.dirty.ratio": "0.1",
}

_READER = {
    "group.id": "csv-positions",  # exigé par le client ; rien n'y est validé
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # la fin de la partition se sait tout de suite
    "fetch.queue.backoff.ms": 10,
}


def load(config: Config, topic: str, stop: Stop) -> dict[str, Saved]:
    """Dernière position confirmée de chaque fichier, par chemin ; {} si l'arrêt est demandé avant.

    Attend la fin des transactions en cours dans ``topic`` : s'arrêter à la première encore ouverte
    donnerait des positions périmées. Kafka absent, attend son retour.
    """
    reader = admin_config(config) | _READER
    reached, end = _bounds(reader, TopicPartition(topic, 0), stop)
    consumer = connect(Consumer, reader)
    found: dict[str, Saved] = {}
    try:
        consumer.assign([TopicPartition(topic, 0, reached)])
        while reached < end and not stop:
            for message in consumer.consume(1000, 0.05):
                error = message.error()
                if error is None:
                    found[message.key().decode()] = msgspec.json.decode(message.value(), type=Saved)
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = message.offset()  # au-delà des marques de fin de transaction, qui sont invisibles
    finally:
        consumer.close()
    return {} if stop else found


def _bounds(reader: Config, partition: TopicPartition, stop: Stop) -> tuple[int, int]:
    """Début et fin de la partition, transactions encore ouvertes comprises ; (0, 0) si l'arrêt est demandé avant."""
    consumer = connect(Consumer, reader | {"isolation.level": "read_uncommitted"})
    try:
        while not stop:
            try:
                low, high = consumer.get_watermark_offsets(partition, timeout=1.0)
                return int(low), int(high)
            except KafkaException as error:
                if error.args[0].code() not in _ABSENT and not error.args[0].retriable():
                    raise PipelineError(f"Kafka refuse de lire {partition.topic} : {error.args[0].str()}.") from error
    finally:
        consumer.close()
    return 0, 0


_ABSENT = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._UNKNOWN_PARTITION)
