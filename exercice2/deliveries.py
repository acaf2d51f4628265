"""Ce que Kafka a répondu à producer_resilient.py : les comptes et les délais. Logique pure, sans Kafka."""

import json
from collections import Counter

from commun.cli import french_number


class Deliveries:
    """Comptes des transactions confiées à Kafka.

    sent        confiées, renvois après une annulation compris
    confirmed   validées : lisibles en read_committed, et elles le resteront
    again       annulées avec leur transaction Kafka, donc à renvoyer
    rejected    lettres mortes
    partitions  confirmées, par partition
    """

    def __init__(self) -> None:
        self.sent = self.confirmed = self.again = self.rejected = 0
        self.partitions: Counter[int] = Counter()
        self._milliseconds: Counter[int] = Counter()  # délais d'écriture arrondis : un histogramme
        self._written: Counter[int] = Counter()  # par partition, écrites mais pas encore validées
        self._retries: dict[str, int] = {}

    def on_written(self, partition: int, seconds: float) -> None:
        """Une transaction est écrite sur les copies synchronisées, ``seconds`` après avoir été confiée au client."""
        self._written[partition] += 1
        self._milliseconds[round(seconds * 1000)] += 1

    def on_commit(self, rejected: int) -> None:
        """La transaction Kafka est validée : ce qui était écrit est confirmé."""
        self.confirmed += self._written.total()
        self.rejected += rejected
        self.partitions += self._written
        self._written.clear()

    def on_abort(self) -> None:
        """La transaction Kafka est annulée : rien de ce qu'elle portait n'est lisible, tout repartira."""
        self.again = self.sent - self.confirmed
        self._written.clear()

    def on_stats(self, text: str) -> None:
        """Rappel ``stats_cb`` de librdkafka : requêtes renvoyées à chaque broker depuis que ce client est né."""
        stats = json.loads(text)
        self._retries[stats["name"]] = sum(broker["txretries"] for broker in stats["brokers"].values())

    def percentile(self, share: float) -> int:
        """Délai d'écriture (ms) que la part ``share`` des transactions ne dépasse pas."""
        rank, seen = share * self._milliseconds.total(), 0
        for delay, count in sorted(self._milliseconds.items()):
            seen += count
            if seen >= rank:
                return delay
        return 0

    def __str__(self) -> str:
        waiting = self.sent - self.confirmed - self.again
        return (
            f"{french_number(self.sent)} envoyées, {french_number(self.confirmed)} confirmées, {waiting} en attente, "
            f"{self.again} reparties, {self.rejected} lettres mortes, {sum(self._retries.values())} renvois du "
            f"client, délai p50 {self.percentile(0.5)} ms, p99 {self.percentile(0.99)} ms"
        )

    def spread(self) -> str:
        """Confirmées dans chaque partition : ``p0 497, p1 503…``."""
        numbers = range(max(self.partitions, default=-1) + 1)
        return ", ".join(f"p{number} {french_number(self.partitions[number])}" for number in numbers)
