"""Plusieurs fichiers suivis ensemble : rotations, copies, liens, entrées étranges du dossier, milliers de fichiers."""

import itertools
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from commun.csv_header import Options
from commun.settings import ROOT
from exercice1.files import OPEN_FILES, Files
from exercice1.fingerprint import Saved
from exercice1.reading import Format
from exercice1.rotation import appended, turned
from exercice1.sending import Sender
from tests.models.lives import Kafka, NoStop, Positions

import pytest

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


def opened() -> Iterator[str]:
    """Les fichiers que ce processus tient ouverts."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # celui qui énumère
            yield os.readlink(entry)


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
    for name in ("w.csv.gz", "v.csv~", ".caché.csv", "notes.txt"):
        append(path.with_name(name), HEADER + rows(9))
    append(path.with_name("MAJUSCULES.CSV"), HEADER + rows(3))
    reader = Reader(path.parent)
    assert sorted(reader.look()) == ["1", "2", "3"]
    assert caplog.text.count("est un dossier") == caplog.text.count("n'est pas un fichier ordinaire") == 1
    assert caplog.text.count("est compressé") == caplog.text.count("est la sauvegarde") == 1
    assert "notes" not in caplog.text
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
        most = max(most, len([path for path in opened() if path.startswith(str(tmp_path))]))
    assert len(reader.kafka.rows) == 1000
    assert 0 < most <= OPEN_FILES * 1.5 + 1
    for path in paths[::100]:
        append(path, "9,x\n")
    assert reader.look(3.0) == ["9"] * 10
    paths[7].rename(paths[7].with_suffix(".csv.1"))
    append(paths[7].with_suffix(".csv.1"), "10,x\n")
    paths[7].write_text(HEADER + "11,x\n", encoding="utf-8")
    assert reader.look() == ["10", "11"]


def test_a_restart_on_thousands_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Relancé sur mille fichiers déjà lus, avec deux cents descripteurs : ils suffisent, rien ne part deux fois."""
    for number in range(1000):
        append(tmp_path / f"{number}.csv", f"{HEADER}{number},x\n")
    reader = Reader(tmp_path)
    reader.look()
    reader.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 200, hard))
    try:
        reader.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(reader.kafka.rows) == 1000
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]


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


# --- Ce qu'une relecture et un inconnu ont trouvé ---


def ids(reader: Reader) -> list[str]:
    """La première colonne de tout ce qui est parti."""
    return [next(iter(row.values())) for row in reader.kafka.rows]


def test_a_file_is_not_closed_before_its_end(tmp_path: Path) -> None:
    """Plus de fichiers que l'on n'en garde ouverts, dont un gros : il est lu jusqu'au bout."""
    for number in range(OPEN_FILES + 7):
        append(tmp_path / f"{number:03}.csv", HEADER + rows(number))
    big = [f"{number:07}" for number in range(60_000)]
    # Seize octets par ligne : chaque morceau lu finit avec l'une d'elles, et rien ne paraît inachevé.
    append(tmp_path / "gros.csv", "id,ville_longue\n" + "".join(f"{number},Quimper\n" for number in big))
    reader = Reader(tmp_path)
    ticks = itertools.count()
    reader.sender.clock = lambda: reader.now + next(ticks) / 5  # chaque morceau prend du temps
    reader.sender.files.open_files = 0
    reader.look(60)
    assert sorted(set(ids(reader)) & set(big)) == big
    assert len(ids(reader)) == OPEN_FILES + 7 + len(big)


def test_unfinished_lines_do_not_keep_files_open(tmp_path: Path) -> None:
    """Quatre cents fichiers dont la dernière ligne attend sa fin : presque tous sont fermés, et s'achèvent pourtant."""
    for number in range(400):
        append(tmp_path / f"{number}.csv", f"{HEADER}{number},inach")
    reader = Reader(tmp_path)
    reader.look(60)
    assert sum(bool(follower.reading) for follower in reader.sender.files.followers.values()) <= OPEN_FILES
    for number in range(400):
        append(tmp_path / f"{number}.csv", "evée\n")
    reader.look()
    assert sorted(map(int, ids(reader))) == list(range(400))


