"""Des octets d'un fichier CSV qui grandit à ses enregistrements. Logique pure : ni fichier, ni Kafka, ni horloge.

ligne          une ligne du fichier, fin de ligne comprise ; la première porte le numéro 1
enregistrement une ou plusieurs lignes : la RFC 4180 permet un saut de ligne entre guillemets
place          où l'on en est : l'octet du prochain enregistrement, le nombre de lignes passées
inachevé       ce qui suit la place : pas encore de fin de ligne, ou un guillemet encore ouvert

    header = read_header(data, Options())
    parser = open_parser(header, Options(), Place(header.size, header.lines), convert)
    chunk = parser.feed(more)   # chunk.numbers, chunk.values (ce que convert en a fait), chunk.rejected

C'est le module csv de Python, en mode strict, qui découpe. Ce fichier lui donne des lignes entières,
garde ce qui est inachevé, et met de côté, octets compris, ce qui n'est pas du CSV. Ce qui sort ne dépend
que du contenu du fichier, jamais des morceaux dans lesquels on l'a lu.
"""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from commun.csv_header import OPEN_QUOTE, Header, Options, french, is_utf8, raw_of, utf8_of

T = TypeVar("T")

BOUNDARIES = 16  # débuts d'enregistrement dont la place est rendue, à la fin de chaque morceau

_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Place:
    """Place dans un fichier : octets et lignes déjà passés.

    ``torn`` : la place est au milieu d'une ligne, dont le début est déjà parti.
    """

    offset: int = 0
    lines: int = 0
    torn: bool = False


class Rejected(NamedTuple):
    """Ce qui n'est pas un enregistrement de ce fichier : numéro de ligne, octets du fichier, raison."""

    line: int
    raw: bytes
    reason: str


@dataclass
class Chunk(Generic[T]):
    """Ce qu'un morceau de fichier a donné : les enregistrements, et le numéro de la première ligne de chacun.

    ``taken`` : les octets consommés ; ``place`` : la place qui les suit ; ``boundaries`` : la place
    de chacun des BOUNDARIES derniers enregistrements.
    """

    place: Place
    numbers: list[int] = field(default_factory=list)
    values: list[T] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    taken: bytes = b""
    boundaries: list[Place] = field(default_factory=list)


