"""Le point : où tout était égal la dernière fois. reconcile.py n'a plus qu'à lire ce qui est venu depuis.

Il est dans un topic compacté, « <topic>-verifie » : les offsets de Kafka, le dernier lot, les totaux, les numéros vus
de chaque suite, et l'état de son hasard, pour la continuer sans la refaire. Il ne vaut que si rien n'a été remplacé :
même topic, même lot, au moins autant de documents ; sinon, et à la moindre différence, tout est relu.
"""

import base64
import json
import logging
import random
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from commun import PipelineError
from commun.kafka import Config, connect, ensure_topics
from exercice3.verification.totals import Distinct, Numbers, Totals

from confluent_kafka import KafkaException, Producer
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

SUFFIX = "-verifie"
TOPIC_CONFIG = {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.1"}
BROKERS_CHOICE = -1
VERSION = 1
OTHERS_MAX = 10_000  # identifiants d'un autre programme, gardés en entier ; au-delà, pas de point
STATES_MAX = 100  # hasards gardés ; une suite plus ancienne qui reprend est refaite depuis son début
SEND_SECONDS = 10.0
_WORDS = struct.Struct("<625I")  # l'état de random.Random

Randomness = tuple[Any, ...]


class Reread(Exception):
    """Ce qui est nouveau ne suffit pas à conclure : il faut tout relire."""


@dataclass(frozen=True)
class Point:
    """Où tout était égal. ``offsets`` par partition ; ``states`` : le hasard de chaque graine après ``made`` ventes."""

    topic_id: str
    offsets: dict[str, int]
    lot: int
    file: str
    documents: int
    rows: list[tuple[str, str, int, int]]  # région, produit, nombre, centimes
    foreign: list[tuple[str, str, int, int]]
    seen: dict[str, list[tuple[int, int]]]
    others: list[str]
    made: dict[str, int]
    states: dict[str, str]
    corrections: dict[str, int]
    version: int = VERSION

    def distinct(self) -> Distinct:
        """Les identifiants déjà vus."""
        found = Distinct()
        found.others = set(self.others)
        for seed, ranges in self.seen.items():
            found.runs[int(seed)] = Numbers((first, last) for first, last in ranges)
        return found

    def suite(self, seed: str) -> Numbers:
        """Les numéros déjà vus d'une suite de producer.py."""
        last = self.made[seed]
        return Numbers((first, min(end, last)) for first, end in self.seen.get(seed, ()) if first <= last)


def totals_of(name: str, rows: Sequence[Sequence[Any]]) -> Totals:
    """Des totaux, tels que le point les garde."""
    count, cents = Counter[Any](), Counter[Any]()
    for region, produit, number, amount in rows:
        count[region, produit], cents[region, produit] = number, amount
    return Totals(name, count, cents)


def rows_of(totals: Totals) -> list[tuple[str, str, int, int]]:
    """L'inverse de ``totals_of``."""
    return [(*key, count, totals.cents[key]) for key, count in sorted(totals.count.items())]


def pack(state: Randomness) -> str:
    """L'état d'un hasard, en texte."""
    return base64.b85encode(_WORDS.pack(*state[1])).decode()


def unpack(text: str) -> Randomness:
    """L'inverse de ``pack``."""
    return random.Random(0).getstate()[0], _WORDS.unpack(base64.b85decode(text)), None  # noqa: S311


def read_point(value: bytes | None) -> Point | None:
    """Le point d'un message ; None s'il n'en est pas un, ou d'une autre version."""
    try:
        data: Mapping[str, Any] = json.loads(value or b"")
        return Point(**data) if data["version"] == VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def save(config: Config, topic: str, point: Point) -> None:
    """Écrit le point ; ne pas pouvoir n'empêche pas de conclure : la prochaine fois relira davantage."""
    try:
        ensure_topics(config, NewTopic(topic + SUFFIX, 1, BROKERS_CHOICE, config=TOPIC_CONFIG))
        producer: Producer = connect(Producer, config | {"acks": "all"})
        producer.produce(topic + SUFFIX, json.dumps(asdict(point)).encode(), b"point")
        if producer.flush(SEND_SECONDS):
            log.info("Le point n'a pas pu être écrit : la prochaine comparaison relira tout.")
    except (PipelineError, KafkaException) as error:
        log.info("Le point n'a pas pu être écrit (%s) : la prochaine comparaison relira tout.", error)
