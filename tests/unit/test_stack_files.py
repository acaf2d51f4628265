"""docker-compose.yml et les réglages que les deux piles partagent."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from commun.exactly_once import POSITIONS_CONFIG
from commun.kafka import DEAD_LETTER_TOPIC
from commun.settings import ROOT, defaults
from exercice1 import consumer as csv_consumer
from exercice1 import topic as csv_topic
from exercice2 import kafka_monitor
from exercice2 import topic as bank_topic
from exercice3 import confirmations, consumer, pg, producer, schedule_export
from services.health import read_topics
from services.stack import CONFIG, PORT_VARIABLES

import pytest
import yaml
from pymongo import uri_parser

COMPOSE = ROOT / "docker-compose.yml"
PYPROJECT = ROOT / "pyproject.toml"


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
@pytest.mark.parametrize("profiles", [[], ["--profile", "flink", "--profile", "ui", "--profile", "pipeline"]])
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
    ):
        assert refused not in text, refused
    assert not re.search(r"\$\{\w+:?[-+]", text)


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
            # Un TaskManager ou un script se juge à son travail : Flink remplace l'un, reconcile.py compte pour l'autre.
            assert "healthcheck" in service or name == "taskmanager" or service["profiles"] == ["pipeline"]
            unit = {"g": 1024.0, "m": 1.0}[service["mem_limit"][-1]]
            total += 0 if "profiles" in service else float(service["mem_limit"][:-1]) * unit
    assert total <= 6 * 1024


def test_stopping_takes_seconds(compose: dict[str, Any]) -> None:
    """Sans init, bash est le processus 1 et n'entend pas SIGTERM ; un service qui finit seul n'a rien à fermer."""
    for name, service in compose["services"].items():
        if name.endswith("-init") or service["image"].startswith("apache/kafka:"):
            assert service["init"] is True, name
        if name.endswith("-init"):
            assert service["stop_grace_period"] == "5s", name


# Les volumes que chaque image officielle déclare (VOLUME) : sans rien dessus, un volume sans nom de plus.
DECLARED = {
    "apache/kafka": {"/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"},
    "mongo": {"/data/db", "/data/configdb"},
    "postgres": {"/var/lib/postgresql"},
}


def test_no_anonymous_volume(compose: dict[str, Any]) -> None:
    """Chaque volume qu'une image déclare est un volume nommé, ou de la mémoire : rien ne reste après « down »."""
    for name, service in compose["services"].items():
        mounted = {volume.split(":")[1] for volume in service.get("volumes", [])} | set(service.get("tmpfs", []))
        assert DECLARED.get(service["image"].split(":")[0], set()) <= mounted, name
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("./")}
        assert named <= compose["volumes"].keys(), name
    assert "kafka1-data:/var/lib/kafka/data" in compose["services"]["kafka1"]["volumes"]


def test_projects_cloned_under_umask_077_start(compose: dict[str, Any]) -> None:
    """Seul root lit un dossier du projet ; les comptes des images en ont une copie (config-init, first-start.sh)."""
    for name, service in compose["services"].items():
        mounts = [volume for volume in service.get("volumes", []) if volume.startswith("./")]
        image = service["image"].split(":")[0]
        by_root = service.get("user") == "root" if image == "apache/kafka" else image in {"mongo", "postgres", "maven"}
        assert by_root or not mounts, name
        assert all(mount.endswith(":ro") for mount in mounts), name
        if by_root and image == "apache/kafka":  # de root, il ne reste que le pouvoir de lire ces dossiers
            assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["DAC_OVERRIDE"])
    services = compose["services"]
    copied = set(re.findall(r"[\w.*-]+\.(?:properties|conf|sh|json)", services["config-init"]["command"][0]))
    assert copied == {"server.properties", "connect.properties", "topics.conf", "*.sh", "connector.json"}
    for name in ("kafka1", "kafka2", "kafka3"):
        assert services[name]["depends_on"] == {"config-init": {"condition": "service_completed_successfully"}}


def test_healthy_database_has_its_accounts(compose: dict[str, Any]) -> None:
    """La sonde d'une base se connecte avec le compte des scripts, et son premier démarrage est entier ou nul."""
    postgres, mongodb = compose["services"]["postgres"], compose["services"]["mongodb"]
    probe = postgres["healthcheck"]["test"][1]
    assert all(f"$$PIPELINE_{name}" in probe for name in ("USER", "PASSWORD", "DATABASE"))
    assert "-h 127.0.0.1" in probe
    assert mongodb["healthcheck"]["test"] == ["CMD", "bash", "/config/mongo-health.sh", "mongodb", "27017"]
    for service, data, script in (
        (postgres, "/var/lib/postgresql", "roles.sql"),
        (mongodb, "/data/db", "mongo-user.js"),
    ):
        assert service["entrypoint"][:2] == ["bash", "/config/first-start.sh"]
        proof, witness, first = service["entrypoint"][2:]
        assert proof.startswith(f"{data}/")
        assert witness.startswith(f"{data}/")
        assert first == f"/config/{script}"
        assert service["command"][0] == "docker-entrypoint.sh"
        assert not any("/docker-entrypoint-initdb.d" in volume for volume in service["volumes"])


