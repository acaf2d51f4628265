"""Les scripts shell des conteneurs, exécutés sans Docker, avec des doublures sur disque de leurs programmes."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from services.health import read_topics
from services.stack import CONFIG

import pytest

NAMES = [topic.topic for topic in read_topics(CONFIG / "topics.conf")]


def program(path: Path, text: str) -> None:
    """Écrit un programme bash exécutable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


# --- create-topics.sh ---

KAFKA_TOPICS = """
echo "$*" >> "$HOME/calls"
case "$*" in
  *--list*)
    [[ -e $HOME/down ]] && { rm "$HOME/down"; echo 'Error while executing topic command : Timed out'; exit 1; }
    cat "$HOME/topics" 2>/dev/null || true ;;
  *--create*)
    [[ -e $HOME/slow ]] && /bin/sleep 30
    [[ "$*" =~ --topic\\ ([^ ]+) ]] && echo "${BASH_REMATCH[1]}" >> "$HOME/topics" ;;
esac
"""


@pytest.fixture
def create_topics(tmp_path: Path) -> list[str]:
    """Commande de create-topics.sh, où kafka-topics.sh est une doublure qui note ses appels dans ``calls``."""
    program(tmp_path / "bin" / "kafka-topics.sh", KAFKA_TOPICS)
    program(tmp_path / "path" / "sleep", 'echo "sleep $1" >> "$HOME/calls"; exec /bin/sleep 0.01')
    return ["bash", str(CONFIG / "create-topics.sh"), "kafka1:29092", str(CONFIG / "topics.conf")]


def environment(home: Path) -> dict[str, str]:
    """Environnement d'un conteneur de Kafka : les doublures de ``home``."""
    return {"HOME": str(home), "KAFKA_HOME": str(home), "PATH": f"{home / 'path'}:{os.environ['PATH']}"}


def calls(home: Path) -> list[str]:
    """Appels notés par les doublures depuis le dernier appel de cette fonction."""
    path = home / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_missing_topics_are_created(create_topics: list[str], tmp_path: Path) -> None:
    """Un cluster neuf : une liste, puis un appel par topic, avec ses partitions et ses réglages."""
    subprocess.run(create_topics, env=environment(tmp_path), check=True, capture_output=True)
    listing, *creations = calls(tmp_path)
    assert listing.endswith("--list")
    assert [line.split("--topic ")[1].split()[0] for line in creations] == NAMES
    options = "--partitions 3 --replication-factor 3 --config retention.ms=-1 --config max.message.bytes=33554432"
    assert creations[0].endswith(f"--topic csv-topic {options}")


def test_a_second_up_asks_once(create_topics: list[str], tmp_path: Path) -> None:
    """Tout existe : un seul appel ; un topic manque : il est le seul créé, même si son nom en commence un autre."""
    (tmp_path / "topics").write_text("\n".join(NAMES))
    subprocess.run(create_topics, env=environment(tmp_path), check=True, capture_output=True)
    assert [line.split()[-1] for line in calls(tmp_path)] == ["--list"]
    (tmp_path / "topics").write_text("\n".join(name for name in NAMES if name != "csv-topic") + "\n")
    subprocess.run(create_topics, env=environment(tmp_path), check=True, capture_output=True)
    assert [line.split("--topic ")[1].split()[0] for line in calls(tmp_path)[1:]] == ["csv-topic"]


def test_brokers_that_are_not_ready_are_asked_again(create_topics: list[str], tmp_path: Path) -> None:
    """Un refus passager se réessaie ; au sixième, le script échoue au lieu de laisser croire que tout existe."""
    (tmp_path / "topics").write_text("\n".join(NAMES))
    (tmp_path / "down").touch()
    subprocess.run(create_topics, env=environment(tmp_path), check=True, capture_output=True)
    assert [line.split()[-1] for line in calls(tmp_path)] == ["--list", "5", "--list"]
    program(tmp_path / "bin" / "kafka-topics.sh", 'echo "$*" >> "$HOME/calls"; exit 1')
    done = subprocess.run(create_topics, env=environment(tmp_path), check=False, capture_output=True)
    assert done.returncode == 1
    assert sum("--list" in line for line in calls(tmp_path)) == 6


