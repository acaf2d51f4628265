"""Plusieurs fichiers suivis ensemble : rotations, copies, liens, entrées étranges du dossier, milliers de fichiers."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commun.settings import ROOT
from exercice1.files import OPEN_FILES, Files
from exercice1.fingerprint import Saved
from exercice1.reading import Format
from exercice1.rotation import appended, turned
from exercice1.sending import Sender
from tests.models.lives import Kafka, NoStop, Positions

HEADER = "id,ville\n"


READERS: list["Reader"] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    """Les fichiers se ferment après chaque essai."""
    yield
    while READERS:
        READERS.pop().sender.files.close()


class Reader:
    """Un producer.py sans Kafka, et son horloge."""

    def __init__(self, *names: Path | str, **options: object) -> None:
        self.names, self.options, self.kafka, self.now = names, options, Kafka(), 0.0
        self.wall: Callable[[], float] = lambda: time.time() + self.now
        self.sender = self.new_sender()
        READERS.append(self)

    def start(self, *, once: bool = False) -> None:
        """Un processus neuf, qui ne sait que ce que Kafka a retenu."""
        self.sender.files.close()
        self.sender = self.new_sender(once=once)

    def new_sender(self, *, once: bool = False) -> Sender:
        """Un producteur, à l'horloge près."""
        files = Files([str(name) for name in self.names], Format(**self.options), once=once)  # type: ignore[arg-type]
        sender = Sender(files, Positions(self.kafka), "t", NoStop())  # type: ignore[arg-type]
        sender.clock = lambda: self.now
        return sender

    def look(self, seconds: float = 8.0) -> list[str]:
        """Lit pendant ce temps ; rend ``id`` de chaque ligne nouvelle."""
        known, end = len(self.kafka.rows), self.now + seconds
        while self.now < end:
            self.sender.scan(anew=False)
            for follower in self.sender.files.followers.values():
                follower.wall = self.wall
            self.sender.send()
            self.now += 0.2
        return [next(iter(row.values())) for row in self.kafka.rows[known:]]


def rows(*numbers: int) -> str:
    """Quelques lignes."""
    return "".join(f"{number},ville {number}\n" for number in numbers)


def append(path: Path, text: str) -> None:
    """Ajoute au fichier."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Le fichier suivi, avec une ligne."""
    path = tmp_path / "v.csv"
    path.write_text(HEADER + rows(1), encoding="utf-8")
    return path


def shift(path: Path) -> None:
    """Rotation numérotée : v.csv → v.csv.1 → v.csv.2 → v.csv.3."""
    for number in (2, 1):
        if (old := path.with_name(f"v.csv.{number}")).exists():
            old.rename(path.with_name(f"v.csv.{number + 1}"))
    path.rename(path.with_name("v.csv.1"))


