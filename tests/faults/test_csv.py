"""Exercice 1, pannes : script tué en boucle, Kafka coupé, deux producteurs. Chaque ligne est là une fois, en ordre."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

from commun import PipelineError
from commun.cli import NeverStopped
from commun.exactly_once import POSITIONS_CONFIG, Positions
from commun.kafka import client_config, ensure_topics
from commun.settings import ROOT
from exercice1.files import Files
from exercice1.fingerprint import Saved
from exercice1.reading import Format
from exercice1.sending import Sender
from tests.conftest import services
from tests.lab import CsvLab, wait_until

import pytest
from confluent_kafka.cimpl import NewTopic

HEADER = "id,nom\n"
KILLS = int(os.environ.get("TESTS_KILLS", "12"))  # TESTS_KILLS=50 pour la boucle entière


class Writer(threading.Thread):
    """Un programme qui ajoute sans cesse au fichier, par morceaux de quelques octets, et le fait tourner."""

    def __init__(self, lab: CsvLab, seed: int, *, rotate: bool = False) -> None:
        super().__init__(daemon=True)
        self.lab, self.random, self.rotate = lab, random.Random(seed), rotate
        self.ids: list[str] = []
        self.archives = 0
        self.turn = threading.Event()  # levé : le fichier peut tourner
        self.enough = threading.Event()

    def run(self) -> None:
        """Écrit jusqu'à ``enough``, puis finit sa ligne."""
        self.lab.path.write_text(HEADER, encoding="utf-8")
        while not self.enough.is_set():
            text = ""
            for _ in range(self.random.randrange(1, 40)):
                self.ids.append(str(len(self.ids)))
                text += f'{self.ids[-1]},"Île ""{self.ids[-1]}""\nde {"x" * self.random.randrange(30)}"\n'
            while text:
                size = self.random.randrange(1, 60)
                self.lab.write(text[:size])
                text = text[size:]
                if self.random.random() < 0.1:
                    time.sleep(0.01)
            if self.rotate and self.turn.is_set():
                self.turn.clear()
                self.archives += 1
                self.lab.path.rename(self.lab.path.with_name(f"ventes.csv.{self.archives}"))
                self.lab.path.write_text(HEADER, encoding="utf-8")

    def finish(self) -> None:
        """Arrête d'écrire."""
        self.enough.set()
        self.join(30)


def seen(lab: CsvLab) -> int | None:
    """Inode du fichier de la dernière position confirmée."""
    found = [m.value() for m in lab.messages(f"{lab.topic}-positions") if m.key() == str(lab.path).encode()]
    return Saved.decode(found[-1] or b"{}").inode if found else None


@pytest.mark.long
@pytest.mark.timeout(400)
def test_killed_in_a_loop(csv_lab: CsvLab) -> None:
    """Kill -9 à des instants quelconques, pendant qu'un programme écrit et que le fichier tourne."""
    dice = random.Random(4)
    writer = Writer(csv_lab, 4, rotate=True)
    writer.start()
    for number in range(KILLS):
        producer = csv_lab.start("producer")
        producer.wait_for("Surveillance")
        if number % 5 == 0:
            # Un fichier renommé sans avoir jamais été vu ne serait pas retrouvé : on attend qu'il le soit.
            wait_until(lambda: not writer.turn.is_set() and seen(csv_lab) == csv_lab.path.stat().st_ino, 60)
            writer.turn.set()
        time.sleep(dice.uniform(0.1, 1.0))
        assert producer.stop(signal.SIGKILL) == -signal.SIGKILL
    writer.finish()
    csv_lab.run("producer", "--once")
    assert writer.archives >= KILLS // 5 - 1
    assert csv_lab.column() == writer.ids
    assert csv_lab.rejected() == []


@pytest.mark.long
def test_killed_in_the_middle_of_a_big_file(csv_lab: CsvLab) -> None:
    """Tué au milieu d'un gros fichier : la transaction coupée est invisible, et rien ne manque ensuite."""
    count = 400_000
    csv_lab.path.write_text(HEADER + "".join(f"{number},une ligne\n" for number in range(count)), encoding="utf-8")
    seen = []
    for delay in (0.1, 0.3, 0.6):
        producer = csv_lab.start("producer")
        producer.wait_for("colonnes")
        time.sleep(delay)
        producer.stop(signal.SIGKILL)
        seen.append(len(csv_lab.messages(csv_lab.topic, "read_uncommitted")))
    csv_lab.run("producer", "--once")
    assert csv_lab.column() == [str(number) for number in range(count)]
    assert len(csv_lab.messages(csv_lab.topic, "read_uncommitted")) > count, "aucune transaction n'a été coupée"


