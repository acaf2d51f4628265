"""Pour chaque événement, ce qui le précède dans sa clé : OVER … RANGE de Flink. Logique pure, sans Kafka ni horloge."""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from exercice2.fenetres.window import NEVER, Key, Late, Result


class _Trail:
    """Ce qu'une clé a eu dans les ``size`` dernières millisecondes."""

    __slots__ = ("events", "highest", "last", "lowest", "sum")

    def __init__(self) -> None:
        self.events: deque[tuple[int, Any]] = deque()  # instant, valeur
        self.lowest: deque[tuple[int, Any]] = deque()  # valeurs croissantes : la première est le minimum
        self.highest: deque[tuple[int, Any]] = deque()  # valeurs décroissantes : la première est le maximum
        self.sum: Any = 0
        self.last = NEVER  # instant du dernier résultat rendu

    def push(self, instant: int, value: Any) -> None:
        """Un événement, plus récent que les autres ou du même instant que le dernier."""
        self.events.append((instant, value))
        self.sum += value
        lowest, highest = self.lowest, self.highest
        while lowest and lowest[-1][1] >= value:
            lowest.pop()
        lowest.append((instant, value))
        while highest and highest[-1][1] <= value:
            highest.pop()
        highest.append((instant, value))

    def evict(self, start: int) -> None:
        """Oublie ce qui précède ``start`` ; il reste toujours un événement."""
        events, lowest, highest = self.events, self.lowest, self.highest
        while events[0][0] < start:
            self.sum -= events.popleft()[1]
        while lowest[0][0] < start:
            lowest.popleft()
        while highest[0][0] < start:
            highest.popleft()


class TrailingWindows:
    """Pour chaque événement, la fenêtre [instant - size, instant] de sa clé, rendue quand le watermark y arrive.

    Un événement est refusé s'il n'est pas postérieur au dernier résultat rendu pour sa clé, comme dans Flink.
    ``max_late`` : refuse aussi ce qui a au moins ce retard sur le watermark ; la mémoire est alors celle des
    clés récentes, et non de toutes celles que le flux a portées.
    """

    def __init__(self, size: int, max_late: int | None = None) -> None:
        if size <= 0:
            raise ValueError("size est strictement positif")
        self.size, self.max_late = size, max_late
        self.watermark = NEVER
        self._waiting: list[tuple[int, int, Key, Any, Any]] = []  # tas : instant, rang d'arrivée, clé, valeur, tag
        self._trails: dict[Key, _Trail] = {}
        self._sweep_at = NEVER
        self._rank = 0
        self._late: list[Late] = []

    def add(self, key: Key, value: Any, timestamp: int, tag: Any = None) -> bool:
        """Un événement ; faux s'il est refusé (voir ``take_late``)."""
        if timestamp <= self.watermark and self._too_late(key, timestamp):
            self._late.append(Late(key, value, timestamp, self.watermark, tag))
            return False
        self._rank += 1
        heappush(self._waiting, (timestamp, self._rank, key, value, tag))
        return True

    def _too_late(self, key: Key, timestamp: int) -> bool:
        if self.max_late is not None and timestamp <= self.watermark - self.max_late:
            return True
        return key in self._trails and timestamp <= self._trails[key].last

    def advance(self, watermark: int) -> list[Result]:
        """Un résultat par événement que ``watermark`` atteint, par instant croissant puis par rang d'arrivée."""
        if watermark < self.watermark:
            return []
        self.watermark = watermark
        waiting, size, trails, found = self._waiting, self.size, self._trails, list[Result]()
        while waiting and (instant := waiting[0][0]) <= watermark:
            together: list[tuple[_Trail, Key, Any]] = []  # ceux du même instant
            while waiting and waiting[0][0] == instant:
                _, _, key, value, tag = heappop(waiting)
                trail = trails.get(key)
                if trail is None:
                    trail = trails[key] = _Trail()
                trail.push(instant, value)
                together.append((trail, key, tag))
            start = instant - size
            for trail, key, tag in together:
                trail.evict(start)
                trail.last = instant
                content = len(trail.events), trail.sum, trail.lowest[0][1], trail.highest[0][1]
                found.append(Result(key, start, instant, *content, True, tag))
        self._sweep()
        return found

    def _sweep(self) -> None:
        """Oublie les clés muettes, une fois par longueur de fenêtre."""
        if self.max_late is None or self.watermark < self._sweep_at:
            return
        self._sweep_at = self.watermark + self.size
        oldest = self.watermark - self.max_late - self.size
        for key in [key for key, trail in self._trails.items() if trail.last < oldest]:
            del self._trails[key]

    def take_updates(self) -> list[Result]:
        """Toujours vide : un résultat rendu ne change plus."""
        return []

    def preview(self, keys: Iterable[Key], limit: int) -> list[Result]:
        """Toujours vide : une fenêtre n'existe pas avant son événement."""
        return []

    def take_late(self) -> list[Late]:
        """Les événements refusés depuis le dernier appel."""
        late, self._late = self._late, []
        return late

    def open_until(self, timestamp: int) -> int:
        """Watermark à partir duquel un événement de cet instant ne compte plus pour rien."""
        if self.max_late is None:
            raise ValueError("sans max_late, un événement compte toujours")
        return timestamp + self.size + self.max_late
