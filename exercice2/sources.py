"""D'où viennent les transactions de producer_resilient.py : un fichier CSV, ou une suite fabriquée.

Une source est une suite numérotée, toujours la même : il suffit de retenir où l'on en est pour reprendre au bon
endroit, sans rien perdre ni doubler. Le fichier est lu par commun/csv_rows.py, comme dans l'exercice 1.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from commun import PipelineError
from commun.csv_header import Header, HeaderError, Options, read_header
from commun.csv_rows import Chunk, Place, open_parser
from exercice2.transactions import FIELDS, Transaction, disorder, from_fields, generate, instant_text

import msgspec

HEADER_BYTES = 1_048_576  # début d'un fichier, où chercher son en-tête
REPLAY_START = datetime(2026, 1, 1, tzinfo=UTC)  # --rate 0 : des dates fixes…
REPLAY_RATE = 100.0  # … espacées comme à ce rythme, par seconde


class Saved(msgspec.Struct):
    """Où en est une source : éléments partis, et de quoi vérifier que c'est toujours la même."""

    rows: int = 0
    digest: str = ""  # fichier : SHA-256 des ``offset`` premiers octets
    start: str = ""  # suite fabriquée : instant de la première transaction
    offset: int = 0
    lines: int = 0
    skip: int = 0  # éléments déjà partis après cette place ; presque toujours aucun


class Item(NamedTuple):
    """Un élément d'une source : une transaction, ou ce qui n'en est pas une, octets compris, avec la raison."""

    transaction: Transaction | None
    raw: bytes
    line: int
    reason: str


class Source(Protocol):
    """Une suite numérotée d'éléments. ``name`` l'identifie dans le topic des positions."""

    name: str
    endless: bool

    def resume(self, saved: Saved) -> tuple[int, Iterator[Item]]:
        """Combien d'éléments sont partis, d'après ``saved``, et les suivants."""

    def mark(self, rows: int) -> Saved:
        """La position, une fois ``rows`` éléments pris en tout."""


class Pace:
    """Le rythme : ``rate`` éléments par seconde depuis la reprise ; 0, au plus vite."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._first: tuple[int, float] | None = None

    def wait(self, rows: int) -> float:
        """Secondes à attendre avant de prendre le ``rows``-ième élément."""
        if not self.rate:
            return 0.0
        self._first = self._first or (rows, time.monotonic())
        return self._first[1] + (rows - self._first[0]) / self.rate - time.monotonic()


class Generated:
    """La suite fabriquée d'une graine."""

    def __init__(self, seed: int, rate: float, disorder_seconds: float, count: int | None) -> None:
        self.seed, self.rate, self.disorder, self.count = seed, rate, disorder_seconds, count
        self.name = f"generate:{seed}:{rate:g}:{disorder_seconds:g}"
        self.start = REPLAY_START if rate == 0 else datetime.now(UTC).replace(microsecond=0)
        self.endless = count is None

    def resume(self, saved: Saved) -> tuple[int, Iterator[Item]]:
        """Voir Source."""
        if saved.start:
            self.start = datetime.fromisoformat(saved.start)
        transactions = generate(self.seed, self.start, self.rate or REPLAY_RATE)
        if self.disorder:
            transactions = disorder(transactions, self.disorder, self.seed)
        return saved.rows, (Item(t, b"", 0, "") for t in islice(transactions, saved.rows, self.count))

    def mark(self, rows: int) -> Saved:
        """Voir Source."""
        return Saved(rows, start=instant_text(self.start))


