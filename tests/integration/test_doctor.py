"""« python -m services doctor » devant de vraies pannes : chacune nommée, avec son remède, et le bon code de sortie."""

import http.server
import itertools
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from commun.kafka import admin_config, client_config
from commun.settings import ROOT, bootstrap_servers, setting
from services.stack import NAMES, PORT_VARIABLES
from tests.conftest import services

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

pytestmark = pytest.mark.usefixtures("stack")

TRIES = 6  # sur une machine chargée, un serveur peut répondre après le délai de son contrôle : on recommence
Findings = list[dict[str, str]]


def doctor(*command: str, env: dict[str, str] | None = None) -> tuple[int, Findings]:
    """« doctor --json » : son code et ses constats. ``command`` : au lieu de « python -m services doctor »."""
    words = command or (sys.executable, "-m", "services", "doctor")
    done = subprocess.run(
        [*words, "--json"], cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    findings: Findings = json.loads(done.stdout)
    assert all(set(finding) == {"check", "state", "message", "cure"} for finding in findings)
    assert {finding["state"] for finding in findings} <= {"ok", "warning", "problem", "unknown"}
    problems = [finding for finding in findings if finding["state"] == "problem"]
    assert done.returncode == (1 if problems else 0), problems
    assert all(finding["cure"].endswith(".") for finding in findings if finding["state"] in ("warning", "problem"))
    return done.returncode, findings


def expect(check: str, state: str, message: str, cure: str = "", **options: Any) -> tuple[int, Findings]:
    """Un constat de ce contrôle, de cet état, où se lisent ``message`` et ``cure`` (des motifs).

    ``env``, ``command`` : ceux de doctor() ; ``also`` : un autre constat, de la même fois.
    """
    wanted = [(check, state, message, cure), *([options["also"][:4]] if options.get("also") else [])]
    for _ in range(TRIES):
        code, findings = doctor(*options.get("command", ()), env=options.get("env"))
        found = [next((finding for finding in findings if says(finding, *one)), None) for one in wanted]
        if all(found):
            for finding in filter(None, found):
                print(f"{finding['state']} {finding['check']} : {finding['message']}\n  → {finding['cure']}")
            return code, findings
    pytest.fail(f"{wanted} n'est pas dit : {json.dumps(findings, ensure_ascii=False, indent=1)}")


def says(finding: dict[str, str], check: str, state: str, message: str, cure: str) -> bool:
    """Vrai si ce constat est de ce contrôle et de cet état, et porte ces motifs."""
    same = (finding["check"], finding["state"]) == (check, state)
    return same and bool(re.search(message, finding["message"]) and re.search(cure, finding["cure"]))


def free_port() -> int:
    """Un port où personne n'écoute."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def test_a_healthy_stack_has_no_problem() -> None:
    """La pile des tests : aucun problème, code 0, et tout ce qui touche aux serveurs est bon."""
    good = {
        "Python",
        "paquets",
        "projet",
        "ports",
        "Kafka",
        "adresses annoncées",
        "topics",
        "Connect",
        "MongoDB",
        "PostgreSQL",
    }
    for _ in range(TRIES):
        code, findings = doctor()
        lacking = good - {finding["check"] for finding in findings if finding["state"] == "ok"}
        if not lacking:
            break
    assert (code, lacking) == (0, set()), findings
    text = services("doctor")
    assert (text.returncode, text.stderr, "\033" in text.stdout) == (0, "", False)
    assert "\n0 problème, " in text.stdout


def test_nothing_runs(tmp_path: Path) -> None:
    """Avant le premier démarrage : une phrase par serveur, avec la commande ; rien n'est créé."""
    env = {variable: str(free_port()) for name, variable in PORT_VARIABLES.items() if name in NAMES}
    env |= {"SERVICES_DATA": str(tmp_path / "neuf")}
    silent = ("ne répond pas sur localhost", "make services")
    code, findings = expect("Kafka", "problem", *silent, env=env)
    assert code == 1
    for server in ("MongoDB", "PostgreSQL"):
        assert any(says(finding, server, "problem", *silent) for finding in findings), findings
    assert "tous libres" in next(finding["message"] for finding in findings if finding["check"] == "ports")
    assert list(tmp_path.iterdir()) == []


def test_a_port_held_by_another_program() -> None:
    """Le programme, son numéro, et la variable qui change le port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
        holder = re.escape(f"{psutil.Process().name()} (pid {os.getpid()})")
        message = f"le port {port} de connect est pris par {holder}"
        code, _ = expect("ports", "problem", message, "PORT_CONNECT", env={"PORT_CONNECT": port})
    assert code == 1


def test_another_copy_of_the_project_holds_the_ports(tmp_path: Path) -> None:
    """Une autre copie du projet est nommée par son dossier de données, une fois pour tous ses ports."""
    message = r"autre copie du projet, de données .+pile \d.+ : \d+ \(kafka1\), .*\(postgres\)"
    code, _ = expect("ports", "problem", message, "make stop", env={"SERVICES_DATA": str(tmp_path)})
    assert code == 1


def test_refused_passwords_are_not_silence() -> None:
    """Un mot de passe changé après le premier démarrage : le serveur répond et refuse."""
    refused = "répond mais refuse le mot de passe de pipeline"
    expect("PostgreSQL", "problem", refused, "unset PGPASSWORD", env={"PGPASSWORD": "faux"})
    expect("MongoDB", "problem", "répond mais refuse ce compte", "unset MONGO_PASSWORD", env={"MONGO_PASSWORD": "faux"})
    expect("PostgreSQL", "warning", "refuse le mot de passe de tableau", env={"TABLEAU_PASSWORD": "faux"})
    expect("PostgreSQL", "problem", "ne répond pas sur .* : rien n'y écoute", env={"PGPORT": str(free_port())})
    expect("MongoDB", "problem", "ne répond pas sur .* : rien n'y écoute", env={"PORT_MONGO": str(free_port())})


def test_changed_administrators(tmp_path: Path) -> None:
    """Les mots de passe des deux administrateurs, changés dans .env : chacun se dit, et n'arrête rien.

    Ceux que l'on exporte ne règlent aucun serveur déjà créé : rien à en dire de plus.
    """
    changed = {"MONGO_ADMIN_PASSWORD": "admin-local", "POSTGRES_PASSWORD": "postgres-local"}
    text = (ROOT / ".env").read_text(encoding="utf-8")
    for name, password in changed.items():
        assert f"{name}={password}\n" in text
        text = text.replace(f"{name}={password}\n", f"{name}=autre\n")
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    code = (
        "import sys, pathlib\nfrom services.doctor import env_file\n"
        f"env_file.ENV = pathlib.Path({str(tmp_path / '.env')!r})\n"
        "from services.doctor.__main__ import main; sys.exit(main())"
    )
    command = (sys.executable, "-c", code)
    refused = "répond mais refuse le compte admin ou ce mot de passe"
    expect("MongoDB", "warning", refused, "MONGO_ADMIN_PASSWORD du premier démarrage", command=command)
    refused = "répond mais refuse le mot de passe de postgres"
    done, _ = expect("PostgreSQL", "warning", refused, "POSTGRES_PASSWORD du premier démarrage", command=command)
    assert done == 0
    for name in changed:
        expect("MongoDB" if "MONGO" in name else "PostgreSQL", "ok", "sur localhost", env={name: "autre"})


def test_a_frozen_database() -> None:
    """PostgreSQL gelé : la connexion s'ouvre, personne ne répond, et doctor ne l'attend pas."""
    pid = re.search(r"^postgres .*pid (\d+)", services("status").stdout, re.MULTILINE)
    assert pid
    assert services("pause", "postgres").returncode == 0
    try:
        expect("PostgreSQL", "problem", "personne n'y répond comme PostgreSQL", "services restart postgres")
    finally:
        assert services("resume", "postgres").returncode == 0


def test_killed_brokers() -> None:
    """Un broker sur trois : avertissement ; deux : problème."""
    try:
        services("kill", "kafka2")
        code, _ = expect("Kafka", "warning", "^kafka2 .*ne répond pas ; les deux autres suffisent", "restart kafka2")
        assert code == 0
        services("kill", "kafka3")
        code, _ = expect(
            "Kafka", "problem", "(ne répondent pas : kafka2.*kafka3)|(personne n'y répond comme un broker)"
        )
        assert code == 1
    finally:
        assert services("up").returncode == 0


class Renamer(socketserver.BaseRequestHandler):
    """Relaie un broker en changeant, dans ses réponses, l'adresse qu'il annonce."""

    def handle(self) -> None:
        """Une connexion d'un client."""
        with socket.create_connection(("127.0.0.1", int(setting("PORT_KAFKA1")))) as broker:

            def back() -> None:
                with suppress(OSError):  # le client est parti
                    while data := broker.recv(65536):
                        self.request.sendall(data.replace(b"localhost", b"a.invalid"))

            answers = threading.Thread(target=back, daemon=True)
            answers.start()
            with suppress(OSError):
                while data := self.request.recv(65536):
                    broker.sendall(data)
                broker.shutdown(socket.SHUT_RDWR)
            answers.join(5)


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[str]:
    """Sert en arrière-plan ; donne le port."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield str(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def test_an_advertised_address_nobody_reaches() -> None:
    """Le broker répond, mais annonce une adresse inconnue d'ici : laquelle, et par où on l'a trouvé."""
    relay = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Renamer)
    relay.daemon_threads = True
    with serving(relay) as port:
        message = (
            rf"s'annonce à a.invalid:\d+ : la machine « a.invalid » est inconnue d'ici ; trouvé par localhost:{port}"
        )
        env = {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}"}
        code, _ = expect("adresses annoncées", "problem", message, "advertised.listeners", env=env)
    assert code == 1


@pytest.fixture
def topic() -> Callable[..., str]:
    """Crée un topic « ventes » à soi : ses partitions, ses réglages."""

    def create(partitions: int = 6, **config: str) -> str:
        name = f"ventes-doctor-{uuid.uuid4().hex[:8]}"
        settings = {"retention.ms": "-1"} | {key.replace("_", "."): text for key, text in config.items()}
        admin = AdminClient(admin_config(client_config({})))  # et non ensure_topics, qui refuserait ceux-là
        admin.create_topics([NewTopic(name, partitions, 3, config=settings)])[name].result(20)
        return name

    return create


def test_topics_that_break_the_promises(topic: Callable[..., str]) -> None:
    """Trop peu de partitions, une seule copie confirmée, des messages qui s'effacent ; des topics absents."""
    name = topic(2, min_insync_replicas="1", retention_ms="3600000")
    env = {"VENTES_TOPIC": name}
    code, findings = expect("topics", "warning", rf"{name} : 2 partition\(s\) au lieu de 6", "Recréez", env=env)
    said = " ".join(finding["message"] for finding in findings if finding["check"] == "topics")
    assert "min.insync.replicas=1 (réglage du topic)" in said
    assert "s'effacent au bout de 0,0417 jours" in said
    assert f"pas encore créés : {name}-dlq" in said
    assert code == 0
    strict = topic(min_insync_replicas="4")
    code, _ = expect(
        "topics",
        "problem",
        rf"{strict} : 3 copie\(s\) à jour .* toute écriture est refusée",
        env={"VENTES_TOPIC": strict},
    )
    assert code == 1


def test_records_from_the_future(topic: Callable[..., str]) -> None:
    """Un message daté du futur : le topic, l'avance. Au-delà d'une heure, Kafka 4 refuse le message de lui-même."""
    name = topic()
    producer = Producer({"bootstrap.servers": bootstrap_servers()})
    producer.produce(name, b"{}", timestamp=int((time.time() + 2700) * 1000))
    assert producer.flush(30) == 0
    code, _ = expect(
        "horloge", "warning", rf"datés du futur dans {name} \(de 4\d min\)", "NTP", env={"VENTES_TOPIC": name}
    )
    assert code == 0


def test_positions_that_will_be_forgotten(topic: Callable[..., str]) -> None:
    """Un groupe parti : le délai au bout duquel Kafka oublie où il en était, dix ans dans notre pile."""
    name = topic()
    consumer = Consumer({"bootstrap.servers": bootstrap_servers(), "group.id": name, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(name, 0, 0)], asynchronous=False)
    consumer.close()
    expect(
        "groupes",
        "ok",
        f"sans membre : .*{name}.* restent 3650 jours",
        env={"VENTES_GROUP": name},
    )


def test_connect_without_its_plugin() -> None:
    """Connect répond, mais sans FileStreamSource."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]" if self.path == "/connector-plugins" else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)) as port:
        expect("Connect", "warning", "n'a pas le greffon FileStreamSource", "plugin.path", env={"PORT_CONNECT": port})


def test_exported_variables() -> None:
    """PGSERVICE et PGHOST détournent PostgreSQL, KAFKA_ACKS arrête les scripts, le TLS manque aux serveurs."""
    postgres = [
        ("problem", "PGSERVICE ne se lit pas", "", {"PGSERVICE": "ailleurs"}),
        ("problem", "^PGSERVICE est posée, mais vide$", "^Retirez-la", {"PGSERVICE": ""}),
        ("problem", "« b.invalid » est inconnue d'ici", "PGHOST", {"PGHOST": "b.invalid"}),
        ("warning", "tableau", "^« unset TABLEAU_PASSWORD » :", {"TABLEAU_PASSWORD": "x"}),
        *(("problem", "", f"^« unset {name} » :", {name: text}) for name, text in (
            ("PGSSLMODE", "require"), ("PGREQUIREAUTH", "password"), ("PGTARGETSESSIONATTRS", "standby"),
            ("PGOPTIONS", "-c search_path=nope"), ("PGOPTIONS", "-c statement_timeout=1 -c search_path=nope"),
            ("PGTZ", "nulle part"), ("PIPELINE_PASSWORD", "x"), ("PIPELINE_DATABASE", "x"), ("PGHOSTADDR", "127.0.0.2"),
        )),
    ]  # fmt: skip
    others = [  # un contrôle à la fois de PostgreSQL et d'un autre serveur : ils ne se voient pas
        ("variables", "warning", "^PGSERVICE=ailleurs : libpq prend tout", "unset PGSERVICE", {}),
        *(("MongoDB", "problem", "refuse ce compte", f"^« unset {name} » :", {name: "autre"})
          for name in ("MONGO_DATABASE", "MONGO_PASSWORD")),
        ("CLUSTER_ID", "warning", "^court, posé dans ce terminal", "unset CLUSTER_ID", {"CLUSTER_ID": "court"}),
        ("MongoDB", "problem", "MONGO_URI ne se lit pas", "Corrigez MONGO_URI", {"MONGO_URI": "http://x"}),
        ("variables", "problem", "^KAFKA_ACKS=1 : changerait « acks »", "unset KAFKA_ACKS", {"KAFKA_ACKS": "1"}),
        ("Kafka", "problem", "No such configuration property", "", {"KAFKA_NIMPORTE_QUOI": "1"}),
        ("Kafka", "problem", "TLS ne s'établit pas", "unset KAFKA_SECURITY_PROTOCOL",
         {"KAFKA_SECURITY_PROTOCOL": "SSL"}),
    ]  # fmt: skip
    for (state, message, cure, env), other in itertools.zip_longest(postgres, others):
        expect("PostgreSQL", state, message, cure, env=env | (other[-1] if other else {}), also=other)


def test_foreign_servers() -> None:
    """Les mêmes serveurs, nommés par l'environnement : des avertissements, rien d'arrêté."""
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers(), "PGHOST": "127.0.0.1", "PGPASSWORD": setting("PGPASSWORD"),
        "MONGO_URI": f"mongodb://pipeline:pipeline-local@127.0.0.1:{setting('PORT_MONGO')}/?authSource=ventes_db",
    }  # fmt: skip
    code, findings = expect("MongoDB", "ok", "127.0.0.1", env=env)
    assert code == 0, findings
    assert not any("pipeline-local" in finding["message"] for finding in findings)


def test_exports_that_cannot_be_written(tmp_path: Path) -> None:
    """EXPORT_DIR sous un fichier ; sous un dossier fermé, quand on n'est pas root."""
    (tmp_path / "fichier").touch()
    message = "fichiers exportés : .*est un fichier"
    code, _ = expect(
        "dossiers", "problem", message, "EXPORT_DIR", env={"EXPORT_DIR": str(tmp_path / "fichier" / "exports")}
    )
    assert code == 1
    if os.getuid() != 0:
        closed = tmp_path / "fermé"
        closed.mkdir(0o555)
        expect("dossiers", "problem", "vous ne pouvez pas écrire", env={"EXPORT_DIR": str(closed / "exports")})


def test_a_proxy_without_exception() -> None:
    """Un proxy, et rien pour localhost : avertissement, code 0."""
    clean = dict.fromkeys(("no_proxy", "NO_PROXY"), "")
    code, _ = expect(
        "proxy", "warning", "n'exempte pas localhost", "no_proxy=localhost", env=clean | {"HTTP_PROXY": "http://p:3128"}
    )
    assert code == 0
    expect(
        "proxy",
        "ok",
        "aucun ne gêne",
        env={"HTTP_PROXY": "http://p:3128", "NO_PROXY": "localhost", "no_proxy": "localhost"},
    )


def test_an_environment_made_for_another_copy(tmp_path: Path) -> None:
    """L'environnement d'une autre copie du projet : ses scripts en importeraient les modules."""
    other = tmp_path / "autre copie"
    (other / "commun").mkdir(parents=True)
    (other / "commun" / "__init__.py").touch()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "copie.pth").write_text(f"{other}\n{sysconfig.get_paths()['purelib']}\n")
    command = (str(tmp_path / "env" / "bin" / "python"), "-m", "services", "doctor")
    code, _ = expect("projet", "problem", f"importeraient commun depuis {other}", "make install", command=command)
    assert code == 1


