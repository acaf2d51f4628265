"""Des octets d'un fichier CSV qui grandit aux lignes en JSON. Logique pure : ni fichier, ni Kafka, ni horloge.

ligne          une ligne du fichier, fin de ligne comprise ; la première porte le numéro 1
enregistrement une ou plusieurs lignes : RFC 4180 permet un saut de ligne entre guillemets
place          où l'on en est : l'octet du prochain enregistrement, le nombre de lignes passées
inachevé       ce qui suit la place : pas encore de fin de ligne, ou un guillemet encore ouvert

C'est le module csv de Python, en mode strict, qui découpe. Ce fichier lui donne des lignes
entières, garde ce qui est inachevé, et met de côté, octets compris, ce qui n'est pas du CSV.
"""

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

DELIMITERS = ",;\t|"
MAX_ROW_BYTES = 4_194_304  # un enregistrement plus long est une lettre morte
MAX_ROW_LINES = 1000  # un guillemet ouvert depuis plus de lignes ne sera jamais fermé
HEADER_LINES = 100  # de même pour l'en-tête
BOUNDARIES = 16  # débuts d'enregistrement dont la place est rendue, à la fin de chaque morceau
BOM = b"\xef\xbb\xbf"

_BLANK = re.compile(rb"[ \t]*\r?\n")
_UNDECODED = re.compile("[\udc80-\udcff]")
_GROUPS = r"[+-]?(?:\d{1,3}(?:[ \u00a0\u202f]\d{3})+|\d+)"
_INT = re.compile(_GROUPS, re.ASCII)
_DECIMAL = re.compile(rf"{_GROUPS}(?:[.,]\d+)?|[+-]?[.,]\d+", re.ASCII)
_FLOAT = re.compile(rf"(?:{_DECIMAL.pattern})(?:[eE][+-]?\d+)?", re.ASCII)
_FRENCH_DATE = re.compile(r"(\d\d)/(\d\d)/(\d{4})(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?))?", re.ASCII)
_TRUE, _FALSE = ("vrai", "oui", "true", "yes", "1"), ("faux", "non", "false", "no", "0")


class HeaderError(Exception):
    """Le début du fichier n'est pas un en-tête CSV ; la phrase dit pourquoi."""


@dataclass(frozen=True)
class Options:
    """Comment lire : encodage, séparateur (None : détecté), colonnes typées, colonne de la clé, bornes."""

    encoding: str = "utf-8"
    delimiter: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    max_row_bytes: int = MAX_ROW_BYTES
    max_row_lines: int = MAX_ROW_LINES


class Header(NamedTuple):
    """L'en-tête d'un fichier : noms des colonnes, séparateur, taille en octets et en lignes."""

    names: tuple[str, ...]
    delimiter: str
    size: int
    lines: int


@dataclass(frozen=True)
class Place:
    """Place dans un fichier : octets et lignes déjà passés.

    ``torn`` : la place est au milieu d'une ligne, dont le début est déjà parti.
    """

    offset: int = 0
    lines: int = 0
    torn: bool = False


# Un enregistrement : numéro de sa première ligne, objet JSON, clé demandée (--key) ou None.
Row = tuple[int, bytes, bytes | None]


class Rejected(NamedTuple):
    """Ce qui n'a pas pu devenir un objet JSON : numéro de ligne, octets du fichier, raison."""

    line: int
    raw: bytes
    reason: str


@dataclass
class Chunk:
    """Ce qu'un morceau de fichier a donné.

    ``taken`` : les octets consommés ; ``place`` : la place qui les suit ; ``boundaries`` : la place
    de chacun des BOUNDARIES derniers enregistrements.
    """

    place: Place
    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    taken: bytes = b""
    boundaries: list[Place] = field(default_factory=list)


# --- Valeurs typées (--types) : du texte du fichier à une valeur JSON, ou ValueError ---


def _plain(text: str) -> str:
    """Un nombre à la française, écrit comme Python le lit : « 1 234,50 » devient « 1234.50 »."""
    return re.sub("[ \u00a0\u202f]", "", text).replace(",", ".")


