"""Lire un topic jusqu'à sa fin, et ses bornes."""

from collections.abc import Iterable, Iterator, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from commun.cli import Stop, Stopped
from commun.errors import PipelineError
from commun.kafka import Config, admin_config, connect, refusal

CALL_SECONDS = 1.0  # attente d'une réponse de Kafka avant de regarder si l'arrêt est demandé
_READER = {
    "group.id": "read-topic",  # exigé par le client ; rien n'y est validé
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # la fin de la partition se sait tout de suite
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16_384,  # borne la mémoire : ce qui est lu d'avance, par partition
}


def read_topic(
    config: Config, topic: str, partitions: Iterable[int], stop: Stop | None = None, isolation: str = "read_committed"
) -> Iterator[Message]:
    """Les messages de ``topic``, jusqu'à la fin qu'il a maintenant ; dans l'ordre de chaque partition.

    Attend la fin des transactions en cours : Kafka répond à une validation avant que ses lecteurs ne
    la voient. Kafka absent, attend son retour ; lève Stopped si l'arrêt vient avant.
    """
    return read_from(config, topic, dict.fromkeys(partitions, 0), stop, isolation)


def read_from(
    config: Config, topic: str, starts: Mapping[int, int], stop: Stop | None = None, isolation: str = "read_committed"
) -> Iterator[Message]:
    """De même, à partir d'un offset par partition, ou du plus ancien que Kafka ait encore."""
    reader = admin_config(config) | _READER | {"isolation.level": isolation}
    limits = {partition: bounds(reader, TopicPartition(topic, partition), stop) for partition in starts}
    lows = {partition: max(low, starts[partition]) for partition, (low, _) in limits.items()}
    ends = {partition: high for partition, (_, high) in limits.items() if lows[partition] < high}
    consumer = connect(Consumer, reader)
    try:
        consumer.assign([TopicPartition(topic, partition, lows[partition]) for partition in ends])
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
                    raise PipelineError(
                        f"Kafka refuse de lire {partition.topic} : {refusal(error.args[0])}."
                    ) from error
                if stop:
                    raise Stopped from None
    finally:
        consumer.close()
