"""Lecture d'un fichier CSV pour COPY."""

import csv
import hashlib
import io
from unittest import mock

from exercice3 import rows as module
from exercice3.lots import BadFile
from exercice3.rows import Rows
from exercice3.ventes import FIELDS

import pytest
from hypothesis import given
from hypothesis import strategies as st

cells = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=20)
tables = st.lists(st.lists(cells, min_size=len(FIELDS), max_size=len(FIELDS)), max_size=20)


def to_csv(table: list[list[str]]) -> bytes:
    """Le fichier d'une table, en-tête compris."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(FIELDS), *table])
    return text.getvalue().encode()


def read_all(rows: Rows, size: int = module.BLOCK_BYTES) -> list[list[str]]:
    """Ce que COPY recevrait, lu par blocs de ``size`` octets."""
    text = ""
    with mock.patch.object(module, "BLOCK_BYTES", size):
        while part := rows.read():
            text += part
    return list(csv.reader(io.StringIO(text, newline="")))


@given(tables, st.integers(1, 200))
def test_any_table_passes_whole(table: list[list[str]], size: int) -> None:
    """Toute table passe telle quelle, numérotée, quels que soient les blocs, avec ou sans guillemets."""
    content = to_csv(table)
    rows = Rows(io.BytesIO(content))
    found = read_all(rows, size)
    assert [row[1:] for row in found] == [[*row, "1", "false", "", ""] for row in table]
    heights = [1 + sum(cell.count("\n") for cell in row) for row in table]
    assert [int(row[0]) for row in found] == [2 + sum(heights[:place]) for place in range(len(table))]
    assert (rows.lines, rows.last) == (len(table), 1 + sum(heights))
    assert rows.digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_line_numbers_follow_the_file() -> None:
    """Le numéro de ligne est celui du fichier, même après un champ sur deux lignes."""
    rows = Rows(io.BytesIO(to_csv([["a", "sur\ndeux", "r", "1", "d"], ["b", "p", "r", "1", "d"]])))
    assert [row[0] for row in read_all(rows, 10)] == ["2", "4"]


@pytest.mark.parametrize("header", [b"", b"a\rb,c\n", b"id,produit\n", b"produit,id,region,montant,date_vente\n"])
def test_another_header_is_refused(header: bytes) -> None:
    """Un autre en-tête, ou aucun : le fichier entier est refusé."""
    with pytest.raises(BadFile, match=r"en-tête|illisible"):
        Rows(io.BytesIO(header)).read()


def test_an_open_quote_does_not_hide_the_count() -> None:
    """Un guillemet jamais fermé avale la suite : le nombre de lignes ne correspond plus au manifeste."""
    rows = Rows(io.BytesIO(to_csv([]) + b'a,"p,r,1,d\nb,p,r,1,d\n'))
    assert [row[8] != "" for row in read_all(rows, 100)] == [True]
    assert rows.lines == 1


GOOD = b"a,p,r,1,d\n"


def test_refused_rows_keep_number_reason_and_content() -> None:
    """Une ligne écartée garde son numéro, sa raison et son contenu ; les autres passent, et toutes sont comptées."""
    lines = [GOOD, b"b,p,r\n", b"c,p\xe9,r,1,d\n", b"d\0,p,r,1,d\n", b"e\rx,p,r,1,d\n", b"f,p,r,1,d,x\n", GOOD]
    rows = Rows([to_csv([]), *lines])
    first, short, latin, zero, alone, long, last = ([row[0], *row[-2:]] for row in read_all(rows, 100))
    assert (first, last) == (["2", "", ""], ["8", "", ""])
    assert short == ["3", "3 champs au lieu de 5", "b,p,r"]
    assert latin == ["4", "octet nul ou texte qui n'est pas en UTF-8", "c,p\\xe9,r,1,d"]
    assert zero == ["5", "octet nul ou texte qui n'est pas en UTF-8", "d\\x00,p,r,1,d"]
    assert (alone[0], alone[2]) == ("6", "")
    assert alone[1].startswith("CSV illisible : new-line character")
    assert long == ["7", "6 champs au lieu de 5", "f,p,r,1,d,x"]
    assert rows.lines == len(lines)
    assert rows.last == 8


def test_versions_are_read_when_they_are_there() -> None:
    """Un fichier a les deux colonnes des corrections, ou ne les a pas ; à l'intérieur, toutes les lignes de même."""
    content = b"id,produit,region,montant,date_vente,version,annulee\na,p,r,1,d,2,true\na,p,r,1,d\n"
    whole, short = read_all(Rows(io.BytesIO(content)), 100)
    assert whole == ["2", *"apr1d", "2", "true", "", ""]
    assert short[-2] == "5 champs au lieu de 7"


def test_what_the_base_cannot_write_is_refused() -> None:
    """Une base en LATIN1 n'a pas tous les caractères : la ligne est écartée, les autres passent."""
    content = to_csv([["a", "Télé", "r", "1", "d"], ["b", "テレビ", "r", "1", "d"]])
    good, bad = read_all(Rows(io.BytesIO(content), "latin-1"), 100)
    assert good[-2:] == ["", ""]
    assert bad[-2:] == ["caractère que la base ne sait pas écrire (latin-1)", "b,\\u30c6\\u30ec\\u30d3,r,1,d"]


@pytest.mark.parametrize("line", [b"a,pp,r,1,d\n", b'a,"p",r,1,d\n'])
@pytest.mark.parametrize(("size", "parts"), [(1, [1, 1, 1, 1]), (11, [1, 1, 1, 1]), (13, [2, 2]), (100, [4])])
def test_reads_are_bounded(line: bytes, size: int, parts: list[int]) -> None:
    """Un bloc s'arrête à BLOCK_BYTES octets : la mémoire ne suit pas la taille du fichier."""
    rows = Rows([to_csv([]), *[line] * 4])
    found = []
    with mock.patch.object(module, "BLOCK_BYTES", size):
        while part := rows.read():
            found.append(part.count("\n"))
    assert found == parts


def test_a_plain_row_beside_an_odd_one() -> None:
    """Une ligne à guillemets, au milieu d'un bloc, ne change ni ses voisines ni leurs numéros."""
    content = to_csv([]) + GOOD + b'b,"p,q",r,1,d\n' + GOOD
    assert [row[:3] for row in read_all(Rows(io.BytesIO(content)))] == [
        ["2", "a", "p"],
        ["3", "b", "p,q"],
        ["4", "a", "p"],
    ]


def test_a_last_line_without_end_is_read() -> None:
    """La dernière ligne n'a pas de fin de ligne : elle est lue quand même."""
    assert [row[:2] for row in read_all(Rows(io.BytesIO(to_csv([]) + GOOD + GOOD[:-1])))] == [["2", "a"], ["3", "a"]]


def test_the_expected_header_is_told() -> None:
    """Le refus d'un fichier dit l'en-tête attendu."""
    with pytest.raises(BadFile, match="« id,produit,region,montant,date_vente »"):
        Rows([b"x\n"]).read()
