"""Du CSV aux lignes : cas d'autres suites de tests, vrais fichiers, propriétés, et ce que le CSV a de tordu."""

import contextlib
import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commun.csv_header import DELIMITERS, Header, HeaderError, Options, read_header, readable
from commun.csv_rows import Chunk, Place, Rejected, RowParser, Utf16Parser, open_parser

import pytest
import vega_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = json.loads((Path(__file__).parent.parent / "data" / "csv_cases.json").read_text(encoding="utf-8"))
REAL_FILES = sorted((Path(vega_datasets.__file__).parent / "_data").glob("*.csv"))

Records = Chunk[list[str]]


def parser_of(header: bytes | Header, place: Place | None = None, **options: Any) -> RowParser[list[str]]:
    """Ce qui lit un fichier dont l'en-tête est ``header``, à partir de sa fin ou de ``place``."""
    found = read_header(header, Options(), final=True) if isinstance(header, bytes) else header
    assert found is not None
    return RowParser(found, Options(**options), place or Place(found.size, found.lines), list)


class Read:
    """Un CSV lu en entier, donné en morceaux coupés aux octets ``cuts``."""

    def __init__(self, data: bytes, cuts: Sequence[int] = (), *, final: bool = True, **options: Any) -> None:
        wanted = Options(**options)
        header = read_header(data, wanted, final=True)
        assert header is not None
        self.header, self.names, self.delimiter = header, header.names, header.delimiter
        self.parser = open_parser(header, wanted, Place(header.size, header.lines), list)
        self.numbers: list[int] = []
        self.values: list[list[str]] = []
        self.rejected: list[Rejected] = []
        taken, start = data[: header.size], header.size
        for cut in [*sorted(cut for cut in cuts if cut > header.size), len(data)]:
            chunk = self.parser.feed(data[start:cut], final=final and cut == len(data))
            start = cut
            taken += chunk.taken
            self.numbers += chunk.numbers
            self.values += chunk.values
            self.rejected += chunk.rejected
            if isinstance(self.parser, RowParser):
                for place in chunk.boundaries:
                    assert place.torn or not place.offset or taken[: place.offset].endswith(b"\n")
                    assert place.lines == taken.count(b"\n", 0, place.offset)
            assert chunk.place.offset == len(taken)
        assert taken + self.parser.pending == data

    @property
    def objects(self) -> list[dict[str, str]]:
        """Un dictionnaire par enregistrement."""
        return [dict(zip(self.names, values, strict=True)) for values in self.values]

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
    header = whole.header
    cut = max(header.size, min(cut, len(content)))
    first = parser_of(header).feed(content[header.size : cut])
    second = parser_of(header, first.place).feed(content[first.place.offset :], final=True)
    assert first.numbers + second.numbers == whole.numbers
    assert first.values + second.values == whole.values
    assert len(whole.values) == len(table)


ODD = st.lists(st.sampled_from([b"1,2\n", b'"', b"\n", b",", b"x", b"\r", b"\xff", b"\0", "é".encode(), b'1,"a\nb"\n']))


@settings(max_examples=400)
@given(
    st.one_of(st.binary(max_size=200), ODD.map(b"".join)), st.lists(st.integers(0, 210), max_size=9),
    st.sampled_from([4_000_000, 1, 7, 20]), st.sampled_from([1000, 1, 2, 5]),
)  # fmt: skip
def test_any_bytes_are_accounted_for(body: bytes, cuts: list[int], row_bytes: int, row_lines: int) -> None:
    """N'importe quels octets, quelles que soient les bornes : rien n'est avalé, et les coupures ne changent rien."""
    options: dict[str, Any] = {"max_row_bytes": row_bytes, "max_row_lines": row_lines}
    data = b"a,b\n" + body
    whole, cut = Read(data, **options), Read(data, cuts, **options)
    assert (whole.numbers, whole.values) == (cut.numbers, cut.values)
    assert whole.rejected == cut.rejected
    assert all(
        len(raw) <= max(row_bytes + 1, 4) or row_bytes > 20 or raw.count(b"\n") > 1 for _, raw, _ in cut.rejected
    )


# --- Le CSV tordu ---


def test_what_is_not_csv_is_set_aside() -> None:
    """Champs en trop ou en moins, octets illisibles, guillemets fautifs : mis de côté avec ligne, octets, raison."""
    data = b'a,b\n1,2,3\n4\n5,\xff\n6,"x"y\n\n7,z\rz\n8,"ok\nok"\n'
    read = Read(data)
    assert read.values == [["8", "ok\nok"]]
    assert read.reasons == [
        (2, b"1,2,3\n", "3 champs au lieu de 2"),
        (3, b"4\n", "1 champ au lieu de 2"),
        (4, b"5,\xff\n", "« b » : ces octets ne sont pas du texte utf-8"),
        (5, b'6,"x"y\n', "du texte suit un guillemet fermant"),
        (7, b"7,z\rz\n", "retour chariot seul au milieu d'une ligne"),
    ]
    assert read.numbers == [8]


