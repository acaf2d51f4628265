"""FileStreamSourceConnector et producer.py sur les mêmes fichiers : ce que chacun envoie.

Huit expériences (F1 à F8), menées ensemble : des connecteurs et un producer.py suivent les mêmes
fichiers, à qui il arrive ce qui arrive aux vrais. La fiche de l'exercice en donne le résultat.
"""

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commun.kafka import client_config, ensure_topics
from commun.settings import ROOT, setting
from services.stack import Stack
from tests.conftest import services
from tests.lab import CsvLab, headers, wait_until

import psutil
import pytest
from confluent_kafka.cimpl import NewTopic

HEADER = "id,nom\n"
START = {
    "f1": HEADER + "1,Île-de-France\n2,Électronique\n",
    "f2": HEADER + "1,a\n2,sans fin de ligne",
    "f3": HEADER + "1,a\n2,b\n3,c\n4,d\n",
    "f4": HEADER + '1,"deux\nlignes"\n',
    "f5-rotation": HEADER + "1,a\n2,b\n",
    "f5-troncature": HEADER + "1,a\n2,b\n",
    "f6": HEADER + "1,a\n2,b\n3,c\n",
    "f7": "\ufeff" + HEADER + "1,a\n",
}
SECONDS = 4  # une ligne qui n'est pas arrivée au bout de ce temps n'arrivera pas


def connect(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Une requête à Kafka Connect."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{setting('PORT_CONNECT')}{path}", method=method,
        data=json.dumps(body).encode() if body else None, headers={"Content-Type": "application/json"},
    )  # fmt: skip
    for _ in range(40):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code not in (404, 409):  # Connect se rééquilibre
                raise
            time.sleep(0.5)
    raise AssertionError(f"{method} {path} : Connect ne répond pas")


class Experiments:
    """Les fichiers, ce que Connect en a envoyé (``theirs``) et ce que producer.py en a envoyé (``ours``)."""

    def __init__(self, folder: Path) -> None:
        self.lab = CsvLab(folder)
        self.folder = folder
        self.name = f"fs-{uuid.uuid4().hex[:6]}"

    def path(self, name: str) -> Path:
        """Fichier d'une expérience."""
        return self.folder / f"{name}.csv"

    def register(self, name: str, path: Path) -> None:
        """Inscrit connector.json, avec un autre nom, un autre fichier, un autre topic."""
        connector = json.loads((ROOT / "exercice1" / "connector.json").read_text(encoding="utf-8"))
        connector["name"] = f"{self.name}-{name}"
        connector["config"] |= {"file": str(path), "topic": f"{self.lab.topic}-{name}"}
        connector["config"] |= {"batch.size": "2"} if name == "f3" else {}
        # Une seule partition : sans clé, Connect éparpille les lignes d'un fichier sur trois, et leur ordre se perd.
        ensure_topics(client_config({}), NewTopic(f"{self.lab.topic}-{name}", 1, 3))
        connect("POST", "/connectors", connector)

    def state(self, name: str) -> list[str]:
        """État des tâches d'un connecteur."""
        return [task["state"] for task in connect("GET", f"/connectors/{self.name}-{name}/status")["tasks"]]

    def theirs(self, name: str) -> list[str]:
        """Lignes envoyées par Connect."""
        return [(message.value() or b"").decode() for message in self.lab.messages(f"{self.lab.topic}-{name}")]

    def ours(self, name: str) -> list[list[str]]:
        """Lignes envoyées par producer.py."""
        found = self.lab.messages(self.lab.topic)
        return [
            list(json.loads(message.value() or b"").values())
            for message in found
            if headers(message)["source.file"] == str(self.path(name))
        ]


@pytest.fixture(scope="module")
def tried(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiments]:
    """Mène toutes les expériences à la fois."""
    tried = Experiments(tmp_path_factory.mktemp("filestream"))
    for name, text in START.items():
        tried.path(name).write_text(text, encoding="utf-8", newline="")
    tried.path("f8").write_bytes("id,nom\n1,été\n".encode("latin-1"))
    for name in (*START, "f8"):
        tried.register(name, tried.path(name))
    tried.lab.run("producer", "--once", "--encoding", "latin-1", str(tried.path("f8")))
    files = [str(tried.path(name)) for name in START]
    producer = tried.lab.start("producer", *files)
    wait_until(lambda: all(tried.state(name) == ["RUNNING"] for name in (*START, "f8")))
    wait_until(lambda: len(tried.theirs("f6")) == 4 and len(tried.theirs("f1")) == 3)
    wait_until(lambda: len(tried.ours("f6")) == 3 and len(tried.ours("f1")) == 2, 60, lambda: producer.text)

    tried.path("f5-rotation").rename(tried.folder / "f5-rotation.csv.1")
    for name in ("f5-rotation", "f5-troncature"):  # le second est vidé et récrit sur place
        tried.path(name).write_text(HEADER + "3,c\n", encoding="utf-8")
    producer.wait_for("est un autre fichier")
    wait_until(lambda: len(tried.ours("f5-troncature")) == 3, 60, lambda: producer.text)
    assert producer.stop() == 0

    tried.path("f6").unlink()  # effacé, puis recréé plus petit, pendant que rien ne le suit
    tried.path("f6").write_text(HEADER + "9,z\n", encoding="utf-8")
    for name in ("f1", "f6"):
        connect("PUT", f"/connectors/{tried.name}-{name}/stop")
        connect("PUT", f"/connectors/{tried.name}-{name}/resume")
    producer = tried.lab.start("producer", *files)
    producer.wait_for("a changé pendant que je ne le lisais pas")
    tried.lab.write("3,Âge\n", tried.path("f1"))
    wait_until(lambda: len(tried.ours("f1")) == 3 and len(tried.theirs("f1")) > 3, 60, lambda: producer.text)
    wait_until(lambda: tried.state("f6") == ["RUNNING"])
    time.sleep(SECONDS)
    yield tried
    assert producer.stop() == 0
    for name in (*START, "f8"):
        connect("DELETE", f"/connectors/{tried.name}-{name}")
    # La tâche de f6 ne rend plus la main : seul un redémarrage de Connect l'arrête.
    services("kill", "connect")
    services("restart", "connect")
    tried.lab.close()


