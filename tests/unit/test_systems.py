"""Ce qui change d'un système à l'autre : chaque différence, l'autre système simulé, et rien de tel ailleurs."""

import ast
import ctypes
import errno
import io
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from commun import systems
from commun.cli import Stop, run
from commun.settings import ROOT

import pytest

FOLDERS = ("commun", "exercice1", "exercice2", "exercice3", "tableau")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


on_posix = pytest.mark.skipif(sys.platform == "win32", reason="simulé ailleurs ; ici, c'est le vrai")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Un Windows simulé : son nom, ses signaux, ses options de processus ; sans fcntl."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    return monkeypatch


# --- La console ---


def test_a_pipe_is_utf8_with_plain_newlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un tube de Windows (cp1252, CRLF) reçoit de l'UTF-8 et des LF."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252", newline="\r\n"))
    systems.use_utf8()
    print("12 345 € → ✓", flush=True)
    assert raw.getvalue() == "12 345 € → ✓\n".encode()


def test_a_closed_or_foreign_output_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Une sortie absente (pythonw), ou qui ne se règle pas (un bloc-notes), n'empêche rien."""
    foreign = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", foreign)
    systems.use_utf8()
    print("perdu", flush=True)
    assert sys.stderr is foreign
    sys.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="« >&- » est du shell")