def test_an_environment_without_packages(tmp_path: Path) -> None:
    """Un environnement vide : les paquets sont nommés, le reste de ce qui peut l'être est regardé."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    command = (str(tmp_path / "env" / "bin" / "python"), "-m", "services", "doctor")
    code, findings = doctor(*command)
    said = {finding["check"]: finding for finding in findings}
    assert code == 1
    assert "confluent-kafka" in said["paquets"]["message"]
    assert said["Python"]["state"] == "ok"
    assert said["kafka"]["state"] == said["mongodb"]["state"] == said["postgresql"]["state"] == "unknown"


def programs(folder: Path, **outputs: str) -> dict[str, str]:
    """Des programmes qui répondent ce qu'on veut, avant les vrais sur le PATH ; leur texte est un script de shell."""
    for name, text in outputs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_an_old_compose_and_a_new_engine(tmp_path: Path) -> None:
    """Compose 1.29 et le moteur 29 : quelle API chacun parle, et la commande à taper à la place."""
    engine = 'case "$1" in version) echo "29.0.2 1.52 1.44";; info) echo 16000000000;; compose) echo 2.40.3;; esac'
    env = programs(tmp_path, docker=engine, docker_compose="echo 1.29.2")
    message = r"« docker-compose » 1.29.2 parle l'API 1.38, et ce moteur \(29.0.2\) n'accepte que 1.44 ou plus"
    code, _ = expect("Compose", "warning", message, "Tapez « docker compose »", env=env)
    assert code == 0
    only = programs(tmp_path, docker=engine.replace("echo 2.40.3", "exit 1"), docker_compose="echo 1.29.2")
    expect("Compose", "warning", message, "Installez Compose 2", env=only)


