"""Le début d'un fichier CSV : encodage, séparateur, noms des colonnes. Logique pure.

    header = read_header(data, Options())  # None : il manque encore quelque chose ; HeaderError : pas du CSV

Reconnaît l'UTF-8 et l'UTF-16 à leur marque (BOM), la ligne « sep=; » d'Excel, le séparateur à ce qu'il découpe
aussi les premiers enregistrements, et ce qui n'est pas un CSV (archive, fichier compressé).
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

DELIMITERS = "\t;|,"  # à égalité, le premier : une virgule est souvent une décimale
MAX_ROW_BYTES = 4_194_304  # un enregistrement plus long est une lettre morte
MAX_ROW_LINES = 1000  # de même pour un guillemet ouvert depuis plus de lignes : il ne sera jamais fermé
HEADER_LINES = 100  # de même pour l'en-tête
JUDGED_ROWS = 20  # premiers enregistrements qui disent quel séparateur est le bon
OPEN_QUOTE = "guillemet ouvert et jamais fermé"

_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BINARY = {
    b"\x1f\x8b": "c'est un fichier compressé (gzip) : décompressez-le",
    b"PK\x03\x04": "c'est un classeur ou une archive (zip) : enregistrez-le en CSV",
    b"BZh": "c'est un fichier compressé (bzip2) : décompressez-le",
    b"\xfd7zXZ": "c'est un fichier compressé (xz) : décompressez-le",
    b"\x28\xb5\x2f\xfd": "c'est un fichier compressé (zstd) : décompressez-le",
    codecs.BOM_UTF32_LE: "c'est de l'UTF-32 : enregistrez-le en UTF-8",
    b"\x00\x05\x16\x07": "c'est un fichier caché de macOS (AppleDouble), pas un CSV",
}
_BLANK = re.compile(rb"[ \t]*\r?\n")
_SEP = re.compile(rb'"?sep=([^\r\n"])"?[ \t]*\r?\n', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_CSV_ERRORS = {
    "unexpected end of data": OPEN_QUOTE,
    "expected after": "du texte suit un guillemet fermant",
    "new-line character": "retour chariot seul au milieu d'une ligne",
    "field limit": "champ trop long",
}


class HeaderError(Exception):
    """Le début du fichier n'est pas un en-tête CSV ; la phrase dit pourquoi."""


@dataclass(frozen=True)
class Options:
    """Comment lire : encodage, séparateur (None : reconnu), noms des colonnes, bornes.

    ``columns`` : les noms, pour un fichier sans en-tête ; ``no_header`` : il n'en a pas, elles s'appellent
    colonne_1, colonne_2…
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    columns: tuple[str, ...] = ()
    no_header: bool = False
    max_row_bytes: int = MAX_ROW_BYTES
    max_row_lines: int = MAX_ROW_LINES


class Header(NamedTuple):
    """L'en-tête d'un fichier : noms des colonnes, séparateur, taille en octets et en lignes.

    ``cells`` : les noms tels qu'ils sont écrits (vide sans en-tête) ; ``spaced`` : une espace précède ses
    guillemets, et ceux des lignes.
    """

    names: tuple[str, ...]
    delimiter: str
    size: int = 0
    lines: int = 0
    encoding: str = "utf-8"
    cells: tuple[str, ...] = ()
    spaced: bool = False


# --- Encodages ---


def readable(encoding: str) -> bool:
    """Vrai pour UTF-16, et si fins de ligne et séparateurs se lisent dans les octets : UTF-8, un octet par caractère.

    Lève LookupError si ``encoding`` n'est pas un encodage de texte.
    """
    if codecs.lookup(encoding).name in ("utf-16", "utf-16-le", "utf-16-be"):
        return True
    every_byte = bytes(range(256)).decode(encoding, "replace")
    ascii_kept = every_byte[:128].encode("ascii", "replace") == bytes(range(128))
    return ascii_kept and (is_utf8(encoding) or len(every_byte) == 256)


def is_utf8(encoding: str) -> bool:
    """Vrai pour UTF-8, quelle que soit l'écriture de son nom."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def recognised(data: bytes, encoding: str) -> tuple[str, int]:
    """Encodage du fichier qui commence par ``data``, et octets de sa marque (BOM) : une marque l'emporte."""
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8", len(codecs.BOM_UTF8)
    for mark, found in _UTF16.items():
        if data.startswith(mark):
            return found, len(mark)
    return "utf-16-le" if encoding == "utf-16" else encoding, 0