def test_a_row_waits_for_its_end() -> None:
    """Une ligne à moitié écrite, ou dans un guillemet ouvert, attend ; elle part une fois, entière."""
    parser = parser_of(b"a,b\n")
    assert [len(parser.feed(part).values) for part in (b"1,x", b"y\n2,", b'"deux\n', b"lignes", b'"', b"\n")] == [
        0, 1, 0, 0, 0, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_row_lines": 5}, "guillemet ouvert depuis plus de 5 lignes"),
        ({"max_row_bytes": 60}, "ligne de plus de 60 octets"),
    ],
)
def test_an_unclosed_quote_swallows_one_line(options: dict[str, int], reason: str) -> None:
    """Un guillemet jamais fermé : au-delà d'une borne, sa ligne est mise de côté et la suite est lue."""
    good = [f"{number},bonne" for number in range(20)]
    data = ('a,b\n0,debut\n1,"jamais fermé\n' + "\n".join(good) + "\n").encode()
    read = Read(data, range(0, len(data), 7), final=False, **options)
    assert read.values == [["0", "debut"], *(line.split(",") for line in good)]
    assert read.reasons == [(3, '1,"jamais fermé\n'.encode(), reason)]


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
    torn = parser_of(b"a,b\n").feed(b"1,x", final=True).place
    assert torn == Place(7, 1, torn=True)
    for tail, rejected in ((b"\r\n2,y\n", []), (b"yz\n2,y\n", [b"yz\n"])):
        chunk = parser_of(b"a,b\n", torn).feed(tail)
        assert chunk.numbers == [3]
        assert [raw for _, raw, _ in chunk.rejected] == rejected


def test_the_rest_of_a_torn_line_is_never_lost() -> None:
    """La suite d'une ligne partie attend sa fin ; finie, trop longue ou dernière, elle est gardée, octet pour octet."""
    torn, reason = Place(7, 1, torn=True), "suite d'une ligne dont le début est déjà parti"

    parser = parser_of(b"a,b\n", torn)
    waiting = parser.feed(b"yz")
    assert (waiting.place, waiting.rejected, waiting.taken) == (torn, [], b"")
    assert parser.feed(b"t\n2,y\n").rejected == [(2, b"yzt\n", reason)]

    last = parser_of(b"a,b\n", torn).feed(b"yz", final=True)
    assert (last.place, last.rejected) == (Place(9, 1, torn=True), [(2, b"yz", reason)])

    long = parser_of(b"a,b\n", torn, max_row_bytes=10).feed(b"y" * 11)
    assert (long.place, long.rejected) == (Place(17, 1, torn=True), [(2, b"y" * 10, reason)])

    for odd in (b"X\n", b" \n", b"\t\r\n"):
        assert parser_of(b"a,b\n", torn).feed(odd).rejected == [(2, odd, reason)]


@pytest.mark.parametrize("cuts", [(), range(0, 400, 9), (150,)])
def test_a_line_too_long_is_cut_at_the_same_places(cuts: Sequence[int]) -> None:
    """303 octets, borne 100 : les mêmes morceaux, que la ligne arrive d'un coup ou par bouts."""
    line = b"1," + b"x" * 300 + b"\n"
    read = Read(b"a,b\n" + line + b"2,y\n", cuts, max_row_bytes=100)
    assert [len(raw) for _, raw, _ in read.rejected] == [100, 100, 100, 3]
    assert (read.values, b"".join(raw for _, raw, _ in read.rejected)) == ([["2", "y"]], line)


