"""docker-compose.yml et les réglages que les deux piles partagent."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from commun.kafka import DEAD_LETTER_TOPIC
from commun.settings import ROOT, defaults
from commun.transaction import POSITIONS_CONFIG
from exercice1 import consumer as csv_consumer
from exercice1 import producer as csv_producer
from exercice2 import consumer_resilient, kafka_monitor, producer_resilient
from exercice3 import producer
from services.health import read_topics
from services.stack import CONFIG, PORT_VARIABLES

COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml, lu."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


def test_compose_follows_the_specification() -> None:
    """Le schéma de Compose accepte le fichier, sans Docker."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]])
@pytest.mark.parametrize("profiles", [[], ["--profile", "flink", "--profile", "ui"]])
def test_compose_resolves(command: list[str], profiles: list[str]) -> None:
    """Chaque Compose installé ici lit le fichier sans un mot."""
    if (
        not shutil.which(command[0])
        or subprocess.run([*command, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"« {' '.join(command)} » n'est pas installé")
    done = subprocess.run([*command, *profiles, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_suits_the_three_generations(compose: dict[str, Any]) -> None:
    """Ni « version: », ni ce que Compose 1.29 refuse."""
    assert not {"version", "name", "include", "secrets", "configs"} & compose.keys()
    text = COMPOSE.read_text(encoding="utf-8")
    for refused in (
        "required:",
        "start_interval:",
        "pull_policy:",
        "dockerfile_inline:",
        "create_host_path:",
        "host_ip:",
        ":+",
        ":-",
    ):
        assert refused not in text, refused


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    """Tous les ports sont publiés sur 127.0.0.1, sous une variable de .env."""
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) >= 8
    for port in published:
        assert re.match(r"127\.0\.0\.1:\$\{(PORT_\w+)\}:", port), port


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    """Chaque image a un numéro de version."""
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.?\d*", service["image"]), name


def test_every_service_is_bounded(compose: dict[str, Any]) -> None:
    """Mémoire, journaux et redémarrage décidés ; les limites par défaut tiennent sur un portable de 8 Go."""
    total = 0.0
    for name, service in compose["services"].items():
        assert service["mem_limit"], name
        assert service["logging"], name
        assert service["restart"] == ("no" if name.endswith("-init") else "unless-stopped")
        if not name.endswith("-init"):
            assert "healthcheck" in service or name == "taskmanager"
            unit = {"g": 1024.0, "m": 1.0}[service["mem_limit"][-1]]
            total += 0 if "profiles" in service else float(service["mem_limit"][:-1]) * unit
    assert total <= 6 * 1024


def test_compose_variables_are_in_env(compose: dict[str, Any]) -> None:
    """Toute variable de docker-compose.yml a sa valeur dans .env, et tout port de .env sert."""
    text = COMPOSE.read_text(encoding="utf-8")
    used = set(re.findall(r"(?<!\$)\$\{(\w+)\}", text))
    assert used <= defaults().keys()
    assert {name for name in defaults() if name.startswith("PORT_")} <= used
    assert set(PORT_VARIABLES.values()) <= used


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    """Tout fichier monté existe, avec des fins de ligne LF."""
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                path = ROOT / volume.split(":")[0]
                assert path.exists(), volume
                for file in [path] if path.is_file() else path.rglob("*"):
                    assert file.is_dir() or b"\r" not in file.read_bytes(), file


def test_scripts_and_topics_file_agree() -> None:
    """Un script qui crée son topic le crée comme topics.conf."""
    topics = {
        topic.topic: (topic.num_partitions, topic.replication_factor, topic.config)
        for topic in read_topics(CONFIG / "topics.conf")
    }
    name, copies = producer.TOPIC, producer.REPLICATION_FACTOR
    assert topics[name] == (producer.PARTITIONS, copies, producer.TOPIC_CONFIG)
    assert topics[f"{name}-dlq"] == (1, copies, DEAD_LETTER_TOPIC)
    name, copies = producer_resilient.TOPIC, producer_resilient.REPLICATION_FACTOR
    stream = (producer_resilient.PARTITIONS, copies, producer_resilient.TOPIC_CONFIG)
    assert topics[name] == topics[consumer_resilient.VALID_TOPIC] == topics[kafka_monitor.OUTPUT] == stream
    assert topics[f"{kafka_monitor.OUTPUT}-dlq"] == (1, copies, DEAD_LETTER_TOPIC)
    assert topics[kafka_monitor.ALERTS] == (1, copies, producer_resilient.TOPIC_CONFIG)
    assert topics[f"{name}-positions"] == (1, copies, POSITIONS_CONFIG)
    assert topics[f"{name}-dlq"] == (1, copies, DEAD_LETTER_TOPIC)
    name, copies = csv_producer.TOPIC, csv_producer.REPLICATION_FACTOR
    assert name == csv_consumer.parse_options([]).topic == connector()["topic"]
    assert topics[name] == (csv_producer.PARTITIONS, copies, csv_producer.TOPIC_CONFIG)
    assert topics[f"{name}-positions"] == (1, copies, POSITIONS_CONFIG)
    assert topics[f"{name}-dlq"] == (1, copies, csv_producer.TOPIC_CONFIG)


def connector() -> dict[str, str]:
    """Réglages de connector.json."""
    config: dict[str, str] = json.loads((ROOT / "exercice1" / "connector.json").read_text(encoding="utf-8"))["config"]
    return config


@pytest.mark.parametrize(("name", "version"), [("kafka", "4.3.1"), ("flink", "2.2.1")])
def test_lock_file_is_complete(name: str, version: str) -> None:
    """Chaque jar a sa somme, une seule version de chaque, et celles de Kafka ou de Flink sont toutes les mêmes."""
    lines = (ROOT / f"services/jars/{name}.lock").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest, _ in rows)
    names = [coordinates.rsplit(":", 1)[0] for _, coordinates in rows]
    assert len(names) == len(set(names))
    own = {c.split(":")[2] for _, c in rows if re.match(rf"org\.apache\.{name}:(?!flink-(shaded|sql-connector))", c)}
    assert own == {version}


def test_no_password_in_the_scripts() -> None:
    """Aucun mot de passe de .env n'est écrit ailleurs que dans .env."""
    passwords = [value for name, value in defaults().items() if "PASSWORD" in name]
    folders = ("commun", "exercice1", "exercice2", "exercice3", "services", "bench")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sql", ".js", ".sh"}
    ]
    files += [COMPOSE, Path(ROOT / "Makefile")]
    for path in files:
        for password in passwords:
            assert password not in path.read_text(encoding="utf-8"), path


def test_stopping_installs_nothing(tmp_path: Path) -> None:
    """Arrêter, regarder, effacer : sans réseau, même si les listes de paquets viennent de changer."""
    targets = ("stop", "status", "reset", "reconcile")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "services/requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for target in targets:
        done = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, "« make services » installe" in done.stderr) == (2, True), target
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "pip" not in done.stdout, target
    done = subprocess.run(["make", "-n", "services"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
    assert "requirements-dev" not in done.stdout, "les outils des développeurs ne sont pas de « make demo »"