def _int(text: str) -> int:
    if not _INT.fullmatch(text) or not -(2**63) <= (value := int(_plain(text))) < 2**63:
        raise ValueError
    return value


def _decimal(text: str) -> Decimal:
    if not _DECIMAL.fullmatch(text):
        raise ValueError
    return Decimal(_plain(text))


def _float(text: str) -> float:
    if not _FLOAT.fullmatch(text) or not math.isfinite(value := float(_plain(text))):
        raise ValueError
    return value


def _date(text: str) -> date | datetime:
    if match := _FRENCH_DATE.fullmatch(text):
        day, month, year, hour = match.groups()
        text = f"{year}-{month}-{day}" + (f"T{hour}" if hour else "")
    try:
        return date.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat(text)


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE + _FALSE:
        raise ValueError
    return lowered in _TRUE


# Type : conversion, puis ce qu'on dit d'une valeur qui n'en est pas.
TYPES: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "int": (_int, "un nombre entier (64 bits)"),
    "float": (_float, "un nombre"),
    "decimal": (_decimal, "un nombre décimal"),
    "date": (_date, "une date"),
    "bool": (_bool, "vrai ou faux"),
}


def byte_compatible(encoding: str) -> bool:
    """Vrai si fins de ligne, guillemets et séparateurs se lisent dans les octets : UTF-8, ou un octet par caractère.

    Lève LookupError si ``encoding`` n'est pas un encodage de texte.
    """
    every_byte = bytes(range(256)).decode(encoding, "replace")
    ascii_kept = every_byte[:128].encode("ascii", "replace") == bytes(range(128))
    return ascii_kept and (is_utf8(encoding) or len(every_byte) == 256)


