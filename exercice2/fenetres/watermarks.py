"""Jusqu'où plus rien n'est attendu, partition par partition et en tout. Logique pure."""

from collections.abc import Iterable

from exercice2.fenetres.window import NEVER


class Watermarks:
    """Le watermark de chaque partition, et celui de l'ensemble : le plus petit de ceux qui ne sont pas inactifs.

    Une partition ajoutée en route entre dans le compte à sa première nouvelle.
    Une partition dont on ne sait rien retient tout, comme dans Flink, jusqu'à ce qu'elle soit dite inactive. Toutes
    inactives, c'est la plus avancée qui décide : l'ordre dans lequel elles se sont tues n'y change rien.
    """

    def __init__(self, partitions: Iterable[int]) -> None:
        self.by_partition: dict[int, int] = dict.fromkeys(partitions, NEVER)
        self.idle: set[int] = set()
        self.overall = NEVER

    def update(self, partition: int, watermark: int) -> int:
        """La partition en est à ``watermark`` et n'est plus inactive ; rend le watermark de l'ensemble."""
        self.idle.discard(partition)
        self.by_partition[partition] = max(watermark, self.by_partition.get(partition, NEVER))
        return self._overall()

    def set_idle(self, partition: int) -> int:
        """La partition est inactive : elle ne retient plus les autres ; rend le watermark de l'ensemble."""
        self.by_partition.setdefault(partition, NEVER)
        self.idle.add(partition)
        return self._overall()

    def _overall(self) -> int:
        active = [watermark for partition, watermark in self.by_partition.items() if partition not in self.idle]
        self.overall = max(self.overall, min(active) if active else max(self.by_partition.values()))
        return self.overall