def utf8_of(raw: bytes, encoding: str) -> bytes:
    """De l'UTF-16 à l'UTF-8 ; un dernier caractère incomplet est laissé."""
    text = codecs.getincrementaldecoder(encoding)("surrogatepass").decode(raw)
    return text.encode("utf-8", "surrogatepass")


def raw_of(utf8: bytes, encoding: str) -> bytes:
    """Le retour de ``utf8_of``."""
    return utf8.decode("utf-8", "surrogatepass").encode(encoding, "surrogatepass")


# --- L'en-tête ---


def read_header(data: bytes, options: Options, *, final: bool = False) -> Header | None:
    """En-tête du fichier dont ``data`` est le début, ou None s'il y manque encore quelque chose.

    Sans ``options.delimiter``, le séparateur est celui qui découpe aussi les premiers enregistrements. Un nom
    vide devient ``colonne_N``, un nom répété ``nom_2``. Lève HeaderError.
    """
    for magic, reason in _BINARY.items():
        if data.startswith(magic):
            raise HeaderError(reason)
    encoding, start = recognised(data, options.encoding)
    if encoding.startswith("utf-16"):
        utf8 = utf8_of(data[start:], encoding)
        header = read_header(utf8, replace(options, encoding="utf-8"), final=final)
        return header and header._replace(encoding=encoding, size=start + len(raw_of(utf8[: header.size], encoding)))
    start, delimiter = _first_line(data, start, options.delimiter)
    options = replace(options, delimiter=delimiter, encoding=encoding)
    read = _without_header if options.columns or options.no_header else _with_header
    return read(data, start, options, final)


def awaited(data: bytes, options: Options) -> str:
    """Ce qui manque à un fichier qui commence par ``data`` pour que ``read_header`` ne rende plus None."""
    encoding, start = recognised(data, options.encoding)
    if encoding.startswith("utf-16"):
        data, start = utf8_of(data[start:], encoding), 0
    bare = bool(options.columns or options.no_header)
    rest = data[_first_line(data, start, None)[0] :]
    if not rest.strip():
        return "il n'a pas encore de ligne" if bare else "il n'a pas encore d'en-tête"
    if b"\n" not in rest:
        what, waiter = ("sa première ligne", "elle") if bare else ("son en-tête", "il")
        return f"{what} n'a pas encore de fin de ligne (touche Entrée), {waiter} attend"
    if rest.count(b'"') % 2:
        return "un guillemet ouvert dans son en-tête attend sa fin"
    return "sa première ligne de données dira quel est son séparateur ; ou dites-le (--delimiter)"


def _with_header(data: bytes, start: int, options: Options, final: bool) -> Header | None:
    end = start
    for _ in range(HEADER_LINES):
        newline = data.find(b"\n", end)
        if end == len(data) or (newline < 0 and not final):
            _refuse_lonely_returns(data)
            return None
        end = newline + 1 or len(data)
        text = _header_text(data[start:end], options.encoding, start)
        separator = options.delimiter or _separator(text, data[end:], options.encoding, final=final)
        if separator is None:
            return None
        try:
            cells, spaced = _header_cells(text, separator)
        except csv.Error as error:
            if (problem := french(error)) != OPEN_QUOTE or (final and end == len(data)):
                raise HeaderError(f"son en-tête n'est pas du CSV ({problem})") from error
        else:
            if not cells:  # un retour chariot seul : la ligne n'est pas finie
                return None
            return Header(
                _unique(cells), separator, end, data.count(b"\n", 0, end), options.encoding, tuple(cells), spaced
            )
    raise HeaderError(f"un guillemet de son en-tête n'est pas fermé au bout de {HEADER_LINES} lignes")


def _first_line(data: bytes, start: int, delimiter: str | None) -> tuple[int, str | None]:
    """Passe les lignes vides et la ligne « sep=; » d'Excel ; rend le début de l'en-tête, et le séparateur connu."""
    while True:
        if blank := _BLANK.match(data, start):
            start = blank.end()
        elif said := _SEP.match(data, start):
            start, delimiter = said.end(), delimiter or said[1].decode("latin-1")
        else:
            return start, delimiter