def is_utf8(encoding: str) -> bool:
    """Vrai pour UTF-8, quelle que soit l'écriture de son nom."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


# --- L'en-tête ---


def read_header(data: bytes, encoding: str, delimiter: str | None = None, *, final: bool = False) -> Header | None:
    """En-tête du fichier dont ``data`` est le début, ou None s'il y manque encore la fin de sa ligne.

    ``delimiter`` absent : celui des DELIMITERS qui revient le plus hors des guillemets. Un nom vide
    devient ``colonne_N``, un nom répété ``nom_2``. Lève HeaderError.
    """
    start = len(BOM) if is_utf8(encoding) and data.startswith(BOM) else 0
    while blank := _BLANK.match(data, start):
        start = blank.end()
    end = start
    for _ in range(HEADER_LINES):
        newline = data.find(b"\n", end)
        if end == len(data) or (newline < 0 and not final):
            return None
        end = newline + 1 or len(data)
        try:
            text = data[start:end].decode(encoding)
        except UnicodeDecodeError as error:
            raise HeaderError(
                f"son en-tête n'est pas en {encoding} (octet {start + error.start}) : essayez --encoding cp1252"
            ) from error
        outside = re.sub(r'"(?:[^"]|"")*"', "", text)
        separator = delimiter or max(DELIMITERS, key=outside.count)
        try:
            (names,) = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
        except csv.Error as error:
            if (problem := _french(error)) != OPEN_QUOTE or (final and end == len(data)):
                raise HeaderError(f"son en-tête n'est pas du CSV ({problem})") from error
        else:
            if not names:
                return None
            return Header(_unique(names), separator, end, data.count(b"\n", 0, end))
    raise HeaderError(f"un guillemet de son en-tête n'est pas fermé au bout de {HEADER_LINES} lignes")


def _unique(names: list[str]) -> tuple[str, ...]:
    unique: list[str] = []
    for number, name in enumerate(names, start=1):
        wanted, copies = name.strip() or f"colonne_{number}", 1
        candidate = wanted
        while candidate in unique:
            copies += 1
            candidate = f"{wanted}_{copies}"
        unique.append(candidate)
    return tuple(unique)


# --- Les enregistrements ---


class RowParser:
    """Les enregistrements d'un fichier, donnés morceau par morceau à partir d'une place.

    Lève HeaderError si une colonne demandée par ``options`` manque dans ``header``.
    """

    def __init__(self, header: Header, options: Options, place: Place) -> None:
        self.header, self.options, self.place = header, options, place
        self.pending = b""  # lu, mais inachevé
        self._inside = 0  # octets de ``pending`` dont on sait qu'ils s'arrêtent dans un guillemet ouvert
        for name in [*options.types, *([options.key] if options.key else [])]:
            if name not in header.names:
                raise HeaderError(f"il n'a pas de colonne « {name} » (il a : {', '.join(header.names)})")
        self._typed = [(header.names.index(name), name, *TYPES[kind]) for name, kind in options.types.items()]
        self._key = header.names.index(options.key) if options.key else None
        self._object = _object_of(header.names)
        self._encode = msgspec.json.Encoder(decimal_format="number").encode
        csv.field_size_limit(max(csv.field_size_limit(), options.max_row_bytes))

    @property
    def open_quote(self) -> bool:
        """Vrai si l'inachevé s'arrête dans un guillemet ouvert."""
        return self._inside > 0

    def feed(self, data: bytes, *, final: bool = False) -> Chunk:
        """Ajoute ``data`` à l'inachevé et rend tout ce qui est devenu complet.

        ``final`` : le fichier n'aura pas de suite ; une dernière ligne inachevée est alors complète.
        """
        self.pending += data
        chunk, before = Chunk(self.place), self.pending
        if self.place.torn:
            self._reject_continuation(chunk, final)
        while not self.place.torn and self._ready(final) and (problem := self._take(chunk, final)):
            self._reject_line(chunk, problem)
        chunk.place = self.place
        chunk.taken = before[: len(before) - len(self.pending)]
        chunk.boundaries = _boundaries(chunk)
        return chunk

    def _ready(self, final: bool) -> bool:
        """Vrai si l'inachevé peut contenir un enregistrement complet, ou s'il est trop long pour attendre."""
        newline, quote = self.pending.find(b"\n", self._inside), self.pending.find(b'"', self._inside)
        complete = newline >= 0 and (quote >= 0 or not self.open_quote)
        return bool(self.pending) and (final or complete or self._too_long())

    def _too_long(self) -> bool:
        lines = self.pending.count(b"\n") if self.open_quote else 0
        return len(self.pending) > self.options.max_row_bytes or lines > self.options.max_row_lines

    def _take(self, chunk: Chunk, final: bool) -> str | None:
        """Range dans ``chunk`` les enregistrements complets ; rend ce qui ne va pas dans le suivant, ou None."""
        body = self.pending if final else self.pending[: self.pending.rfind(b"\n") + 1]
        try:
            text, clean = body.decode(self.options.encoding), True
        except UnicodeDecodeError:
            text, clean = body.decode(self.options.encoding, "surrogateescape"), False
        reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=self.header.delimiter, strict=True)
        rows, encode, make, key = chunk.rows, self._encode, self._object, self._key
        simple, width = clean and not self._typed, len(self.header.names)
        first, done = self.place.lines + 1, 0  # numéro de la première ligne du texte ; lignes dont on a fini
        bad: list[tuple[int, int, str]] = []
        problem = None
        try:
            for values in reader:
                start, done = done, reader.line_num
                if simple and len(values) == width:
                    rows.append((first + start, encode(make(*values)), None if key is None else values[key].encode()))
                elif values:  # une ligne vide n'est pas un enregistrement
                    try:
                        rows.append(self._convert(first + start, values))
                    except ValueError as error:
                        bad.append((start, done, str(error)))
        except csv.Error as error:
            problem = _french(error)
        lines = io.BytesIO(body).readlines() if bad or problem else []
        chunk.rejected += [Rejected(first + a, b"".join(lines[a:b]), reason) for a, b, reason in bad]
        self._advance(b"".join(lines[:done]) if problem else body)
        self._inside = len(b"".join(lines[done:])) if problem == OPEN_QUOTE else 0
        if self.open_quote and not final and not self._too_long():
            return None  # la suite du champ n'est pas encore écrite
        self._inside = 0
        return problem or (f"ligne de plus de {self.options.max_row_bytes} octets" if self._too_long() else None)

    def _convert(self, line: int, values: list[str]) -> Row:
        """Un enregistrement à vérifier champ par champ ; lève ValueError avec la raison du refus."""
        if len(values) != len(self.header.names):
            raise ValueError(f"{len(values)} champs au lieu de {len(self.header.names)}")
        for name, value in zip(self.header.names, values, strict=True):
            if _UNDECODED.search(value):
                raise ValueError(f"« {name} » : ces octets ne sont pas du texte {self.options.encoding}")
        key = None if self._key is None else values[self._key].encode()
        fields: list[Any] = list(values)
        for index, name, convert, meaning in self._typed:
            try:
                fields[index] = convert(values[index].strip()) if values[index].strip() else None
            except ValueError as error:
                raise ValueError(f"« {name} » : {values[index][:60]!r} n'est pas {meaning}") from error
        return line, self._encode(self._object(*fields)), key

    def _reject_line(self, chunk: Chunk, reason: str) -> None:
        """Met de côté la première ligne de l'inachevé : la lecture reprend à la suivante."""
        newline = self.pending.find(b"\n")
        raw = self.pending[: newline + 1] if newline >= 0 else self.pending
        chunk.rejected.append(Rejected(self.place.lines + 1, raw, reason))
        self._advance(raw)

    def _reject_continuation(self, chunk: Chunk, final: bool) -> None:
        """Met de côté la suite d'une ligne dont le début est déjà parti."""
        newline = self.pending.find(b"\n")
        if newline < 0 and not final and not self._too_long():
            return
        raw = self.pending[: newline + 1] if newline >= 0 else self.pending
        if raw.strip(b"\r\n"):
            chunk.rejected.append(Rejected(self.place.lines + 1, raw, "suite d'une ligne dont le début est déjà parti"))
        self._advance(raw)

    def _advance(self, taken: bytes) -> None:
        if taken:
            self.pending = self.pending[len(taken) :]
            place = self.place
            self.place = Place(
                place.offset + len(taken), place.lines + taken.count(b"\n"), torn=not taken.endswith(b"\n")
            )


