"""Le topic à part de chaos.py : ce que son topic jugé ne permet pas y arrive, sous un consommateur en marche."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from commun import PipelineError
from commun.kafka import Config, connect, count_partitions
from exercice2.topic import REPLICATION_FACTOR, TOPIC_CONFIG
from exercice2.transactions import generate, to_json

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

ROWS = 200  # transactions écrites à chaque fois
MOST_PARTITIONS = 12
FLUSH_SECONDS, CREATE_SECONDS = 60.0, 60.0


class Apart:
    """Le topic, et ce qui lui arrive ; chaque appel lève KafkaException si Kafka le refuse."""

    def __init__(self, name: str, config: Config, dice: random.Random) -> None:
        self.name, self.config, self.dice = name, config, dice
        self._admin: AdminClient = connect(AdminClient, config)
        self._transactions = generate(dice.getrandbits(32), datetime(2026, 1, 1, tzinfo=UTC), 10.0)
        self._create()

    def _create(self) -> None:
        """Kafka refuse tant qu'un topic du même nom n'est pas tout à fait effacé."""
        deadline = time.monotonic() + CREATE_SECONDS
        topic = NewTopic(self.name, self.dice.randint(1, 3), REPLICATION_FACTOR, config=TOPIC_CONFIG)
        while True:
            try:
                return _settle(self._admin.create_topics([topic]))
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise PipelineError(f"Le topic {self.name} ne peut pas être recréé : {error}.") from error
                time.sleep(0.2)

    def write(self) -> None:
        """Des transactions de plus, par un client neuf : un ancien numérote ses envois d'après le topic d'avant."""
        producer: Producer = connect(Producer, self.config | {"acks": "all", "enable.idempotence": True})
        for _ in range(ROWS):
            one = next(self._transactions)
            producer.produce(self.name, to_json(one), one.compte)
        if producer.flush(FLUSH_SECONDS):
            raise PipelineError(f"Kafka ne confirme pas ce qui est écrit dans {self.name}.")

    def grow(self) -> None:
        """Une partition de plus."""
        if (count := count_partitions(self.config, self.name)) < MOST_PARTITIONS:
            _settle(self._admin.create_partitions([NewPartitions(self.name, count + 1)]))

    def erase(self) -> None:
        """Les messages d'une partition sont effacés, lus ou non, comme le fait la durée de conservation."""
        there = TopicPartition(self.name, self.dice.randrange(count_partitions(self.config, self.name)), -1)
        _settle(self._admin.delete_records([there]))

    def recreate(self) -> None:
        """Le topic est effacé, puis recréé sous le même nom."""
        _settle(self._admin.delete_topics([self.name]))
        self._create()


def judge_apart(topic: Iterable[str], output: Iterable[str]) -> tuple[int, int]:
    """Transactions du topic qui manquent en sortie ; transactions sorties plusieurs fois."""
    found = Counter(output)
    return sum(id not in found for id in topic), sum(count - 1 for count in found.values())


def _settle(futures: Mapping[Any, Any]) -> None:
    """Attend que Kafka ait fait ce qui lui est demandé ; lève KafkaException."""
    for future in futures.values():
        future.result()
