"""Flink : start-job.sh, fenetres.sql, et ce que les deux piles en font. Sans serveur."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commun.settings import ROOT
from exercice2 import kafka_monitor
from exercice2.topic import PARTITIONS, TOPIC, TOPIC_CONFIG
from services.health import read_topics
from services.stack import CONFIG

import pytest
import yaml

SCRIPT = ROOT / "exercice2" / "flink" / "start-job.sh"
SQL = SCRIPT.with_name("fenetres.sql").read_text(encoding="utf-8")
JOB = f"{TOPIC}-toutes"  # dossier d'état du job par défaut


def start(state: Path, variables: Mapping[str, str] | None = None, code: int = 0) -> list[str]:
    """start-job.sh, dont la commande écrit les arguments qu'elle reçoit ; rend ce qu'elle a écrit, ligne par ligne."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLINK", "TRANSACTIONS"))}
    done = subprocess.run(
        ["bash", SCRIPT, "printf", "%s\\n"], capture_output=True, text=True, encoding="utf-8", check=False,
        env=environment | {"FLINK_STATE": str(state), "KAFKA_BOOTSTRAP_SERVERS": "localhost:9092", **(variables or {})},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return (done.stdout + done.stderr).splitlines()


def checkpoint(state: Path, name: str, at: int, *, complete: bool = True) -> Path:
    """Une photographie, prise à l'instant ``at``."""
    folder = state / name
    folder.mkdir(parents=True)
    if complete:
        (folder / "_metadata").touch()
        os.utime(folder / "_metadata", (at, at))
    return folder


def test_script_is_filled(tmp_path: Path) -> None:
    """Chaque nom entre ${ } a sa valeur ; la commande reçoit le job et le script rempli."""
    names = {"TRANSACTIONS_TOPIC": "entree", "TRANSACTIONS_FENETRES_FLINK": "sortie", "FLINK_BY": "compte"}
    arguments = start(tmp_path, names)
    filled = tmp_path / "entree-compte" / "fenetres.sql"
    assert arguments[-3:] == [
        "org.apache.flink.table.runtime.application.SqlDriver", "--scriptUri", f"file://{filled}",
    ]  # fmt: skip
    text = filled.read_text(encoding="utf-8")
    assert "${" not in re.sub(r"--.*", "", text)
    for wanted in ("'topic' = 'entree'", "'topic' = 'sortie'", "CASE 'compte' WHEN", "'localhost:9092'"):
        assert wanted in text


def test_first_start_reads_from_the_beginning(tmp_path: Path) -> None:
    """Sans photographie complète de ce job, aucune reprise."""
    checkpoint(tmp_path, f"{JOB}/job1/chk-9", 900, complete=False)
    checkpoint(tmp_path, f"{TOPIC}-compte/job1/chk-9", 900)
    assert "--fromSavepoint" not in start(tmp_path)


def test_restart_takes_the_newest_checkpoint(tmp_path: Path) -> None:
    """La plus récente des complètes, quel que soit son numéro : un job relancé en a d'autres."""
    checkpoint(tmp_path, f"{JOB}/job1/chk-12", 100)
    newest = checkpoint(tmp_path, f"{JOB}/job2/chk-3", 300)
    checkpoint(tmp_path, f"{JOB}/job0/chk-40", 200)
    checkpoint(tmp_path, f"{JOB}/job2/chk-4", 400, complete=False)
    arguments = start(tmp_path)
    assert arguments[arguments.index("--fromSavepoint") + 1] == str(newest)


@pytest.mark.parametrize(
    ("name", "value"),
    [("FLINK_BY", "montant"), ("TRANSACTIONS_TOPIC", "t'; DROP"), ("KAFKA_BOOTSTRAP_SERVERS", "")],
)
def test_bad_names_are_refused(tmp_path: Path, name: str, value: str) -> None:
    """Une clé inconnue, un nom qui changerait le SQL, une adresse vide : une phrase, code 2, rien d'écrit."""
    (said,) = start(tmp_path, {name: value}, code=2)
    assert said.startswith(f"{name}={value} ")
    assert not list(tmp_path.iterdir())


def test_job_has_the_settings_of_the_monitor() -> None:
    """Longueur, pas, retard attendu, silence : ceux de kafka_monitor.py par défaut."""
    args = kafka_monitor.parse_options([])
    assert f"INTERVAL '{args.slide_ms // 1000}' SECOND, INTERVAL '{args.size_ms // 1000}' SECOND)" in SQL
    assert f"RANGE BETWEEN INTERVAL '{args.size_ms // 1000}' SECOND PRECEDING" in SQL
    assert f"AS `timestamp` - INTERVAL '{args.max_delay_ms // 1000}' SECOND" in SQL
    assert f"'scan.watermark.idle-timeout' = '{args.idle_timeout:g} s'" in SQL
    assert SQL.count("nombre / 60.0") == 2


def test_output_topic_is_the_monitors_twin() -> None:
    """Le topic de Flink est créé comme celui du moniteur."""
    topics = {topic.topic: topic for topic in read_topics(CONFIG / "topics.conf")}
    twin = topics[f"{kafka_monitor.OUTPUT}-flink"]
    assert (twin.num_partitions, twin.config) == (PARTITIONS, TOPIC_CONFIG)


# --- docker-compose.yml ---


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Les services de docker-compose.yml."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return services


def properties(service: dict[str, Any]) -> dict[str, str]:
    """FLINK_PROPERTIES d'un service, comme l'image les lit : sans aucun espace."""
    lines = service["environment"]["FLINK_PROPERTIES"].splitlines()
    assert all(re.fullmatch(r"[\w.-]+: [^\s$]+", line) for line in lines), lines
    return dict(line.split(": ") for line in lines)


def test_both_stacks_run_the_same_flink(compose: dict[str, Any]) -> None:
    """Même version, mêmes places, même ordonnanceur, mêmes délais ; le connecteur est celui de flink.lock."""
    version = re.search(r"<flink.version>(.*)</", (ROOT / "services/jars/flink.xml").read_text())
    assert version
    local = yaml.safe_load((CONFIG / "flink.yaml").read_text(encoding="utf-8"))
    for name in ("jobmanager", "taskmanager"):
        assert compose[name]["image"].startswith(f"flink:{version[1]}-")
        own = properties(compose[name])
        shared = {key: value for key, value in own.items() if ".memory." not in key and ".rpc." not in key}
        assert len(shared) == 6
        assert shared.items() <= {key: str(value) for key, value in local.items()}.items()
    lock = (ROOT / "services/jars/flink.lock").read_text()
    assert f"org.apache.flink:flink-runtime:{version[1]}" in lock
    assert len(re.findall(r"flink-sql-connector-kafka:\S+-2\.2$", lock, re.MULTILINE)) == 1


def test_memory_fits(compose: dict[str, Any]) -> None:
    """Chaque processus Flink tient dans la limite de son conteneur ; le tas local est la somme de ses parts."""
    for name in ("jobmanager", "taskmanager"):
        size = int(properties(compose[name])[f"{name}.memory.process.size"].removesuffix("m"))
        assert size < int(compose[name]["mem_limit"].removesuffix("m"))
    local = yaml.safe_load((CONFIG / "flink.yaml").read_text(encoding="utf-8"))
    heap = sum(int(local[f"taskmanager.memory.{part}.heap.size"].removesuffix("m")) for part in ("framework", "task"))
    assert f'"-Xmx{heap}m"' in (ROOT / "services" / "flink.py").read_text()


def test_containers_share_state_and_connector(compose: dict[str, Any]) -> None:
    """Les photographies sont dans un volume commun ; personne ne part avant que flink-init n'ait fini."""
    for name in ("jobmanager", "taskmanager"):
        assert {"flink-state:/state", "flink-connector:/connector:ro"} <= set(compose[name]["volumes"])
        assert "cp" in compose[name]["command"][0]
        assert "/connector/*.jar /opt/flink/lib/" in compose[name]["command"][0]
    finished = {"condition": "service_completed_successfully"}
    assert compose["jobmanager"]["depends_on"] == {"flink-init": finished, "kafka-init": finished}
    assert compose["taskmanager"]["depends_on"] == {"jobmanager": {"condition": "service_healthy"}}
    assert "chown 9999:9999 /state" in compose["flink-init"]["command"][0]
    assert "start-job.sh /docker-entrypoint.sh standalone-job" in compose["jobmanager"]["command"][0]


def test_connector_is_checked(tmp_path: Path) -> None:
    """flink-connector.sh refuse un jar qui n'a pas la somme de flink.lock, et le dit."""
    maven = tmp_path / "mvn"
    maven.write_text(f"#!/bin/sh\necho faux > {tmp_path}/flink-sql-connector-kafka.jar\n")
    maven.chmod(0o755)
    done = subprocess.run(
        ["bash", CONFIG / "flink-connector.sh", ROOT / "services/jars/flink.lock", tmp_path],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "n'est pas celui attendu" in done.stderr) == (1, True)