class RowParser(Generic[T]):
    """Les enregistrements d'un fichier, donnés morceau par morceau à partir d'une place.

    ``convert`` fait une valeur d'un enregistrement (ses champs, dans l'ordre de ``header.names``) ; elle
    lève ValueError, avec la raison, pour ce qui est à mettre de côté.
    """

    def __init__(self, header: Header, options: Options, place: Place, convert: Callable[[list[str]], T]) -> None:
        self.header, self.options, self.place, self.convert = header, options, place, convert
        self.pending = b""  # lu, mais inachevé
        self._inside = 0  # octets de ``pending`` dont on sait qu'ils s'arrêtent dans un guillemet ouvert
        self._dialect: dict[str, Any] = {
            "delimiter": header.delimiter, "strict": True, "skipinitialspace": header.spaced,
        }  # fmt: skip
        csv.field_size_limit(max(csv.field_size_limit(), options.max_row_bytes))

    def feed(self, data: bytes, *, final: bool = False) -> Chunk[T]:
        """Ajoute ``data`` à l'inachevé et rend tout ce qui est devenu complet.

        ``final`` : le fichier n'aura pas de suite ; une dernière ligne inachevée est alors complète.
        """
        self.pending += data
        chunk, before = Chunk[T](self.place), self.pending
        while self.pending and (self._finish_line(chunk, final) if self.place.torn else self._take(chunk, final)):
            pass
        chunk.place = self.place
        chunk.taken = before[: len(before) - len(self.pending)]
        chunk.boundaries = _boundaries(chunk)
        return chunk

    def _take(self, chunk: Chunk[T], final: bool) -> bool:
        """Range dans ``chunk`` ce qui est complet ; vrai s'il faut encore finir une ligne coupée."""
        body = self.pending if final else self.pending[: self.pending.rfind(b"\n") + 1]
        complete = self.pending.find(b'"', self._inside, len(body)) >= 0 if self._inside else bool(body)
        if not complete and not final:
            excess = self._excess(self.pending)
            return excess is not None and self._reject_first(chunk, excess)
        text, clean = _decode(body, self.header.encoding)
        if clean and len(body) <= self.options.max_row_bytes and self._all_at_once(chunk, text):
            self._advance(body)
            return False
        return self._one_by_one(chunk, body, text, final)

    def _all_at_once(self, chunk: Chunk[T], text: str) -> bool:
        """Le cas ordinaire, vite : un enregistrement par ligne, aucun à mettre de côté. Faux s'il y a autre chose."""
        reader = csv.reader(io.StringIO(text, newline="\n"), **self._dialect)
        try:
            records = list(reader)
            if (
                reader.line_num != len(records) or "\0" in text or set(map(len, records)) - {len(self.header.names)}
                or list(self.header.cells) in records
            ):  # fmt: skip
                return False
            values = list(map(self.convert, records))
        except (csv.Error, ValueError):
            return False
        chunk.numbers += range(self.place.lines + 1, self.place.lines + 1 + len(records))
        chunk.values += values
        return True

    def _one_by_one(self, chunk: Chunk[T], body: bytes, text: str, final: bool) -> bool:
        """Le cas général : un guillemet sur plusieurs lignes, des lignes à mettre de côté, un guillemet ouvert."""
        raw, file = io.BytesIO(body).readlines(), io.StringIO(text, newline="\n")
        starts = [0, *accumulate(map(len, file))]  # caractère où commence chaque ligne
        first, index = self.place.lines + 1, 0  # index : ligne où commence l'enregistrement suivant
        while index < len(raw):
            file.seek(starts[index])
            reader, base, record, reason = csv.reader(file, **self._dialect), index, b"", ""
            try:
                for values in reader:
                    end = base + reader.line_num
                    if reason := self._judge(chunk, values, raw[index:end], first + index):
                        break
                    index = end
            except csv.Error as error:
                record = b"".join(raw[index : base + reader.line_num])
                reason = french(error)
                reason = self._excess(record if reason == OPEN_QUOTE else record.removesuffix(b"\n")) or reason
            if reason == OPEN_QUOTE and not final:  # la suite du champ n'est pas encore écrite
                self._advance(b"".join(raw[:index]))
                self._inside = len(record)
                return False
            if reason:  # seule sa première ligne est mise de côté : la lecture reprend à la suivante
                if len(raw[index]) > self.options.max_row_bytes:
                    self._advance(b"".join(raw[:index]))
                    return self._reject_first(chunk, reason)
                chunk.rejected.append(Rejected(first + index, raw[index], reason))
                index += 1
        self._advance(body)
        return False

    def _judge(self, chunk: Chunk[T], values: list[str], raw: list[bytes], line: int) -> str:
        """Range un enregistrement, ou le met de côté ; rend pourquoi s'il ne s'arrête pas où il devrait."""
        if excess := self._excess(b"".join(raw).removesuffix(b"\n")):
            return excess
        if not values:  # une ligne vide n'est pas un enregistrement
            return ""
        try:
            self._check(values)
            chunk.values.append(self.convert(values))
            chunk.numbers.append(line)
        except ValueError as error:
            chunk.rejected.append(Rejected(line, b"".join(raw), str(error)))
        return ""

    def _check(self, values: list[str]) -> None:
        """Lève ValueError si ces champs ne sont pas un enregistrement de ce fichier."""
        names = self.header.names
        if len(values) != len(names):
            raise ValueError(f"{len(values)} champ{'s' if len(values) > 1 else ''} au lieu de {len(names)}")
        if values == list(self.header.cells):
            raise ValueError("c'est l'en-tête, répété au milieu du fichier")
        for name, value in zip(names, values, strict=True):
            if _UNDECODED.search(value):
                raise ValueError(f"« {name} » : ces octets ne sont pas du texte {self.header.encoding}")
            if "\0" in value:
                raise ValueError(f"« {name} » contient un octet nul")

    def _excess(self, record: bytes) -> str | None:
        """Pourquoi un enregistrement est trop long pour en être un, ou None ; ``record`` sans sa fin de ligne."""
        most = self.options.max_row_bytes
        if record.count(b"\n", 0, most) >= self.options.max_row_lines:
            return f"guillemet ouvert depuis plus de {self.options.max_row_lines} lignes"
        return f"ligne de plus de {most} octets" if len(record) > most else None

    def _reject_first(self, chunk: Chunk[T], reason: str) -> bool:
        """Met de côté la première ligne de l'inachevé, ou son début si elle est trop longue."""
        raw = self._piece()
        chunk.rejected.append(Rejected(self.place.lines + 1, raw, reason))
        self._advance(raw)
        return True

    def _finish_line(self, chunk: Chunk[T], final: bool) -> bool:
        """Met de côté la suite d'une ligne dont le début est déjà parti ; faux s'il faut l'attendre."""
        raw = self._piece()
        if not raw.endswith(b"\n") and len(self.pending) <= self.options.max_row_bytes and not final:
            return False
        if raw.strip(b"\r\n"):
            chunk.rejected.append(Rejected(self.place.lines + 1, raw, "suite d'une ligne dont le début est déjà parti"))
        self._advance(raw)
        return True

    def _piece(self) -> bytes:
        """La première ligne de l'inachevé, ou ses ``max_row_bytes`` premiers octets, sans couper un caractère."""
        most = self.options.max_row_bytes
        if (newline := self.pending.find(b"\n", 0, most + 1)) >= 0:
            return self.pending[: newline + 1]
        if len(self.pending) <= most:
            return self.pending
        cut = most
        while is_utf8(self.header.encoding) and cut > max(1, most - 3) and self.pending[cut] & 0xC0 == 0x80:
            cut -= 1
        return self.pending[:cut]

    def _advance(self, taken: bytes) -> None:
        self._inside = 0
        if taken:
            self.pending = self.pending[len(taken) :]
            place = self.place
            self.place = Place(
                place.offset + len(taken), place.lines + taken.count(b"\n"), torn=not taken.endswith(b"\n")
            )


