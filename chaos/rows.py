"""L'exercice 1 sous les pannes : un fichier CSV qui grandit et qui tourne, lu par producer.py."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chaos.script import Script, Trial, messages, written
from commun import PipelineError

import msgspec

FREEZE_SECONDS = 10.0
TURN_SECONDS = 4.0  # en moyenne, entre deux rotations
ARRIVAL_SECONDS = 120.0


class Line(msgspec.Struct):
    """Ce qui est lu d'une ligne arrivée."""

    numero: str


class Rows:
    """Une ligne numérotée après l'autre, parfois écrite en deux fois ; le fichier tourne comme sous logrotate."""

    def __init__(self, topic: str, folder: Path, trial: Trial) -> None:
        self.topic, self.dice, self.stop = topic, trial.dice, trial.stop
        self.path, self.rate, self.written, self.turns = folder / "lignes.csv", trial.rate / 10, 0, 0
        self._dice = random.Random(self.dice.random())  # noqa: S311 - un fil à lui, un hasard à lui
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self.producer = Script(
            trial.logs / "csv-producer.log", "exercice1/producer.py", str(self.path), "--topic", topic
        )
        self.scripts = [self.producer]

    def _write(self) -> None:
        """Écrit au rythme voulu, jusqu'à la fin."""
        while not self._over.is_set():
            with self.path.open("ab", buffering=0) as file:
                file.write(b"numero,texte\n")
                until = time.monotonic() + self._dice.uniform(0.5, 1.5) * TURN_SECONDS
                while time.monotonic() < until and not self._over.is_set():
                    self.written += 1
                    line = b'%d,"du texte, et\nun saut de ligne"\n' % self.written
                    cut = self._dice.randrange(len(line)) if self._dice.random() < 0.1 else 0
                    file.write(line[:cut])
                    self._over.wait(1 / self.rate)
                    file.write(line[cut:])
            if not self._over.is_set():
                self._turn()

    def _turn(self) -> None:
        """lignes.csv devient .1, qui devient .2…"""
        for number in range(self.turns, 0, -1):
            self.path.with_suffix(f".csv.{number}").rename(self.path.with_suffix(f".csv.{number + 1}"))
        self.path.rename(self.path.with_suffix(".csv.1"))
        self.turns += 1

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom."""
        return {"le lecteur de CSV tué": self.kill, "le lecteur de CSV gelé": self.freeze}

    def kill(self) -> None:
        """Pendant son absence, le fichier tourne une fois ou deux."""
        self.producer.kill_then_restart(self.stop, self.dice.uniform(0, 2 * TURN_SECONDS))

    def freeze(self) -> None:
        """De même."""
        self.producer.freeze_then_wake(self.stop, FREEZE_SECONDS)

    def progress(self) -> int:
        """Un nombre qui monte tant que des lignes arrivent dans Kafka."""
        return written(self.topic)

    def read(self) -> list[int]:
        """Les numéros arrivés, dans l'ordre : le fichier n'a qu'une clé, donc une partition."""
        decode = msgspec.json.Decoder(Line).decode
        return [int(decode(message.value() or b"").numero) for message in messages(self.topic)]

    def settle(self) -> None:
        """La dernière ligne est écrite, et arrivée."""
        self._over.set()
        self._writer.join()
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while self.written not in self.read() and time.monotonic() < deadline:
            time.sleep(1)
        self.producer.end()

    def judge(self) -> tuple[list[tuple[str, int]], int]:
        """Ce qui a été compté, et le nombre de fautes."""
        found = self.read()
        lost, twice = self.written - len(set(found)), len(found) - len(set(found))
        disorder = sum(later < earlier for earlier, later in itertools.pairwise(found))
        counts = [
            ("lignes de CSV écrites", self.written), ("rotations du fichier", self.turns), ("lignes perdues", lost),
            ("lignes doublées", twice), ("lignes mal rangées", disorder),
        ]  # fmt: skip
        if not self.written:
            raise PipelineError("Aucune ligne n'a été écrite.")
        return counts, abs(lost) + twice + disorder

    def close(self) -> None:
        """Termine ce qui reste."""
        self._over.set()
        for script in self.scripts:
            script.kill()
