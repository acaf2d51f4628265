"""La vie d'un fichier : grandir, tourner, être vidé, remplacé, effacé, revenir ; et celui qui le lit, tué au milieu."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from exercice1.csv_tail import Options, Row
from exercice1.follow import CHUNK_BYTES, MARKS, Follower, Saved, identities, inherited, unreadable

HEADER = "n,texte\n"


class Reader:
    """Un lecteur et son horloge ; ``rows`` : ce qui a été confirmé, dans l'ordre."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.saved = path, 0.0, Saved()
        self.rows: list[Row] = []
        self.rejected: list[bytes] = []
        self.follower = Follower(path, Options())

    def read(self, *, final: bool = False) -> list[str]:
        """Lit et confirme tout ce qui est là ; rend la première colonne des lignes nouvelles."""
        known, idle = len(self.rows), 0
        while idle < 8:
            self.now += 0.3
            chunk = self.follower.read(self.now, final=final)
            if chunk is None:
                idle += 1
                continue
            idle = 0
            self.rows += chunk.rows
            self.rejected += [raw for _, raw, _ in chunk.rejected]
            self.saved = self.follower.snapshot("test")
            self.follower.confirm(self.saved)
        return [str(next(iter(json.loads(value).values()))) for _, value, _ in self.rows[known:]]

    def crash(self) -> None:
        """Un lecteur neuf, qui ne sait que ce qui a été confirmé."""
        self.follower.close()
        self.follower = Follower(self.path, Options(), self.saved)


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
        assert list(json.loads(reader.rows[-1][1])) == ["n", "libelle"]


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


def test_a_renamed_file_is_not_read_twice(path: Path, reader: Reader) -> None:
    """Un nom nouveau pour un fichier déjà lu : attendre tant qu'il l'est, puis reprendre où il en est."""
    path.write_text(HEADER + rows(1), encoding="utf-8")
    reader.read()
    old = path.with_name("ancien.csv")
    path.rename(old)
    assert reader.follower.identity in identities(old)
    path.write_text(HEADER + rows(2), encoding="utf-8")
    assert reader.read() == ["2"]
    assert reader.follower.identity not in identities(old)
    start = inherited(old, [reader.saved])
    append(old, rows(3))
    heir = Reader(old)
    heir.follower = Follower(old, Options(), start)
    assert heir.read() == ["3"]
    copy = path.with_name("copie.csv")
    copy.write_text(HEADER + rows(1), encoding="utf-8")
    assert inherited(copy, [reader.saved]) == Saved()
    heir.follower.close()


def test_two_disks_have_the_same_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deux fichiers de même numéro d'inode, chacun sur son disque, sont deux fichiers."""
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    for path in (first, second):
        path.write_text(HEADER + rows(1), encoding="utf-8")
    real = os.stat_result
    stats = {path: os.stat(path) for path in (first, second)}
    twin = real([*stats[second][:1], stats[first].st_ino, stats[first].st_dev + 1, *stats[second][3:]])
    reader = Reader(first)
    assert reader.read() == ["1"]
    monkeypatch.setattr(Path, "stat", lambda self: twin if self == second else stats[self])
    assert identities(first) & {reader.follower.identity}
    assert not identities(second) & {reader.follower.identity}
    reader.follower.close()
    assert identities(first) & {reader.follower.identity}  # fermé, seul l'inode est retenu


def test_a_file_that_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, il sera attendu ; là mais fermé à nous (droits, Excel), il y a une raison, et le lecteur attend."""
    assert unreadable(path) is None
    path.write_text(HEADER + rows(1), encoding="utf-8")
    assert unreadable(path) is None

    def locked(name: Path) -> None:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("exercice1.follow.open_shared", locked)
    assert "ne peut pas être lu" in (unreadable(path) or "")
    reader = Reader(path)
    assert reader.read() == []
    monkeypatch.undo()
    assert reader.read() == ["1"]
    reader.follower.close()


class Life(RuleBasedStateMachine):
    """Une suite quelconque d'événements : chaque ligne finie est lue une fois, dans l'ordre."""

    @initialize()
    def start(self) -> None:
        """Un dossier, un fichier, un lecteur."""
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "f.csv"
        self.path.write_text(HEADER, encoding="utf-8")
        self.reader = Reader(self.path)
        self.written: list[str] = []
        self.seen: list[str] = []
        self.half = ""  # le début d'une ligne inachevée
        self.archives = 0
        self.unseen = True  # le fichier que le nom désigne n'a encore jamais été regardé

    def finish(self) -> None:
        """Finit la ligne inachevée."""
        if self.half:
            append(self.path, " fin\n")
            self.half = ""

    @rule(count=st.integers(1, 30), half=st.booleans(), quoted=st.booleans())
    def write(self, count: int, half: bool, quoted: bool) -> None:
        """Ajoute des lignes, la dernière à moitié peut-être."""
        self.finish()
        for number in range(count):
            name = str(len(self.written))
            self.written.append(name)
            text = f'{name},"deux\nlignes"' if quoted else f"{name},une"
            if half and number == count - 1:
                self.half = f"{name},début"
                append(self.path, self.half)
            else:
                append(self.path, text + "\n")

    @rule(share=st.integers(1, 40))
    def read_a_little_then_abort(self, share: int) -> None:
        """Lit sans confirmer : la transaction est annulée."""
        for _ in range(share):
            self.reader.now += 0.3
            if self.reader.follower.read(self.reader.now):
                self.reader.follower.rewind(self.reader.saved)
                break

    @rule()
    def read(self) -> None:
        """Lit et confirme."""
        self.seen += self.reader.read()
        self.unseen = False
        assert self.seen == self.written[: len(self.seen)]
        assert len(self.written) - len(self.seen) == bool(self.half)

    @rule()
    def crash(self) -> None:
        """Le lecteur est tué et relancé."""
        self.reader.crash()

    @precondition(lambda self: not self.unseen)
    @rule()
    def rotate(self) -> None:
        """Rotation. Un fichier renommé avant d'avoir été vu une seule fois n'est pas retrouvé : ce n'est pas promis."""
        self.finish()
        self.archives += 1
        self.path.rename(self.path.with_name(f"f.csv.{self.archives}"))
        self.path.write_text(HEADER, encoding="utf-8")
        self.unseen = True

    @rule(in_place=st.booleans())
    def save_in_an_editor(self, in_place: bool) -> None:
        """Le même contenu et une ligne de plus, d'un coup ou sur place."""
        self.finish()
        name = str(len(self.written))
        self.written.append(name)
        text = self.path.read_text(encoding="utf-8") + f"{name},éditée\n"
        if in_place:
            self.path.write_text(text, encoding="utf-8")
        else:
            replace(self.path, text)
            self.unseen = True

    @rule(by=st.sampled_from(["truncate", "replace", "delete"]))
    def start_again(self, by: str) -> None:
        """Vidé, remplacé ou effacé, une fois lu : tout le contenu qui suit est nouveau."""
        self.finish()
        self.read()
        self.unseen = True
        match by:
            case "truncate":
                os.truncate(self.path, 0)
                append(self.path, HEADER)
            case "replace":
                replace(self.path, HEADER)
            case _:
                self.path.unlink()
                self.path.write_text(HEADER, encoding="utf-8")

    def teardown(self) -> None:
        """Finit tout, lit tout."""
        if hasattr(self, "folder"):
            self.finish()
            self.read()
            assert not self.reader.rejected
            self.reader.follower.close()
            self.folder.cleanup()


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestAnyLife = Life.TestCase
