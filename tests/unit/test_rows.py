"""Lecture d'un fichier CSV pour COPY."""

import csv
import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exercice3.lots import BadFile
from exercice3.rows import Rows
from exercice3.ventes import FIELDS

cells = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=20)
tables = st.lists(st.lists(cells, min_size=len(FIELDS), max_size=len(FIELDS)), max_size=20)


def to_csv(table: list[list[str]]) -> bytes:
    """Le fichier d'une table, en-tête compris."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(FIELDS), *table])
    return text.getvalue().encode()


def read_all(rows: Rows, size: int) -> list[list[str]]:
    """Ce que COPY recevrait, lu par bouts de ``size`` caractères."""
    text = ""
    while part := rows.read(size):
        text += part
    return list(csv.reader(io.StringIO(text, newline="")))


@given(tables, st.integers(1, 200))
def test_any_table_passes_whole(table: list[list[str]], size: int) -> None:
    """Toute table passe telle quelle, numérotée, quelle que soit la taille des lectures."""
    content = to_csv(table)
    rows = Rows(io.BytesIO(content))
    assert [row[1:] for row in read_all(rows, size)] == [[*row, "1", "false", "", ""] for row in table]
    assert rows.lines == len(table)
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


@pytest.mark.parametrize(
    ("size", "parts"), [(1, [1, 1, 1, 1]), (24, [1, 1, 1, 1]), (25, [2, 2]), (49, [3, 1]), (-1, [4])]
)
def test_reads_are_bounded(size: int, parts: list[int]) -> None:
    """Une lecture s'arrête dès qu'elle a ``size`` caractères : la mémoire ne suit pas la taille du fichier."""
    rows = Rows([to_csv([]), *[b"a,pp,r,1,d\n"] * 4])  # 24 caractères chacune, numéro et fin de ligne compris
    found = []
    while part := rows.read(size):
        found.append(part.count("\n"))
    assert found == parts


def test_the_expected_header_is_told() -> None:
    """Le refus d'un fichier dit l'en-tête attendu."""
    with pytest.raises(BadFile, match="« id,produit,region,montant,date_vente »"):
        Rows([b"x\n"]).read()
