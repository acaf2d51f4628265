"""Du CSV aux lignes : cas d'autres suites de tests, vrais fichiers, propriétés, et ce que le CSV a de tordu."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import vega_datasets
from hypothesis import given
from hypothesis import strategies as st

from exercice1.csv_tail import (
    DELIMITERS,
    HeaderError,
    Options,
    Place,
    Rejected,
    Row,
    RowParser,
    byte_compatible,
    read_header,
)

CASES = json.loads((Path(__file__).parent.parent / "data" / "csv_cases.json").read_text(encoding="utf-8"))
REAL_FILES = sorted((Path(vega_datasets.__file__).parent / "_data").glob("*.csv"))


class Read:
    """Un CSV lu en entier, donné en morceaux coupés aux octets ``cuts``."""

    def __init__(self, data: bytes, cuts: Sequence[int] = (), *, final: bool = True, **options: Any) -> None:
        self.options = Options(**options)
        header = read_header(data, self.options.encoding, self.options.delimiter, final=True)
        assert header is not None
        self.names, self.delimiter = header.names, header.delimiter
        self.parser = RowParser(header, self.options, Place(header.size, header.lines))
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        taken, start = data[: header.size], header.size
        for cut in [*sorted(cut for cut in cuts if cut > header.size), len(data)]:
            chunk = self.parser.feed(data[start:cut], final=final and cut == len(data))
            start = cut
            taken += chunk.taken
            self.rows += chunk.rows
            self.rejected += chunk.rejected
            for place in chunk.boundaries:
                assert place.torn or (taken[: place.offset].endswith(b"\n"))
                assert place.lines == taken.count(b"\n", 0, place.offset)
            assert chunk.place.offset == len(taken)
        assert taken + self.parser.pending == data

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Les objets JSON."""
        return [json.loads(value) for _, value, _ in self.rows]

    @property
    def values(self) -> list[list[Any]]:
        """Les valeurs seules."""
        return [list(row.values()) for row in self.objects]

    @property
    def reasons(self) -> list[tuple[int, bytes, str]]:
        """Les refus."""
        return [(line, raw, reason) for line, raw, reason in self.rejected]


# --- Ce que d'autres ont écrit ---


@pytest.mark.parametrize("case", CASES["papaparse"]["cases"], ids=lambda case: case["description"])
def test_cases_of_papaparse(case: dict[str, Any]) -> None:
    """Les cas de PapaParse : mêmes valeurs, ou un refus qui garde les octets là où la RFC 4180 est plus stricte."""
    data = case["input"].encode()
    if case["rows"]:
        width = len(case["rows"][0])
        delimiter = case["delimiter"] or Read(data).delimiter
        header = delimiter.join(f"c{number}" for number in range(width)).encode() + b"\n"
        read = Read(header + data.removeprefix(b"\xef\xbb\xbf"), delimiter=delimiter)
        assert read.values == case["rows"]
        assert not read.rejected
    else:
        header = b"x,y,z\n"
        Read(header + data, delimiter=",")  # rien n'est avalé : Read compte les octets


@pytest.mark.parametrize("case", CASES["csv-spectrum"]["cases"], ids=lambda case: case["description"])
def test_cases_of_csv_spectrum(case: dict[str, Any]) -> None:
    """Les cas de csv-spectrum : les mêmes objets JSON."""
    read = Read(case["input"].encode())
    assert read.objects == case["objects"]
    assert not read.rejected


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
def test_real_files(path: Path) -> None:
    """De vrais fichiers, lus d'un coup ou en petits morceaux : ce que csv.DictReader y lit."""
    data = path.read_bytes()
    with path.open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    assert Read(data).objects == expected
    assert Read(data, range(0, len(data), 997)).objects == expected


# --- Propriétés ---

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
CELL = st.one_of(TEXT, st.sampled_from(["", ",", ";", '"', '""', "\n", "\r\n", "a\nb", "é", " x ", "\ufeff"]))