def test_docker_that_does_not_answer(tmp_path: Path) -> None:
    """Le moteur arrêté, interdit, ou si lent qu'on ne l'attend pas."""
    down = programs(tmp_path, docker="echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    expect("Docker", "warning", "le moteur ne répond pas", "make services", env=down)
    closed = programs(tmp_path, docker="echo 'permission denied while trying to connect' >&2; exit 1")
    expect("Docker", "warning", "n'a pas le droit", "usermod", env=closed)
    slow = programs(tmp_path, docker="exec sleep 30")
    expect("Docker", "warning", "ne répond pas en 6 s", env=slow)


def test_an_almost_full_disk() -> None:
    """Trois cents mégaoctets libres, dits par le système : problème, code 1."""
    code = (
        "import shutil, sys; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, 300 * 2**20)\n"
        "from services.doctor.__main__ import main; sys.exit(main())"
    )
    done, _ = expect(
        "disque", "problem", "^0,3 Go libres .*Kafka s'arrête", "make reset", command=(sys.executable, "-c", code)
    )
    assert done == 1


def test_colour_is_for_terminals_only() -> None:
    """Sur un terminal, de la couleur ; avec NO_COLOR ou dans un tube, aucune."""
    command = [sys.executable, "-m", "services", "doctor"]
    for env, coloured in (({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
        leader, follower = os.openpty()
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=follower)
        os.close(follower)
        text = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # le terminal se ferme avec le programme
                break
            if not data:
                break
            text += data
        os.close(leader)
        assert process.wait(60) == 0
        assert (b"\033[32m" in text) == coloured
