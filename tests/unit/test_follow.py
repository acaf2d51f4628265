"""La vie d'un fichier : grandir, tourner, être vidé, remplacé, effacé, revenir ; et celui qui le lit, tué au milieu."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from exercice1.fingerprint import Saved
from exercice1.follow import Follower
from exercice1.json_rows import Row
from exercice1.reading import CHUNK_BYTES, MARKS, Format

import pytest

HEADER = "n,texte\n"


class Reader:
    """Un lecteur et son horloge ; ``rows`` : ce qui a été confirmé, dans l'ordre."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.saved = path, 0.0, Saved()
        self.rows: list[Row] = []
        self.rejected: list[bytes] = []
        self.follower = self.new_follower()

    def new_follower(self) -> Follower:
        """Un suivi neuf, qui ne sait que ce qui a été confirmé."""
        follower = Follower(self.path, Format(), self.saved)
        follower.wall = lambda: time.time() + self.now  # l'horloge de la machine avance avec la nôtre
        return follower

    def read(self, *, final: bool = False) -> list[str]:
        """Lit et confirme tout ce qui est là ; rend la première colonne des lignes nouvelles."""
        known, idle = len(self.rows), 0
        while idle < 25:
            self.now += 0.3
            chunk = self.follower.read(self.now, final=final)
            if chunk is None:
                idle += 1
                continue
            idle = 0
            self.rows += chunk.values
            self.rejected += [raw for _, raw, _ in chunk.rejected]
            self.saved = self.follower.snapshot()
            self.follower.confirm(self.saved)
        return [str(next(iter(json.loads(value).values()))) for value, _ in self.rows[known:]]

    def crash(self) -> None:
        """Un lecteur neuf, qui ne sait que ce qui a été confirmé."""
        self.follower.close()
        self.follower = self.new_follower()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Le fichier suivi."""
    return tmp_path / "f.csv"


@pytest.fixture
def reader(path: Path) -> Iterator[Reader]:
    """Son lecteur."""
    reader = Reader(path)
    yield reader
    reader.follower.close()


def rows(*numbers: int) -> str:
    """Quelques lignes."""
    return "".join(f"{number},ligne {number}\n" for number in numbers)


def append(path: Path, text: str) -> None:
    """Ajoute au fichier."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def replace(path: Path, text: str) -> None:
    """Remplace le fichier d'un coup, comme la plupart des éditeurs."""
    new = path.with_suffix(".nouveau")
    new.write_text(text, encoding="utf-8", newline="")
    new.replace(path)


@pytest.mark.parametrize("crash", [False, True], ids=["", "arrêté entre-temps"])
class TestLife:
    """Chaque événement, vu par un lecteur en marche puis par un lecteur relancé."""

    @pytest.fixture(autouse=True)
    def _start(self, path: Path, reader: Reader) -> None:
        path.write_text(HEADER + rows(1, 2), encoding="utf-8")
        assert reader.read() == ["1", "2"]

    def test_growth(self, path: Path, reader: Reader, crash: bool) -> None:
        """Une ligne finie part, une ligne à moitié écrite attend."""
        append(path, "3,a")
        assert reader.read() == []
        if crash:
            reader.crash()
        append(path, "b\n")
        assert reader.read() == ["3"]

    @pytest.mark.parametrize("new", [HEADER + rows(4, 5), HEADER + rows(1), "x;y\n4;5\n"])
    def test_rotation(self, path: Path, reader: Reader, crash: bool, new: str) -> None:
        """Renommé, un fichier neuf à sa place : la fin de l'ancien, puis le neuf, même s'ils se ressemblent."""
        if crash:
            reader.crash()
        append(path, rows(3))
        path.rename(path.with_suffix(".csv.1"))
        append(path.with_suffix(".csv.1"), "99,sans fin de ligne")
        path.write_text(new, encoding="utf-8")
        expected = [line.split(",")[0].split(";")[0] for line in new.splitlines()[1:]]
        assert reader.read() == ["3", "99", *expected]

    def test_copy_and_truncate(self, path: Path, reader: Reader, crash: bool) -> None:
        """Copié puis vidé, et réécrit : les lignes nouvelles, et elles seules."""
        if crash:
            reader.crash()
        os.truncate(path, 0)
        assert reader.read() == []
        append(path, HEADER + rows(3))
        assert reader.read() == ["3"]

    @pytest.mark.parametrize("save", [replace, Path.write_text], ids=["remplacé", "réécrit sur place"])
    def test_an_editor_saves(self, path: Path, reader: Reader, crash: bool, save: object) -> None:
        """Une ligne ajoutée, la dernière corrigée, la dernière effacée, puis une autre ajoutée."""
        assert callable(save)
        for text, expected in (
            (HEADER + rows(1, 2, 3), ["3"]),
            (HEADER + rows(1, 2) + "3,corrigée\n", ["3"]),
            (HEADER + rows(1, 2), []),
            (HEADER + rows(1, 2, 4), ["4"]),
        ):
            if crash:
                reader.crash()
            save(path, text)
            assert reader.read() == expected

    def test_an_editor_without_final_newline(self, path: Path, reader: Reader, crash: bool) -> None:
        """La ligne inachevée attend, même récrite ; elle part quand une autre la suit."""
        for text, expected in (
            (HEADER + rows(1, 2) + "3,Ence", []),
            (HEADER + rows(1, 2) + "3,Tablette", []),
            (HEADER + rows(1, 2) + "3,Tablette\n4,", ["3"]),
        ):
            if crash:
                reader.crash()
            replace(path, text)
            assert reader.read() == expected

    def test_another_file_of_the_same_name(self, path: Path, reader: Reader, crash: bool) -> None:
        """Un autre fichier, autre en-tête : lu depuis son début."""
        if crash:
            reader.crash()
        replace(path, "x;y\n7;8\n")
        assert reader.read() == ["7"]

    def test_deletion_and_return(self, path: Path, reader: Reader, crash: bool) -> None:
        """Effacé puis revenu : le même contenu ne repart pas, la suite part."""
        path.unlink()
        assert reader.read() == []
        if crash:
            reader.crash()
        path.write_text(HEADER + rows(1, 2, 3), encoding="utf-8")
        assert reader.read() == ["3"]

    def test_a_changed_header(self, path: Path, reader: Reader, crash: bool) -> None:
        """L'en-tête change sur place : c'est un autre fichier, ses lignes portent les nouveaux noms."""
        if crash:
            reader.crash()
        path.write_text("n,libelle\n" + rows(1, 2), encoding="utf-8")
        assert reader.read() == ["1", "2"]
        assert list(json.loads(reader.rows[-1][0])) == ["n", "libelle"]


