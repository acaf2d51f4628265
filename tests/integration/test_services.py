"""La pile locale : relance, coupure, ports pris, mauvais usage."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from commun import PipelineError
from commun.settings import ROOT, defaults, postgres_dsn, setting
from services import __main__ as services_main
from services import health
from services import stack as stack_module
from services.stack import Service, Stack
from services.supervise import Supervisor
from tests.conftest import family, listening_addresses, services
from tests.lab import Lab, expected, ids

import psutil
import psycopg2
import psycopg2.extensions
import pytest

pytestmark = pytest.mark.usefixtures("stack")


def test_up_is_idempotent() -> None:
    """« up » sur une pile en marche ne redémarre rien."""
    before = services("status").stdout
    done = services("up")
    after = services("status").stdout
    assert done.returncode == 0, done.stderr
    assert [line.split("pid")[1].split(",")[0] for line in before.splitlines() if "pid" in line] == [
        line.split("pid")[1].split(",")[0] for line in after.splitlines() if "pid" in line
    ]


def test_everything_listens_on_loopback_only() -> None:
    """Aucun port de la pile n'est ouvert sur le réseau ; Flink, dans test_flink.py."""
    assert listening_addresses() <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_a_taken_port_is_named(tmp_path: object) -> None:
    """Un port occupé : son numéro, qui l'occupe et la variable qui le change, en une phrase par service."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "up"],
        cwd=ROOT, env=os.environ | {"SERVICES_DATA": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    for variable, holder in (("PORT_POSTGRES", "postgres"), ("PORT_KAFKA2", "java")):
        port = os.environ[variable]
        assert any(port in line and holder in line and variable in line for line in done.stderr.splitlines())


@pytest.mark.timeout(60)
def test_the_first_failure_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un service mort en démarrant se dit tout de suite : ceux qui n'ont pas encore répondu ne sont plus attendus."""
    stack = Stack()
    monkeypatch.setattr(services_main, "READY_SECONDS", math.inf)
    monkeypatch.setattr(health, "checks", lambda _: {"kafka1": lambda: False, "connect": lambda: False})
    monkeypatch.setattr(Supervisor, "is_alive", lambda _, name: name != "connect")
    with pytest.raises(PipelineError, match="connect s'est arrêté en démarrant"):
        services_main.await_services(stack, Supervisor(stack), ["kafka1", "connect"])


