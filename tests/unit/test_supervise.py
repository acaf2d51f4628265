"""Le superviseur : un vrai supervisord, et de petits programmes à la place des serveurs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from commun import PipelineError
from commun.settings import ROOT
from services import __main__ as services_main
from services import health, supervise
from services.doctor import supervisor as doctor
from services.stack import Service, Stack
from services.supervise import State, Supervisor, is_frozen
from tests import conftest
from tests.lab import wait_until

import psutil
import pytest

pytestmark = pytest.mark.timeout(120, func_only=False)

NAMES = ("kafka1", "connect", "postgres")
# Prié de s'arrêter, il le fait, et laisse un mot ; sourd, il attend qu'on le tue.
POLITE = "trap 'touch {0}.adieu; exit' TERM INT; touch {0}.ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM INT; touch {0}.ready; while :; do sleep 0.05; done"


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Le superviseur d'une pile vide ; à la fin, rien de ce qui part de son dossier ne reste."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    stack = Stack()
    stack.adopt()
    yield Supervisor(stack)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # un autre, qui meurt à cet instant
            if Path(process.cwd()).is_relative_to(stack.data):
                process.kill()


def start(supervisor: Supervisor, script: str = POLITE) -> dict[str, int]:
    """Démarre trois services, et attend qu'ils soient prêts ; renvoie leurs pid."""
    data = supervisor.stack.data
    mark = f"-Dpipeline={data}"  # à quoi la pile reconnaît les siens
    services = [
        Service(name, ["sh", "-c", script.format(name), "sh", mark], 1, "", stop_seconds=2) for name in NAMES
    ]  # fmt: skip
    supervisor.start(services, NAMES)
    wait_until(lambda: all((data / f"{name}.ready").exists() for name in NAMES), 60)
    return {name: state.pid for name, state in supervisor.states().items()}


def goodbyes(supervisor: Supervisor) -> set[str]:
    """Les services qui se sont arrêtés d'eux-mêmes."""
    return {path.stem for path in supervisor.stack.data.glob("*.adieu")}


def running(pids: dict[str, int]) -> set[str]:
    """Ceux de ces processus qui existent encore."""
    return {name for name, pid in pids.items() if psutil.pid_exists(pid)}


def supervisord(supervisor: Supervisor) -> psutil.Process:
    """Son processus."""
    process = supervisor.process()
    assert process
    return process


def freeze(process: psutil.Process) -> None:
    """Gèle un processus ; le noyau y met un instant."""
    process.suspend()
    wait_until(lambda: is_frozen(process.pid), 60)


def test_a_frozen_service_hears_that_it_is_stopped(supervisor: Supervisor) -> None:
    """Gelé puis arrêté : il est réveillé d'abord, et s'arrête de lui-même au lieu d'être tué."""
    pids = start(supervisor)
    supervisor.pause("kafka1")
    supervisor.stop("kafka1")
    assert goodbyes(supervisor) == {"kafka1"}
    assert running(pids) == {"connect", "postgres"}
    assert supervisor.states()["kafka1"].word == "arrêté"


def test_frozen_services_hear_that_all_is_stopped(supervisor: Supervisor) -> None:
    """« down » réveille aussi : chacun s'arrête de lui-même."""
    pids = start(supervisor)
    for name in NAMES:
        supervisor.pause(name)
    supervisor.shutdown()
    assert goodbyes(supervisor) == set(NAMES)
    assert not running(pids)
    assert supervisor.process() is None


@pytest.mark.parametrize("action", ["stop", "start"])
def test_a_process_left_by_a_dead_postgres_is_ended(supervisor: Supervisor, tmp_path: Path, action: str) -> None:
    """Le chef est mort, une requête calcule encore et tient les données : elle part avant tout nouveau démarrage."""
    start(supervisor)
    if action == "start":
        supervisor.kill("postgres")
    home = supervisor.stack.data / "postgres"
    home.mkdir()
    (tmp_path / "postgres").symlink_to("/bin/sleep")  # le noyau prend son nom dans celui du fichier
    with subprocess.Popen(["sleep", "60"], executable=tmp_path / "postgres", cwd=home) as left:
        if action == "start":
            start(supervisor)
        else:
            supervisor.stop("postgres")
        ended = not psutil.pid_exists(left.pid)
        left.kill()
    assert ended


