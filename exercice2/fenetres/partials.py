"""Le calcul des fenêtres en deux étages, pour que plusieurs moniteurs se partagent les partitions. Logique pure.

Étage 1, une fois par partition : ``Combiner`` lit des transactions dans l'ordre de leur partition et les compte
par tranche et par clé. Il en fait un ``Partial``, avec le watermark où en est la partition.
Étage 2, une seule fois : ``Merger`` reçoit les ``Partial`` de toutes les partitions dans un ordre que le topic
fixe pour toujours, tient les fenêtres, et rend les résultats. Rejouer les mêmes ``Partial`` rend les mêmes.

Un événement à l'heure pour sa partition l'est pour l'ensemble : le compter d'avance n'y change rien. Un événement
en retard voyage seul, avec le watermark de sa partition à son arrivée : l'étage 2 le juge à cet instant précis.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Protocol

from exercice2.fenetres.windows import NEVER, HopWindows, Result, Slicing, Stats, TrailingWindows, Watermarks
from exercice2.transactions import Fields, InvalidTransaction, read

import msgspec

HOLD_MS, RESUME_MS = 120_000, 60_000  # avance sur la plus lente qui fait attendre une partition, et qui la rend
Windows = HopWindows | TrailingWindows


class Record(Protocol):
    """Un message Kafka, vu d'ici."""

    def value(self) -> bytes | None:
        """Ses octets."""

    def offset(self) -> int | None:
        """Sa place dans sa partition."""


Entry = tuple[str | None, int, int, Record, str]  # clé, centimes, instant, message, identifiant


class Event(msgspec.Struct, array_like=True, gc=False):
    """Un événement qui voyage seul : en retard (fenêtres HOP), ou n'importe lequel (à chaque événement)."""

    key: str | None
    value: int  # centimes
    timestamp: int
    id: str
    offset: int
    watermark: int  # de sa partition à son arrivée s'il était en retard pour elle, NEVER sinon


class Partial(msgspec.Struct, omit_defaults=True):
    """Ce que des messages consécutifs d'une partition ajoutent aux fenêtres."""

    partition: int
    watermark: int  # de la partition, après ces messages
    first: int = -1  # offsets du premier et du dernier message
    last: int = -1
    before: int = NEVER  # l'instant le plus avancé de la partition, avant ces messages
    idle: bool = False  # la partition n'a plus rien depuis longtemps : elle ne retient plus les autres
    slices: list[tuple[int, list[tuple[str | None, int, int, int, int]]]] = msgspec.field(default_factory=list)
    events: list[Event] = msgspec.field(default_factory=list)


class Reader:
    """Lit des transactions. ``by`` : le champ qui sert de clé, ou rien ; ``max_future_ms`` : avance permise."""

    def __init__(self, by: str | None, max_future_ms: int) -> None:
        self.max_future = max_future_ms
        self._key_of: Callable[[Fields], str | None] = attrgetter(by) if by else lambda _: None

    def read(self, records: Sequence[Record], now_ms: int) -> tuple[list[Entry], list[tuple[int, str]]]:
        """Ce que portent des messages ; et ceux qui sont refusés : rang, raison.

        Refuse ce qui n'est pas une transaction, et ce qui est daté de plus de ``max_future_ms`` après ``now_ms``.
        """
        key_of, limit = self._key_of, now_ms + self.max_future
        entries: list[Entry] = []
        rejected: list[tuple[int, str]] = []
        for rank, record in enumerate(records):
            try:
                fields, cents, instant = read(record.value())
            except InvalidTransaction as error:
                rejected.append((rank, str(error)))
                continue
            if instant > limit:
                rejected.append((rank, FUTURE))
            else:
                entries.append((key_of(fields), cents, instant, record, fields.id))
        return entries, rejected


FUTURE = "timestamp : dans le futur ; l'admettre fermerait toutes les fenêtres d'avant"


