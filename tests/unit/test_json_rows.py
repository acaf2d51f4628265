"""Des champs d'un CSV au JSON : types, clé, noms difficiles."""

import json

from commun.csv_header import HeaderError, Options, read_header
from commun.csv_rows import Chunk, Place, open_parser
from exercice1.json_rows import Row, converter

import pytest


def read(data: bytes, types: dict[str, str] | None = None, key: str | None = None) -> Chunk[Row]:
    """Tout un fichier, converti."""
    header = read_header(data, Options(), final=True)
    assert header is not None
    parser = open_parser(header, Options(), Place(header.size, header.lines), converter(header, types or {}, key))
    return parser.feed(data[header.size :], final=True)


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1])
def test_integers_of_64_bits(value: int) -> None:
    """Les deux bouts des entiers de 64 bits passent, l'entier d'après est refusé, avec soixante caractères au plus."""
    step = 1 if value > 0 else -1
    for text, good in ((str(value), True), (str(value + step), False), (str(value * 2), False), ("9" * 70, False)):
        chunk = read(f"n\n{text}\n".encode(), {"n": "int"})
        if good:
            assert [json.loads(value) for value, _ in chunk.values] == [{"n": value}]
        else:
            reason = f"« n » : {text[:60]!r} n'est pas un nombre entier (64 bits)"
            assert chunk.rejected == [(2, f"{text}\n".encode(), reason)]


@pytest.mark.parametrize(
    ("kind", "text", "json_value"),
    [
        ("int", "12", "12"), ("int", " -1 234\u202f567 ", "-1234567"), ("int", "", "null"),
        ("int", "1,5", None), ("int", "9223372036854775808", None), ("int", "1e3", None),
        ("float", "1,5", "1.5"), ("float", "1e3", "1000.0"), ("float", "nan", None), ("float", "1e999", None),
        ("decimal", "1 234,50", "1234.50"), ("decimal", "0.10", "0.10"), ("decimal", "-,5", "-0.5"),
        ("decimal", "1.234,5", None), ("decimal", "inf", None), ("decimal", "٣", None),
        ("date", "2025-11-03", '"2025-11-03"'), ("date", "03/11/2025", '"2025-11-03"'),
        ("date", "03/11/2025 09:12", '"2025-11-03T09:12:00"'),
        ("date", "2025-11-03 09:12:44", '"2025-11-03T09:12:44"'), ("date", "31/02/2025", None), ("date", "hier", None),
        ("date", "2025-W45-1", None), ("date", "20251103", '"2025-11-03"'),
        ("date", "2025-11-03T09:12:44.123456789Z", '"2025-11-03T09:12:44.123456789Z"'),
        ("date", "2025-11-03 09:12:44.1234567", '"2025-11-03T09:12:44.1234567"'),
        ("date", "2025-11-03 09:12:44.100000000+02:00", '"2025-11-03T09:12:44.100000000+02:00"'),
        ("bool", "VRAI", "true"), ("bool", "non", "false"), ("bool", "peut-être", None),
    ],
)  # fmt: skip
def test_typed_columns(kind: str, text: str, json_value: str | None) -> None:
    """--types : la valeur JSON exacte, ou un refus qui nomme la colonne."""
    chunk = read(f'a;b\n"{text}";x\n'.encode(), {"a": kind})
    if json_value is None:
        assert not chunk.values
        assert chunk.rejected[0].reason.startswith("« a » : ")
    else:
        assert chunk.values == [(f'{{"a":{json_value},"b":"x"}}'.encode(), None)]


def test_values_stay_the_text_of_the_file() -> None:
    """Sans --types, tout reste du texte, au caractère près."""
    assert read(b"a,b\n 007,1.50\n").values == [(b'{"a":" 007","b":"1.50"}', None)]


def test_the_key_column() -> None:
    """--key : la clé est le texte de la colonne, même typée ; une colonne absente est refusée."""
    for types in ({"id": "int"}, {}):
        assert [key_ for _, key_ in read(b"id,v\n01,x\n,y\n", types, key="id").values] == [b"01", b""]
    with pytest.raises(HeaderError, match="colonne « nom »"):
        read(b"id,v\n", key="nom")


def test_difficult_names() -> None:
    """Un nom avec un guillemet, une barre oblique inverse ou un saut de ligne reste un nom."""
    ((value, _),) = read(b'"a""b","c\\d","e\nf"\n1,2,3\n').values
    assert json.loads(value) == {'a"b': "1", "c\\d": "2", "e\nf": "3"}


@pytest.mark.parametrize(("text", "good"), [("1,234", False), ("-12,500", False), ("19,90", True), ("1,2345", True)])
def test_an_ambiguous_number_is_refused(text: str, good: bool) -> None:
    """« 1,234 » dans un fichier séparé par des virgules : 1234 ou 1.234 ? Séparé par des points-virgules, 1.234."""
    for kind in ("float", "decimal"):
        chunk = read(f'a,b\n"{text}",x\n'.encode(), {"a": kind})
        assert bool(chunk.values) == good
        assert good or "se lit" in chunk.rejected[0].reason
        assert read(f"a;b\n{text};x\n".encode(), {"a": kind}).values