def test_sigterm_stops_it_at_once(create_topics: list[str], tmp_path: Path) -> None:
    """Pendant une création, SIGTERM suffit (« init: true » le transmet, dans le conteneur)."""
    (tmp_path / "slow").touch()
    process = subprocess.Popen(create_topics, env=environment(tmp_path), start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while "--create" not in "".join(calls(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        start = time.monotonic()
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        assert time.monotonic() - start < 20
    finally:
        os.killpg(process.pid, signal.SIGKILL)


# --- first-start.sh ---

# Une image officielle : elle crée le serveur, joue les scripts, et ne les joue plus si le serveur est là.
IMAGE = """
set -Eeo pipefail
data=$1
if [[ ! -e $data/PREUVE ]]; then
  mkdir -p "$data" && touch "$data/PREUVE" "$data/table"
  [[ -e $HOME/arret ]] && exit 137
  for script in "$INITDB_FOLDER"/*; do
    case $script in
      *.sql) [[ -e $HOME/refus ]] && exit 3; cat "$script" >> "$data/comptes" ;;
      *.sh) . "$script" ;;
    esac
  done
fi
echo servi
"""


class FirstStart:
    """Un conteneur de base de données : ``start`` le démarre."""

    def __init__(self, home: Path, data: str) -> None:
        self.home = home
        self.volume = home / "volume"
        self.data = self.volume / data
        self.initdb = home / "initdb"
        for folder in (self.volume, self.initdb):
            folder.mkdir(parents=True)
        program(home / "image", IMAGE)
        self.script = home / "roles.sql"
        self.script.write_text("CREATE ROLE pipeline;\n")
        self.script.chmod(0o600)  # un projet cloné sous « umask 077 »

    def start(self) -> str:
        """Sortie du conteneur, démarré une fois ; son code est dans ``code``."""
        done = subprocess.run(
            ["bash", CONFIG / "first-start.sh", self.data / "PREUVE", self.volume / ".temoin", self.script,
             self.home / "image", self.data],
            env=os.environ | {"INITDB_FOLDER": str(self.initdb), "HOME": str(self.home)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.code = done.returncode
        return done.stdout

    def accounts(self) -> str:
        """Ce que le script des comptes a créé."""
        path = self.data / "comptes"
        return path.read_text() if path.exists() else ""


@pytest.fixture(params=["18/docker", "."], ids=["postgres", "mongo"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> FirstStart:
    """PostgreSQL range ses données plus bas que le volume, MongoDB dedans."""
    return FirstStart(tmp_path, request.param)


def test_a_first_start_creates_the_accounts_once(database: FirstStart) -> None:
    """Le cas ordinaire : créé une fois ; les démarrages suivants ne touchent à rien."""
    assert database.start() == "servi\n"
    (database.data / "table").write_text("des ventes")
    assert database.start() == "servi\n"
    assert (database.accounts(), (database.data / "table").read_text()) == ("CREATE ROLE pipeline;\n", "des ventes")
    assert not (database.volume / ".temoin").exists()


@pytest.mark.parametrize("cause", ["refus", "arret"])
def test_a_failed_first_start_begins_again(database: FirstStart, cause: str) -> None:
    """Un script refusé, ou un arrêt avant lui : le serveur sans comptes n'est jamais servi, et la réparation suffit."""
    (database.home / cause).touch()
    for _ in range(2):
        assert "servi" not in database.start()
        assert database.code != 0
    (database.home / cause).unlink()
    output = database.start()
    assert "recommence de zéro" in output
    assert output.endswith("servi\n")
    assert database.accounts() == "CREATE ROLE pipeline;\n"


def test_a_server_from_before_is_left_alone(database: FirstStart) -> None:
    """Un volume créé avant first-start.sh n'a pas de témoin : il est servi tel quel."""
    database.data.mkdir(parents=True, exist_ok=True)
    (database.data / "PREUVE").touch()
    (database.data / "table").write_text("des ventes")
    assert database.start() == "servi\n"
    assert (database.data / "table").read_text() == "des ventes"


def test_scripts_are_readable_by_the_image_account(database: FirstStart) -> None:
    """Fermé à tous dans le projet, le script est lisible par tous dans le conteneur."""
    database.start()
    modes = {path.name: path.stat().st_mode & 0o777 for path in database.initdb.iterdir()}
    assert modes == {"10-roles.sql": 0o644, "99-fini.sh": 0o644}


# --- mongo-health.sh ---


def test_mongo_probe_logs_in_then_only_knocks(tmp_path: Path) -> None:
    """Rouge tant que le compte n'entre pas ; une fois entré, mongosh ne sert plus tant que le port est ouvert."""
    program(tmp_path / "path" / "mongosh", 'echo mongosh >> "$HOME/calls"; [[ -e $HOME/compte ]] && echo 1')

    def probe(port: int) -> tuple[bool, int]:
        done = subprocess.run(
            ["bash", CONFIG / "mongo-health.sh", "localhost", str(port)],
            env=environment(tmp_path) | {"TMPDIR": str(tmp_path)}, capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode == 0, len(calls(tmp_path))

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe(port) == (False, 1)
        assert probe(port) == (False, 1)
        (tmp_path / "compte").touch()
        assert probe(port) == (True, 1)
        assert probe(port) == (True, 0)
    (tmp_path / "compte").unlink()
    assert probe(port) == (False, 1)