def test_kafka_probe_has_a_second_way(compose: dict[str, Any], tmp_path: Path) -> None:
    """La sonde d'un broker, exécutée : par /dev/tcp, par nc si ce bash ne l'a pas, et rouge si le port est fermé."""
    program = compose["services"]["kafka1"]["healthcheck"]["test"][3]
    assert compose["services"]["kafka3"]["healthcheck"] == compose["services"]["kafka1"]["healthcheck"]
    nc = tmp_path / "nc"
    nc.write_text('#!/bin/sh\nexec bash -c "</dev/tcp/$2/$3"\n')
    nc.chmod(0o755)

    def probe(port: int, text: str) -> int:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", "-c", text.replace("29092", str(port))]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe(port, program) == 0
        assert probe(port, program.replace("/dev/tcp", "/dev/absent")) == 0
    assert probe(port, program) != 0


# --- Le profil pipeline ---

SCRIPTS = ("producer", "consumer", "schedule_export", "pg")


def test_pipeline_runs_the_four_scripts(compose: dict[str, Any]) -> None:
    """Chacun lance son script, sans fin, avec des options qui existent, et attend ce dont il a besoin."""
    found = {name: service for name, service in compose["services"].items() if service.get("profiles") == ["pipeline"]}
    assert tuple(found) == SCRIPTS
    modules = {"producer": producer.parse, "consumer": consumer.parse_options, "schedule_export": schedule_export.parse}
    for name, service in found.items():
        python, script, *options = service["command"]
        assert (python, script) == ("python", f"{name}.py")
        (modules | {"pg": pg.parse})[name](options)
        assert "build" in service
        assert service["read_only"] is True
        assert ("exports:/exports" in service.get("volumes", [])) == (name in {"schedule_export", "pg"})
    needs = {name: set(service["depends_on"]) for name, service in found.items()}
    assert needs == {
        "producer": {"kafka-init"}, "consumer": {"kafka-init", "mongodb"},
        "schedule_export": {"mongodb"}, "pg": {"postgres"},
    }  # fmt: skip


def test_pipeline_reaches_the_servers(compose: dict[str, Any]) -> None:
    """Les adresses sont celles que les serveurs annoncent aux conteneurs ; aucun mot de passe n'est écrit."""
    environment = compose["services"]["consumer"]["environment"]
    assert all(compose["services"][name]["environment"] == environment for name in SCRIPTS)
    advertised = [
        compose["services"][f"kafka{node}"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] for node in (1, 2, 3)
    ]
    internal = [re.search(r"INTERNAL://([^,]+)", text) for text in advertised]
    assert environment["KAFKA_BOOTSTRAP_SERVERS"] == ",".join(match[1] for match in internal if match)
    assert (environment["PGHOST"], environment["PGPORT"]) == ("postgres", 5432)
    uri = re.sub(r"\$\{(\w+)\}", lambda match: defaults()[match[1]], environment["MONGO_URI"])
    parsed = uri_parser.parse_uri(uri)
    assert parsed["nodelist"] == [("mongodb", 27017)]
    assert (parsed["username"], parsed["password"]) == (defaults()["MONGO_USER"], defaults()["MONGO_PASSWORD"])
    for name in ("USER", "PASSWORD", "DATABASE"):
        assert environment[f"PG{name}"] == f"${{PIPELINE_{name}}}"


def test_image_holds_what_the_scripts_import(compose: dict[str, Any]) -> None:
    """Dockerfile copie les modules de l'exercice 3 et rien d'autre, et .dockerignore les laisse passer, sauf .env."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1].rstrip("/") for line in text.splitlines() if line.startswith("COPY ")]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    assert "*" in ignored
    assert not any(line.startswith("!") and line[1:] not in {*copied, "services"} for line in ignored)
    imported = {
        name
        for folder in ("commun", "exercice3")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if (ROOT / name).is_dir()
    }
    assert imported <= set(copied)
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    low, high = re.findall(r"3\.(\d+)", re.findall(r'requires-python = "(.*)"', PYPROJECT.read_text())[0])
    version = re.search(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert version
    assert int(low) <= int(version[1]) < int(high)
    # Ce que Dockerfile attend du terminal, Compose le transmet ; Docker connaît de lui-même HTTP_PROXY et les siens.
    arguments = compose["services"]["pg"]["build"]["args"]
    assert set(re.findall(r"^ARG (\w+)", text, re.MULTILINE)) == {name for name in arguments if name.startswith("PIP_")}
    assert {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} <= set(arguments)


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
    assert topics[f"{name}{confirmations.SUFFIX}"] == (1, copies, confirmations.TOPIC_CONFIG)
    name, copies = bank_topic.TOPIC, bank_topic.REPLICATION_FACTOR
    stream = (bank_topic.PARTITIONS, copies, bank_topic.TOPIC_CONFIG)
    assert topics[name] == topics[bank_topic.VALID_TOPIC] == topics[kafka_monitor.OUTPUT] == stream
    assert topics[f"{kafka_monitor.OUTPUT}-dlq"] == (1, copies, DEAD_LETTER_TOPIC)
    assert topics[kafka_monitor.ALERTS] == (1, copies, bank_topic.TOPIC_CONFIG)
    assert topics[f"{name}-positions"] == (1, copies, POSITIONS_CONFIG)
    assert topics[f"{name}-dlq"] == (1, copies, DEAD_LETTER_TOPIC)
    name, copies = csv_topic.TOPIC, csv_topic.REPLICATION_FACTOR
    assert name == csv_consumer.parse_options([]).topic == connector()["topic"]
    assert topics[name] == (csv_topic.PARTITIONS, copies, csv_topic.TOPIC_CONFIG)
    assert topics[f"{name}-positions"] == (1, copies, POSITIONS_CONFIG)
    assert topics[f"{name}-dlq"] == (1, copies, csv_topic.TOPIC_CONFIG)


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
    files += [COMPOSE, ROOT / "Dockerfile", Path(ROOT / "Makefile")]
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
