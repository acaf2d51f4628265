"""D'où lit consumer_resilient.py : --from-offsets, sinon la place du groupe, sinon --reset."""

import argparse
from datetime import UTC, datetime

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

CALL_SECONDS = 5.0


class StartingOffsets:
    """Les places de départ des partitions attribuées."""

    def __init__(self, reset: str | datetime, from_offsets: dict[int, int]) -> None:
        self.reset, self.from_offsets = reset, from_offsets

    def find(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Les mêmes partitions, avec leur place. Lève KafkaException : à redemander.

        En read_committed, Kafka fait attendre la place d'un membre dont la transaction est encore ouverte.
        """
        return [self._start(consumer, found) for found in consumer.committed(partitions, CALL_SECONDS)]

    def _start(self, consumer: Consumer, found: TopicPartition) -> TopicPartition:
        if found.error:
            raise KafkaException(found.error)
        partition = TopicPartition(found.topic, found.partition)
        partition.offset = self.from_offsets.get(found.partition, found.offset)
        if partition.offset < 0:
            partition.offset = self._reset(consumer, partition)
        return partition

    def _reset(self, consumer: Consumer, partition: TopicPartition) -> int:
        if self.reset == "earliest":
            return int(OFFSET_BEGINNING)
        _, high = consumer.get_watermark_offsets(partition, timeout=CALL_SECONDS)
        if isinstance(self.reset, datetime):
            partition.offset = int(self.reset.timestamp() * 1000)
            (found,) = consumer.offsets_for_times([partition], timeout=CALL_SECONDS)
            return int(found.offset) if found.offset >= 0 else int(high)
        return int(high)


def reset_option(text: str) -> str | datetime:
    """Type d'option : ``earliest``, ``latest`` ou une date ISO (UTC si elle ne dit pas son fuseau)."""
    if text in ("earliest", "latest"):
        return text
    try:
        date = datetime.fromisoformat(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} : earliest, latest ou une date ISO (2026-01-31T08:00Z)") from None


def offsets_option(text: str) -> dict[int, int]:
    """Type d'option : ``0:1500,3:12`` donne ``{0: 1500, 3: 12}``."""
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        return {int(partition): int(offset) for partition, offset in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} : écrivez PARTITION:OFFSET,… (0:1500,3:12)") from None