def test_open_files_that_grew_let_others_be_closed(tmp_path: Path) -> None:
    """Cent fichiers grandissent ensemble, ceux qui sont ouverts aussi : les autres se ferment, par poignées."""
    paths = [tmp_path / f"{number:03}.csv" for number in range(100)]
    for path in paths:
        append(path, HEADER + rows(1))
    reader = Reader(tmp_path)
    reader.sender.files.open_files = 8
    followers = reader.sender.files.followers
    reader.look(30)
    for path in reversed(paths):
        if sum(bool(follower.reading) for follower in followers.values()) < 8:
            append(path, rows(2))
            reader.look(2)
    for path in paths:
        append(path, rows(3))
    known, sends = len(reader.kafka.rows), 0
    while len(reader.kafka.rows) < known + 100:
        reader.look(0.1)
        sends += 1
    assert sends < 50  # un seul fichier par transaction, autrefois


def test_half_a_utf16_character_holds_nothing_back(tmp_path: Path) -> None:
    """Un fichier en UTF-16 qui finit au milieu d'un caractère tourne : le nouveau est lu."""
    path = tmp_path / "f.csv"
    path.write_bytes((HEADER + "1,é\n").encode("utf-16") + b"\n")
    reader = Reader(path)
    reader.look(2)
    path.rename(path.with_name("f.csv.1"))
    path.write_text(HEADER + rows(10), encoding="utf-8")
    reader.look(20)
    assert ids(reader) == ["1", "10"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be", "utf-8"])
def test_a_bare_file_keeps_its_encoding_through_a_restart(tmp_path: Path, encoding: str) -> None:
    """Vidé, sans en-tête, relu par un processus neuf : son encodage et ses espaces avant guillemets sont retenus."""
    path = tmp_path / "f.csv"
    path.write_bytes('"id", "ville"\n1, "été"\n'.encode(encoding))
    reader = Reader(path, options=Options(encoding))
    reader.look()
    path.write_bytes(b"")
    reader.look()
    path.write_bytes('2, "Nîmes"\n'.encode(encoding))
    reader.look()
    reader.start()
    with path.open("ab") as file:
        file.write('3, "Orléans"\n'.encode(encoding))
    reader.look()
    assert [row["ville"] for row in reader.kafka.rows] == ["été", "Nîmes", "Orléans"]
    assert not reader.kafka.letters


def test_a_name_too_long_is_one_sentence(tmp_path: Path) -> None:
    """Un nom que le système refuse n'arrête pas les autres."""
    reader = Reader(tmp_path / ("x" * 300), tmp_path / "f.csv")
    append(tmp_path / "f.csv", HEADER + rows(1))
    assert reader.look() == ["1"]
    assert ["trop long" in why for why in reader.sender.files.unread] == [True]


@pytest.mark.parametrize("name", ["capteur_2.csv", "capteur-20261105.csv"])
def test_an_unrelated_file_is_read_whole(tmp_path: Path, name: str) -> None:
    """Un fichier qui commence comme un autre, d'un nom voisin : ses premières lignes partent aussi."""
    append(tmp_path / "capteur.csv", HEADER + rows(1, 2))
    reader = Reader(tmp_path)
    reader.look()
    append(tmp_path / name, HEADER + rows(1, 2, 3))
    assert reader.look() == ["1", "2", "3"]


def test_an_empty_name_is_still_a_header(tmp_path: Path) -> None:
    """Un fichier de pandas, dont la première colonne n'a pas de nom, en remplace un autre : il a son en-tête."""
    path = tmp_path / "f.csv"
    append(path, "id,date,montant\n1,2026-01-01,5\n")
    reader = Reader(path)
    reader.look()
    path.unlink()
    append(path, ",produit,prix\n0,stylo,3\n")
    reader.look()
    assert reader.kafka.rows[-1] == {"colonne_1": "0", "produit": "stylo", "prix": "3"}


def test_two_readers_of_moving_files(tmp_path: Path) -> None:
    """Deux processus, l'un suit f.csv et l'autre f.csv.* : le second sait ce que le premier a lu depuis."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    first = Reader(path)
    second = Reader(f"{path}.*")
    second.kafka = first.kafka
    second.sender = second.new_sender()
    first.look()
    second.look(1)
    append(path, rows(2, 3))
    first.look()
    path.rename(tmp_path / "f.csv.1")
    append(path, HEADER + rows(4))
    first.look(10)
    second.look()
    assert ids(first) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("what", ["deleted", "put back"])
def test_a_rewritten_file_that_goes_is_not_awaited(tmp_path: Path, what: str) -> None:
    """Réécrit, puis effacé ou remis comme il était avant d'être jugé : plus rien ne se calme."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    old = path.with_name("ancien")
    reader = Reader(path)
    reader.look()
    path.rename(old)
    append(path, HEADER + rows(2))
    reader.look(0.2)
    assert reader.sender.files.settling
    path.unlink()
    if what == "put back":
        old.rename(path)
    reader.look(2)
    assert not reader.sender.files.settling


def test_from_start_ignores_what_other_names_read(tmp_path: Path) -> None:
    """--from-start : un fichier tourné repart, même s'il a été lu sous son nom d'avant."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1, 2))
    reader = Reader(path)
    reader.look()
    path.rename(path.with_name("f.csv.1"))
    reader.look()
    reader.names = (path.with_name("f.csv.1"),)
    reader.start()
    reader.sender.scan(anew=True)
    assert reader.look() == ["1", "2"]


def test_a_passing_fault_forgets_no_renamed_file(tmp_path: Path) -> None:
    """Le nom désigne un instant autre chose qu'un fichier : celui qu'il désignait avant est encore attendu."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    reader = Reader(path)
    reader.look(2)
    old = path.rename(path.with_name("f.csv.1"))
    append(path, HEADER + rows(2))
    reader.look(1)
    path.rename(path.with_name("ailleurs"))
    path.mkdir()
    reader.look(0.4)
    path.rmdir()
    path.with_name("ailleurs").rename(path)
    append(old, rows(11))
    reader.look()
    assert ids(reader) == ["1", "2", "11"]


def test_once_says_what_is_gone(tmp_path: Path) -> None:
    """Un fichier déjà lu, puis effacé : --once le dit, comme d'un fichier jamais vu."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    reader = Reader(path)
    reader.look()
    path.unlink()
    reader.start(once=True)
    reader.look()
    assert [f"{path} n'existe pas."] == reader.sender.files.unread


def test_a_refused_file_mended_within_a_tick(tmp_path: Path) -> None:
    """Refusé, puis corrigé à la même date : il est lu."""
    path = tmp_path / "f.csv"
    path.write_text("id\n1\n", encoding="utf-8")
    os.utime(path, (1_000, 1_000))
    reader = Reader(path, key="cle")
    reader.look()
    path.write_text("id,cle\n1,a\n", encoding="utf-8")
    os.utime(path, (1_000, 1_000))
    assert reader.look() == ["1"]


def test_an_interrupted_tour_is_not_the_end(tmp_path: Path) -> None:
    """Un disque lent coupe la tournée avant le fichier qui a du nouveau : ce n'est pas encore fini."""
    for name in "abc":
        append(tmp_path / f"{name}.csv", HEADER)
    reader = Reader(tmp_path)
    reader.look()
    append(tmp_path / "c.csv", rows(1))
    slow = iter([0.0, 0.0])
    reader.sender.clock = lambda: reader.now + next(slow, 1.0)
    reader.sender.files._tour_at = 0.0
    assert reader.sender.send()
    for _ in range(5):
        reader.sender.send()
    assert ids(reader) == ["1"]


def test_who_loses_at_once_keeps_the_rest(tmp_path: Path) -> None:
    """Un autre s'annonce pendant notre démarrage : ce fichier est à lui, les autres restent à nous."""
    mine, common = tmp_path / "a-moi.csv", tmp_path / "commun.csv"
    for path in (mine, common):
        append(path, HEADER + rows(1))
    reader = Reader(mine, common)
    take = reader.sender.positions.take

    def slower(sources: list[bytes]) -> dict[bytes, bytes]:
        found = take(sources)
        reader.sender.positions.mine.discard(os.fsencode(common))
        return found

    reader.sender.positions.take = slower  # type: ignore[assignment,method-assign]
    assert reader.look() == ["1"]
    assert set(reader.sender.files.followers) == {mine}


def test_an_awaited_name_becomes_a_folder(tmp_path: Path) -> None:
    """On attendait un fichier, c'est un dossier qui vient : ses CSV sont lus, sans plainte ; les cachés, non."""
    reader = Reader(tmp_path / "futur")
    reader.look(1)
    (tmp_path / "futur").mkdir()
    append(tmp_path / "futur" / "f.csv", HEADER + rows(1))
    append(tmp_path / "futur" / "._f.csv", "\0\5\26\7")
    assert reader.look() == ["1"]
    assert set(reader.sender.files.followers) == {tmp_path / "futur" / "f.csv"}


def test_a_dry_run_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    """--dry-run : un fichier illisible n'en cache aucun autre ; sortie fermée ou pleine : rien n'accuse le fichier."""
    append(tmp_path / "a.csv", "id\r1\r2\r")
    append(tmp_path / "b.csv", HEADER + rows(*range(5_000)))
    command = [sys.executable, "producer.py", "--dry-run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "exercice1", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 5_000
    assert "a.csv n'est pas lu : son en-tête n'est pas du CSV" in done.stderr.splitlines()[-1]
    shell = f"{shlex.join(command)} | true; exit ${{PIPESTATUS[0]}}"
    closed = subprocess.run(["bash", "-c", shell], cwd=ROOT / "exercice1", capture_output=True, text=True, check=False)
    assert (closed.returncode, "b.csv" in closed.stderr) == (0, False)
    with open("/dev/full", "wb") as full:
        whole = subprocess.run(command, cwd=ROOT / "exercice1", stdout=full, stderr=subprocess.PIPE, check=False)
    assert whole.returncode == 1
    assert "Erreur imprévue : le disque est plein" in whole.stderr.decode()


@pytest.mark.parametrize(
    ("script", "option"), [("consumer", "--group"), ("consumer", "--topic"), ("producer", "--topic")]
)
def test_empty_values_are_refused(script: str, option: str) -> None:
    """Une variable de shell qui n'existe pas donne une option vide : elle est refusée, et ne désigne rien d'autre."""
    command = [sys.executable, f"{script}.py", option, ""]
    done = subprocess.run(command, cwd=ROOT / "exercice1", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{option.removeprefix('--')} : une valeur vide" in done.stderr


def test_an_empty_file_name_is_refused() -> None:
    """« producer.py "$FICHIER" », sans FICHIER : ce n'est pas le dossier courant."""
    command = [sys.executable, "producer.py", "--dry-run", ""]
    done = subprocess.run(command, cwd=ROOT / "exercice1", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "files : une valeur vide" in done.stderr


# --- Ce qu'aucun essai ne voyait casser ---


def test_each_late_line_gives_more_time(tmp_path: Path) -> None:
    """Un fichier renommé est lu pendant cinq secondes après sa dernière ligne, et non après son changement de nom."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    reader = Reader(path)
    reader.look(2)
    old = path.rename(tmp_path / "ailleurs")
    append(path, HEADER + rows(2))
    for number in (11, 12, 13):
        reader.look(4)
        append(old, rows(number))
    reader.look(2)
    assert ids(reader) == ["1", "2", "11", "12", "13"]


def test_a_turned_bare_file_alone(tmp_path: Path) -> None:
    """Un fichier sans en-tête à lui, suivi seulement sous son nom tourné : celui de son nom d'avant sert encore."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    reader = Reader(path)
    reader.look()
    path.write_text(rows(2), encoding="utf-8")
    reader.look()
    path.rename(tmp_path / "f.csv.1")
    append(tmp_path / "f.csv.1", rows(3))
    reader.names = (tmp_path / "f.csv.1",)
    reader.start()
    assert reader.look() == ["3"]
    assert reader.kafka.rows[-1] == {"id": "3", "ville": "ville 3"}


def test_a_file_that_never_rests_is_read_anyway(tmp_path: Path) -> None:
    """Récrit sans cesse : il est lu au bout de cinq secondes, même s'il bouge encore."""
    path = tmp_path / "f.csv"
    append(path, HEADER + rows(1))
    reader = Reader(path)
    reader.look()
    for number in range(2, 60):
        path.write_text(HEADER + rows(*range(2, number)) + "x" * number, encoding="utf-8")
        reader.look(0.2)
    assert "2" in ids(reader)


# --- Ce que des lecteurs de ce code ont trouvé ---


def test_copied_and_emptied_twice_while_stopped(path: Path) -> None:
    """Deux nuits de copytruncate pendant un arrêt : la copie du milieu est lue aussi, dans l'ordre."""
    reader = Reader(path)
    reader.look()
    append(path, rows(2))
    for number in (3, 4):
        shift_copy(path)
        path.write_text(HEADER + rows(number, number + 10), encoding="utf-8")
    reader.start()
    reader.look()
    assert ids(reader) == ["1", "2", "3", "13", "4", "14"]


def shift_copy(path: Path) -> None:
    """Rotation numérotée, par copie."""
    if (old := path.with_name("v.csv.1")).exists():
        old.rename(path.with_name("v.csv.2"))
    shutil.copy(path, path.with_name("v.csv.1"))


def test_a_quiet_file_moved_away_can_be_finished(path: Path) -> None:
    """Calme depuis longtemps, rangé dans un autre dossier : une ligne écrite juste après est lue."""
    reader = Reader(path)
    reader.look(20)
    (path.parent / "ailleurs").mkdir()
    moved = path.rename(path.parent / "ailleurs" / "v.csv")
    reader.look(2)
    append(moved, rows(2))
    path.write_text(HEADER + rows(3), encoding="utf-8")
    reader.look()
    assert ids(reader) == ["1", "2", "3"]


@pytest.mark.parametrize("stopped", [False, True], ids=["en marche", "arrêté"])
def test_a_cumulative_export(path: Path, stopped: bool) -> None:
    """L'ancien est rangé à côté, le nouveau le reprend en entier : rien n'en repart, pas même ce qui n'était pas lu."""
    reader = Reader(path)
    reader.look()
    if stopped:
        append(path, rows(2))
    path.rename(path.with_name("v.csv-20261201"))
    path.write_text(HEADER + rows(1, 2, 3), encoding="utf-8")
    if stopped:
        reader.start()
    reader.look()
    assert ids(reader) == ["1", "2", "3"]


def test_what_only_the_old_file_had(path: Path) -> None:
    """Rangé pendant un arrêt, l'ancien a des lignes que le nouveau, qui commence pourtant comme lui, n'a pas."""
    reader = Reader(path)
    reader.look()
    append(path, rows(7, 8))
    path.rename(path.with_name("v.csv.1"))
    path.write_text(HEADER + rows(1, 2), encoding="utf-8")
    reader.start()
    reader.look()
    assert ids(reader) == ["1", "7", "8", "1", "2"]


@pytest.mark.parametrize("style", ["{:%d%m%Y}", "{:%d-%m-%Y}", "{:%Y%m%d}", "{:%Y-%m-%d}"])
def test_missed_files_in_order(path: Path, style: str) -> None:
    """Trois rotations manquées, sur deux mois : dans l'ordre, que la date commence par l'année ou par le jour."""
    reader = Reader(path)
    reader.look()
    for number, day in enumerate((29, 30, 31), 2):
        date = datetime(2026, 11, day) if day < 31 else datetime(2026, 12, 1)
        path.rename(path.with_name("v.csv-" + style.format(date)))
        path.write_text(HEADER + rows(number), encoding="utf-8")
        time.sleep(0.02)
    reader.start()
    reader.look()
    assert ids(reader) == ["1", "2", "3", "4"]


def test_another_file_under_the_number_of_a_deleted_one(path: Path) -> None:
    """Un fichier que l'on ne suit pas a l'inode d'un autre, dont on n'avait lu que l'en-tête : rien ne part."""
    path.write_text(HEADER, encoding="utf-8")
    reader = Reader(path)
    reader.look()
    reader.sender.files.close()
    append(path.rename(path.with_name("lyon.csv")), rows(9))
    reader.start()
    reader.look()
    assert ids(reader) == []


def test_once_reads_the_missed_files_before_an_empty_one(path: Path) -> None:
    """Deux rotations pendant un arrêt, le nouveau fichier encore vide : --once envoie ce qui est là."""
    reader = Reader(path)
    reader.look()
    append(path, rows(2))
    for number in (3, None):
        shift(path)
        path.write_text(HEADER + rows(number) if number else "", encoding="utf-8")
    reader.start(once=True)
    reader.sender.scan(anew=False)
    while reader.sender.send(final=True):
        reader.now += 0.1
    assert ids(reader) == ["1", "2", "3"]


def test_killed_while_reading_missed_files(path: Path) -> None:
    """Trois rotations manquées, de gros fichiers : tué après le premier, relancé, il n'oublie pas les autres."""
    reader = Reader(path)
    reader.look()
    for number in (2, 3, 4):
        shift(path)
        path.write_text(HEADER + rows(*range(number * 10_000, number * 10_000 + 9999)), encoding="utf-8")
    reader.start()
    reader.sender.scan(anew=False)
    while len(reader.kafka.rows) < 5_000:
        reader.sender.clock = itertools.count(reader.now, 1.0).__next__  # une transaction n'a le temps que d'un morceau
        reader.sender.send()
        reader.now += 0.2
    assert len(reader.kafka.rows) < 20_000
    reader.start()
    reader.look()
    assert sorted(map(int, ids(reader))) == [1, *(n * 10_000 + i for n in (2, 3, 4) for i in range(9999))]


def test_an_archive_of_the_file_that_replaces_it(path: Path) -> None:
    """Remplacé d'un coup (mv), avec une copie datée à côté : chaque ligne part une fois."""
    reader = Reader(path)
    reader.look()
    new = path.with_name("nouveau")
    new.write_text(HEADER + rows(11, 12, 13), encoding="utf-8")
    shutil.copy(new, path.with_name("v.csv-20261202"))
    new.rename(path)
    reader.look()
    assert ids(reader) == ["1", "11", "12", "13"]


@pytest.mark.parametrize("stopped", [False, True], ids=["en marche", "arrêté"])
def test_an_export_rewritten_in_place_and_archived(path: Path, stopped: bool) -> None:
    """Chaque jour, récrit sur place puis copié sous sa date : chaque ligne part une fois."""
    reader = Reader(path)
    reader.look()
    shutil.copy(path, path.with_name("v.csv-20261201"))
    for day in (2, 3):
        path.write_text(HEADER + rows(day * 10, day * 10 + 1), encoding="utf-8")
        shutil.copy(path, path.with_name(f"v.csv-2026120{day}"))
        if stopped:
            reader.start()
        reader.look()
    assert ids(reader) == ["1", "20", "21", "30", "31"]


@pytest.mark.parametrize("stopped", [False, True], ids=["en marche", "arrêté"])
def test_a_neighbour_is_not_a_rotation(tmp_path: Path, stopped: bool) -> None:
    """capteur.csv devient capteur-20261201.csv : capteur_2.csv, qui grandit à côté, n'en est pas une autre rotation."""
    path, neighbour = tmp_path / "capteur.csv", tmp_path / "capteur_2.csv"
    path.write_text(HEADER + rows(1), encoding="utf-8")
    neighbour.write_text(HEADER + rows(100), encoding="utf-8")
    reader = Reader(path)
    reader.look()
    append(neighbour, rows(101))
    os.utime(neighbour, ns=(time.time_ns() + 10**9,) * 2)
    path.rename(tmp_path / "capteur-20261201.csv")
    path.write_text(HEADER + rows(2), encoding="utf-8")
    if stopped:
        reader.start()
    reader.look()
    assert ids(reader) == ["1", "2"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_before_rows_without_a_header(path: Path, encoding: str) -> None:
    """Vidé, récrit sans en-tête mais avec une marque (BOM) : elle n'est pas dans la première valeur."""
    path.write_text(HEADER + rows(1), encoding=encoding)
    reader = Reader(path)
    reader.look()
    path.rename(path.with_name("v.csv.1"))
    path.write_text(rows(2, 3), encoding=encoding)
    reader.look()
    assert ids(reader) == ["1", "2", "3"]


def test_an_abort_after_another_name_has_read_further(path: Path) -> None:
    """Presque rien n'est tenu ouvert ; la fin d'un renommé, lue sous l'ancien nom, ne repart pas du nouveau."""
    path.write_text(HEADER, encoding="utf-8")
    reader = Reader(f"{path}*")
    reader.sender.files.open_files = 0
    reader.look(4)
    path.rename(path.with_name("v.csv.1"))
    path.write_text(HEADER, encoding="utf-8")
    reader.look(1)
    append(path.with_name("v.csv.1"), rows(12))
    failed = False
    commit = reader.sender.positions.producer.commit

    def refused() -> None:
        nonlocal failed
        producer = reader.sender.positions.producer
        producer.fail = not failed and any(key.endswith(b"v.csv.1") for key in producer.positions)  # type: ignore[attr-defined]
        failed = failed or producer.fail  # type: ignore[attr-defined]
        commit()

    reader.sender.positions.producer.commit = refused  # type: ignore[method-assign]
    reader.look(20)
    assert failed
    assert ids(reader) == ["12"]


def test_the_last_line_of_a_renamed_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Renommé, il finit sans fin de ligne : après --rotate-wait, cette ligne est prise pour finie, et c'est dit."""
    caplog.set_level("INFO")
    append(path, "2,Bre")
    reader = Reader(path)
    reader.look(2)
    path.rename(path.with_name("v.csv.1"))
    path.write_text(HEADER + rows(3), encoding="utf-8")
    reader.look(20)
    assert [row["ville"] for row in reader.kafka.rows] == ["ville 1", "Bre", "ville 3"]
    assert "elle est prise pour finie" in caplog.text


def test_a_closed_folder_is_told(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Un dossier fermé à ce compte est dit, et compte parmi ce qui n'est pas lu ; rouvert, il est lu."""

    def refused(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    with monkeypatch.context() as closed:
        closed.setattr(os, "listdir", refused)
        reader = Reader(path.parent)
        assert reader.look(2) == []
        assert len(reader.sender.files.unread) == caplog.text.count("ne peut pas être lu") == 1
    assert reader.look() == ["1"]
