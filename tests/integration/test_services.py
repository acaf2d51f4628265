"""La pile locale : relance, coupure, ports pris, mauvais usage."""

import math
import os
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from commun.errors import PipelineError
from commun.settings import ROOT, setting
from services import __main__ as services_main
from services import health
from services.stack import Service, Stack
from services.supervise import Supervisor
from tests.conftest import listening_addresses, services
from tests.lab import Lab, expected, ids

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
    monkeypatch.setattr(services_main, "is_running", lambda _, name: lambda: name != "connect")
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


def test_paused_then_resumed() -> None:
    """Un service gelé ne répond plus, réveillé il répond."""
    assert services("pause", "connect").returncode == 0
    try:
        assert services("status").stdout.count("tourne mais ne répond pas") == 1
    finally:
        assert services("resume", "connect").returncode == 0
    assert services("up").returncode == 0


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


def test_a_power_cut_loses_nothing(lab: Lab) -> None:
    """Tous les processus tués d'un coup, superviseur compris : « up » redémarre et tout est encore là."""
    lab.produce(700)
    lab.consume(500)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    data = str(Stack().data)
    for process in psutil.process_iter(["cmdline", "pid"]):
        if data in " ".join(process.info["cmdline"] or ()):
            process.send_signal(signal.SIGKILL)
    done = services("up")
    assert done.returncode == 0, done.stderr
    assert lab.in_postgres()[0] == 500
    lab.consume(200)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    assert lab.in_mongo() == lab.in_files() == ids(expected(700))
    assert "Tout est égal" in lab.reconcile(700)
