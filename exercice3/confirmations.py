"""Ce que Kafka a confirmé à producer.py, dans un petit topic à part : reconcile.py y voit une fin de suite perdue.

Un message par exécution de producer.py, récrit sous la même clé ; le topic est compacté :

    {"graine": 1, "de": 1, "jusque": 1000, "corrections": 12}

« jusque » : toutes les ventes de la suite, de « de » à « jusque », ont eu leur accusé de réception. Il est écrit après
eux : interrompu, il dit moins que la vérité, jamais plus.
"""

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from exercice3.ventes import SEED_MAX, Vente, run_of

from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

SUFFIX = "-confirmees"
TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.1",
    "min.insync.replicas": "2",
}


def new_topic(topic: str, copies: int) -> NewTopic:
    """Le topic des confirmations de ``topic``."""
    return NewTopic(topic + SUFFIX, 1, copies, config=TOPIC_CONFIG)


class Confirmed:
    """Ventes confirmées d'une suite : toutes jusqu'à ``upto``, et celles qui le sont en avance (elles attendent)."""

    def __init__(self, seed: int, first: int) -> None:
        self.seed, self.first, self.upto, self.corrections = seed, first, first - 1, 0
        self.name = secrets.token_hex(8)
        self._ahead: set[int] = set()

    def add(self, vente: Vente) -> None:
        """Kafka vient de confirmer cette vente."""
        run_number = run_of(vente.id)
        if vente.version > 1 or run_number is None:
            self.corrections += 1
            return
        self._ahead.add(run_number[1])
        while self.upto + 1 in self._ahead:
            self.upto += 1
            self._ahead.remove(self.upto)

    def to_json(self) -> bytes:
        """Le message qui le dit."""
        data = {"graine": self.seed, "de": self.first, "jusque": self.upto, "corrections": self.corrections}
        return json.dumps(data).encode()

    def publish(self, producer: Producer, topic: str) -> None:
        """Le confie au client Kafka ; file pleine, ce sera pour la fois suivante."""
        try:
            producer.produce(topic + SUFFIX, self.to_json(), self.name)
        except BufferError:
            return


@dataclass
class Promise:
    """Ce qui a été confirmé d'une graine, toutes exécutions ensemble : des intervalles de numéros, des corrections."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    corrections: int = 0

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.ranges)


def read_promises(values: Iterable[bytes | None]) -> tuple[dict[int, Promise], int]:
    """Les promesses par graine, et le nombre de messages qui n'en sont pas."""
    found: dict[int, Promise] = {}
    foreign = 0
    for value in values:
        try:
            data = json.loads(value or b"")
            seed, first, last, corrections = (data[name] for name in ("graine", "de", "jusque", "corrections"))
            if any(type(number) is not int for number in (seed, first, last, corrections)) or not (
                0 <= seed <= SEED_MAX and 1 <= first <= last + 1
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            foreign += 1
            continue
        promise = found.setdefault(seed, Promise())
        promise.corrections = max(promise.corrections, corrections)
        if first <= last:
            promise.ranges.append((first, last))
    return {seed: Promise(merged(promise.ranges), promise.corrections) for seed, promise in found.items()}, foreign


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Les mêmes numéros, en intervalles disjoints et croissants."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result