@pytest.mark.parametrize("line", [b'a,"bc\n', b'7,"le "grand" vin"\n', b"1,2,3\n", b'"\n'])
def test_a_megabyte_of_bad_lines_takes_linear_time(line: bytes) -> None:
    """Un export aux guillemets mal doublés : deux fois plus de lignes ne coûtent pas quatre fois plus."""
    spent = []
    for size in (250_000, 1_000_000):
        data = b"a,b\n" + line * (size // len(line))
        start = time.process_time()
        read = Read(data, range(0, size, 262_144))
        spent.append(time.process_time() - start)
        assert sum(len(raw) for _, raw, _ in read.rejected) + sum(map(len, read.values)) > 0
    assert spent[1] < 12 * spent[0] + 0.5


# --- En-tête, encodage ---


@pytest.mark.parametrize(
    ("data", "names", "delimiter"),
    [
        (b"a,b\n", ("a", "b"), ","),
        (b"a;b,c;d\n1;2;3\n", ("a", "b,c", "d"), ";"),
        (b'"a;1;2","b"\n', ("a;1;2", "b"), ","),
        (b"a\tb\r\n", ("a", "b"), "\t"),
        (b"a|b\n", ("a", "b"), "|"),
        (b"seul\n", ("seul",), ","),
        ("\ufeffé,b\n".encode(), ("é", "b"), ","),
        (b"\n \na,b\n", ("a", "b"), ","),
        (b'"deux\nlignes",b\n', ("deux\nlignes", "b"), ","),
        (b"a,,a, a \n", ("a", "colonne_2", "a_2", "a_3"), ","),
        (b"Produit;Prix (TTC, EUR)\nClavier;19,90\nSouris;7,50\n", ("Produit", "Prix (TTC, EUR)"), ";"),
        (b"Produit;Prix (TTC, EUR)\n", ("Produit", "Prix (TTC, EUR)"), ";"),
        (b"id,nom;prenom,ville\n1,a;b,Lyon\n", ("id", "nom;prenom", "ville"), ","),
        (b"nom,note;avis\nx,1;2\ny,3\n", ("nom", "note;avis"), ","),
        (b"sep=;\nid;ville\n1;Lyon\n", ("id", "ville"), ";"),
        (b'\xef\xbb\xbf"sep=|"\r\n\r\nid,x|ville\r\n', ("id,x", "ville"), "|"),
        (b'"id", "ville"\n"1", "Lyon"\n', ("id", "ville"), ","),
        (b'id, "ville" x\n', ("id", '"ville" x'), ","),
    ],
)
def test_the_header(data: bytes, names: tuple[str, ...], delimiter: str) -> None:
    """Noms uniques et non vides, séparateur reconnu à ce qu'il découpe ; BOM, lignes vides et « sep= » passés."""
    header = read_header(data, Options(), final=True)
    assert header is not None
    assert (header.names, header.delimiter) == (names, delimiter)
    assert header.lines == data.count(b"\n", 0, header.size)


@pytest.mark.parametrize("data", [b"", b"a,b", b"\n\n", b'"a\n', b"\xef\xbb\xbf", b"sep=;\n", b"a;b,c\n"])
def test_an_unfinished_header_waits(data: bytes) -> None:
    """Fichier vide, en-tête sans fin de ligne ou dans un guillemet ouvert, séparateur encore douteux : on attend."""
    assert read_header(data, Options()) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xe9t\xe9,b\n", "en-tête.*cp1252"), (b'"a"b,c\n', "en-tête"), (b"a\0b,c\n", "octets nuls"),
        (b"a\0,\0b\0\n\0", "utf-16-le"), (b"\x1f\x8b\x08\0x\n", "gzip"), (b"PK\x03\x04\n", "zip"),
        (b"\0\x05\x16\x07\0\x02", "AppleDouble"), (b"a,b\r1,2\r3,4\r", "ancien Mac"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_csv(data: bytes, reason: str) -> None:
    """En-tête illisible, archive, fins de ligne d'un autre âge : une phrase le dit."""
    with pytest.raises(HeaderError, match=reason):
        read_header(data, Options())


def test_two_lines_two_separators() -> None:
    """La première ligne n'est entière qu'avec le séparateur de la seconde : son guillemet est ouvert."""
    data = b'Export de juin,"complet\nid;nom;prix\n1;Brest;2\n'
    assert read_header(data, Options()) is None
    with pytest.raises(HeaderError, match="guillemet ouvert"):
        read_header(data, Options(), final=True)


@given(
    st.lists(st.sampled_from([*'\t;|, a\r\n\n""', "é", "sep=", "\xff"]), max_size=12).map("".join),
    st.sampled_from(["utf-8", "cp1252", "utf-16-le"]),
    st.sampled_from([Options(), Options(no_header=True), Options(columns=("a", "b")), Options(delimiter=";")]),
    st.booleans(),
)
def test_any_beginning_is_a_header_or_a_sentence(text: str, encoding: str, options: Options, final: bool) -> None:
    """Un en-tête, rien encore, ou une phrase : jamais une autre erreur, qui arrêterait aussi les autres fichiers."""
    data = text.encode(encoding, "replace")
    with contextlib.suppress(HeaderError):
        header = read_header(data, options, final=final)
        assert header is None or (header.names and 0 <= header.size <= len(data))


def test_files_without_a_header() -> None:
    """--columns nomme les colonnes, --no-header les numérote ; la première ligne est un enregistrement."""
    named = Read(b"1;19,90\n2;7,50\n", columns=("id", "prix"))
    assert (named.objects, named.numbers) == ([{"id": "1", "prix": "19,90"}, {"id": "2", "prix": "7,50"}], [1, 2])
    assert Read(b"1,x\n2,y\n", no_header=True).objects[0] == {"colonne_1": "1", "colonne_2": "x"}
    assert read_header(b"1,x", Options(no_header=True)) is None


def test_files_glued_together() -> None:
    """Un en-tête répété n'est pas une ligne : il est mis de côté."""
    read = Read(b"id,ville\n1,Lyon\nid,ville\n2,Nice\n")
    assert read.values == [["1", "Lyon"], ["2", "Nice"]]
    assert read.reasons == [(3, b"id,ville\n", "c'est l'en-tête, répété au milieu du fichier")]


def test_a_space_before_the_quotes() -> None:
    """« "id", "ville" » : ni les noms ni les valeurs ne gardent leurs guillemets."""
    read = Read(b'"id", "ville"\n"1", "Lyon"\n"2", "Aix, Provence"\n')
    assert read.objects == [{"id": "1", "ville": "Lyon"}, {"id": "2", "ville": "Aix, Provence"}]


def test_utf16_glued_to_utf8() -> None:
    """Un bout d'UTF-16 au milieu d'un fichier UTF-8 : aucun octet nul ne passe dans une ligne."""
    read = Read(b"id,ville\n1,Lyon\n2\0,\0N\0i\0c\0e\0\n\x003,Brest\n4,Pau\n")
    assert read.values == [["1", "Lyon"], ["4", "Pau"]]
    assert [reason for _, _, reason in read.reasons] == ["« id » contient un octet nul"] * 2


@given(csv_files(st.text(alphabet=st.sampled_from([*map(chr, range(32, 127)), *"éÉàç€œ\n"]), max_size=6)))
def test_single_byte_encodings(written: tuple[list[list[str]], str, bytes]) -> None:
    """cp1252 : le même texte."""
    table, delimiter, content = written
    assert Read(content.decode().encode("cp1252"), encoding="cp1252", delimiter=delimiter).values == table


@pytest.mark.parametrize(
    ("encoding", "accepted"),
    [("utf-8", True), ("UTF8", True), ("utf-8-sig", True), ("cp1252", True), ("latin-1", True), ("iso8859-15", True),
     ("utf-16", True), ("utf-16-le", True), ("gbk", False), ("shift_jis", False), ("utf-7", False), ("cp037", False)],
)  # fmt: skip
def test_encodings_whose_bytes_can_be_searched(encoding: str, accepted: bool) -> None:
    """Refuse les encodages où un octet de séparateur peut être un morceau de lettre."""
    assert readable(encoding) == accepted


@given(
    csv_files(), st.lists(st.integers(0, 500), max_size=8), st.sampled_from(["utf-16-le", "utf-16-be"]), st.booleans()
)
def test_utf16(written: tuple[list[list[str]], str, bytes], cuts: list[int], encoding: str, mark: bool) -> None:
    """UTF-16, avec ou sans marque, coupée n'importe où, même au milieu d'un caractère : la même table."""
    table, delimiter, content = written
    raw = ("\ufeff" * mark + content.decode()).encode(encoding)
    read = Read(raw, cuts, delimiter=delimiter, encoding="utf-8" if mark else encoding)
    assert isinstance(read.parser, Utf16Parser)
    assert (read.values, read.rejected) == (table, [])


def test_a_resumed_reading_of_utf16() -> None:
    """Chaque place rendue est un octet du fichier : reprendre là continue."""
    raw = "\ufeffid;ville\n1;Orléans\n2;𝄞\n3;Pau\n".encode("utf-16-le")
    header = read_header(raw, Options())
    assert header is not None
    chunk = open_parser(header, Options(), Place(header.size, header.lines), list).feed(raw[header.size :])
    assert chunk.values == [["1", "Orléans"], ["2", "𝄞"], ["3", "Pau"]]
    for number, place in enumerate(chunk.boundaries):
        again = open_parser(header, Options(), place, list).feed(raw[place.offset :])
        assert again.values == chunk.values[number:]


@pytest.mark.parametrize("asked", ["utf-8", "utf-16", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("real", ["utf-8-sig", "utf-16"])
def test_a_mark_beats_the_option(asked: str, real: str) -> None:
    """Un fichier dit lui-même son encodage par sa marque : elle l'emporte sur --encoding."""
    header = read_header("id,été\n1,a\n".encode(real), Options(asked))
    assert header is not None
    assert (header.names, header.encoding) == (("id", "été"), "utf-16-le" if real == "utf-16" else "utf-8")