def test_a_script_without_output_runs() -> None:
    """« python script.py >&- » : sys.stdout est None, et le script finit pourtant."""
    code = "from commun.cli import run\nrun(lambda: print('perdu') or 0)"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}" >&-'], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_reads_any_more(windows: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Windows dit « argument invalide » d'un tube fermé : c'est une fin normale ; d'un fichier, c'en est une vraie."""

    def closed() -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    assert systems.is_broken_pipe(BrokenPipeError())
    assert not systems.is_broken_pipe(OSError(errno.EINVAL, "Invalid argument", "a:b.csv"))
    assert not systems.is_broken_pipe(OSError(errno.ENOSPC, "No space left"))
    windows.setattr(os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        run(closed)
    assert stopped.value.code == 0
    windows.setattr(sys, "platform", "linux")
    assert not systems.is_broken_pipe(OSError(errno.EINVAL, "Invalid argument"))


def test_without_poll_the_reader_is_supposed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows n'a pas select.poll."""
    monkeypatch.delattr("select.poll", raising=False)
    assert not systems.reader_gone()


# --- Arrêter ---


def test_stop_listens_to_ctrl_break(windows: pytest.MonkeyPatch) -> None:
    """Windows : Ctrl-Pause demande l'arrêt comme Ctrl-C."""
    handlers: dict[int, Any] = {}
    windows.setattr(signal, "signal", handlers.__setitem__)
    stop = Stop()
    assert set(handlers) == {signal.SIGINT, signal.SIGTERM, 21}
    assert not stop
    handlers[21](21, None)
    assert stop


class Asked:
    """Un processus qui note ce qu'on lui demande."""

    pid = 77

    def __init__(self, code: int | None = None) -> None:
        self.code, self.asked = code, list[object]()

    def poll(self) -> int | None:
        """Voir subprocess.Popen."""
        return self.code

    def terminate(self) -> None:
        """Voir subprocess.Popen."""
        self.asked.append("terminate")


def test_a_windows_process_is_asked_not_killed(windows: pytest.MonkeyPatch) -> None:
    """Ctrl-Pause, dans un groupe à lui ; sans console pour le porter, terminate."""
    sent: list[tuple[int, int]] = []
    console = [1]

    def generate(event: int, group: int) -> int:
        sent.append((event, group))
        return console[0]

    kernel = types.SimpleNamespace(GenerateConsoleCtrlEvent=generate)
    windows.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    process: Any = Asked()
    assert systems.ask_to_stop(process)
    assert (sent, process.asked) == ([(1, 77)], [])
    assert systems.own_group() == {"creationflags": 0x200}
    console[0] = 0
    assert not systems.ask_to_stop(process)
    assert process.asked == ["terminate"]
    process = Asked(3)  # fini tout seul : son code veut dire quelque chose
    assert systems.ask_to_stop(process)
    assert process.asked == []


@pytest.mark.skipif(sys.platform == "win32", reason="le vrai Windows a son propre chemin")
def test_a_posix_process_is_asked_too() -> None:
    """SIGTERM, hors de la session du terminal : le script rend 0."""
    code = "import signal, time\nfrom commun.cli import Stop\ns = Stop()\nprint('prêt', flush=True)\ns.wait(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, **systems.own_group()
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert os.getsid(process.pid) == process.pid
        assert systems.ask_to_stop(process)
        assert process.wait(60) == 0


# --- Fichiers ---


def draft_of(path: Path) -> io.BufferedWriter:
    """Un brouillon écrit à moitié dans son tampon."""
    draft = path.with_suffix(".tmp").open("wb")
    draft.write(b"contenu")
    return draft


def test_publish_closes_before_renaming(tmp_path: Path, windows: pytest.MonkeyPatch) -> None:
    """Windows : os.replace refuse un fichier ouvert, et un dossier ne s'ouvre pas."""
    path, draft = tmp_path / "f.csv", draft_of(tmp_path / "f.csv")
    replace = os.replace

    def windows_replace(source: Path, target: Path) -> None:
        if not draft.closed:
            raise PermissionError(errno.EACCES, "Accès refusé", str(source))
        replace(source, target)

    def windows_open(name: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Accès refusé", str(name))

    windows.setattr(os, "replace", windows_replace)
    windows.setattr(os, "open", windows_open)
    systems.publish(draft, path)
    assert path.read_bytes() == b"contenu"
    assert list(tmp_path.iterdir()) == [path]


def test_publish_waits_for_a_reader(tmp_path: Path, windows: pytest.MonkeyPatch) -> None:
    """Windows : un fichier qu'un autre lit ne se remplace pas ; on l'attend, pas sans fin."""
    path, tries = tmp_path / "f.csv", list[int]()
    replace = os.replace

    def busy(source: Path, target: Path) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "Accès refusé")
        replace(source, target)

    windows.setattr(os, "replace", busy)
    windows.setattr(systems, "RETRY_SECONDS", 0.001)
    systems.publish(draft_of(path), path)
    assert path.read_bytes() == b"contenu"
    tries.clear()
    windows.setattr(systems, "BUSY_SECONDS", 0.0)
    with pytest.raises(PermissionError):
        systems.publish(draft_of(path), path)
    assert len(tries) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows n'ouvre pas un dossier")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Un dossier partagé qui ne sait pas se forcer n'empêche rien ; un disque en panne, si."""
    path, fsync = tmp_path / "f.csv", os.fsync

    def failing(fd: int) -> None:
        if os.path.isdir(f"/dev/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    if number == errno.EIO:
        with pytest.raises(OSError, match="error"):
            systems.publish(draft_of(path), path)
    else:
        systems.publish(draft_of(path), path)
        assert path.read_bytes() == b"contenu"


@pytest.mark.skipif(sys.platform != "linux", reason="simule macOS")
@pytest.mark.parametrize("known", [True, False])
def test_macos_goes_through_the_disk_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """F_FULLFSYNC pour le fichier et son dossier ; fsync là où le système de fichiers ne le connaît pas."""
    import fcntl  # noqa: PLC0415 - n'existe pas sous Windows

    calls: list[str] = []

    def full(number: int, command: int) -> None:
        calls.append(f"F_FULLFSYNC {command}")
        if not known:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    systems.publish(draft_of(tmp_path / "f.csv"), tmp_path / "f.csv")
    assert calls == (["F_FULLFSYNC 51"] * 2 if known else ["F_FULLFSYNC 51", "fsync"] * 2)


@on_posix
def test_an_open_file_is_nobody_s_prisoner(tmp_path: Path, windows: pytest.MonkeyPatch) -> None:
    """Windows : la poignée est demandée avec FILE_SHARE_DELETE, sans quoi un éditeur ne pourrait plus enregistrer."""
    path = tmp_path / "f.csv"
    path.write_bytes(b"contenu")
    asked: list[tuple[object, ...]] = []
    handles = [77, ctypes.c_void_p(-1).value]

    def create_file(*arguments: object) -> int | None:
        asked.append(arguments)
        return handles[len(asked) - 1]

    kernel = types.SimpleNamespace(CreateFileW=create_file)
    msvcrt = types.SimpleNamespace(open_osfhandle=lambda handle, flags: os.open(path, os.O_RDONLY))
    windows.setitem(sys.modules, "msvcrt", msvcrt)
    windows.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    windows.setattr(ctypes, "get_last_error", lambda: errno.ENOENT, raising=False)
    windows.setattr(ctypes, "WinError", lambda number: OSError(number, "introuvable"), raising=False)
    with systems.open_shared(path) as file:
        assert file.read() == b"contenu"
    ((name, access, share, _, disposition, *_),) = asked
    assert (name, access, share, disposition) == (str(path), 1 << 31, 7, 3)
    with pytest.raises(FileNotFoundError) as absent:
        systems.open_shared(path)
    assert absent.value.filename == str(path)


def test_open_shared_reads_what_comes(tmp_path: Path) -> None:
    """Sans tampon : ce qui s'ajoute se lit aussitôt, et le fichier se renomme et s'efface pendant ce temps."""
    path = tmp_path / "ventes d'été.csv"
    path.write_bytes(b"a")
    with systems.open_shared(path) as file:
        assert file.read() == b"a"
        with path.open("ab") as more:
            more.write(b"b")
        assert file.read() == b"b"
        path.rename(tmp_path / "g.csv").unlink()
    with pytest.raises(FileNotFoundError):
        systems.open_shared(path)


LOCKING = """
import sys, time
from pathlib import Path
from commun.systems import locked
with locked(Path(sys.argv[1]), "Un autre essai écrit", lambda sentence: print(sentence, flush=True)):
    print("pris", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_one_program_at_a_time(tmp_path: Path) -> None:
    """Le second attend le premier ; un programme tué rend son verrou."""
    path = tmp_path / "verrou"
    command = [sys.executable, "-c", LOCKING, str(path)]
    with subprocess.Popen([*command, "60"], cwd=ROOT, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == b"pris"
        with subprocess.Popen([*command, "0"], cwd=ROOT, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            waiting = second.stdout.readline().decode()
            assert waiting.startswith(f"Un autre essai écrit (pid {first.pid}) : on attend sa fin")
            first.kill()
            assert second.wait(60) == 0
            taken = second.stdout.read().strip()
    assert (taken, path.read_bytes()) == (b"pris", b"")


def test_windows_locks_one_byte(tmp_path: Path, windows: pytest.MonkeyPatch) -> None:
    """Windows : l'octet 0, pris quand il est libre, rendu avant de fermer, même après une erreur."""
    calls: list[tuple[int, int]] = []
    said: list[str] = []

    def locking(number: int, mode: int, size: int) -> None:
        calls.append((mode, size))
        assert os.lseek(number, 0, os.SEEK_CUR) == 0
        if len(calls) < 3:
            raise OSError(errno.EACCES, "Permission denied")

    windows.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0, locking=locking))
    windows.setattr(systems, "RETRY_SECONDS", 0.001)

    def fail() -> None:
        with systems.locked(tmp_path / "verrou", "Un autre essai écrit", said.append):
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert calls == [(2, 1), (2, 1), (2, 1), (0, 1)]
    assert said == ["Un autre essai écrit : on attend sa fin."]


@pytest.mark.skipif(sys.platform == "win32", reason="pas de socket Unix")
def test_the_longest_socket_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SOCKET_PATH_BYTES est la vraie limite d'ici : un octet de plus est refusé."""
    import socket  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        longest = f"{folder}/".ljust(systems.SOCKET_PATH_BYTES, "s")
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.bind(longest)
            with pytest.raises(OSError, match="too long"):
                two.bind(f"{longest}s")


# --- Ailleurs, rien ---

# Ce qui n'existe pas partout, et la seule raison d'en parler hors de commun/systems.py.
SYSTEM_WORDS = re.compile(
    r"\b(fcntl|msvcrt|pwd|grp|termios|resource|getuid|geteuid|killpg|getpgid|setsid|fork|mkfifo|O_DIRECTORY|"
    r"SIGKILL|SIGSTOP|SIGCONT|SIGHUP|SIGUSR1|SIGUSR2|SIGALRM|SIGPIPE|SIGBREAK|start_new_session|creationflags|"
    r"preexec_fn|pass_fds|replace_file|fsync|platform|uname|CREATE_NEW_PROCESS_GROUP)\b|/tmp/|/dev/|%-d|os\.name\b|"
    r"os\.(replace|rename|link|symlink|chmod|chown)\b|select\.(poll|select|epoll)\b|signal\.SIGTERM"
)
ALLOWED = {
    "chaos/script.py": {"SIGSTOP", "SIGCONT"},  # pas sur Windows
    "tableau/workbook.py": {"platform"},  # un attribut du format de Tableau
}


def code_of(path: Path) -> str:
    """Le code de ``path`` sans ses docstrings ni ses commentaires."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return ast.unparse(tree)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_systems_knows_the_system(path: Path) -> None:
    """Ce qui diffère entre les systèmes est dans commun/systems.py, et tout texte s'ouvre en UTF-8."""
    name = path.relative_to(ROOT).as_posix()
    code = code_of(path)
    if name != "commun/systems.py":
        found = {match[0] for match in SYSTEM_WORDS.finditer(code)}
        assert found <= ALLOWED.get(name, set())
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        text = ast.unparse(call)
        opens = re.fullmatch(r"open|.*\.(open|read_text|write_text)", ast.unparse(call.func))
        if opens and not re.search(r"'[rwxa]b'", text) and ast.unparse(call.func) not in ("os.open", "Image.open"):
            assert "encoding=" in text, f"{name} : {text}"


# Sans ce que Windows n'a pas : d'abord les paquets, qui ont leurs propres chemins, puis nos modules seuls.
IMPORT_ALL = """
import importlib, os, select, signal, subprocess, sys
names, ours = sys.argv[1:], ("commun", "exercice1", "exercice2", "exercice3", "services", "tableau")
for name in names if sys.platform != "win32" else ():
    importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] in ours]:
    del sys.modules[name]
for name in ("fcntl", "pwd", "grp", "termios", "resource", "syslog", "pty", "tty"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "fork", "mkfifo", "O_DIRECTORY"):
    vars(os).pop(name, None)
for name in ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD"):
    vars(signal).pop(name, None)
vars(select).pop("poll", None)
sys.platform = "win32"
for name in names:
    try:
        importlib.import_module(name)
    except SystemExit as refused:
        print(name, refused)
"""
STREAMLIT_PAGE = "tableau.page"  # une page, pas un module : la lire, c'est l'afficher
OPTIONAL = "tableau.extract"  # paquet tableauhyperapi


def test_every_module_imports_without_posix() -> None:
    """Chaque module s'importe là où il n'y a ni fcntl, ni os.getuid, ni SIGKILL ; services/ seul s'y refuse."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    names = [name.removesuffix(".__init__") for name in names if name not in (STREAMLIT_PAGE, OPTIONAL)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
        check=False, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (refused,) = done.stdout.splitlines()
    assert refused.startswith("exercice2.verification.flink_beside ")  # le Flink de « python -m services »
    assert "docker-compose" in refused


WINDOWS_SERVICES = """
import runpy, sys
sys.platform = "win32"
sys.modules["fcntl"] = None
sys.argv = ["services", "up"]
runpy.run_module("services", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [(("-c", WINDOWS_SERVICES), "docker-compose"), (("-S", "-m", "services", "up"), "source .venv/bin/activate")],
    ids=["Windows", "sans l'environnement"],
)
def test_services_refuses_in_one_sentence(options: tuple[str, ...], words: str) -> None:
    """Sous Windows, ou avec un Python sans paquets : une phrase, le code 1, aucune trace."""
    done = subprocess.run(
        [sys.executable, *options], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_short_write_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sortie sans tampon (PYTHONUNBUFFERED) dont un signal coupe une écriture : la suite est écrite aussi."""
    written = bytearray()

    def write(data: memoryview) -> int:
        written.extend(data[:3])
        return len(data[:3])

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=SimpleNamespace(write=write, flush=lambda: None)))
    systems.write_out(b"une ligne entiere\n")
    assert written == b"une ligne entiere\n"
