"""Un fichier CSV ouvert, lu à mesure qu'il grandit, à partir d'un repère ou de son début."""

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from commun.csv_header import Header, HeaderError, Options, awaited, read_header, recognised
from commun.csv_rows import Chunk, Parser, Place, open_parser
from commun.systems import open_shared
from exercice1.fingerprint import (
    NAMES_BYTES,
    WINDOW_BYTES,
    Identity,
    Mark,
    digest,
    identity_of,
    matches,
    read_at,
    too_many_names,
    windows,
)
from exercice1.json_rows import Row, converter

CHUNK_BYTES = 262_144  # lus d'un coup
MARKS = 24
_DATUM = re.compile(r"\s*[+-]?[.,]?\d")  # ce par quoi commence une valeur, et rarement un nom de colonne

Rows = Chunk[Row]


@dataclass(frozen=True)
class Format:
    """Comment lire les fichiers : découpage, colonnes typées, colonne de la clé, et un en-tête qui change.

    ``on_header_change`` : « auto » (la première ligne est un en-tête, sauf si elle a l'air d'une ligne),
    « header » (toujours), « row » (jamais), « refuse » (un en-tête différent : le fichier n'est pas lu).
    """

    options: Options = field(default_factory=Options)
    types: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    on_header_change: str = "auto"

    def parser(self, header: Header, place: Place) -> Parser[Row]:
        """Ce qui lit un fichier de cet en-tête, à partir de ``place``. Lève HeaderError s'il manque une colonne."""
        return open_parser(header, self.options, place, converter(header, self.types, self.key))


def open_regular(path: Path | str) -> BinaryIO | None:
    """Ouvre un fichier ordinaire ; None s'il n'existe pas. Lève OSError, aussi pour un dossier, un tube…"""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # ouvrir un tube attendrait, sans fin, que l'on y écrive
            raise OSError(errno.EINVAL, "ce n'est pas un fichier ordinaire", str(path))
        return open_shared(path)
    except FileNotFoundError:
        return None


