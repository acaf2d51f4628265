"""Un message de Kafka en une ligne de console : table alignée, JSON, ou octets tels quels. Logique pure."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from commun.cli import printable

import msgspec

_GAP = "  "
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Record(NamedTuple):
    """Un message : ses octets, ses champs si c'est un objet JSON, et ce qu'on a demandé d'autre (partition, clé…)."""

    value: bytes | None
    fields: Mapping[str, str] | None
    details: Mapping[str, Any]


def read(value: bytes | None, details: Mapping[str, Any]) -> Record:
    """Lit un message ; ``fields`` est None si ce n'est pas un objet JSON. Un nombre garde son écriture exacte."""
    try:
        return Record(value, {name: _text(raw) for name, raw in _DECODER.decode(value or b"").items()}, details)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Record(value, None, details)


def _text(raw: msgspec.Raw) -> str:
    encoded = bytes(raw).strip()
    if encoded.startswith(b'"'):
        return str(msgspec.json.decode(encoded, type=str))
    return "" if encoded == b"null" else encoded.decode()


def selected(record: Record, filters: Mapping[str, str]) -> bool:
    """Vrai si chaque colonne de ``filters`` a la valeur demandée."""
    return all(record.fields is not None and record.fields.get(name) == value for name, value in filters.items())


def as_raw(record: Record) -> bytes:
    """Les octets du message, précédés de ce qu'on a demandé d'autre, séparé par des tabulations."""
    return b"\t".join([*(_shown(detail).encode() for detail in record.details.values()), record.value or b""])


def as_json(record: Record) -> bytes:
    """Une ligne JSON : l'objet tel quel, ou une chaîne pour ce qui n'est pas un objet."""
    if record.value is None:
        value: Any = None
    elif record.fields is None:
        value = record.value.decode("utf-8", "replace")
    else:
        value = msgspec.Raw(msgspec.json.format(record.value, indent=-1))
    return msgspec.json.encode({**record.details, "value": value} if record.details else value)


class Table:
    """Une table qui s'écrit au fil de l'eau : les largeurs suivent ce qui est déjà passé.

    L'en-tête est récrit quand les colonnes changent, ou s'élargissent.
    """

    def __init__(self) -> None:
        self._columns: tuple[str, ...] = ()
        self._names: list[str] = []  # les mêmes, telles qu'elles s'affichent
        self._widths: list[int] = []

    def lines(self, records: Sequence[Record]) -> Iterator[str]:
        """Lignes à écrire pour ``records``, en-têtes compris."""
        for number, record in enumerate(records):
            details = [_shown(detail) for detail in record.details.values()]
            if record.fields is None:
                text = "(vide)" if record.value is None else printable(record.value.decode("utf-8", "replace"))
                yield _GAP.join([*details, f"texte : {text}"])
                continue
            columns, cells = (*record.details, *record.fields), [*details, *map(printable, record.fields.values())]
            if columns != self._columns:
                self._columns, self._widths = columns, [0] * len(columns)
                # Toutes les lignes suivantes de même forme sont déjà connues : autant prendre leur largeur d'un coup.
                ahead = [r for r in records[number:] if r.fields is not None and (*r.details, *r.fields) == columns]
                self._names = [printable(name) for name in columns]
                self._widen([self._names, *([*map(_shown, r.details.values()), *_cells(r)] for r in ahead)])
                yield self._line(self._names)
            elif self._widen([cells]):
                yield self._line(self._names)
            yield self._line(cells)

    def _widen(self, rows: Sequence[Sequence[str]]) -> bool:
        before = list(self._widths)
        for row in rows:
            self._widths = [max(width, _width(cell)) for width, cell in zip(self._widths, row, strict=True)]
        return self._widths != before

    def _line(self, cells: Sequence[str]) -> str:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, self._widths, strict=True)]
        return _GAP.join(padded).rstrip()


def _cells(record: Record) -> list[str]:
    return [printable(text) for text in (record.fields or {}).values()]


def _shown(detail: Any) -> str:
    return "" if detail is None else printable(str(detail))


def _width(text: str) -> int:
    """Cases de terminal qu'occupe ``text`` : un idéogramme en prend deux, un accent combinant aucune."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
