"""Fenêtres [début, fin[ alignées, une tous les « slide » : HOP de Flink. Logique pure, sans Kafka ni horloge.

Coût : une tranche (le temps entre deux bords de fenêtres) par clé au lieu d'un événement ; au passage d'une
fenêtre à la suivante, on ajoute les tranches qui entrent et on retranche celles qui sortent.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from exercice2.fenetres.window import NEVER, Key, Late, Result, Stats, by_key, merge


class Slicing:
    """Le temps coupé aux bords des fenêtres de longueur ``size``, une tous les ``slide``, à partir de ``offset``.

    Une tranche est un numéro ; la fenêtre k commence à ``offset + k * slide``. Quand ``slide`` divise ``size``,
    une tranche dure ``slide`` ; sinon, chaque pas en compte deux, de part et d'autre de la fin d'une fenêtre.
    """

    def __init__(self, size: int, slide: int, offset: int = 0) -> None:
        if size <= 0 or slide <= 0:
            raise ValueError("size et slide sont strictement positifs")
        self.size, self.slide, self.offset = size, slide, offset
        self.rest = size % slide
        self.per_step = 2 if self.rest else 1
        self.per_window = size // slide * self.per_step + (1 if self.rest else 0)  # tranches d'une fenêtre

    def slice_of(self, timestamp: int) -> int:
        """Numéro de la tranche d'un instant."""
        step, inside = divmod(timestamp - self.offset, self.slide)
        return step if not self.rest else 2 * step + (inside >= self.rest)

    def bounds(self, number: int) -> tuple[int, int]:
        """Début (compris) et fin (exclue) d'une tranche."""
        step, second = divmod(number, self.per_step)
        start = self.offset + step * self.slide
        if not self.rest:
            return start, start + self.slide
        return (start + self.rest, start + self.slide) if second else (start, start + self.rest)

    def windows_of(self, number: int) -> range:
        """Numéros des fenêtres qui contiennent une tranche ; vide, elle est dans un trou."""
        last = number // self.per_step
        return range(-((self.per_window - 1 - number) // self.per_step), last + 1)

    def slices_of(self, window: int) -> range:
        """Tranches d'une fenêtre."""
        return range(window * self.per_step, window * self.per_step + self.per_window)

    def start(self, window: int) -> int:
        """Début d'une fenêtre."""
        return self.offset + window * self.slide

    def last_instant(self, window: int) -> int:
        """Dernière milliseconde d'une fenêtre : le watermark qui la ferme."""
        return self.offset + window * self.slide + self.size - 1

    def closed(self, watermark: int) -> int:
        """Numéro de la dernière fenêtre que ``watermark`` ferme."""
        return (watermark + 1 - self.size - self.offset) // self.slide


class HopWindows:
    """Fenêtres [début, fin[ alignées. ``grace`` : durée pendant laquelle un retard corrige une fenêtre close."""

    def __init__(self, size: int, slide: int, grace: int = 0, offset: int = 0) -> None:
        self.slicing = Slicing(size, slide, offset)
        self.grace = grace
        self.watermark = NEVER
        self.slices: dict[int, dict[Key, Stats]] = {}
        self.partly_late = 0  # événements en retard pour certaines de leurs fenêtres seulement
        self._window: int | None = None  # la fenêtre dont _running est le contenu : la dernière close
        self._running: dict[Key, Stats] = {}
        self._updated: dict[tuple[int, Key], None] = {}  # fenêtres closes à corriger
        self._corrected: list[Result] = []
        self._late: list[Late] = []

    # --- Entrer ---

    def add(self, key: Key, value: Any, timestamp: int, tag: Any = None) -> bool:
        """Un événement ; faux s'il est refusé (voir ``take_late``)."""
        if not self.add_slice(self.slicing.slice_of(timestamp), {key: [1, value, value, value]}):
            self._late.append(Late(key, value, timestamp, self.watermark, tag))
            return False
        return True

    def add_slice(self, number: int, contents: dict[Key, Stats]) -> bool:
        """Des événements d'une même tranche, déjà comptés par clé ; faux, sans rien changer, s'ils sont refusés."""
        windows = self.slicing.windows_of(number)
        if not windows:
            return True  # dans un trou entre deux fenêtres : il n'appartient à aucune
        if self.slicing.last_instant(windows[-1]) + self.grace <= self.watermark:
            return False
        known = self.slices.setdefault(number, {})
        for key, stats in contents.items():
            if key in known:
                merge(known[key], stats)
            else:
                known[key] = list(stats)
        if self.slicing.last_instant(windows[0]) <= self.watermark:
            self._correct(windows, contents)
        return True

    def _correct(self, windows: range, contents: dict[Key, Stats]) -> None:
        """Un retard : la fenêtre courante l'a peut-être dans ses tranches ; des fenêtres closes sont à corriger."""
        closed = self.slicing.closed(self.watermark)
        if self._window is not None and self._window in windows:
            for key, stats in contents.items():
                merge(self._running[key], stats) if key in self._running else self._running.update({key: list(stats)})
        for window in range(windows[0], min(closed, windows[-1]) + 1):
            if self.slicing.last_instant(window) + self.grace > self.watermark:
                self._updated.update(dict.fromkeys((window, key) for key in contents))
            else:
                self.partly_late += sum(stats[0] for stats in contents.values()) if window == windows[0] else 0

    # --- Avancer ---

    def advance(self, watermark: int) -> list[Result]:
        """Les fenêtres que ``watermark`` ferme, par fin croissante puis par clé ; un watermark ne recule pas."""
        if watermark <= self.watermark:
            return []
        self._settle_updates()
        before, self.watermark = self.watermark, watermark
        last = self.slicing.closed(watermark)
        found: list[Result] = []
        window = self._next(self.slicing.closed(before) + 1)
        while window is not None and window <= last:
            self._move(window)
            start = self.slicing.start(window)
            end = start + self.slicing.size
            rows = [Result(key, start, end, *stats) for key, stats in self._running.items()]
            found += sorted(rows, key=by_key)
            window = self._next(window + 1)
        self._forget()
        return found

    def _next(self, window: int) -> int | None:
        """La première fenêtre à partir de ``window`` qui contient quelque chose."""
        if self._running and self._window == window - 1 and self.slicing.slide <= self.slicing.size:
            return window  # presque toujours : la suivante
        first = self.slicing.slices_of(window)[0]
        later = [number for number in self.slices if number >= first]
        return max(window, self.slicing.windows_of(min(later))[0]) if later else None

    def _move(self, window: int) -> None:
        """Fait de ``window`` la fenêtre courante."""
        wanted = self.slicing.slices_of(window)
        held = self.slicing.slices_of(self._window) if self._window is not None else range(0)
        if not held or wanted.start >= held.stop:
            self._running = {}
            held = range(wanted.start, wanted.start)
        for number in range(held.stop, wanted.stop):
            for key, stats in self.slices.get(number, {}).items():
                if key in self._running:
                    merge(self._running[key], stats)
                else:
                    self._running[key] = list(stats)
        self._remove(range(held.start, wanted.start), wanted)
        self._window = window

    def _remove(self, leaving: range, wanted: range) -> None:
        """Des tranches sortent : le nombre et la somme se retranchent ; un extrême qui sort se cherche à nouveau."""
        stale: set[Key] = set()
        for number in leaving:
            for key, stats in self.slices.get(number, {}).items():
                running = self._running[key]
                running[0] -= stats[0]
                running[1] -= stats[1]
                if not running[0]:
                    del self._running[key]
                    stale.discard(key)
                elif stats[2] <= running[2] or stats[3] >= running[3]:
                    stale.add(key)
        for key in stale:
            left = [self.slices[number][key] for number in wanted if key in self.slices.get(number, ())]
            running = self._running[key]
            running[2] = min(stats[2] for stats in left)
            running[3] = max(stats[3] for stats in left)

    def _forget(self) -> None:
        """Oublie les tranches dont toutes les fenêtres sont closes, tolérance passée, et que rien ne tient plus."""
        held = self.slicing.slices_of(self._window) if self._window is not None else range(0)
        for number in sorted(self.slices):
            if self.slicing.last_instant(self.slicing.windows_of(number)[-1]) + self.grace > self.watermark:
                break
            if number not in held:
                del self.slices[number]

    # --- Regarder ---

    def take_updates(self) -> list[Result]:
        """Les fenêtres closes que des retards ont corrigées depuis le dernier appel (``grace``)."""
        self._settle_updates()
        found, self._corrected = self._corrected, []
        return found

    def _settle_updates(self) -> None:
        """Calcule les corrections tant que leurs tranches sont là."""
        found = [self.current(key, window) for window, key in self._updated]
        self._updated.clear()
        self._corrected += sorted(found, key=lambda result: (result.end, *by_key(result)))

    def take_late(self) -> list[Late]:
        """Les événements refusés depuis le dernier appel."""
        late, self._late = self._late, []
        return late

    def current(self, key: Key, window: int) -> Result:
        """Contenu présent d'une fenêtre, donnée par son numéro ; KeyError s'il n'y a rien."""
        stats: Stats | None = None
        for number in self.slicing.slices_of(window):
            if found := self.slices.get(number, {}).get(key):
                if stats is None:
                    stats = list(found)
                else:
                    merge(stats, found)
        if stats is None:
            raise KeyError(key)
        start = self.slicing.start(window)
        count, total, lowest, highest = stats
        return Result(key, start, start + self.slicing.size, count, total, lowest, highest, final=False)

    def preview(self, keys: Iterable[Key], limit: int) -> list[Result]:
        """Contenu présent de la prochaine fenêtre à se fermer : ``limit`` clés, celles-ci puis les plus récentes."""
        if not self.slices:
            return []
        newest = max(self.slices)
        window = max(self.slicing.closed(self.watermark) + 1, self.slicing.windows_of(newest)[0])
        slices = [self.slices[number] for number in self.slicing.slices_of(window) if number in self.slices]
        wanted = islice(dict.fromkeys([*keys, *self.slices[newest]]), limit)
        return [self.current(key, window) for key in wanted if any(key in contents for contents in slices)]

    def open_until(self, number: int) -> int:
        """Watermark à partir duquel une tranche ne compte plus pour rien."""
        windows = self.slicing.windows_of(number)
        return self.slicing.last_instant(windows[-1]) + self.grace if windows else NEVER