@st.composite
def csv_files(draw: st.DrawFn, cell: st.SearchStrategy[str] = CELL) -> tuple[list[list[str]], str, bytes]:
    """Une table, un séparateur, et ses octets écrits par le module csv dans un dialecte quelconque."""
    width = draw(st.integers(1, 4))
    table = draw(st.lists(st.lists(cell, min_size=width, max_size=width), max_size=8))
    delimiter = draw(st.sampled_from(DELIMITERS))
    out = io.StringIO(newline="")
    # Le module csv ne met pas toujours de guillemets autour d'un retour chariot seul, que la RFC exige.
    lonely_return = any("\r" in cell.replace("\r\n", "") for row in table for cell in row)
    quoting: Any = csv.QUOTE_ALL if lonely_return else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(
        out, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=quoting,
    )  # fmt: skip
    writer.writerows([[f"c{number}" for number in range(width)], *table])
    text = out.getvalue()
    return table, delimiter, text.encode()


@given(csv_files(), st.data())
def test_any_table_cut_anywhere(written: tuple[list[list[str]], str, bytes], data: st.DataObject) -> None:
    """Toute table, dans tout dialecte, coupée en ajouts à n'importe quels octets : la même table."""
    table, delimiter, content = written
    if data.draw(st.booleans()):  # une dernière ligne sans fin de ligne
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=10))
    read = Read(content, cuts, delimiter=delimiter)
    assert read.values == table
    assert not read.rejected


@given(csv_files(), st.integers(0, 400))
def test_a_resumed_reading_continues(written: tuple[list[list[str]], str, bytes], cut: int) -> None:
    """Reprise à une place rendue, dans un programme neuf : ni ligne perdue, ni ligne répétée, ni numéro faux."""
    table, delimiter, content = written
    whole = Read(content, delimiter=delimiter)
    header = read_header(content, "utf-8", delimiter)
    assert header is not None
    before = RowParser(header, Options(), Place(header.size, header.lines))
    cut = max(header.size, min(cut, len(content)))
    first = before.feed(content[header.size : cut])
    after = RowParser(header, Options(), first.place)
    second = after.feed(content[first.place.offset :], final=True)
    assert first.rows + second.rows == whole.rows
    assert len(whole.rows) == len(table)


@given(st.binary(max_size=200), st.lists(st.integers(0, 210), max_size=6))
def test_any_bytes_are_accounted_for(body: bytes, cuts: list[int]) -> None:
    """N'importe quels octets : rien ne plante, rien n'est avalé, et les coupures ne changent rien."""
    data = b"a,b\n" + body
    whole, cut = Read(data), Read(data, cuts)
    assert whole.rows == cut.rows
    assert whole.rejected == cut.rejected


# --- Le CSV tordu ---


def test_what_is_not_csv_is_set_aside() -> None:
    """Champs en trop ou en moins, octets illisibles, guillemets fautifs : mis de côté avec ligne, octets, raison."""
    data = b'a,b\n1,2,3\n4\n5,\xff\n6,"x"y\n\n7,z\rz\n8,"ok\nok"\n'
    read = Read(data)
    assert read.values == [["8", "ok\nok"]]
    assert read.reasons == [
        (2, b"1,2,3\n", "3 champs au lieu de 2"),
        (3, b"4\n", "1 champs au lieu de 2"),
        (4, b"5,\xff\n", "« b » : ces octets ne sont pas du texte utf-8"),
        (5, b'6,"x"y\n', "du texte suit un guillemet fermant"),
        (7, b"7,z\rz\n", "retour chariot seul au milieu d'une ligne"),
    ]
    assert read.rows[0][0] == 8


def test_a_row_waits_for_its_end() -> None:
    """Une ligne à moitié écrite, ou dans un guillemet ouvert, attend ; elle part une fois, entière."""
    header = read_header(b"a,b\n", "utf-8")
    assert header is not None
    parser = RowParser(header, Options(), Place(4, 1))
    assert [len(parser.feed(part).rows) for part in (b"1,x", b"y\n2,", b'"deux\n', b"lignes", b'"', b"\n")] == [
        0, 1, 0, 0, 0, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"max_row_lines": 5}, {"max_row_bytes": 60}])
def test_an_unclosed_quote_swallows_one_line(options: dict[str, int]) -> None:
    """Un guillemet jamais fermé : au-delà d'une borne, sa ligne est mise de côté et la suite est lue."""
    good = [f"{number},bonne" for number in range(20)]
    data = ('a,b\n0,debut\n1,"jamais fermé\n' + "\n".join(good) + "\n").encode()
    read = Read(data, range(0, len(data), 7), final=False, **options)
    assert read.values == [["0", "debut"], *(line.split(",") for line in good)]
    assert read.reasons == [(3, '1,"jamais fermé\n'.encode(), "guillemet ouvert et jamais fermé")]