@pytest.mark.parametrize("dying", [True, False])
def test_a_port_held_by_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch, *, dying: bool) -> None:
    """Un port que le noyau n'a pas encore repris à un mort est attendu ; celui d'un autre compte est refusé."""
    monkeypatch.setattr(psutil, "net_connections", lambda _kind: [])  # ni l'un ni l'autre ne se nomme
    with socket.create_server(("127.0.0.1", 0)) as held:
        service = Service("connect", [], held.getsockname()[1], "PORT_CONNECT")
        if dying:
            threading.Timer(0.5, held.close).start()
            health.refuse_taken_ports([service])
        else:
            with pytest.raises(PipelineError, match=f"{service.port} .* autre compte .* PORT_CONNECT"):
                health.refuse_taken_ports([service])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nimporte"], "n'est pas un choix possible"),
        (["kill"], "attend un nom de service"),
        (["up", "kafka1"], "ne prend pas de nom"),
        (["logs", "nimporte"], "n'est pas un choix possible"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], sentence: str) -> None:
    """Une mauvaise commande : une phrase en français, code 2."""
    done = services(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_flink_is_only_on_demand() -> None:
    """Ni démarré, ni montré, tant qu'on ne le demande pas ; un TaskManager seul est refusé en une phrase."""
    assert "manager" not in services("status").stdout
    done = services("restart", "taskmanager2")
    assert (done.returncode, done.stderr) == (1, "Flink ne tourne pas : démarrez-le avec « make flink ».\n")


def test_stopped_then_restarted() -> None:
    """Un service arrêté proprement se redémarre."""
    assert services("stop", "connect").stderr == "connect est arrêté.\n"
    assert "arrêté" in services("status").stdout
    assert services("restart", "connect").returncode == 0
    assert services("status").returncode == 0


def word(name: str) -> str:
    """Ce que « status » dit d'un service."""
    (line,) = [line for line in services("status").stdout.splitlines() if line.startswith(f"{name} ")]
    return line[19:].strip()


def open_postgres() -> psycopg2.extensions.connection:
    """Une connexion à PostgreSQL, qui fait ce qu'on lui demande sans transaction."""
    connection: psycopg2.extensions.connection = psycopg2.connect(**postgres_dsn())
    connection.autocommit = True
    return connection


def slow_query() -> psycopg2.extensions.connection:
    """Une connexion dont le serveur calcule sans jamais regarder si le chef est encore là."""
    connection: psycopg2.extensions.connection = psycopg2.connect(**postgres_dsn(), async_=1)
    wait_select(connection)
    connection.cursor().execute("SELECT count(*) FROM generate_series(1, 1000000000) AS n WHERE n % 7 = 3")
    return connection


def wait_select(connection: psycopg2.extensions.connection) -> None:
    """Attend qu'une connexion asynchrone soit prête."""
    while connection.poll() != psycopg2.extensions.POLL_OK:
        time.sleep(0.02)


def test_paused_then_resumed() -> None:
    """Un service gelé l'est en entier, « status » le dit sans attendre ; réveillé, il répond."""
    with contextlib.closing(open_postgres()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        ((backend,),) = cursor.fetchall()
        assert services("pause", "postgres").returncode == 0
        try:
            assert word("postgres").startswith("gelé")
            assert psutil.Process(backend).status() == psutil.STATUS_STOPPED
        finally:
            assert services("resume", "postgres").returncode == 0
        cursor.execute("SELECT 1")
        assert word("postgres").startswith("répond")


def test_up_wakes_what_is_frozen() -> None:
    """Un broker et le superviseur gelés : « up » les réveille, le dit, et tout répond sans rien redémarrer."""
    supervisor, *_ = family()
    pids = {name: state.pid for name, state in Supervisor(Stack()).states().items()}
    assert services("pause", "kafka1").returncode == 0
    supervisor.suspend()
    done = services("up")
    assert done.returncode == 0, done.stderr
    assert f"Le superviseur (pid {supervisor.pid}) était gelé : il est réveillé." in done.stderr
    assert f"kafka1 (pid {pids['kafka1']}) était gelé : il est réveillé." in done.stderr
    assert word("kafka1").startswith("répond")
    assert {name: state.pid for name, state in Supervisor(Stack()).states().items()} == pids


@pytest.mark.parametrize("command", ["stop", "kill"])
def test_postgres_leaves_no_process(command: str) -> None:
    """PostgreSQL tué en pleine requête, ou gelé puis arrêté : aucun de ses processus ne reste, et il redémarre."""
    with contextlib.closing(slow_query()):
        tree = Supervisor(Stack()).tree("postgres")
        assert len(tree) > 5
        if command == "stop":
            assert services("pause", "postgres").returncode == 0
        assert services(command, "postgres").returncode == 0
        assert [process for process in tree if process.is_running()] == []
    assert word("postgres") == ("mort" if command == "kill" else "arrêté")
    done = services("restart", "postgres")
    assert done.returncode == 0, done.stderr


def test_a_service_that_cannot_start_is_told_and_mended() -> None:
    """Mort en démarrant : la fin de son journal, le mot « mort », et il le reste ; réparé, « up » le démarre."""
    path = Stack().data / "kafka3.properties"
    good = path.read_text(encoding="utf-8")
    path.write_text(good.replace("process.roles=", "process.roles=rien,"), encoding="utf-8")
    done = services("restart", "kafka3")
    path.write_text(good, encoding="utf-8")
    assert done.returncode == 1
    assert "kafka3 s'est arrêté en démarrant. Fin de son journal" in done.stderr
    assert word("kafka3").startswith("mort (code ")
    assert services("stop", "kafka3").returncode == 0
    assert services("up").returncode == 0
    assert word("kafka3").startswith("répond")


def test_a_dead_supervisor_is_told_and_replaced() -> None:
    """Superviseur tué : « status » nomme ce qui tourne sans lui ; « up » remplace tout, sans port pris ni doublon."""
    supervisor, *others = family()
    supervisor.kill()
    status = services("status")
    assert status.returncode == 1
    assert "tournent sans superviseur" in status.stdout
    done = services("up")
    assert done.returncode == 0, done.stderr
    assert [process for process in others if process.is_running()] == []


def test_the_stack_is_found_from_any_terminal(tmp_path: Path) -> None:
    """Un autre TMPDIR, des variables de libpq, MongoDB ou Kafka qui traînent : la même pile, et elle répond."""
    foreign = {"TMPDIR": str(tmp_path), "PGDATABASE": "x", "PGUSER": "postgres", "PGPORT": "1", "MONGO_USER": "x",
               "MONGO_DATABASE": "x", "KAFKA_BOOTSTRAP_SERVERS": "x:1",
               "PGSERVICE": "x", "PIPELINE_PASSWORD": "x"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "services", "status"],
        cwd=tmp_path, env=os.environ | foreign, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("répond ") == 6
    assert "sans état" not in done.stdout


def test_a_running_stack_keeps_its_ports() -> None:
    """Un port demandé ailleurs : « up » dit lequel la pile a ; les autres commandes la retrouvent où elle est."""
    env = os.environ | {"PORT_MONGO": "21"}
    command = [sys.executable, "-m", "services"]
    done = subprocess.run([*command, "up"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("PORT_MONGO=21, mais cette pile tourne avec mongodb sur le port ")
    assert f"posez PORT_MONGO={Stack().ports['mongodb']}." in done.stderr
    done = subprocess.run([*command, "status"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("variable", "name", "server"),
    [("PIPELINE_PASSWORD", "postgres", "PostgreSQL"), ("PIPELINE_DATABASE", "postgres", "PostgreSQL"),
     ("MONGO_PASSWORD", "mongodb", "MongoDB")],
)  # fmt: skip
def test_a_changed_password_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str, server: str
) -> None:
    """Un compte de .env qui n'est plus celui du premier démarrage : une phrase, tout de suite, et sa cure."""
    changed = defaults() | {variable: "autre"}
    monkeypatch.setattr(stack_module, "defaults", lambda: changed)
    stack = Stack()
    with pytest.raises(PipelineError, match=f"{server} refuse le compte .* remettez l'ancien"):
        services_main.await_services(stack, Supervisor(stack), [name])


def test_logs_and_status() -> None:
    """Les journaux et l'état de chaque service sont lisibles."""
    assert services("logs", "postgres").stdout.strip()
    status = services("status")
    assert status.returncode == 0
    assert status.stdout.count("répond") == 6


def test_connect_offers_the_file_connector() -> None:
    """Kafka Connect répond et propose FileStreamSourceConnector, que connector.json demande."""
    command = ["bash", "services/config/register-connector.sh", "localhost", setting("PORT_CONNECT")]
    done = subprocess.run(
        [*command, "exercice1/connector.json"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "Connecteur csv-source inscrit : il tourne." in done.stdout, done.stderr


@pytest.mark.long
def test_a_power_cut_loses_nothing(lab: Lab) -> None:
    """Tous les processus tués d'un coup, superviseur compris : « up » redémarre et tout est encore là."""
    lab.produce(700)
    lab.consume(500)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    for process in family():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    done = services("up")
    assert done.returncode == 0, done.stderr
    assert lab.in_postgres()[0] == 500
    lab.consume(200)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    assert lab.in_mongo() == lab.in_files() == ids(expected(700))
    assert "Tout est égal" in lab.reconcile(700)