def test_f1_accents_and_restart(tried: Experiments) -> None:
    """F1. Position comptée en caractères, reprise en octets : après un redémarrage, un morceau de ligne revient."""
    lines = tried.theirs("f1")
    assert lines[:3] == ["id,nom", "1,Île-de-France", "2,Électronique"]
    assert lines[3:] == ["e", "3,Âge"], "les deux lettres accentuées décalent la reprise de deux octets"
    assert tried.ours("f1") == [["1", "Île-de-France"], ["2", "Électronique"], ["3", "Âge"]]


def test_f2_last_line_without_newline(tried: Experiments) -> None:
    """F2. La dernière ligne sans fin de ligne attend, des deux côtés ; producer.py le dit, et --once l'envoie."""
    assert tried.theirs("f2") == ["id,nom", "1,a"]
    assert tried.ours("f2") == [["1", "a"]]
    assert any("f2.csv : la ligne 3 n'a pas encore de fin de ligne" in script.text for script in tried.lab.running)


def test_f3_small_batches(tried: Experiments) -> None:
    """F3. Quand un lot est plein, les lignes déjà lues attendent que le fichier grandisse encore."""
    assert tried.theirs("f3") == ["id,nom", "1,a"]
    assert tried.ours("f3") == [["1", "a"], ["2", "b"], ["3", "c"], ["4", "d"]]


def test_f4_newline_in_quotes(tried: Experiments) -> None:
    """F4. Un saut de ligne entre guillemets casse l'enregistrement en deux."""
    assert tried.theirs("f4") == ["id,nom", '1,"deux', 'lignes"']
    assert tried.ours("f4") == [["1", "deux\nlignes"]]


@pytest.mark.parametrize("name", ["f5-rotation", "f5-troncature"])
def test_f5_rotation(tried: Experiments, name: str) -> None:
    """F5. Après une rotation ou une troncature, le nouveau contenu n'est jamais lu."""
    assert tried.theirs(name) == ["id,nom", "1,a", "2,b"]
    assert tried.state(name) == ["RUNNING"]
    assert tried.ours(name) == [["1", "a"], ["2", "b"], ["3", "c"]]


def test_f6_smaller_file(tried: Experiments) -> None:
    """F6. Position au-delà de la fin du fichier : la tâche tourne à vide sur un cœur et se dit RUNNING."""
    assert tried.theirs("f6") == ["id,nom", "1,a", "2,b", "3,c"]
    assert tried.state("f6") == ["RUNNING"]
    (worker,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"connect.properties", f"-Dpipeline={Stack().data}"} <= set(process.info["cmdline"] or ())
    ]
    # Au repos, Connect prend un centième de cœur : une demi-seconde en une minute. Sur une machine chargée, la tâche
    # folle n'a pas tout son cœur, mais elle prend tout ce qu'on lui laisse.
    times = worker.cpu_times()
    wait_until(lambda: worker.cpu_times().user > times.user + 5, 60)
    assert tried.ours("f6") == [["1", "a"], ["2", "b"], ["3", "c"], ["9", "z"]]


def test_f7_byte_order_mark(tried: Experiments) -> None:
    """F7. La marque d'UTF-8 reste dans la première valeur."""
    assert tried.theirs("f7") == ["\ufeffid,nom", "1,a"]
    assert tried.ours("f7") == [["1", "a"]]


def test_f8_latin_1_and_keys(tried: Experiments) -> None:
    """F8. Toujours UTF-8 : les accents d'un fichier latin-1 sont perdus ; et les messages n'ont pas de clé."""
    assert tried.theirs("f8") == ["id,nom", "1,\ufffdt\ufffd"]
    assert {message.key() for message in tried.lab.messages(f"{tried.lab.topic}-f8")} == {None}
    assert tried.ours("f8") == [["1", "été"]]


def test_connect_says_which_route_a_record_took(tried: Experiments) -> None:
    """La transformation InsertHeader : chaque ligne dit qu'elle vient de Kafka Connect."""
    assert {headers(message)["source.route"] for message in tried.lab.messages(f"{tried.lab.topic}-f4")} == {
        "kafka-connect"
    }
