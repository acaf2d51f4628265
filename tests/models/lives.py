"""La vie de fichiers, tirée au hasard, devant le vrai lecteur : qui a écrit quelle ligne, et ce que Kafka en a.

Tout est vrai sauf Kafka, l'horloge et les dates des fichiers. Chaque ligne porte un numéro unique ; un oracle retient
combien de fois elle doit être dans Kafka : une, et pour quelques-unes, que la vie du fichier rend incertaines, un
nombre entre deux bornes. ``python -m tests.models.lives 20000`` en vit vingt mille.
"""

import json
import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from commun import Aborted
from commun.exactly_once import Recovered
from exercice1 import reading
from exercice1.files import Files
from exercice1.fingerprint import identity_of
from exercice1.reading import Format
from exercice1.sending import Sender
from tests.models.histories import play

HEADER = "id,texte\n"
EVENTS = 25
SEEN = 4.0  # au bout de ce temps, un fichier qui ne bouge plus a été regardé, même sur une machine chargée
DAWN = 1_800_000_000  # l'heure qu'il est quand ``now`` vaut zéro


class NoStop:
    """Personne ne demande l'arrêt."""

    def __bool__(self) -> bool:
        return False


class Kafka:
    """Les topics : ce qui est validé, et les positions ; survit au lecteur."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.letters: list[bytes] = []
        self.positions: dict[bytes, bytes] = {}


class Producer:
    """Un producteur transactionnel qui échoue quand on le lui demande."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self.fail = False
        self.rows: list[dict[str, str]] = []
        self.letters: list[bytes] = []
        self.positions: dict[bytes, bytes] = {}

    def write_all(self, topic: str, messages: Iterable[tuple[bytes, bytes | None, object]]) -> None:
        """Des lignes."""
        self.rows += [json.loads(value) for value, _, _ in messages]

    def write(self, topic: str, value: bytes, key: bytes, headers: object = None) -> None:
        """Une lettre morte, ou une position."""
        if topic.endswith("-dlq"):
            self.letters.append(value)
        else:
            self.positions[key] = value

    def commit(self) -> None:
        """Tout est lisible, ou rien."""
        if self.fail:
            raise Aborted("panne")
        self.kafka.rows += self.rows
        self.kafka.letters += self.letters
        self.kafka.positions |= self.positions
        self.forget()

    def forget(self) -> None:
        """Ce qui est en vol n'a pas eu lieu."""
        self.rows, self.letters, self.positions = [], [], {}

    def poll(self) -> None:
        """Rien à servir."""


class Positions:
    """Les positions de ce seul processus (voir commun.exactly_once.Positions)."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka, self.producer, self.mine = kafka, Producer(kafka), set[bytes]()

    def all(self) -> dict[bytes, bytes]:
        """Toutes."""
        return dict(self.kafka.positions)

    def take(self, sources: list[bytes]) -> dict[bytes, bytes]:
        """Personne d'autre."""
        self.mine |= set(sources)
        return self.all()

    def write(self, source: bytes, value: bytes) -> None:
        """La position d'une source."""
        self.producer.write("positions", value, source)

    def recover(self) -> Recovered:
        """Annulé."""
        self.producer.forget()
        return Recovered(set(), None)

    def close(self) -> None:
        """Rien à fermer."""


@dataclass
class Copy:
    """Un fichier que l'on peut encore écrire : un programme en tient un descripteur."""

    path: Path
    half: str = ""