def test_an_unclosed_quote_is_reported_at_the_end_of_a_finished_file() -> None:
    """Fichier terminé : sa ligne est mise de côté tout de suite, la suite est lue."""
    read = Read(b'a,b\n1,"x\n2,y\n')
    assert (read.values, len(read.rejected)) == ([["2", "y"]], 1)


def test_a_cell_of_megabytes() -> None:
    """Une cellule de 3 Mo arrive entière, donnée par petits morceaux, en un temps linéaire."""
    cell = "x\né" * 750_000
    data = b'a,b\n1,"' + cell.encode() + b'"\n'
    read = Read(data, range(0, len(data), 4096), max_row_lines=1_000_000)
    assert read.values == [["1", cell]]


def test_a_line_without_end_is_cut_in_pieces() -> None:
    """Une ligne plus longue que la borne : chaque morceau est gardé, la ligne suivante est lue."""
    data = b"a,b\n" + b"x" * 1000 + b"\n1,2\n"
    read = Read(data, range(0, len(data), 50), max_row_bytes=200)
    assert read.values == [["1", "2"]]
    assert b"".join(raw for _, raw, _ in read.rejected) == b"x" * 1000 + b"\n"
    assert {line for line, _, _ in read.rejected} == {2}


def test_the_end_of_a_line_already_sent() -> None:
    """La dernière ligne est partie sans fin de ligne (--once) : un saut de ligne la finit, autre chose est gardé."""
    header = read_header(b"a,b\n", "utf-8")
    assert header is not None
    torn = RowParser(header, Options(), Place(4, 1)).feed(b"1,x", final=True).place
    assert torn == Place(7, 1, torn=True)
    for tail, rejected in ((b"\r\n2,y\n", []), (b"yz\n2,y\n", [b"yz\n"])):
        chunk = RowParser(header, Options(), torn).feed(tail)
        assert [line for line, _, _ in chunk.rows] == [3]
        assert [raw for _, raw, _ in chunk.rejected] == rejected


def test_the_rest_of_a_torn_line_is_never_lost() -> None:
    """La suite d'une ligne partie attend sa fin ; finie, trop longue ou dernière, elle est gardée, octet pour octet."""
    header = read_header(b"a,b\n", "utf-8")
    assert header is not None
    torn, reason = Place(7, 1, torn=True), "suite d'une ligne dont le début est déjà parti"

    parser = RowParser(header, Options(), torn)
    waiting = parser.feed(b"yz")
    assert (waiting.place, waiting.rejected, waiting.taken) == (torn, [], b"")
    assert parser.feed(b"t\n2,y\n").rejected == [(2, b"yzt\n", reason)]

    last = RowParser(header, Options(), torn).feed(b"yz", final=True)
    assert (last.place, last.rejected) == (Place(9, 1, torn=True), [(2, b"yz", reason)])

    long = RowParser(header, Options(max_row_bytes=10), torn).feed(b"y" * 11)
    assert (long.place, long.rejected) == (Place(18, 1, torn=True), [(2, b"y" * 11, reason)])

    for odd in (b"X\n", b" \n", b"\t\r\n"):
        assert RowParser(header, Options(), torn).feed(odd).rejected == [(2, odd, reason)]


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1])
def test_integers_of_64_bits(value: int) -> None:
    """Les deux bouts des entiers de 64 bits passent, l'entier d'après est refusé, avec soixante caractères au plus."""
    header = read_header(b"n\n", "utf-8")
    assert header is not None
    step = 1 if value > 0 else -1
    for text, good in ((str(value), True), (str(value + step), False), (str(value * 2), False), ("9" * 70, False)):
        chunk = RowParser(header, Options(types={"n": "int"}), Place(2, 1)).feed(f"{text}\n".encode())
        if good:
            assert [json.loads(row) for _, row, _ in chunk.rows] == [{"n": value}]
        else:
            reason = f"« n » : {text[:60]!r} n'est pas un nombre entier (64 bits)"
            assert chunk.rejected == [(2, f"{text}\n".encode(), reason)]