class CsvFile:
    """Les lignes d'un fichier CSV, dans l'ordre. Le fichier peut grandir entre deux envois, pas changer.

    Une dernière ligne sans fin de ligne n'est peut-être pas finie : elle attend (``unfinished``).
    """

    endless = False

    def __init__(self, path: Path, count: int | None, say: Callable[[str], None]) -> None:
        self.path, self.count, self.say = path, count, say
        self.name = str(path.resolve())
        self.unfinished: int | None = None  # le numéro de cette ligne
        self._here = Saved()

    def resume(self, saved: Saved) -> tuple[int, Iterator[Item]]:
        """Voir Source."""
        self._header()  # le fichier se lit-il ?
        if saved.rows and not saved.offset:
            saved = self._former(saved)
        seen = self._hash(saved.offset)
        if saved.rows and (not saved.offset or seen is None or seen.hexdigest() != saved.digest):
            self.say(f"{self.path} n'est plus le fichier déjà envoyé : je l'envoie depuis le début.")
            saved = Saved()
        if saved.rows:
            self.say(f"{self.path} : {saved.rows} lignes sont déjà parties, je continue après elles.")
        left = None if self.count is None else max(0, self.count - saved.rows)
        return saved.rows, islice(self._items(saved), left)

    def mark(self, rows: int) -> Saved:
        """Voir Source."""
        return self._here

    def _items(self, start: Saved) -> Iterator[Item]:
        """Les éléments qui suivent ``start`` ; ``_here`` suit celui qui vient d'être rendu."""
        self._here, skip, header = start, start.skip, self._header()
        place = Place(start.offset, start.lines) if start.offset else Place(header.size, header.lines)
        seen = self._hash(place.offset) or hashlib.sha256()
        for chunk in self._chunks(header, place):
            items, before = _in_order(chunk), seen.copy()
            seen.update(chunk.taken)
            for number in range(skip, len(items)):
                last = number + 1 == len(items)  # plusieurs d'un coup : après un guillemet jamais fermé
                at, digest = (chunk.place, seen) if last else (place, before)
                rows, left = self._here.rows + 1, 0 if last else number + 1
                self._here = Saved(rows, digest.hexdigest(), "", at.offset, at.lines, left)
                yield items[number]
            skip = 0 if items else skip
            place = chunk.place

    def _chunks(self, header: Header, place: Place) -> Iterator[Chunk[Transaction]]:
        """Le fichier, une ligne à la fois, à partir de ``place``."""

        def convert(values: list[str]) -> Transaction:
            return from_fields(dict(zip(header.names, values, strict=True)), datetime.now(UTC))

        parser = open_parser(header, Options(), place, convert)
        with self.path.open("rb") as file:
            file.seek(place.offset)
            for raw in file:
                yield parser.feed(raw)
        if parser.pending.endswith("\n".encode(header.encoding)):
            yield parser.feed(b"", final=True)
        self.unfinished = parser.place.lines + 1 if parser.pending else None

    def _header(self) -> Header:
        try:
            header = read_header(self._first_bytes(HEADER_BYTES), Options(), final=True)
        except HeaderError as error:
            raise PipelineError(f"Impossible de lire {self.path} : {error}.") from error
        if missing := [field for field in FIELDS if header is None or field not in header.names]:
            raise PipelineError(f"{self.path} n'est pas un fichier de transactions : colonnes absentes : "
                                f"{', '.join(missing)}.")  # fmt: skip
        assert header is not None  # noqa: S101 - il ne manque rien
        return header

    def _first_bytes(self, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise PipelineError(f"Impossible de lire {self.path} : {error.strerror}.") from error

    def _hash(self, size: int) -> "hashlib._Hash | None":
        """SHA-256 des ``size`` premiers octets ; None s'il n'y en a pas tant."""
        seen = hashlib.sha256()
        with self.path.open("rb") as file:
            while size and (data := file.read(min(size, HEADER_BYTES))):
                seen.update(data)
                size -= len(data)
        return None if size else seen

    def _former(self, saved: Saved) -> Saved:
        """La place d'une position d'avant, qui ne comptait que les lignes, et dont la somme va parfois trop loin."""
        items, ends = self._items(Saved()), Saved()
        for _ in islice(items, saved.rows):
            ends = self._here
        data = self._first_bytes(self.path.stat().st_size)
        blank = len(data) - len(data[ends.offset :].lstrip(b"\r\n"))
        known = (hashlib.sha256(data[:end]).hexdigest() for end in (ends.offset, blank, len(data)))
        return ends if ends.rows == saved.rows and saved.digest in known else saved


def _in_order(chunk: Chunk[Transaction]) -> list[Item]:
    """Ce qu'un morceau a donné, dans l'ordre du fichier."""
    found = [Item(value, b"", line, "") for line, value in zip(chunk.numbers, chunk.values, strict=True)]
    found += [Item(None, rejected.raw, rejected.line, rejected.reason) for rejected in chunk.rejected]
    return sorted(found, key=lambda item: item.line)