@pytest.mark.parametrize("crash", [False, True], ids=["", "arrêté entre-temps"])
class TestRotations:
    """Chaque ligne une fois, que le lecteur tourne ou soit relancé à chaque fois."""

    @pytest.mark.parametrize("pattern", ["v.csv*", "v.csv"])
    def test_numbered(self, path: Path, pattern: str, crash: bool) -> None:
        """Trois rotations numérotées : aucune ligne deux fois, avec ou sans les archives dans le motif."""
        reader = Reader(path.with_name(pattern))
        assert reader.look() == ["1"]
        for number in (2, 3, 4):
            if crash:
                reader.start()
            shift(path)
            path.write_text(HEADER + rows(number), encoding="utf-8")
            assert reader.look() == [str(number)]

    @pytest.mark.parametrize("name", ["v.csv.{}", "v.csv-2026112{}", "v-2026-11-2{}.csv"])
    def test_several_unseen(self, path: Path, name: str, crash: bool) -> None:
        """Trois rotations sans que le lecteur ait rien vu : les fichiers du milieu sont lus, dans l'ordre."""
        reader = Reader(path)
        assert reader.look() == ["1"]
        if crash:
            reader.start()
        for number in (2, 3, 4):
            path.rename(path.with_name(name.format(number)))
            path.write_text(HEADER + rows(number), encoding="utf-8")
        assert reader.look() == ["2", "3", "4"]

    def test_old_archives_are_left(self, path: Path, crash: bool) -> None:
        """Les archives d'avant le premier démarrage ne sont pas lues."""
        old = path.with_name("v.csv.7")
        old.write_text(HEADER + rows(70), encoding="utf-8")
        os.utime(old, (1, 1))
        reader = Reader(path)
        assert reader.look() == ["1"]
        if crash:
            reader.start()
        shift(path)
        path.write_text(HEADER + rows(2), encoding="utf-8")
        assert reader.look() == ["2"]

    def test_late_writer(self, path: Path, crash: bool) -> None:
        """Qui écrivait dans le fichier renommé y écrit encore : sa ligne part, même après le fichier neuf."""
        reader = Reader(path)
        reader.look()
        shift(path)
        path.write_text(HEADER + rows(2), encoding="utf-8")
        assert reader.look(2.0) == ["2"]
        append(path.with_name("v.csv.1"), rows(9))
        if crash:
            reader.start()
        assert reader.look() == ["9"]

    def test_behind_a_link(self, path: Path, crash: bool) -> None:
        """Le nom suivi est un lien : la rotation se fait dans l'autre dossier ; puis le lien change de cible."""
        link = path.parent / "dossier" / "lien.csv"
        link.parent.mkdir()
        link.symlink_to(path)
        reader = Reader(link)
        assert reader.look() == ["1"]
        if crash:
            reader.start()
        append(path, rows(2))
        shift(path)
        path.write_text(HEADER + rows(3), encoding="utf-8")
        assert reader.look() == ["2", "3"]
        if crash:
            reader.start()
        append(path, rows(4))
        other = path.with_name("autre.csv")
        other.write_text(HEADER + rows(5), encoding="utf-8")
        link.unlink()
        link.symlink_to(other)
        assert reader.look() == ["4", "5"]

    @pytest.mark.parametrize("pattern", ["v.csv*", "v.csv"])
    @pytest.mark.parametrize("how", ["en-tête récrit", "sans en-tête", "un trou"])
    def test_copy_and_truncate(self, path: Path, pattern: str, how: str, crash: bool) -> None:
        """Copié, puis vidé : la fin se lit dans la copie, la suite garde ses colonnes, rien ne part deux fois."""
        reader = Reader(path.with_name(pattern))
        append(path, rows(2, 3))
        assert reader.look() == ["1", "2", "3"]
        if crash:
            reader.start()
        append(path, rows(4))
        shutil.copy(path, path.with_name("v.csv.1"))
        size = path.stat().st_size
        os.truncate(path, 0)
        if how == "un trou":
            os.truncate(path, size)
        append(path, (HEADER if how == "en-tête récrit" else "") + "5,Pau\n6,Brest\n")
        assert sorted(reader.look()) == ["4", "5", "6"]
        assert all(row.keys() == {"id", "ville"} for row in reader.kafka.rows)
        assert reader.kafka.letters == []
        if crash:
            reader.start()
        append(path, "7,Lyon\n")
        assert reader.look() == ["7"]


def test_a_save_within_the_same_tick(path: Path) -> None:
    """Même taille, même date (FAT, vieux NFS) : une correction faite dans les deux secondes est vue."""
    reader = Reader(path)
    stamp = int(time.time()) // 2 * 2
    reader.wall = lambda: stamp + 1.9
    os.utime(path, (stamp, stamp))
    assert reader.look(0.4) == ["1"]
    path.write_text(HEADER + "1,VILLE 1\n", encoding="utf-8")
    os.utime(path, (stamp, stamp))
    assert reader.look() == ["1"]
    assert reader.kafka.rows[-1]["ville"] == "VILLE 1"


