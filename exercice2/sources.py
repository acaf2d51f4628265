"""D'où viennent les transactions de producer_resilient.py : un fichier CSV, ou une suite fabriquée.

Une source est une suite numérotée, toujours la même : il suffit de retenir combien d'éléments sont
partis pour reprendre au bon endroit, sans rien perdre ni doubler.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from commun.errors import PipelineError
from exercice2.transactions import (
    InvalidTransaction,
    Transaction,
    amount_or_text,
    disorder,
    from_fields,
    generate,
    instant_text,
)

REPLAY_START = datetime(2026, 1, 1, tzinfo=UTC)  # --rate 0 : des dates fixes…
REPLAY_RATE = 100.0  # … espacées comme à ce rythme, par seconde


class Saved(msgspec.Struct):
    """Où en est une source : éléments partis, et de quoi vérifier que c'est toujours la même."""

    rows: int = 0
    digest: str = ""  # fichier : SHA-256 de tout ce qui précède
    start: str = ""  # suite fabriquée : instant de la première transaction


class Item(NamedTuple):
    """Un élément d'une source : une transaction, ou ce qui n'en est pas une, octets compris, avec la raison."""

    transaction: Transaction | None
    raw: bytes
    line: int
    reason: str


class Source(Protocol):
    """Une suite numérotée d'éléments. ``name`` l'identifie dans le topic des positions."""

    name: str
    rate: float  # éléments par seconde ; 0 : au plus vite

    def resume(self, saved: Saved) -> Iterator[Item]:
        """Les éléments qui suivent ``saved``."""

    def mark(self, rows: int) -> Saved:
        """La position, une fois ``rows`` éléments pris en tout."""

    def due(self, rows: int) -> float:
        """Instant (secondes POSIX) où le ``rows``-ième élément doit partir ; 0 : tout de suite."""


class Generated:
    """La suite fabriquée d'une graine."""

    def __init__(self, seed: int, rate: float, disorder_seconds: float, count: int | None) -> None:
        self.seed, self.rate, self.disorder, self.count = seed, rate, disorder_seconds, count
        self.name = f"generate:{seed}:{rate:g}:{disorder_seconds:g}"
        self.start = REPLAY_START if rate == 0 else datetime.now(UTC).replace(microsecond=0)

    def resume(self, saved: Saved) -> Iterator[Item]:
        """Voir Source."""
        if saved.start:
            self.start = datetime.fromisoformat(saved.start)
        transactions = generate(self.seed, self.start, self.rate or REPLAY_RATE)
        if self.disorder:
            transactions = disorder(transactions, self.disorder, self.seed)
        return (Item(t, b"", 0, "") for t in islice(transactions, saved.rows, self.count))

    def mark(self, rows: int) -> Saved:
        """Voir Source."""
        return Saved(rows, start=instant_text(self.start))

    def due(self, rows: int) -> float:
        """Voir Source."""
        return self.start.timestamp() + rows / self.rate if self.rate else 0.0


class CsvFile:
    """Les lignes d'un fichier CSV, dans l'ordre. Le fichier peut grandir entre deux envois, pas changer."""

    def __init__(self, path: Path, rate: float, count: int | None, say: Callable[[str], None]) -> None:
        self.path, self.rate, self.count, self.say = path, rate, count, say
        self.name = str(path.resolve())
        self._digest = hashlib.sha256()
        self._first: tuple[int, float] | None = None

    def resume(self, saved: Saved) -> Iterator[Item]:
        """Voir Source."""
        items = self._items()
        passed = sum(1 for _ in islice(items, saved.rows))
        if passed < saved.rows or (saved.rows and self._digest.hexdigest() != saved.digest):
            self.say(f"{self.path} n'est plus le fichier déjà envoyé : je l'envoie depuis le début.")
            return islice(self._items(), self.count)
        if saved.rows:
            self.say(f"{self.path} : {saved.rows} lignes sont déjà parties, je continue après elles.")
        return islice(items, None if self.count is None else max(0, self.count - saved.rows))

    def mark(self, rows: int) -> Saved:
        """Voir Source."""
        return Saved(rows, self._digest.hexdigest())

    def due(self, rows: int) -> float:
        """Voir Source."""
        if not self.rate:
            return 0.0
        self._first = self._first or (rows, datetime.now(UTC).timestamp())
        return self._first[1] + (rows - self._first[0]) / self.rate

    def _items(self) -> Iterator[Item]:
        self._digest = hashlib.sha256()
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise PipelineError(f"Impossible de lire {self.path} : {error.strerror}.") from error
        with file:
            taken: list[bytes] = []

            def lines() -> Iterator[str]:
                for raw in file:
                    taken.append(raw)
                    self._digest.update(raw)
                    yield raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")

            reader = csv.DictReader(lines(), strict=True)
            while True:
                line = reader.line_num + 1
                try:
                    fields = {name: amount_or_text(name, text) for name, text in next(reader).items()}
                    yield Item(from_fields(fields, datetime.now(UTC)), b"", line, "")
                except StopIteration:
                    return
                except (csv.Error, InvalidTransaction) as error:
                    yield Item(None, b"".join(taken), line, str(error))
                taken.clear()