class Utf16Parser(Generic[T]):
    """Le même, pour un fichier en UTF-16 : il est lu en UTF-8, et chaque place est rendue en octets du fichier."""

    def __init__(self, header: Header, options: Options, place: Place, convert: Callable[[list[str]], T]) -> None:
        self.header, self.place, self.pending = header, place, b""
        inner = Place(0, place.lines, place.torn)
        self._inner = RowParser(header._replace(encoding="utf-8"), options, inner, convert)

    def feed(self, data: bytes, *, final: bool = False) -> Chunk[T]:
        """Voir RowParser.feed."""
        self.pending += data
        encoding, inner = self.header.encoding, self._inner
        start, before = inner.place.offset, self.place.offset
        chunk = inner.feed(utf8_of(self.pending, encoding)[len(inner.pending) :], final=final)

        def in_file(place: Place) -> Place:
            return replace(place, offset=before + len(raw_of(chunk.taken[: place.offset - start], encoding)))

        rejected = [letter._replace(raw=raw_of(letter.raw, encoding)) for letter in chunk.rejected]
        boundaries, taken = list(map(in_file, chunk.boundaries)), raw_of(chunk.taken, encoding)
        self.place, self.pending = in_file(chunk.place), self.pending[len(taken) :]
        return Chunk(self.place, chunk.numbers, chunk.values, rejected, taken, boundaries)


Parser = RowParser[T] | Utf16Parser[T]


def open_parser(header: Header, options: Options, place: Place, convert: Callable[[list[str]], T]) -> Parser[T]:
    """Ce qui lit un fichier dont on connaît l'en-tête, à partir de ``place``."""
    return (Utf16Parser if header.encoding.startswith("utf-16") else RowParser)(header, options, place, convert)


def _decode(body: bytes, encoding: str) -> tuple[str, bool]:
    """Le texte, et s'il se lit en entier ; un octet illisible devient un demi-caractère reconnaissable."""
    try:
        return body.decode(encoding), True
    except UnicodeDecodeError:
        return body.decode(encoding, "surrogateescape"), False


def _boundaries(chunk: Chunk[Any]) -> list[Place]:
    """Places des derniers enregistrements de ``chunk`` et de ce qui les suit, dans l'ordre du fichier."""
    if not chunk.taken:
        return []
    start = Place(chunk.place.offset - len(chunk.taken), chunk.place.lines - chunk.taken.count(b"\n"))
    wanted = {number - 1 for number in chunk.numbers[-BOUNDARIES:]}
    found = [chunk.place]
    position, lines = len(chunk.taken), chunk.place.lines + chunk.place.torn
    while position and lines > min(wanted, default=lines):
        position, lines = chunk.taken.rfind(b"\n", 0, position - 1) + 1, lines - 1
        if lines in wanted:
            found.append(Place(start.offset + position, lines))
    return found[::-1]