# --- En-tête, encodage, types ---


@pytest.mark.parametrize(
    ("data", "names", "delimiter"),
    [
        (b"a,b\n", ("a", "b"), ","),
        (b"a;b,c;d\n", ("a", "b,c", "d"), ";"),
        (b'"a;1;2","b"\n', ("a;1;2", "b"), ","),
        (b"a\tb\r\n", ("a", "b"), "\t"),
        (b"a|b\n", ("a", "b"), "|"),
        (b"seul\n", ("seul",), ","),
        ("\ufeffé,b\n".encode(), ("é", "b"), ","),
        (b"\n \na,b\n", ("a", "b"), ","),
        (b'"deux\nlignes",b\n', ("deux\nlignes", "b"), ","),
        (b"a,,a, a \n", ("a", "colonne_2", "a_2", "a_3"), ","),
    ],
)
def test_the_header(data: bytes, names: tuple[str, ...], delimiter: str) -> None:
    """Noms uniques et non vides, séparateur reconnu, BOM et lignes vides du début passés."""
    header = read_header(data, "utf-8")
    assert header is not None
    assert header == (names, delimiter, len(data), data.count(b"\n"))


@pytest.mark.parametrize("data", [b"", b"a,b", b"\n\n", b'"a\n', b"\xef\xbb\xbf"])
def test_an_unfinished_header_waits(data: bytes) -> None:
    """Fichier vide, en-tête sans fin de ligne ou dans un guillemet ouvert : il faut attendre."""
    assert read_header(data, "utf-8") is None


@pytest.mark.parametrize("data", [b"\xe9t\xe9,b\n", b'"a"b,c\n', b"\xff\xfea\x00,\x00b\x00\n\x00"])
def test_a_header_that_is_not_csv(data: bytes) -> None:
    """En-tête illisible : une phrase le dit."""
    with pytest.raises(HeaderError, match="en-tête"):
        read_header(data, "utf-8")


@given(csv_files(st.text(alphabet=st.sampled_from([*map(chr, range(32, 127)), *"éÉàç€œ\n"]), max_size=6)))
def test_single_byte_encodings(written: tuple[list[list[str]], str, bytes]) -> None:
    """cp1252 : le même texte."""
    table, delimiter, content = written
    assert Read(content.decode().encode("cp1252"), encoding="cp1252", delimiter=delimiter).values == table


@pytest.mark.parametrize(
    ("encoding", "accepted"),
    [("utf-8", True), ("UTF8", True), ("utf-8-sig", True), ("cp1252", True), ("latin-1", True), ("iso8859-15", True),
     ("utf-16", False), ("utf-16-le", False), ("gbk", False), ("shift_jis", False), ("utf-7", False), ("cp037", False)],
)  # fmt: skip
def test_encodings_whose_bytes_can_be_searched(encoding: str, accepted: bool) -> None:
    """Refuse les encodages où un octet de séparateur peut être un morceau de lettre."""
    assert byte_compatible(encoding) == accepted


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
        ("bool", "VRAI", "true"), ("bool", "non", "false"), ("bool", "peut-être", None),
    ],
)  # fmt: skip
def test_typed_columns(kind: str, text: str, json_value: str | None) -> None:
    """--types : la valeur JSON exacte, ou un refus qui nomme la colonne."""
    read = Read(f'a;b\n"{text}";x\n'.encode(), types={"a": kind})
    if json_value is None:
        assert not read.rows
        assert read.rejected[0].reason.startswith("« a » : ")
    else:
        assert read.rows == [(2, f'{{"a":{json_value},"b":"x"}}'.encode(), None)]


def test_values_stay_the_text_of_the_file() -> None:
    """Sans --types, tout reste du texte, au caractère près."""
    assert Read(b"a,b\n 007,1.50\n").values == [[" 007", "1.50"]]


def test_the_key_column() -> None:
    """--key : la clé est le texte de la colonne, même typée ; une colonne absente est refusée."""
    read = Read(b"id,v\n01,x\n,y\n", key="id", types={"id": "int"})
    assert [key for _, _, key in read.rows] == [b"01", b""]
    with pytest.raises(HeaderError, match="colonne « nom »"):
        Read(b"id,v\n", key="nom")