def _object_of(names: tuple[str, ...]) -> Callable[..., Any]:
    """Ce qui fait, de valeurs dans l'ordre, un objet dont les champs sont ``names``."""
    fields = [f"f{number}" for number in range(len(names))]
    try:
        # Une Struct s'encode deux fois plus vite qu'un dict.
        return msgspec.defstruct(
            "Row", [(name, Any) for name in fields], rename=dict(zip(fields, names, strict=True)), gc=False
        )
    except ValueError:  # un nom contient un guillemet, une barre oblique inverse ou un saut de ligne
        return lambda *values: dict(zip(names, values, strict=True))


def _boundaries(chunk: Chunk) -> list[Place]:
    """Places des derniers enregistrements de ``chunk`` et de ce qui les suit, dans l'ordre du fichier."""
    if not chunk.taken:
        return []
    start = Place(chunk.place.offset - len(chunk.taken), chunk.place.lines - chunk.taken.count(b"\n"))
    wanted = {row[0] - 1 for row in chunk.rows[-BOUNDARIES:]}
    found = [chunk.place]
    position, lines = len(chunk.taken), chunk.place.lines + chunk.place.torn
    while position and lines > min(wanted, default=lines):
        position, lines = chunk.taken.rfind(b"\n", 0, position - 1) + 1, lines - 1
        if lines in wanted:
            found.append(Place(start.offset + position, lines))
    return found[::-1]


def _french(error: Exception) -> str:
    """Ce que le module csv reproche à une ligne, en français."""
    return next((french for english, french in _CSV_ERRORS.items() if english in str(error)), str(error))


OPEN_QUOTE = "guillemet ouvert et jamais fermé"
_CSV_ERRORS = {
    "unexpected end of data": OPEN_QUOTE,
    "expected after": "du texte suit un guillemet fermant",
    "new-line character": "retour chariot seul au milieu d'une ligne",
    "field limit": "champ trop long",
}