def _header_text(raw: bytes, encoding: str, start: int) -> str:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise HeaderError(
            f"son en-tête n'est pas en {encoding} (octet {start + error.start}) : essayez --encoding cp1252"
        ) from error
    if "\0" in text:
        cure = "de l'UTF-16 sans marque ? essayez --encoding utf-16-le" if text.count("\0") * 3 > len(text) else ""
        raise HeaderError("son en-tête contient des octets nuls" + (f" ({cure})" if cure else " : ce n'est pas du CSV"))
    return text


def _refuse_lonely_returns(data: bytes) -> None:
    if b"\n" not in data and b"\r" in data[:-1]:
        raise HeaderError(
            "ses fins de ligne sont celles d'un ancien Mac (CR seul) : enregistrez-le avec des fins de ligne LF ou CRLF"
        )


def _header_cells(text: str, delimiter: str) -> tuple[list[str], bool]:
    """Les noms, et s'il faut passer l'espace qui précède leurs guillemets ; lève csv.Error."""
    if f'{delimiter} "' in text:
        try:
            return _one_record(text, delimiter, skipinitialspace=True), True
        except csv.Error:
            pass  # ces espaces n'étaient pas devant des guillemets ouvrants
    return _one_record(text, delimiter), False


def _one_record(text: str, delimiter: str, **dialect: Any) -> list[str]:
    """Le seul enregistrement de ``text`` ; lève csv.Error.

    S'il y en a deux, ses premières lignes n'en étaient pas un avec un autre séparateur : un guillemet y est ouvert.
    """
    first, *others = _records(text, delimiter, **dialect)
    if others:
        raise csv.Error(OPEN_QUOTE)
    return first


def _records(text: str, delimiter: str, **dialect: Any) -> Iterator[list[str]]:
    """Les enregistrements d'un texte ; lève csv.Error."""
    return csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True, **dialect)


def _without_header(data: bytes, start: int, options: Options, final: bool) -> Header | None:
    """--columns ou --no-header : le premier enregistrement dit le séparateur, et combien de colonnes."""
    end = len(data) if final else data.rfind(b"\n") + 1
    rows = data[start:end].decode(options.encoding, "surrogateescape")
    if not rows:
        return None
    wanted = len(options.columns)
    delimiter = options.delimiter or max(
        DELIMITERS, key=lambda found: (*_share(widths := _widths(rows, found), wanted or widths[0]), widths[0])
    )
    names = options.columns or _unique([""] * _widths(rows, delimiter)[0])
    return Header(names, delimiter, start, data.count(b"\n", 0, start), options.encoding)


def _separator(header: str, after: bytes, encoding: str, *, final: bool) -> str | None:
    """Le séparateur qui découpe l'en-tête et les premiers enregistrements ; None : il faut en attendre un."""
    outside = _QUOTED.sub("", header)
    candidates = [delimiter for delimiter in DELIMITERS if delimiter in outside]
    if len(candidates) < 2:
        return candidates[0] if candidates else ","
    end = len(after) if final else after.rfind(b"\n") + 1
    rows = after[:end].decode(encoding, "surrogateescape")
    if not rows.strip() and not final:
        return None

    def score(delimiter: str) -> tuple[float, int]:
        return _share(_widths(rows, delimiter), outside.count(delimiter) + 1)

    return max(candidates, key=score)


def _widths(rows: str, delimiter: str) -> list[int]:
    """Nombre de champs des premiers enregistrements, jusqu'au premier qui n'est pas du CSV ; jamais vide."""
    found: list[int] = []
    try:
        for values in islice(_records(rows, delimiter), JUDGED_ROWS):
            if values:
                found.append(len(values))
    except csv.Error:
        pass
    return found or [1]


def _share(widths: list[int], wanted: int) -> tuple[float, int]:
    """Part des enregistrements qui ont ``wanted`` champs, puis ce nombre : plus c'est grand, mieux ce séparateur va."""
    return (widths.count(wanted) / len(widths) if wanted > 1 else 0.0), wanted


def _unique(names: list[str]) -> tuple[str, ...]:
    unique: dict[str, None] = {}
    for number, name in enumerate(names, start=1):
        wanted, copies = name.strip() or f"colonne_{number}", 1
        candidate = wanted
        while candidate in unique:
            copies += 1
            candidate = f"{wanted}_{copies}"
        unique[candidate] = None
    return tuple(unique)


def french(error: Exception) -> str:
    """Ce que le module csv reproche à une ligne, en français."""
    return next((sentence for english, sentence in _CSV_ERRORS.items() if english in str(error)), str(error))