@pytest.mark.long
def test_kafka_stops_and_comes_back(csv_lab: CsvLab) -> None:
    """Un broker tué, puis tous : le script attend, le dit une fois, garde sa place, et tout arrive dans l'ordre."""
    writer = Writer(csv_lab, 5)
    writer.start()
    producer = csv_lab.start("producer")
    try:
        csv_lab.wait_for(100)
        services("kill", "kafka2")
        time.sleep(3)
        for node in ("kafka1", "kafka3"):
            services("kill", node)
        producer.wait_for("Kafka ne répond plus")
        time.sleep(2)
    finally:
        done = services("up", timeout=300)
    assert done.returncode == 0, done.stderr
    writer.finish()
    csv_lab.wait_for(len(writer.ids), 120)
    assert producer.stop() == 0
    assert csv_lab.column() == writer.ids
    assert producer.text.count("Kafka ne répond plus") <= 2


@pytest.mark.long
def test_stopped_while_kafka_is_down(csv_lab: CsvLab) -> None:
    """Ctrl-C pendant la panne : sortie propre et rapide ; ce qui n'est pas confirmé part ensuite, une fois."""
    csv_lab.write(HEADER + "1,a\n")
    producer = csv_lab.start("producer")
    csv_lab.wait_for(1)
    for node in ("kafka1", "kafka2", "kafka3"):
        services("kill", node)
    try:
        csv_lab.write("2,b\n")
        producer.wait_for("Kafka ne répond plus")
        time.sleep(2)  # la panne peut se voir avant la ligne : le temps qu'elle soit lue
        assert producer.stop(signal.SIGINT, timeout=20) == 1
        assert "repartira au prochain démarrage" in producer.text
    finally:
        done = services("up", timeout=300)
    assert done.returncode == 0, done.stderr
    csv_lab.run("producer", "--once")
    assert csv_lab.column() == ["1", "2"]


def test_producers_fight_for_a_file(csv_lab: CsvLab) -> None:
    """Des producteurs démarrent l'un après l'autre sur le même fichier : un seul reste, rien n'est doublé."""
    writer = Writer(csv_lab, 6)
    writer.start()
    producers = []
    for _ in range(5):
        producers.append(csv_lab.start("producer"))
        time.sleep(random.Random(6).uniform(0.2, 1.5))
    wait_until(lambda: sum(p.process.poll() is None for p in producers) == 1, 60, lambda: producers[-1].text)
    writer.finish()
    csv_lab.wait_for(len(writer.ids))
    (last,) = [p for p in producers if p.process.poll() is None]
    assert last.stop() == 0
    assert csv_lab.column() == writer.ids
    assert all("suit maintenant" in p.text for p in producers if p is not last)


@pytest.mark.parametrize("anew", [False, True])
def test_two_producers_start_together(csv_lab: CsvLab, *, anew: bool) -> None:
    """Le premier envoie entre l'annonce du dernier venu et sa première transaction : rien n'est doublé, rien ne manque.

    Avec --from-start (``anew``), le dernier venu renvoie bien tout, une fois.
    """
    csv_lab.write(HEADER + "1,a\n2,b\n")
    names = (csv_lab.topic, f"{csv_lab.topic}-dlq", f"{csv_lab.topic}-positions")
    ensure_topics(client_config({}), *(NewTopic(n, 1, 3, config=POSITIONS_CONFIG if "pos" in n else {}) for n in names))
    early, newcomer = (new_sender(csv_lab) for _ in range(2))
    early.scan(anew=False)
    newcomer.scan(anew=anew)
    with pytest.raises(PipelineError, match="Plus aucun fichier"):
        early.send()
    assert newcomer.send()
    csv_lab.write("3,c\n")
    assert newcomer.send()
    assert csv_lab.column() == ["1", "2", "3"]
    for sender in (early, newcomer):
        sender.close()
    again = new_sender(csv_lab)
    again.scan(anew=anew)
    again.send()
    again.close()
    assert csv_lab.column() == (["1", "2", "3", "1", "2", "3"] if anew else ["1", "2", "3"])


def new_sender(lab: CsvLab) -> Sender:
    """Un producteur dans ce processus."""
    files = Files([str(lab.path)], Format())
    return Sender(files, Positions(client_config({}), lab.topic, NeverStopped()), lab.topic, NeverStopped())


@pytest.mark.long
def test_lives_on_kafka(stack: None) -> None:
    """Deux vies du modèle sur un vrai Kafka, lecteurs tués et barrés ; « make lives » en vit cent."""
    command = [sys.executable, "-m", "tests.models.kafka_lives", os.environ.get("TESTS_LIVES", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 fautes." in done.stdout
