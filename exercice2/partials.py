"""Le calcul des fenêtres en deux étages, pour que plusieurs moniteurs se partagent les partitions. Logique pure.

Étage 1, une fois par partition : ``Combiner`` lit des transactions dans l'ordre de leur partition et les compte
par tranche et par clé. Il en fait un ``Partial``, avec le watermark où en est la partition.
Étage 2, une seule fois : ``Merger`` reçoit les ``Partial`` de toutes les partitions dans un ordre que le topic
fixe pour toujours, tient les fenêtres, et rend les résultats. Rejouer les mêmes ``Partial`` rend les mêmes.

Un événement à l'heure pour sa partition l'est pour l'ensemble : le compter d'avance n'y change rien. Un événement
en retard voyage seul, avec le watermark de sa partition à son arrivée : l'étage 2 le juge à cet instant précis.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Protocol

import msgspec

from exercice2.transactions import CENT, MONTANT_MAX, TEXT_MAX, InvalidTransaction, parse
from exercice2.windows import NEVER, HopWindows, Result, Slicing, Stats, TrailingWindows, Watermarks

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]
Windows = HopWindows | TrailingWindows


class Record(Protocol):
    """Un message Kafka, vu d'ici."""

    def value(self) -> bytes | None:
        """Ses octets."""

    def offset(self) -> int | None:
        """Sa place dans sa partition."""


class Event(msgspec.Struct, array_like=True):
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
    slices: list[tuple[int, list[tuple[str | None, int, int, int, int]]]] = []
    events: list[Event] = []


class _Row(msgspec.Struct):
    """Une transaction, contrôlée par msgspec : le chemin rapide, le même verdict que ``transactions.parse``."""

    id: Text
    timestamp: str
    montant: Annotated[float, msgspec.Meta(gt=0, le=float(MONTANT_MAX))]
    type: Literal["paiement", "retrait", "virement", "depot", "remboursement"]
    compte: Text
    region: Text
    canal: Text


class Reader:
    """Lit une transaction : clé, centimes, instant (ms), identifiant. ``by`` : le champ qui sert de clé, ou rien."""

    def __init__(self, by: str | None, max_future_ms: int) -> None:
        self.by, self.max_future = by, max_future_ms
        self._decode = msgspec.json.Decoder(_Row).decode
        self._seconds: dict[str, int] = {}  # « 2026-01-31T23:59:59 » : lire une date coûte cher, presque toutes servent
        self._milliseconds = {f".{number:03d}Z": number for number in range(1000)}

    def read(self, value: bytes | None, now_ms: int) -> tuple[str | None, int, int, str]:
        """Lève InvalidTransaction si ce n'en est pas une, ou si elle est datée trop loin dans le futur."""
        try:
            row = self._decode(value or b"")
            text = row.timestamp
            instant = self._seconds[text[:19]] + self._milliseconds[text[19:]]
            cents = round(row.montant * 100)  # exact : le flottant le plus proche d'un nombre de centimes y revient
            if abs(row.montant * 100 - cents) > 1e-6:
                raise InvalidTransaction("montant : deux décimales au plus")
            found = None if self.by is None else getattr(row, self.by), cents, instant, row.id
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = self._read_slowly(value)
        if found[2] > now_ms + self.max_future:
            raise InvalidTransaction("timestamp : dans le futur ; l'admettre fermerait toutes les fenêtres d'avant")
        return found

    def _read_slowly(self, value: bytes | None) -> tuple[str | None, int, int, str]:
        transaction = parse(value, datetime.max.replace(tzinfo=UTC) - _YEAR)
        moment = transaction.timestamp.replace(microsecond=0)
        seconds = (moment - _EPOCH) // _SECOND * 1000
        if len(self._seconds) > 100_000:
            self._seconds.clear()
        self._seconds[moment.strftime("%Y-%m-%dT%H:%M:%S")] = seconds
        instant = seconds + transaction.timestamp.microsecond // 1000
        key = None if self.by is None else str(getattr(transaction, self.by))
        return key, int(transaction.montant / CENT), instant, transaction.id


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC) - _EPOCH
_YEAR = datetime(1971, 1, 1, tzinfo=UTC) - _EPOCH


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
        before, rejected = self.highest, list[tuple[int, str]]()
        if self.slicing is None:
            events = self._events(records, now_ms, rejected)
            slices: dict[int, dict[str | None, Stats]] = {}
        else:
            slices, events = self._slices(self.slicing, records, now_ms, rejected)
        packed = [
            (number, [(key, *stats) for key, stats in contents.items()]) for number, contents in slices.items()
        ]  # fmt: skip
        first, last = records[0].offset() or 0, records[-1].offset() or 0
        return Partial(partition, self.watermark, first, last, before, slices=packed, events=events), rejected

    def _slices(
        self, slicing: Slicing, records: Sequence[Record], now_ms: int, rejected: list[tuple[int, str]]
    ) -> tuple[dict[int, dict[str | None, Stats]], list[Event]]:
        read, slice_of, delay, highest = self.reader.read, slicing.slice_of, self.delay, self.highest
        slices: dict[int, dict[str | None, Stats]] = {}
        late: list[Event] = []
        low = high = 0  # bornes de la tranche courante : presque toujours celle de l'événement suivant
        contents: dict[str | None, Stats] = {}
        for rank, record in enumerate(records):
            try:
                key, value, instant, id = read(record.value(), now_ms)
            except InvalidTransaction as error:
                rejected.append((rank, str(error)))
                continue
            if instant > highest:
                highest = instant
            elif instant <= highest - delay and slicing.bounds(slice_of(instant))[1] - 1 <= highest - delay:
                late.append(Event(key, value, instant, id, record.offset() or 0, highest - delay))
                continue
            if not low <= instant < high:
                number = slice_of(instant)
                low, high = slicing.bounds(number)
                contents = slices.setdefault(number, {})
            stats = contents.get(key)
            if stats is None:
                contents[key] = [1, value, value, value]
                continue
            stats[0] += 1
            stats[1] += value
            if value < stats[2]:
                stats[2] = value
            elif value > stats[3]:
                stats[3] = value
        self.highest = highest
        return slices, late

    def _events(self, records: Sequence[Record], now_ms: int, rejected: list[tuple[int, str]]) -> list[Event]:
        events = []
        for rank, record in enumerate(records):
            try:
                key, value, instant, id = self.reader.read(record.value(), now_ms)
            except InvalidTransaction as error:
                rejected.append((rank, str(error)))
                continue
            self.highest = max(self.highest, instant)
            watermark = self.highest - self.delay
            events.append(
                Event(key, value, instant, id, record.offset() or 0, watermark if instant <= watermark else NEVER)
            )
        return events


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
        self.marks = Watermarks(partitions)
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
            return max((event.timestamp + self.windows.size for event in partial.events), default=NEVER)
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
        """L'état juste avant ``low``."""
        state = self._needed[0][2] if self._needed else None
        if state is None:
            marks = self.marks
            return Position(self._next, marks.overall, dict(marks.by_partition), sorted(marks.idle))
        return Position(self._next, state.overall, state.watermarks, state.idle)