def test_rows_of_a_deleted_file_are_still_read(path: Path, reader: Reader) -> None:
    """Effacé avant d'être lu jusqu'au bout, même après une transaction annulée : ses lignes partent."""
    path.write_text(HEADER + rows(1), encoding="utf-8")
    reader.read()
    append(path, rows(2))
    path.unlink()
    assert reader.follower.read(1000.0) is not None
    reader.follower.rewind(reader.saved)
    assert reader.read() == ["2"]


def test_an_edit_in_the_middle_starts_again_just_before(path: Path, reader: Reader) -> None:
    """Une ligne modifiée : elle et les suivantes sont nouvelles, les précédentes non."""
    path.write_text(HEADER + rows(*range(10)), encoding="utf-8")
    reader.read()
    replace(path, HEADER + rows(*range(6)) + "6,modifiée\n" + rows(7, 8, 9))
    assert reader.read() == ["6", "7", "8", "9"]


def test_a_big_file_keeps_few_marks_and_finds_its_place(path: Path, reader: Reader) -> None:
    """Des milliers de lignes en plusieurs morceaux : peu de repères, et la dernière ligne corrigée part seule."""
    text = HEADER + rows(*range(50_000))
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size > 3 * CHUNK_BYTES
    assert len(reader.read()) == 50_000
    assert len(reader.saved.marks) <= MARKS
    replace(path, text.removesuffix("ligne 49999\n") + "corrigée\n")
    assert reader.read() == ["49999"]


def test_a_final_reading_takes_the_last_line(path: Path, reader: Reader) -> None:
    """--once : la dernière ligne part sans fin de ligne ; celle qui vient plus tard n'est pas une ligne vide."""
    path.write_text(HEADER + "1,x", encoding="utf-8")
    assert reader.read() == []
    assert reader.read(final=True) == ["1"]
    append(path, "\n2,y\n")
    assert reader.read() == ["2"]
    assert not reader.rejected


def test_a_refused_file_waits_to_be_mended(path: Path, reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    """Un en-tête illisible : dit une fois, puis lu quand il est réparé."""
    path.write_bytes("été,b\n1,2\n".encode("cp1252"))
    assert reader.read() == []
    assert "--encoding cp1252" in (reader.follower.refused or "")
    assert caplog.text.count("n'est pas lu") == 1
    path.write_text("été,b\n1,2\n", encoding="utf-8")
    assert reader.read() == ["1"]


def test_what_happens_is_said_once(path: Path, reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    """Absent, inachevé, disparu : une phrase chacun, jamais répétée."""
    caplog.set_level("INFO")
    reader.read()
    path.write_text(HEADER + '1,"a', encoding="utf-8")
    reader.read()
    reader.now += 10
    reader.read()
    path.unlink()
    reader.read()
    for sentence in ("n'existe pas encore", "un guillemet ouvert à la ligne 2 attend sa fin", "n'est plus là"):
        assert caplog.text.count(sentence) == 1, caplog.text