def test_a_file_shorter_than_what_was_read(path: Path) -> None:
    """Plus court, mais de même date : c'est toujours un changement."""
    reader = Reader(path)
    assert reader.look() == ["1"]
    reader.now += 100
    stat = path.stat()
    path.write_text("id,v\n", encoding="utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reader.look()
    append(path, "9,x\n")
    assert reader.look() == ["9"]


@pytest.mark.parametrize("change", ["auto", "header", "row", "refuse"])
def test_a_new_header(path: Path, change: str) -> None:
    """--on-header-change : le fichier est remplacé par un autre, dont la première ligne n'est pas la même."""
    reader = Reader(path, on_header_change=change)
    reader.look()
    shift(path)
    path.write_text("code,nom\n2,Pau\n", encoding="utf-8")
    reader.look()
    (follower,) = reader.sender.files.followers.values()
    new = ({"code": "2", "nom": "Pau"}, 2)
    old = {"row": ({"id": "2", "ville": "Pau"}, 3), "refuse": ({"id": "1", "ville": "ville 1"}, 1)}
    assert (reader.kafka.rows[-1], len(reader.kafka.rows)) == old.get(change, new)
    assert ("en-tête a changé" in (follower.refused or "")) == (change == "refuse")


def test_odd_entries_stop_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Un dossier x.csv, un tube, un fichier compressé, un nom qui n'est pas en UTF-8 : dits une fois."""
    (path.parent / "x.csv").mkdir()
    os.mkfifo(path.parent / "tube.csv")
    odd = os.path.join(os.fsencode(path.parent), b"caf\xe9.csv")
    with open(odd, "wb") as file:
        file.write((HEADER + rows(2)).encode())
    reader = Reader(path.parent)
    assert sorted(reader.look()) == ["1", "2"]
    assert caplog.text.count("est un dossier") == caplog.text.count("n'est pas un fichier ordinaire") == 1
    reader.start()
    assert reader.look() == []
    named = Reader(path.parent / "tube.csv", path)
    assert named.look() == ["1"]
    assert any("ce n'est pas un fichier ordinaire" in why for why in named.sender.files.unread)


@pytest.mark.parametrize("name", ["v.csv.gz", "v.csv.2.bz2", "v.csv-20261127.zst", "v.csv~"])
def test_archives_and_backups_are_left(path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Une rotation compressée a été lue avant de l'être ; la sauvegarde d'un éditeur n'est pas un fichier à lire."""
    path.with_name(name).write_bytes(b"\x1f\x8b\x08")
    assert Reader(f"{path}*").look() == ["1"]
    assert caplog.text.count("je le laisse") == 1


def test_a_file_that_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Là, mais fermé à nous (droits, Excel) : il y a une raison, et le lecteur attend."""

    def locked(name: Path | str) -> None:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("exercice1.reading.open_shared", locked)
    reader = Reader(path)
    assert reader.look() == []
    assert reader.sender.files.unread == [f"{path} ne peut pas être lu (les droits ne le permettent pas)."]
    monkeypatch.undo()
    assert reader.look() == ["1"]
    assert not reader.sender.files.unread


def test_once_ends_on_a_file_that_grows(path: Path) -> None:
    """--once ne lit que ce qui était là au premier regard, jusqu'à la fin de sa ligne."""
    append(path, "2,Nan")
    reader = Reader(path)
    reader.start(once=True)
    reader.sender.scan(anew=False)
    sent = 0
    while reader.sender.send():
        append(path, "tes\n" + rows(3) + "4,Pa")
        reader.now += 0.1
        sent += 1
        assert sent < 10
    while reader.sender.send(final=True):
        append(path, rows(5))
    assert [row["id"] for row in reader.kafka.rows][:3] == ["1", "2", "3"]


def test_two_names_for_one_file(path: Path) -> None:
    """Un lien et sa cible dans le même dossier : le fichier est lu une fois."""
    (path.parent / "lien.csv").symlink_to(path)
    reader = Reader(path.parent)
    assert reader.look() == ["1"]
    append(path, rows(2))
    assert reader.look() == ["2"]


def test_a_copy_under_another_name_is_another_file(path: Path) -> None:
    """Par cp v.csv bilan.csv : ses lignes partent ; cp v.csv v.csv.1, l'original entier : rien de plus à dire."""
    reader = Reader(f"{path.parent}/*")
    assert reader.look() == ["1"]
    shutil.copy(path, path.with_name("bilan.csv"))
    assert reader.look() == ["1"]
    shutil.copy(path, path.with_name("v.csv.1"))
    assert reader.look() == []
    append(path.with_name("v.csv.1"), rows(8))
    assert reader.look() == ["8"]


def test_thousands_of_files_few_descriptors(tmp_path: Path) -> None:
    """Mille fichiers : peu de descripteurs ouverts ; chacun est encore lu quand il grandit, ou tourne."""
    paths = [tmp_path / f"{number}.csv" for number in range(1000)]
    for number, path in enumerate(paths):
        path.write_text(HEADER + f"{number},x\n", encoding="utf-8")
    reader, most = Reader(tmp_path), 0
    for _ in range(40):
        reader.look(0.2)
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert len(reader.kafka.rows) == 1000
    assert most < OPEN_FILES + 40
    for path in paths[::100]:
        append(path, "9,x\n")
    assert reader.look(3.0) == ["9"] * 10
    paths[7].rename(paths[7].with_suffix(".csv.1"))
    append(paths[7].with_suffix(".csv.1"), "10,x\n")
    paths[7].write_text(HEADER + "11,x\n", encoding="utf-8")
    assert reader.look() == ["10", "11"]


@pytest.mark.parametrize(
    "name", ["v.csv.1", "v.csv.12", "v.csv-20261127", "v.csv.2026-11-27T10", "v-20261127.csv", "v.1.csv"]
)
def test_names_of_rotations(name: str) -> None:
    """Ce que logrotate et les autres font d'un nom ; un autre fichier du dossier n'en est pas une."""
    assert turned(name, "v.csv")
    assert appended(name, "v.csv") == name.startswith("v.csv")
    assert not turned("vv.csv.1", "v.csv")
    assert not turned("v.csv.1.gz", "v.csv")
    assert not turned("v-clients.csv", "v.csv")


def test_positions_of_the_former_version(path: Path) -> None:
    """Une position écrite par la version d'avant se relit : rien ne repart."""
    reader = Reader(path)
    reader.look()
    (key,) = reader.kafka.positions
    now = Saved.decode(reader.kafka.positions[key])
    marks = ",".join(f'[{m.offset},{m.lines},{"true" if m.torn else "false"},"{m.digest}"]' for m in now.marks)
    former = f'{{"inode":{now.inode},"marks":[{marks}],"past":[[7,[9,1,false,"00"]]],"session":"0123"}}'
    reader.kafka.positions[key] = former.encode()
    reader.start()
    assert reader.look() == []
    append(path, rows(2))
    assert reader.look() == ["2"]


def test_a_dry_run_shows_what_would_be_sent(path: Path) -> None:
    """--dry-run : les lignes en JSON, les refus avec leur raison, sans Kafka ; un fichier illisible est dit."""
    append(path, "2\n3,Pau\n4,sans fin de ligne")
    command = [sys.executable, "producer.py", "--dry-run", str(path)]
    options: dict[str, Any] = {"cwd": ROOT / "exercice1", "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, **options)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["1", "3", "4"]
    assert "ligne 3) : 1 champ au lieu de 2" in done.stderr
    assert "Lignes qui partiraient : 3, lettres mortes : 1" in done.stderr
    path.write_bytes(b"\x1f\x8b\x08")
    done = subprocess.run(command, check=False, **options)
    assert (done.returncode, "gzip" in done.stderr) == (1, True)