class Combiner:
    """L'étage 1, pour une partition. ``highest`` : l'instant le plus avancé ; le watermark est ``delay`` avant."""

    def __init__(self, reader: Reader, slicing: Slicing | None, delay: int, highest: int = NEVER) -> None:
        self.reader, self.slicing, self.delay, self.highest = reader, slicing, delay, highest

    @property
    def watermark(self) -> int:
        """Plus rien n'est attendu jusqu'à cet instant."""
        return self.highest - self.delay if self.highest > NEVER else NEVER

    def combine(self, partition: int, records: Sequence[Record], now_ms: int) -> tuple[Partial, list[tuple[int, str]]]:
        """Des messages consécutifs, en un Partial ; et ceux qui sont refusés : rang dans ``records``, raison."""
        before = self.highest
        entries, rejected = self.reader.read(records, now_ms)
        partial = Partial(partition, NEVER, records[0].offset() or 0, records[-1].offset() or 0, before)
        if self.slicing is None:
            partial.events = self._events(entries)
        else:
            slices, partial.events = self._slices(self.slicing, entries)
            for number, contents in slices.items():
                partial.slices.append((number, [(key, *stats) for key, stats in contents.items()]))
        partial.watermark = self.watermark
        return partial, rejected

    def _slices(self, slicing: Slicing, entries: list[Entry]) -> tuple[dict[int, dict[str | None, Stats]], list[Event]]:
        slice_of, delay, highest = slicing.slice_of, self.delay, self.highest
        slices: dict[int, dict[str | None, Stats]] = {}
        late: list[Event] = []
        low = high = 0  # bornes de la tranche courante : presque toujours celle de l'événement suivant
        contents: dict[str | None, Stats] = {}
        for key, value, instant, record, id in entries:
            if instant > highest:
                highest = instant
            elif instant <= highest - delay and slicing.bounds(slice_of(instant))[1] - 1 <= highest - delay:
                late.append(Event(key, value, instant, id, record.offset() or 0, highest - delay))
                continue
            if not low <= instant < high:
                number = slice_of(instant)
                low, high = slicing.bounds(number)
                contents = slices.setdefault(number, {})
            if key in contents:
                stats = contents[key]
                stats[0] += 1
                stats[1] += value
                if value < stats[2]:
                    stats[2] = value
                elif value > stats[3]:
                    stats[3] = value
            else:
                contents[key] = [1, value, value, value]
        self.highest = highest
        return slices, late

    def _events(self, entries: list[Entry]) -> list[Event]:
        events, highest, delay = [], self.highest, self.delay
        for key, value, instant, record, id in entries:
            highest = max(instant, highest)
            watermark = highest - delay if instant <= highest - delay else NEVER
            events.append(Event(key, value, instant, id, record.offset() or 0, watermark))
        self.highest = highest
        return events


def to_hold(highest: dict[int, int], held: set[int]) -> set[int]:
    """Partitions à faire attendre, d'après l'instant le plus avancé de chacune et celles qui attendent déjà.

    ``highest`` : celles qui ont encore à lire. Celle qui reprend est loin de devoir attendre à nouveau.
    """
    slowest = min(highest.values(), default=NEVER)
    if slowest == NEVER:
        return set()
    return {p for p, instant in highest.items() if instant - slowest > (RESUME_MS if p in held else HOLD_MS)}


class Position(msgspec.Struct):
    """D'où reprendre l'étage 2 : l'état des watermarks juste avant le premier Partial encore utile."""

    next: int = 0  # offset du premier Partial dont les résultats ne sont pas encore publiés
    overall: int = NEVER
    watermarks: dict[int, int] = {}
    idle: list[int] = []


class Late(msgspec.Struct, frozen=True):
    """Un événement refusé, à retrouver dans sa partition par son offset."""

    partition: int
    offset: int
    watermark: int