@dataclass
class Life:
    """Une vie : un dossier, un nom suivi, un lecteur, et ce qui leur arrive."""

    seed: int
    folder: Path
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.now = 1000.0
        self.burden, self.worked = random.Random(self.seed), 0.0
        self.loaded = self.burden.random() < 0.3
        self.path = self.folder / "f.csv"
        self.coarse = self.dice.random() < 0.3
        self.names = self.dice.choice([[str(self.path)], [f"{self.path}*"], [str(self.folder)]])
        if self.dice.random() < 0.2:  # le nom suivi est un lien vers un autre dossier
            (self.folder / "vrai").mkdir()
            self.names, self.path = [str(self.path)], self.folder / "vrai" / "f.csv"
            (self.folder / "f.csv").symlink_to(self.path)
        self.styles = self.dice.choice([["numbered"], ["dated"], ["numbered", "dated"]])
        self.pattern = self.names[0].endswith("*")
        self.kafka = Kafka()
        self.number = self.turn = self.writes = 0
        self.least: Counter[str] = Counter()  # combien de fois chaque ligne doit être dans Kafka, au moins…
        self.most: Counter[str] = Counter()  # … et au plus
        self.texts: dict[str, str] = {}  # ce que dit chaque ligne
        self.late: set[str] = set()  # celles qui ont pu être écrites après une autre qui est plus loin
        self.final: list[str] = []  # des lignes qui doivent être lues telles quelles, quel qu'en soit le nombre
        self.half, self.halves = "", set[str]()  # la fin d'une ligne, et de celles d'après, pas encore écrites
        self.unseen = True  # le contenu présent n'a pas encore été regardé
        self.header = True  # le fichier présent a son en-tête
        self.jumbled = False  # remplacé, puis tourné sans avoir été vu : l'ordre des rotations ne se sait plus
        self.copied = self.edited = False  # depuis la dernière rotation ; personne n'en change le style à chaque fois
        self._write(self.path, HEADER)
        self.reader = self.new_reader()

    # --- Le lecteur ---

    def new_reader(self) -> Sender:
        """Un processus neuf."""
        reading.CHUNK_BYTES = self.burden.choice([262_144, 300, 64])
        files = Files(self.names, Format(), open_files=self.dice.choice([64, 1, 0]))
        sender = Sender(files, Positions(self.kafka), "t", NoStop())  # type: ignore[arg-type]
        sender.clock = self.clock
        files.stopwatch = self.slow
        return sender

    def slow(self) -> float:
        """Une machine parfois chargée : une tournée y prend de rien à un vingtième de seconde."""
        self.worked += self.loaded and self.burden.choice([0.0, 0.0, 0.001, 0.01, 0.05])
        return self.worked

    def clock(self) -> float:
        """L'heure du lecteur ; sur une machine chargée, lire prend du temps : une transaction n'a pas tout."""
        self.now += self.loaded and self.burden.choice([0.0] * 8 + [0.1, 0.6])
        return self.now

    def scan(self) -> None:
        """Cherche les fichiers, et règle l'horloge murale de chacun."""
        self.reader.scan(anew=False)
        for follower in self.reader.files.followers.values():
            follower.wall = lambda: self.wall

    def look(self, seconds: float, *, fail: bool = False) -> None:
        """Le lecteur tourne pendant ``seconds`` secondes."""
        self.say("regarde", seconds, "en échec" * fail)
        end, least = self.now + seconds, 8 * (seconds >= SEEN)
        while self.now < end or least > 0:
            known = len(self.kafka.rows)
            self.scan()
            for _ in range(3):
                self.send(fail=fail)
                self.now += 0.15
            quiet = 0 if seconds < SEEN or len(self.kafka.rows) == known else 6
            least = max(least - 1, quiet)  # jusqu'à ce qu'il ne vienne plus de lignes

    def send(self, *, fail: bool) -> None:
        """Une transaction du lecteur ; ``fail`` : Kafka l'annule."""
        self.reader.positions.producer.fail = fail  # type: ignore[attr-defined]
        self.reader.send()

    def say(self, *words: object) -> None:
        """Ce qui se passe, pour qui rejoue une graine."""
        self.log.append(f"{self.now:.1f} " + " ".join(map(str, words)))

    # --- Ce que fait celui qui écrit ---

    def _write(self, path: Path, text: str, mode: str = "a") -> None:
        self.say(
            mode, path.name, path.stat().st_ino % 1000 if path.exists() else "neuf", repr(text[:40]), repr(text[-20:])
        )
        with path.open(mode, encoding="utf-8", newline="") as file:
            file.write(text)
        self.date(path)

    @property
    def wall(self) -> float:
        """L'heure qu'il est."""
        return DAWN + self.now

    def date(self, path: Path) -> None:
        """Ce fichier vient d'être écrit ; certains systèmes de fichiers ne comptent que par deux secondes."""
        self.writes += 1
        stamp = int(self.wall) // 2 * 2 * 10**9 if self.coarse else int(self.wall * 10**9) + self.writes
        os.utime(path, ns=(stamp, stamp))

    def row(self, *, must: bool = True) -> str:
        """Une ligne nouvelle ; ``must`` : elle doit arriver."""
        self.number += 1
        name = f"{self.number}"
        self.least[name], self.most[name] = int(must), 1
        if not must:
            self.late.add(name)
        if self.dice.random() < 0.2:
            self.texts[name] = f'deux\nlignes "{name}"'
            return f'{name},"deux\nlignes ""{name}"""\n'
        self.texts[name] = "é" * self.dice.randrange(1, 60)
        return f"{name},{self.texts[name]}\n"

    def late_row(self) -> str:
        """Une ligne d'un fichier que son nom ne désigne plus : d'autres, écrites après, peuvent être déjà lues."""
        row = self.row()
        self.late.add(str(self.number))
        return row

    def finish(self) -> None:
        """Finit la ligne inachevée."""
        if self.half:
            self._write(self.path, self.half)
            self.half = ""

    def ready(self) -> None:
        """Le fichier existe, avec son en-tête ou celui d'avant, sans ligne inachevée."""
        if not self.path.exists():
            self._write(self.path, HEADER)
            self.header = True
        self.finish()

    def write(self) -> None:
        """Quelques lignes, la dernière à moitié peut-être."""
        self.ready()
        text = "".join(self.row() for _ in range(self.dice.randrange(1, 30)))
        cut = self.dice.randrange(len(text)) if self.dice.random() < 0.3 else len(text)
        self._write(self.path, text[:cut])
        self.half, self.halves = text[cut:], {str(self.number - count) for count in range(text[cut:].count("\n"))}

    def shift(self) -> Path:
        """Le nom que prend le fichier en tournant ; les anciens se décalent."""
        if self.dice.choice(self.styles) == "dated":
            self.turn += 1
            return self.path.with_name(f"f.csv-202611{10 + self.turn}")
        for number in range(8, 0, -1):
            old = self.path.with_name(f"f.csv.{number}")
            if old.exists():
                old.rename(self.path.with_name(f"f.csv.{number + 1}"))
        return self.path.with_name("f.csv.1")

    def rotate(self) -> None:
        """Une rotation, ou plusieurs d'affilée ; l'ancien peut encore recevoir une ligne, ou la fin de la sienne."""
        for _ in range(self.dice.choice([1, 1, 1, 2, 3])):
            half = ""
            if self.path.exists() and self.dice.random() < 0.3:
                half, self.half = self.half, ""
                self.late |= self.halves
            self.ready()
            cumulative = self.header and not half and not self.pattern and self.dice.random() < 0.1
            self.jumbled = self.jumbled or (self.edited and not self.unseen)
            if self.unseen or self.copied or cumulative:
                self.look(SEEN)
                self.copied = self.edited = False
            old = self.shift()
            self.path.rename(old)
            self.say("renommé", old.name)
            late = bool(half) or self.dice.random() < 0.3
            if cumulative:  # le nouveau reprend tout l'ancien : rien n'en repart
                late = False
                self._write(self.path, old.read_bytes().decode() + self.row())
            elif self.dice.random() < 0.8:
                self._write(self.path, HEADER)
                self.header = True
                if self.dice.random() < 0.6:
                    self._write(self.path, self.row())
            if late:
                if self.dice.random() < 0.5:
                    self.look(1.0)
                self._write(old, half + self.late_row())
            self.unseen = (
                cumulative or self.dice.random() < 0.5
            )  # plusieurs rotations sans que le lecteur ait rien vu, ou non

    def move_away(self) -> None:
        """Rangé dans un autre dossier ; qui y écrivait a encore un instant pour finir, si le lecteur le tient."""
        self.ready()
        self.look(SEEN)
        one = identity_of(self.path.stat())
        held = any(one in follower.reading for follower in self.reader.files.followers.values())
        (self.folder / "ailleurs").mkdir(exist_ok=True)
        moved = self.folder / "ailleurs" / f"{self.writes}.csv"
        self.path.rename(moved)
        self.say("rangé", moved.name)
        self.look(self.dice.choice([0.2, 1.0, 3.0]))
        self._write(moved, self.row(must=held))
        self.late.add(str(self.number))
        if self.dice.random() < 0.5:
            self.look(SEEN)
        self._write(self.path, HEADER + self.row())
        self.header = True
        self.look(SEEN)

    def week_end(self) -> None:
        """Le lecteur est arrêté ; chaque nuit, le fichier est copié, puis vidé."""
        self.ready()
        self.look(SEEN)
        known = self.header and self.path.stat().st_size > len(HEADER)
        self.kill()
        for _ in range(self.dice.choice([1, 2, 3])):
            self.now += 60.0
            if self.dice.random() < 0.8:
                self._write(self.path, self.row(must=known))
            copy = self.shift()
            shutil.copy(self.path, copy)
            self.date(copy)
            self.say("copié, vidé", copy.name)
            self._write(self.path, HEADER, "w")
        self.header = True
        if self.dice.random() < 0.8:
            self._write(self.path, self.row(must=known))
        self.reader = self.new_reader()
        self.look(SEEN)

    def copy_and_truncate(self) -> None:
        """Copié, puis vidé ; celui qui écrit remet un en-tête, ou non, ou continue où il en était (un trou)."""
        self.ready()
        self.look(SEEN)
        copy = self.shift()
        if self.dice.random() < 0.5:  # pas encore lue : elle est dans la copie
            # D'un fichier dont on n'avait lu que l'en-tête, le même ensuite, rien ne dit qu'il a été vidé.
            self._write(self.path, self.row(must=self.path.stat().st_size > len(HEADER)))
        shutil.copy(self.path, copy)
        self.say("copié", copy.name)
        self.date(copy)
        if self.dice.random() < 0.2:
            self._write(self.path, self.row(must=False))  # entre la copie et le vidage : perdue, ou non
        if self.dice.random() < 0.3:
            self.scan()
        size = self.path.stat().st_size
        os.truncate(self.path, 0)
        self.date(self.path)
        self.say("vidé")
        if self.dice.random() < 0.5:
            self.look(SEEN)
        how = self.dice.choice(["header", "none", "hole"])
        text = (HEADER if how == "header" else "") + self.row()
        self.header = how == "header"
        if how == "hole":
            os.truncate(self.path, size)
        self._write(self.path, text)
        self.copied = True

    def edit(self) -> None:
        """Un éditeur ajoute une ligne, ou en change une, d'un coup ou sur place."""
        self.ready()
        if not self.header:
            return
        self.look(SEEN)
        text = self.path.read_bytes().decode()
        how = self.dice.choice(["append", "append", "change"])
        if how == "append":
            text += self.row()
        else:  # la ligne modifiée et les suivantes repartent, parfois quelques-unes de celles d'avant : c'est dit
            lines = text.split("\n")
            places = [
                n for n, line in enumerate(lines) if n and line.count('"') == 0 and line[:1].isdigit() and "," in line
            ]
            if not places:
                return
            at = self.dice.choice(places)
            for line in lines:
                name = line.split(",")[0]
                if name.isdigit() and name in self.most:
                    self.most[name] += 1
            former = lines[at]
            lines[at] = _turned(lines[at]) if self.dice.random() < 0.5 else lines[at] + "modifiée"
            text = "\n".join(lines)
            self.least[lines[at].split(",")[0]] += 1
        self.edited = True
        match self.dice.choice(["replace", "in place", "backup"]):
            case "replace":
                new = self.path.with_name(".nouveau")
                self._write(new, text, "w")
                new.replace(self.path)
            case "in place":
                self._write(self.path, text, "w")
                again = 0.9 if self.coarse else 0.5  # changé de nouveau, à la même date peut-être
                if how == "change" and self.dice.random() < again:
                    self.look(self.dice.choice([0.2, 0.6, 1.6]))
                    lines[at] = _turned(lines[at])
                    if lines[at] == former:  # comme avant : il n'y a rien à renvoyer si personne ne l'a vu autrement
                        self.least[former.split(",")[0]] -= 1
                    self.final.append(lines[at])
                    self.most.update(name for line in lines if (name := line.split(",")[0]) in self.most)
                    self._write(self.path, "\n".join(lines), "w")
            case _:
                backup = self.path.with_name("f.csv~")
                self.path.rename(backup)
                self._write(self.path, text, "w")
                if self.dice.random() < 0.5:
                    self.look(0.6)
                backup.unlink()

    def delete(self) -> None:
        """Effacé, une fois lu ; il revient avec le même contenu et une ligne de plus, ou neuf."""
        self.ready()
        self.look(8.0)
        text = self.path.read_bytes().decode()
        self.path.unlink()
        self.say("effacé")
        if self.dice.random() < 0.5:
            self.look(self.dice.choice([1.0, 7.0]))
        back = self.header and self.dice.random() < 0.5
        self._write(self.path, (text if back else HEADER) + self.row())
        self.edited = True
        self.header = self.header if back else True

    def odd_entry(self) -> None:
        """Un dossier, un tube, un nom qui n'est pas en UTF-8, une rotation compressée."""
        match self.dice.choice(["folder", "fifo", "name", "gz"]):
            case "folder":
                (self.folder / "d.csv").mkdir(exist_ok=True)
            case "fifo":
                if not (self.folder / "p.csv").exists():
                    os.mkfifo(self.folder / "p.csv")
            case "gz":
                (self.folder / "f.csv.9.gz").write_bytes(b"\x1f\x8b\x08")
            case _ if self.names[0] == str(self.folder):
                name = os.path.join(os.fsencode(self.folder), b"caf\xe9.csv")
                if not os.path.exists(name):
                    with open(name, "wb") as file:
                        file.write((HEADER + self.row()).encode())
            case _:
                return

    # --- Ce qui arrive au lecteur ---

    def read(self) -> None:
        """Il lit, un peu ou longtemps."""
        self.look(self.dice.choice([0.2, 1.0, 3.0, 12.0]))
        self.unseen = False

    def abort(self) -> None:
        """Ses transactions échouent un moment."""
        self.look(self.dice.choice([0.2, 2.0, 7.0]), fail=True)

    def crash(self) -> None:
        """Tué, entre deux transactions peut-être ; relancé plus tard."""
        for _ in range(self.burden.choice([0, 1, 1, 4])):
            self.scan()
            self.send(fail=False)
        self.kill()
        self.now += self.dice.choice([0.0, 1.0, 60.0])
        self.reader = self.new_reader()
        self.unseen = True

    def kill(self) -> None:
        """Il ne lit plus, et n'a rien pu dire."""
        self.reader.files.close()

    # --- Vivre, et compter ---

    def live(self) -> None:
        """Des événements quelconques, puis le compte. Lève AssertionError."""
        events: list[tuple[Callable[[], None], int]] = [
            (self.write, 6), (self.rotate, 3), (self.copy_and_truncate, 2), (self.edit, 2), (self.delete, 1),
            (self.move_away, 1), (self.week_end, 1),
            (self.odd_entry, 1), (self.read, 5), (self.abort, 2), (self.crash, 2),
        ]  # fmt: skip
        self.look(SEEN)
        for _ in range(EVENTS):
            (event,) = self.dice.choices([e for e, _ in events], [w for _, w in events])
            self.say("---", event.__name__)
            event()
        self.ready()
        known = -1
        while known < len(self.kafka.rows):  # jusqu'à ce que plus rien ne vienne
            known = len(self.kafka.rows)
            self.look(20.0)
        self.reader.close()
        self.count()

    def close(self) -> None:
        """Rien ne reste ouvert."""
        self.reader.files.close()

    def count(self) -> None:
        """Chaque ligne, le nombre de fois qu'il faut ; jamais sous d'autres noms de colonnes."""
        seen = Counter(row.get("id", "?") for row in self.kafka.rows)
        assert all(row.keys() == {"id", "texte"} for row in self.kafka.rows), "des colonnes d'un autre nom"
        lost = [name for name, least in self.least.items() if seen[name] < least]
        twice = [name for name, count in seen.items() if count > self.most[name]]
        assert not lost, f"perdues : {lost}"
        assert not twice, f"en trop : {[(name, seen[name], self.most[name]) for name in twice]}"
        texts = {f"{row['id']},{row['texte']}" for row in self.kafka.rows}
        unseen = [line for line in self.final if line not in texts]
        assert not unseen, f"jamais lues : {unseen}"
        assert not self.kafka.letters, f"lettres mortes : {self.kafka.letters}"
        once = [row for row in self.kafka.rows if self.most[row["id"]] == 1]
        wrong = [row for row in once if row["texte"] != self.texts[row["id"]]]
        assert not wrong, f"autres que ce qui était écrit : {wrong}"
        numbers = [int(row["id"]) for row in once if row["id"] not in self.late]
        if not self.jumbled and not self.pattern and self.names[0] != str(self.folder) and len(self.styles) == 1:
            assert numbers == sorted(numbers), (
                f"dans le désordre : {[pair for pair in pairwise(numbers) if pair[0] > pair[1]]}"
            )


def _turned(line: str) -> str:
    """La même ligne, de même taille, dont le dernier caractère a changé."""
    return line[:-1] + ("x" if line[-1] != "x" else "y")


def run(seed: int, kind: type[Life] = Life) -> tuple[Life, str]:
    """Une vie, et ce qui n'y est pas allé, ou rien."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    life = kind(seed, folder)
    logger = logging.getLogger("pipeline")
    logger.handlers, logger.propagate = [Say(life)], False
    logger.setLevel(logging.INFO)
    try:
        life.live()
    except Exception as error:
        return life, f"graine {seed}, {life.names} : {type(error).__name__} {error}\n  " + "\n  ".join(life.log)
    finally:
        life.close()
        shutil.rmtree(folder, ignore_errors=True)
    return life, ""


def live(seed: int) -> str:
    """Ce qui n'est pas allé dans la vie de cette graine, ou rien."""
    return run(seed)[1]


class Say(logging.Handler):
    """Les phrases du lecteur, dans le journal de la vie."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self.life = life

    def emit(self, record: logging.LogRecord) -> None:
        """Une phrase."""
        self.life.say("   >", record.getMessage().replace(str(self.life.folder), ""))


if __name__ == "__main__":
    play(live, "vies")
