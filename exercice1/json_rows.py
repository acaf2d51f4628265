"""Des champs d'un enregistrement CSV à un objet JSON, colonnes typées (--types) et clé (--key). Logique pure."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from commun.csv_header import Header, HeaderError

import msgspec

# Un enregistrement : son objet JSON, et la clé demandée (--key), ou None. Un simple couple, pour aller vite.
Row = tuple[bytes, bytes | None]

_GROUPS = r"[+-]?(?:\d{1,3}(?:[ \u00a0\u202f]\d{3})+|\d+)"
_INT = re.compile(_GROUPS, re.ASCII)
_DECIMAL = re.compile(rf"{_GROUPS}(?:[.,]\d+)?|[+-]?[.,]\d+", re.ASCII)
_FLOAT = re.compile(rf"(?:{_DECIMAL.pattern})(?:[eE][+-]?\d+)?", re.ASCII)
# « 1,234 » entre guillemets, dans un fichier séparé par des virgules : mille deux cent trente-quatre, ou un virgule… ?
_AMBIGUOUS = re.compile(r"[+-]?\d{1,3},\d{3}", re.ASCII)
_FRENCH_DATE = re.compile(r"(\d\d)/(\d\d)/(\d{4})(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?))?", re.ASCII)
_ISO_DATE = re.compile(r"\d{4}-?\d\d-?\d\d(?:[ T].+)?", re.ASCII)
_FINE = re.compile(r"(\.\d{6})(\d+)")  # au-delà de la microseconde, que Python ne sait pas porter
_TRUE, _FALSE = ("vrai", "oui", "true", "yes", "1"), ("faux", "non", "false", "no", "0")


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


def _date(text: str) -> date | datetime | str:
    if match := _FRENCH_DATE.fullmatch(text):
        day, month, year, hour = match.groups()
        text = f"{year}-{month}-{day}" + (f"T{hour}" if hour else "")
    if not _ISO_DATE.fullmatch(text):  # Python y lirait aussi une semaine (2025-W45-1)
        raise ValueError
    try:
        return date.fromisoformat(text)
    except ValueError:
        found = datetime.fromisoformat(text)
    if fine := _FINE.search(text):  # 9 chiffres : le texte garde ceux que datetime perdrait
        written: str = msgspec.to_builtins(found)
        return re.sub(r"(T\d\d:\d\d:\d\d)(?:\.\d+)?", lambda match: match[1] + fine[1] + fine[2], written)
    return found


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


def converter(header: Header, types: Mapping[str, str], key: str | None = None) -> Callable[[list[str]], Row]:
    """Ce qui fait un Row des champs d'un enregistrement, ou lève ValueError avec la raison.

    ``types`` : colonne → un nom de TYPES. Lève HeaderError si une de ces colonnes, ou ``key``, manque.
    """
    for name in [*types, *([key] if key else [])]:
        if name not in header.names:
            raise HeaderError(f"il n'a pas de colonne « {name} » (il a : {', '.join(header.names)})")
    make = _object_of(header.names)
    encode = msgspec.json.Encoder(decimal_format="number").encode
    place = header.names.index(key) if key else None
    typed = [(header.names.index(name), name, kind, *TYPES[kind]) for name, kind in types.items()]

    def plain(values: list[str]) -> Row:
        return encode(make(*values)), None

    def keyed(values: list[str]) -> Row:
        return encode(make(*values)), None if place is None else values[place].encode()

    def converted(values: list[str]) -> Row:
        fields: list[Any] = list(values)
        for index, name, kind, convert, meaning in typed:
            text = values[index].strip()
            if header.delimiter == "," and kind in ("float", "decimal") and _AMBIGUOUS.fullmatch(text):
                raise ValueError(f"« {name} » : {text!r} se lit {text.replace(',', '')} ou {text.replace(',', '.')}")
            try:
                fields[index] = convert(text) if text else None
            except ValueError as error:
                raise ValueError(f"« {name} » : {values[index][:60]!r} n'est pas {meaning}") from error
        return encode(make(*fields)), None if place is None else values[place].encode()

    return converted if typed else plain if place is None else keyed


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