def test_a_service_that_could_not_be_launched_is_launched_later(supervisor: Supervisor) -> None:
    """Son journal ne s'ouvre pas : c'est dit ; la cause ôtée, il démarre aussitôt."""
    start(supervisor)
    supervisor.stop("kafka1")
    journal = supervisor.stack.logs / "kafka1.log"
    journal.rename(journal.with_suffix(".old"))
    journal.mkdir()
    with pytest.raises(PipelineError, match="kafka1 ne peut pas être lancé"):
        start(supervisor)
    journal.rmdir()
    assert psutil.pid_exists(start(supervisor)["kafka1"])


def test_a_frozen_service_is_woken_by_start(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """« up » réveille ce qui est gelé, le dit, et ne redémarre rien."""
    pids = start(supervisor)
    supervisor.pause("kafka1")
    assert start(supervisor) == pids
    assert not is_frozen(pids["kafka1"])
    assert f"kafka1 (pid {pids['kafka1']}) était gelé : il est réveillé." in caplog.messages


def test_a_frozen_supervisor_is_woken(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """Supervisord gelé : la première question le réveille et le dit, au lieu d'attendre toujours."""
    start(supervisor)
    process = supervisord(supervisor)
    freeze(process)
    assert supervisor.alive()
    assert not is_frozen(process.pid)
    assert f"Le superviseur (pid {process.pid}) était gelé : il est réveillé." in caplog.messages


def test_doctor_looks_at_the_supervisor_without_a_word_to_it(supervisor: Supervisor) -> None:
    """Absent, présent, gelé, mort sous ses services : doctor le dit, et ne le réveille pas."""
    assert doctor.supervisor() == []
    start(supervisor)
    process = supervisord(supervisor)
    (finding,) = doctor.supervisor()
    assert (finding.state, f"pid {process.pid}" in finding.message) == ("ok", True)
    freeze(process)
    (finding,) = doctor.supervisor()
    assert (finding.state, "est gelé" in finding.message) == ("warning", True)
    assert "make status" in finding.cure
    assert is_frozen(process.pid)
    process.kill()
    wait_until(lambda: supervisor.process() is None, 60)
    (finding,) = doctor.supervisor()
    assert (finding.state, "tournent sans lui" in finding.message) == ("warning", True)


def test_a_stranger_with_the_supervisor_s_number_is_left_alone(supervisor: Supervisor) -> None:
    """Supervisord mort, un programme gelé a pris son numéro : ce n'est pas à nous de le réveiller."""
    with subprocess.Popen(["sleep", "60"], cwd=supervisor.stack.data) as stranger:
        freeze(psutil.Process(stranger.pid))
        (supervisor.stack.data / "supervisord.pid").write_text(f"{stranger.pid}\n")
        answers, frozen = supervisor.alive(), is_frozen(stranger.pid)
        stranger.kill()
    assert (answers, frozen) == (False, True)


def test_a_mute_supervisor_is_not_awaited_for_ever(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Il prend la connexion et ne répond pas : au bout de RPC_SECONDS, c'est comme s'il n'était pas là."""
    monkeypatch.setattr(supervise, "RPC_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(supervisor.socket))
        mute.listen()
        assert not supervisor.alive()
        assert supervisor.states() == {}


@pytest.mark.parametrize("action", ["stop", "shutdown"])
def test_a_supervisor_that_dies_while_stopping(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Supervisord tué pendant qu'il arrête des services sourds : l'arrêt se finit sans lui, sans erreur ni reste."""
    monkeypatch.setattr(supervise, "STOP_SECONDS", 1)
    pids = start(supervisor, DEAF)
    process = supervisord(supervisor)

    def rpc(method: str, *arguments: object) -> object:
        if method == "stopProcess":
            threading.Timer(0.3, process.kill).start()
        return Supervisor._rpc(supervisor, method, *arguments)

    monkeypatch.setattr(supervisor, "_rpc", rpc)
    if action == "stop":
        supervisor.stop("kafka1")
        assert running(pids) == {"connect", "postgres"}
    else:
        supervisor.shutdown()
        assert not running(pids)


def test_a_supervisor_that_dies_while_starting(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisord tué pendant que l'on attend les services : c'est lui qui est mort, aucun d'eux ne l'est."""
    start(supervisor)
    monkeypatch.setattr(health, "checks", lambda _: dict.fromkeys(NAMES, lambda: False))
    threading.Timer(0.5, supervisord(supervisor).kill).start()
    with pytest.raises(PipelineError, match="Aucun superviseur ne répond"):
        services_main.await_services(supervisor.stack, supervisor, NAMES)


def test_nothing_is_claimed_without_a_supervisor(supervisor: Supervisor) -> None:
    """Supervisord mort, les services tournent : ni « kafka1 est arrêté », ni « rien ne tourne »."""
    start(supervisor)
    supervisord(supervisor).kill()
    wait_until(lambda: supervisor.process() is None, 60)
    for action in (supervisor.stop, supervisor.kill, lambda name: services_main.restart(supervisor.stack, name)):
        with pytest.raises(PipelineError, match="Aucun superviseur ne répond"):
            action("kafka1")


def test_a_restart_after_a_stop_starts_nothing(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """« restart » attendait que « down » finisse : la pile reste arrêtée, et il le dit."""
    start(supervisor)

    @contextlib.contextmanager
    def after_down(_: Stack, *, create: bool) -> Iterator[None]:
        assert not create
        supervisor.shutdown()
        yield

    monkeypatch.setattr(services_main, "alone", after_down)
    with pytest.raises(PipelineError, match="La pile vient d'être arrêtée par une autre commande"):
        services_main.restart(supervisor.stack, "kafka1")
    assert supervisor.process() is None


# « up », de ces trois services-là : rien n'écoute sur leurs ports, il attend donc leurs réponses.
UP = """
from commun.cli import run
from services import __main__ as main
main.NAMES = ("kafka1", "connect", "postgres")
run(lambda: main.main(["up"]))
"""


@contextlib.contextmanager
def waiting_up(supervisor: Supervisor) -> Iterator[subprocess.Popen[str]]:
    """Un « up » qui en est à attendre les réponses."""
    start(supervisor)
    with subprocess.Popen([sys.executable, "-c", UP], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            assert "on attend que chaque service réponde" in process.stderr.readline()
            with services_main.alone(supervisor.stack, create=False):  # il a rendu le verrou…
                pass
            wait_until(lambda: psutil.Process(process.pid).num_threads() > len(NAMES))  # … et pose ses questions
            yield process
        finally:
            process.kill()


def said_at_the_end(process: subprocess.Popen[str]) -> str:
    """Ce que dit encore un « up » qui doit s'arrêter de lui-même, et tout de suite."""
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    return text


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """« python -m services … », qui ne doit attendre personne."""
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ctrl_c_ends_the_wait_at_once(supervisor: Supervisor) -> None:
    """Ctrl-C pendant que « up » attend : une seule phrase, qui dit que les serveurs restent ; ils restent."""
    with waiting_up(supervisor) as up:
        up.send_signal(signal.SIGINT)
        assert said_at_the_end(up) == f"{services_main.INTERRUPTED}\n"
    assert all(state.alive for state in supervisor.states().values())


def test_a_waiting_up_holds_no_one_back(supervisor: Supervisor) -> None:
    """Pendant que « up » attend : on gèle, on réveille, on regarde ; un second « up » attend lui aussi."""
    with waiting_up(supervisor) as up:
        for words in (("pause", "kafka1"), ("resume", "kafka1"), ("logs", "kafka1"), ("status",)):
            done = command(*words)
            assert "Une autre commande" not in done.stderr, done.stderr
        with waiting_up(supervisor):
            assert up.poll() is None
        done = command("kill", "kafka1")
        assert (done.returncode, "est tué" in done.stderr) == (0, True)
        assert said_at_the_end(up).startswith("kafka1 s'est arrêté en démarrant")


@pytest.mark.parametrize(("words", "who"), [(("stop", "kafka1"), "kafka1 vient d'être arrêté"),
                                            (("down",), "vient d'être arrêté")])  # fmt: skip
def test_what_is_stopped_ends_the_wait(supervisor: Supervisor, words: tuple[str, ...], who: str) -> None:
    """Un service que « up » attend, ou la pile entière, arrêtés par une autre commande : « up » le dit et finit."""
    with waiting_up(supervisor) as up:
        done = command(*words)
        assert (done.returncode, "Une autre commande" in done.stderr) == (0, False)
        (sentence,) = said_at_the_end(up).splitlines()
        assert who in sentence


@pytest.mark.parametrize(
    ("seconds", "patience", "words"),
    [("0.5", 60, "La pile vient d'être arrêtée"), ("600", 0.1, "Aucun superviseur")],
)
def test_a_stack_stopped_while_awaited(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, seconds: str, patience: float, words: str
) -> None:
    """Plus de superviseur : la pile a été arrêtée s'il n'en reste bientôt rien, elle est sans surveillance sinon."""
    monkeypatch.setattr(services_main, "ENDING_SECONDS", patience)
    with subprocess.Popen(["sleep", seconds]) as left:
        monkeypatch.setattr(supervisor, "orphans", lambda: [psutil.Process(left.pid)])
        error = services_main.ended(supervisor, "kafka1", PipelineError("mort"))
        left.kill()
    assert words in str(error)


@pytest.mark.parametrize(("youngest", "patience"), [(5, 175), (100_000, 60)])
def test_a_service_that_has_run_for_long_has_less_time_to_answer(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, youngest: int, patience: float
) -> None:
    """Une pile qui démarre a trois minutes ; si tous tournent depuis plus longtemps, un muet n'en a qu'une."""
    asked: list[float] = []

    def wait(_name: str, _check: health.Check, seconds: float, *_: object) -> float:
        asked.append(seconds)
        return 0

    states = {"mongodb": State("mongodb", "", 1, 100_000), "kafka1": State("kafka1", "", 1, youngest)}
    monkeypatch.setattr(supervisor, "states", lambda: states)
    monkeypatch.setattr(health, "wait", wait)
    services_main.await_services(supervisor.stack, supervisor, list(states))
    assert asked == [patience, patience]


def test_a_mute_service_s_cure_is_named() -> None:
    """Il tourne et se tait : la phrase dit comment le redémarrer."""
    with pytest.raises(PipelineError, match=r"mongodb ne répond pas .* « python -m services restart mongodb »"):
        health.wait("mongodb", lambda: False, 0, lambda: True, Path("logs/mongodb.log"))


@pytest.mark.parametrize("fault", ["up", "lost"])
def test_the_tests_never_leave_their_stack_running(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """La pile des essais a mal démarré, ou un essai l'a perdue : l'essai échoue, mais elle est arrêtée."""
    done: list[str] = []

    def services(command: str, *_: str, **__: float) -> subprocess.CompletedProcess[str]:
        done.append(command)
        return subprocess.CompletedProcess([], int(command == fault), "", "")

    monkeypatch.setattr(conftest, "services", services)
    monkeypatch.setattr(conftest, "family", list)
    with pytest.raises(AssertionError), conftest.running_stack():
        pass
    assert done == ["reset", "up", "down"]


@pytest.mark.parametrize("question", ["cmdline", "cwd", "name"])
def test_a_process_that_dies_while_asked(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    """Un processus meurt pendant que « down » cherche les siens : il n'en est plus, et « down » ne s'arrête pas là."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", f"-Dpipeline={supervisor.stack.data}"]
    monkeypatch.setattr(supervise, "POSTGRES_PROGRAMS", (psutil.Process().name(),))
    with subprocess.Popen(command) as orphan:
        ask = getattr(psutil.Process, question)

        def dying(process: psutil.Process) -> object:
            if process.pid == os.getpid():
                raise FileNotFoundError(2, "No such file or directory")
            return ask(process)

        monkeypatch.setattr(psutil.Process, question, dying)
        try:
            assert orphan.pid in {process.pid for process in supervisor.orphans()}
        finally:
            orphan.kill()
