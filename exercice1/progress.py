"""Où en est chaque fichier : ce qui en est parti, ce qui en reste, à quel rythme."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from commun.cli import french_number
from commun.systems import write_out
from exercice1.display import Record, Table
from exercice1.sending import Counts, Sender

import msgspec

MOST_ROWS = 20  # fichiers montrés à la fois dans la table ; en JSON, tous


class FileProgress(NamedTuple):
    """L'avancement d'un fichier : octets confirmés, octets présents, lignes et lettres mortes confirmées, lignes/s."""

    file: str
    bytes: int
    size: int
    rows: int
    dead_letters: int
    rows_per_second: float

    @property
    def lag(self) -> int:
        """Octets qui restent à envoyer, ligne inachevée comprise."""
        return max(self.size - self.bytes, 0)


class Progress:
    """Écrit l'avancement sur la sortie standard, toutes les ``every`` secondes : les fichiers qui ont bougé."""

    def __init__(self, sender: Sender, every: float) -> None:
        self.sender, self.every = sender, every
        self.next_at = 0.0
        self._at = 0.0
        self._before: dict[Path, FileProgress] = {}
        self._table = Table() if sys.stdout.isatty() else None

    def show(self, now: float) -> None:
        """Une table, ou une ligne JSON par fichier ; lève BrokenPipeError si plus personne ne lit."""
        rows = list(self._moved(now - self._at))
        self._at, self.next_at = now, now + self.every
        if self._table is None:
            lines = [msgspec.json.encode(row._asdict() | {"lag": row.lag}) for row in rows]
        else:
            rows.sort(key=lambda row: row.lag, reverse=True)
            table = self._table.lines([_cells(row) for row in rows[:MOST_ROWS]])
            lines = [line.encode("utf-8", "replace") for line in table]
            lines += [f"… et {len(rows) - MOST_ROWS} autres fichiers".encode()] if len(rows) > MOST_ROWS else []
        write_out(b"".join(line + b"\n" for line in lines))

    def _moved(self, seconds: float) -> Iterator[FileProgress]:
        """Ceux qui ont changé depuis la dernière fois, ou à qui il reste à lire."""
        for path, follower in self.sender.files.followers.items():
            counts, before = self.sender.counts.get(path, Counts()), self._before.get(path)
            rate = (counts.sent - (before.rows if before else 0)) / seconds if self._at else 0.0
            read = follower.saved.marks[-1].offset if follower.saved.marks else 0
            row = FileProgress(
                os.fsencode(path).decode("utf-8", "replace"),
                read,
                _size(path),
                counts.sent,
                counts.rejected,
                round(rate, 1),
            )
            if before is None or row != before or row.lag:
                yield row
            self._before[path] = row


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # il est parti
        return 0


def _cells(row: FileProgress) -> Record:
    fields = {
        "fichier": row.file, "octets lus": french_number(row.bytes), "restent": french_number(row.lag),
        "lignes": french_number(row.rows), "lettres mortes": french_number(row.dead_letters),
        "lignes/s": french_number(row.rows_per_second),
    }  # fmt: skip
    return Record(None, fields, {})