class LateSlices(msgspec.Struct, frozen=True):
    """Des événements refusés qui n'ont pas voyagé seuls : ceux de ces tranches, entre ces offsets."""

    partial: Partial
    numbers: frozenset[int]
    watermark: int


class Merger:
    """L'étage 2 : tient les fenêtres, et sait d'où reprendre.

    ``apply`` rend les résultats d'un Partial ; ``position`` est ce qu'il faut retenir avec l'offset ``low``.
    """

    def __init__(self, windows: Windows, partitions: Iterable[int], start: int, position: Position | None) -> None:
        self.windows = windows
        # Reprises, les partitions sont celles d'alors : une autre, ajoutée depuis, n'y a encore rien changé.
        self.marks = Watermarks(position.watermarks if position else partitions)
        self.published = start  # avant cet offset, les résultats sont déjà publiés : on rejoue en silence
        if position:
            self.published = position.next
            self.marks.by_partition |= position.watermarks
            self.marks.idle = set(position.idle)
            self.marks.overall = position.overall
            windows.advance(position.overall)
        self._next = start
        self._needed: deque[tuple[int, int, Position]] = deque()  # offset, utile jusqu'à ce watermark, état d'avant
        self.late: list[Late] = []
        self.late_slices: list[LateSlices] = []

    def apply(self, offset: int, partial: Partial) -> list[Result]:
        """Les fenêtres que ce Partial ferme, puis celles qu'il corrige ; rien s'il est rejoué."""
        before = Position(0, self.marks.overall, dict(self.marks.by_partition), sorted(self.marks.idle))
        found = self._apply(partial)
        found += self.windows.take_updates()
        self.windows.take_late()
        self._needed.append((offset, self._needed_until(partial), before))
        while self._needed and self._needed[0][1] <= self.windows.watermark:
            self._needed.popleft()
        self._next = offset + 1
        if offset < self.published:
            self.late.clear()
            self.late_slices.clear()
            return []
        return found

    def _apply(self, partial: Partial) -> list[Result]:
        if partial.idle:
            return self.windows.advance(self.marks.set_idle(partial.partition))
        windows, found = self.windows, list[Result]()
        refused = set()
        for number, contents in partial.slices:
            assert isinstance(windows, HopWindows)  # noqa: S101 - seules les fenêtres HOP ont des tranches
            if not windows.add_slice(number, {key: stats for key, *stats in contents}):
                refused.add(number)
        if refused:
            self.late_slices.append(LateSlices(partial, frozenset(refused), windows.watermark))
        for event in partial.events:
            if event.watermark > NEVER:
                found += windows.advance(self.marks.update(partial.partition, event.watermark))
            if not windows.add(event.key, event.value, event.timestamp, event.id):
                self.late.append(Late(partial.partition, event.offset, windows.watermark))
        return found + windows.advance(self.marks.update(partial.partition, partial.watermark))

    def _needed_until(self, partial: Partial) -> int:
        """Watermark après lequel ce Partial ne change plus aucun résultat."""
        if isinstance(self.windows, TrailingWindows):
            return max((self.windows.open_until(event.timestamp) for event in partial.events), default=NEVER)
        slicing = self.windows.slicing
        numbers = [number for number, _ in partial.slices]
        numbers += [slicing.slice_of(event.timestamp) for event in partial.events]
        return max(map(self.windows.open_until, numbers), default=NEVER)

    @property
    def low(self) -> int:
        """Offset du premier Partial encore utile."""
        return self._needed[0][0] if self._needed else self._next

    @property
    def position(self) -> Position:
        """L'état juste avant ``low`` ; ``next`` ne recule jamais : un arrêt en plein rejeu publierait deux fois."""
        following = max(self._next, self.published)
        state = self._needed[0][2] if self._needed else None
        if state is None:
            marks = self.marks
            return Position(following, marks.overall, dict(marks.by_partition), sorted(marks.idle))
        return Position(following, state.overall, state.watermarks, state.idle)