class OpenCsv:
    """Un fichier CSV ouvert, lu à partir du dernier de ``marks``, ou de son début.

    ``before`` : l'en-tête du fichier que son nom désignait avant, qui sert encore s'il n'en a pas (``bare``).
    """

    def __init__(
        self, file: BinaryIO, form: Format, marks: Sequence[Mark] = (), before: Header | None = None, bare: bool = False
    ) -> None:
        self.file, self.form, self.marks, self.before, self.bare = file, form, list(marks), before, bare
        self.start = tuple(marks)  # d'où il est lu, cette fois
        self.identity: Identity = identity_of(os.fstat(file.fileno()))
        self.parser: Parser[Row] | None = None  # None tant que l'en-tête n'est pas lu
        self.header_changed = False
        self._read_to = 0
        self._head = self._window = b""

    @property
    def inode(self) -> int:
        """Numéro du fichier."""
        return self.identity[1]

    @property
    def pending(self) -> bytes:
        """Ce qui est lu, mais inachevé."""
        return self.parser.pending if self.parser else b""

    @property
    def header(self) -> Header | None:
        """Son en-tête, ou celui qui lui en tient lieu."""
        return self.parser.header if self.parser else self.before

    def at_end(self, size: int) -> bool:
        """Vrai s'il n'y a rien de plus à lire dans ces ``size`` octets : même inachevé, ce qui suit attend."""
        return self.parser is None or self.whole(size)

    def whole(self, size: int) -> bool:
        """Vrai si ces ``size`` octets sont lus."""
        return self._read_to >= size

    def again(self, marks: Sequence[Mark], *, bare: bool) -> "OpenCsv":
        """Le même fichier ouvert, relu à partir de ``marks``."""
        return OpenCsv(self.file, self.form, marks, self.header, bare)

    def next_chunk(self, *, final: bool = False, limit: int | None = None) -> Rows | None:
        """Le morceau suivant, ou None s'il n'y a rien de nouveau. Lève HeaderError.

        Un en-tête lu pour la première fois est déjà une nouvelle : un morceau sans ligne. ``final`` : le fichier
        n'aura pas de suite ; ``limit`` : on ne commence plus de ligne au-delà de cet octet.
        """
        unknown = not self.marks
        parser = self.parser or self._open_parser(final)
        if parser is None:
            return None
        if unknown:
            return Rows(parser.place)
        size = CHUNK_BYTES
        if limit is not None:
            # Au-delà de la limite, seule la ligne qui la franchit est finie.
            size = min(size, limit - self._read_to) if self._read_to < limit else size * (parser.place.offset < limit)
        data = read_at(self.file, self._read_to, size) if size else b""
        final = final and len(data) < size
        if not data and not (final and parser.pending):
            return None
        self._read_to += len(data)
        chunk = parser.feed(data, final=final)
        self._remember(chunk)
        return chunk if data or chunk.taken else None  # la moitié d'un caractère (UTF-16) attend l'autre

    def same_content(self) -> bool:
        """Vrai si rien de ce qui est déjà lu n'a changé ; l'inachevé, s'il a changé, est relu."""
        if self.marks and self.marks[-1].digest and not matches(self.file, self.marks[-1]):
            return False
        if self.parser is not None:
            tail = self.pending[-WINDOW_BYTES:]
            if read_at(self.file, self._read_to - len(tail), len(tail)) != tail:
                self.parser = self.form.parser(self.parser.header, self.parser.place)
                self._read_to = self.parser.place.offset
        return True

    def continues_in(self, other: BinaryIO, *, strictly: bool) -> bool:
        """Vrai si ``other`` commence par tout ce qui est déjà lu ; l'inachevé ne compte que si ``strictly``."""
        if not self.marks or not matches(other, self.marks[-1]):
            return False
        pending = self.pending
        return not strictly or read_at(other, self.marks[-1].offset, len(pending)) == pending

    def hint(self, path: Path) -> str:
        """Ce que l'inachevé attend, en une phrase."""
        if not self.marks:
            return f"{path} : {awaited(read_at(self.file, self._base(), CHUNK_BYTES), self.form.options)}."
        line = self.marks[-1].lines + 1
        if self.pending.count(b'"') % 2:
            return f"{path} : un guillemet ouvert à la ligne {line} attend sa fin."
        return f"{path} : la ligne {line} n'a pas encore de fin de ligne (touche Entrée), elle attend."

    # --- L'en-tête ---

    def _open_parser(self, final: bool) -> Parser[Row] | None:
        """Lit l'en-tête ; None s'il n'est pas encore là."""
        base = self._base()
        if self.bare and self.before:
            header: Header | None = _borrowed(self.before, self.before.encoding)
        else:
            header = self._read_header(base, final)
        if header is None:
            return None
        if not self.marks:
            end = base + header.size
            self.marks = [Mark(end, header.lines, False, digest(*windows(self.file, end)) if header.size else "")]
        mark = self.marks[-1]
        self._head, self._window = windows(self.file, mark.offset)
        self.parser, self._read_to = self.form.parser(header, Place(mark.offset, mark.lines, mark.torn)), mark.offset
        return self.parser

    def _base(self) -> int:
        """L'octet où son texte commence."""
        return 0 if self.form.options.encoding.startswith("utf-16") else _hole(self.file)  # un octet nul y est banal

    def _read_header(self, base: int, final: bool) -> Header | None:
        """L'en-tête du fichier, qui commence à l'octet ``base``."""
        options, size = self.form.options, CHUNK_BYTES
        if self.marks and self.before and not options.delimiter:  # celui que l'on a reconnu la première fois
            options = replace(options, delimiter=self.before.delimiter)
        while True:
            data = read_at(self.file, base, size)
            whole = len(data) < size
            header = read_header(data, options, final=final and whole)
            if header is not None and self.before is not None and not self.marks:
                header = self._compare(header, self.before, data)
            if header and too_many_names(header):
                raise HeaderError(f"les noms de ses {len(header.names)} colonnes font plus de {NAMES_BYTES} octets")
            if header or whole:
                return header
            if size > options.max_row_bytes:
                raise HeaderError(f"son en-tête n'est pas fini au bout de {size} octets")
            size *= 2

    def _compare(self, header: Header, before: Header, data: bytes) -> Header:
        """L'en-tête d'un contenu nouveau sous un nom connu : le sien, ou celui d'avant s'il commence par une ligne."""
        self.header_changed = header.names != before.names
        if not self.header_changed or not header.cells:
            return header
        wanted = self.form.on_header_change
        if wanted == "refuse":
            raise HeaderError(
                f"son en-tête a changé ({', '.join(header.names)} au lieu de {', '.join(before.names)}) : "
                "choisissez --on-header-change"
            )
        first = read_header(data, replace(self.form.options, delimiter=before.delimiter), final=True)
        if wanted == "row" or (wanted == "auto" and first is not None and _is_a_row(first.cells, before.names)):
            self.bare = True
            _, mark = recognised(data, self.form.options.encoding)
            return _borrowed(before, header.encoding)._replace(size=mark)
        return header

    def _remember(self, chunk: Rows) -> None:
        """Ajoute les repères des derniers enregistrements de ``chunk``."""
        past = self._window + chunk.taken
        start = chunk.place.offset - len(past)
        self._head += chunk.taken[: WINDOW_BYTES - len(self._head)]
        known = self.marks[-1].offset
        for place in chunk.boundaries:
            if place.offset > known:
                end = place.offset - start
                seen = digest(self._head[: place.offset], past[max(0, end - WINDOW_BYTES) : end])
                self.marks.append(Mark(place.offset, place.lines, place.torn, seen))
        self._window = past[-WINDOW_BYTES:]
        while len(self.marks) > MARKS:
            del self.marks[1 : MARKS // 2 : 2]


def _borrowed(before: Header, encoding: str) -> Header:
    """L'en-tête d'un autre fichier, pour celui qui n'en a pas."""
    return before._replace(size=0, lines=0, encoding=encoding, cells=before.cells or before.names)


def _is_a_row(cells: Sequence[str], names: Sequence[str]) -> bool:
    """Vrai si ``cells`` a l'air d'un enregistrement des colonnes ``names``, et non d'un autre en-tête."""
    known = {name.strip().casefold() for name in names}
    return (
        len(cells) == len(names)
        and not any(cell.strip().casefold() in known for cell in cells)
        and any(_DATUM.match(cell) for cell in cells)
    )


def _hole(file: BinaryIO) -> int:
    """Octets nuls au début : le trou que laisse un programme qui écrit où il en était dans un fichier vidé."""
    start = 0
    if read_at(file, 0, 1) != b"\0":
        return 0
    if hasattr(os, "SEEK_DATA"):
        try:
            start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError:  # que du vide, ou un système de fichiers qui ne sait pas le dire
            start = 0
    while data := read_at(file, start, CHUNK_BYTES):
        if left := data.lstrip(b"\0"):
            return start + len(data) - len(left)
        start += len(data)
    return start
