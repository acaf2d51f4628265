"""Ce qui change de Linux à macOS et à Windows, ici et nulle part ailleurs : le reste du projet ne pose pas la question.

Un appel par différence ; sa docstring dit ce que chaque système a de particulier. La version de Windows
est écrite d'après sa documentation et celle de Python : services/ACCEPTATION.md dit ce qui a tourné, et où.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

# Longueur d'un chemin de socket Unix, en octets, sans le zéro final.
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
# Code de sortie d'un script à qui l'arrêt est demandé avant qu'il sache l'entendre : il n'a encore rien en vol.
STOPPED_EARLY = 0xC000013A if sys.platform == "win32" else -signal.SIGTERM
ACTIVATE = r".venv\Scripts\activate" if sys.platform == "win32" else "source .venv/bin/activate"

BUSY_SECONDS = 5.0  # Windows : patience pour un fichier qu'un autre programme tient ouvert
RETRY_SECONDS = 0.05
GENERIC_READ, OPEN_EXISTING = 0x80000000, 3
SHARE_ALL = 0x1 | 0x2 | 0x4  # FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_SHARE_DELETE


# --- La console ---


def use_utf8() -> None:
    """Met la sortie et la sortie d'erreur en UTF-8, quelle que soit la langue de la machine.

    Windows écrit en cp1252 dans un tube ou un fichier, et y ajoute un retour chariot à chaque ligne.
    Une sortie fermée (``>&-``, pythonw) n'existe pas : ce qui y est écrit est perdu, sans erreur.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - ouverte jusqu'à la fin
        elif hasattr(stream, "reconfigure"):
            newline = {} if stream.isatty() else {"newline": "\n"}
            stream.reconfigure(encoding="utf-8", errors="replace", **newline)


def reader_gone() -> bool:
    """Vrai si la sortie est un tube que personne ne lit plus (« | head »), avant même d'y écrire.

    Windows ne sait pas le dire d'avance : là, seule l'écriture échoue (voir ``is_broken_pipe``).
    """
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)
    return bool(poller.poll(0))


def is_broken_pipe(error: BaseException) -> bool:
    """Vrai si ``error`` vient d'une sortie que plus personne ne lit ; Windows la dit « argument invalide »."""
    windows = sys.platform == "win32" and isinstance(error, OSError) and error.errno == errno.EINVAL
    return isinstance(error, BrokenPipeError) or (windows and not getattr(error, "filename", None))


# --- Arrêter ---


def stop_signals() -> tuple[int, ...]:
    """Les signaux qui demandent l'arrêt.

    Windows n'a pas de SIGTERM qui vienne d'ailleurs ; Ctrl-Pause (SIGBREAK) y est le seul signal qu'on puisse
    envoyer à un autre programme.
    """
    if sys.platform == "win32":
        return signal.SIGINT, signal.SIGTERM, signal.SIGBREAK
    else:
        # Fermer le terminal (SIGHUP) est aussi une demande, sauf sous nohup, qui l'ignore.
        hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        return signal.SIGINT, signal.SIGTERM, *hangup


def own_group() -> dict[str, Any]:
    """Options de ``subprocess.Popen`` : un groupe à lui, que le Ctrl-C du terminal n'atteint pas."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        return {"start_new_session": True}


def ask_to_stop(process: "subprocess.Popen[Any]") -> bool:
    """Demande à ``process``, lancé avec ``own_group``, de finir ce qui est en vol et de s'arrêter.

    Windows : ``terminate`` y tue net, avec le code 1 ; c'est Ctrl-Pause qui demande. Sans console, il n'y a
    personne pour le porter : le processus est tué, et la réponse est faux.
    """
    if sys.platform == "win32":
        # Et non process.send_signal : sans console, os.kill tue net et laisse derrière lui une erreur (Python 3.12).
        kernel = ctypes.WinDLL("kernel32")
        if process.poll() is not None or kernel.GenerateConsoleCtrlEvent(signal.CTRL_BREAK_EVENT, process.pid):
            return True
    process.terminate()
    return sys.platform != "win32"


# --- Fichiers ---


_REASONS = {
    errno.EACCES: "les droits ne le permettent pas", errno.EPERM: "les droits ne le permettent pas",
    errno.ENOENT: "n'existe pas", errno.EISDIR: "c'est un dossier",
    errno.ENOTDIR: "un dossier du chemin n'en est pas un", errno.ENOSPC: "le disque est plein",
    errno.EROFS: "le disque est en lecture seule", errno.EIO: "erreur du disque",
    errno.EMFILE: "trop de fichiers ouverts", errno.ELOOP: "des liens symboliques tournent en rond",
    errno.ENAMETOOLONG: "ce nom est trop long", errno.ESTALE: "le serveur de fichiers ne le connaît plus",
}  # fmt: skip


def reason(error: OSError) -> str:
    """Ce que le système reproche, en français."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def write_out(data: bytes) -> None:
    """Écrit tout ``data`` sur la sortie standard : avec PYTHONUNBUFFERED, une écriture peut n'en prendre qu'un bout."""
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) or 0 :]
    sys.stdout.buffer.flush()


def open_shared(path: Path | str) -> BinaryIO:
    """Ouvre ``path`` en lecture, sans tampon, sans empêcher personne de le renommer, de le remplacer ou de l'effacer.

    C'est ce que Linux et macOS font toujours. Windows l'interdit tant qu'un programme tient le fichier
    ouvert, sauf si celui-ci l'a permis (FILE_SHARE_DELETE), ce que ``open`` ne fait pas.
    """
    return open(path, "rb", buffering=0, opener=_opener if sys.platform == "win32" else None)


def _opener(path: str, flags: int) -> int:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - n'existe que sous Windows

        # Et non _winapi.CreateFile : jusqu'à Python 3.12, il ne trouve pas un nom qui a un accent.
        create = ctypes.WinDLL("kernel32", use_last_error=True).CreateFileW
        create.argtypes = (ctypes.c_wchar_p, *[ctypes.c_uint32] * 2, ctypes.c_void_p, *[ctypes.c_uint32] * 2,
                           ctypes.c_void_p)  # fmt: skip
        create.restype = ctypes.c_void_p
        handle = create(path, GENERIC_READ, SHARE_ALL, None, OPEN_EXISTING, 0, None)
        if handle == ctypes.c_void_p(-1).value:
            error = ctypes.WinError(ctypes.get_last_error())
            error.filename = path
            raise error
        return msvcrt.open_osfhandle(handle, flags)
    else:
        return os.open(path, flags)


def publish(draft: BinaryIO, path: Path) -> None:
    """Force le brouillon ``draft`` sur le disque, le ferme, et lui donne son nom définitif, lui aussi forcé.

    - macOS : ``fsync`` s'arrête au cache du disque, F_FULLFSYNC le traverse ;
    - Windows : un fichier ouvert ne se renomme pas, et ``path`` ne se remplace pas tant qu'un autre programme
      le lit (on l'attend BUSY_SECONDS) ; un dossier ne s'y force pas : après une coupure de courant, le dernier
      renommage peut manquer.
    """
    draft.flush()
    _force(draft.fileno())
    draft.close()
    _replace(Path(draft.name), path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _force(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # des dossiers partagés ne savent pas le faire
                raise
        finally:
            os.close(folder)


def _force(number: int) -> None:
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - n'existe pas sous Windows

        with contextlib.suppress(OSError):  # des systèmes de fichiers ne le connaissent pas
            fcntl.fcntl(number, fcntl.F_FULLFSYNC)
            return
    os.fsync(number)


def _replace(draft: Path, path: Path) -> None:
    start = time.monotonic()
    while True:
        try:
            return os.replace(draft, path)
        except PermissionError:
            patience = BUSY_SECONDS if sys.platform == "win32" else 0.0
            if time.monotonic() - start >= patience:
                raise
            time.sleep(RETRY_SECONDS)


@contextlib.contextmanager
def locked(path: Path, busy: str, say: Callable[[str], None]) -> Iterator[FileIO]:
    """Un seul programme à la fois dans ce bloc : le second attend. Le verrou d'un programme tué se libère seul.

    ``path`` : un fichier, créé au besoin, laissé là ensuite ; celui qui le tient y écrit son numéro. ``busy`` est le
    début de la phrase qui dit, une fois, qu'on attend. Windows verrouille un octet (msvcrt), que les autres ne
    peuvent alors plus lire ; les autres systèmes, le fichier entier (flock).
    """
    with path.open("ab", buffering=0) as file:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - n'existe que sous Windows

            file.seek(0)
            waiting = False
            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    if not waiting:
                        say(f"{busy} : on attend sa fin.")
                    waiting = True
                    time.sleep(RETRY_SECONDS)
        else:
            import fcntl  # noqa: PLC0415 - n'existe pas sous Windows

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(_waiting_sentence(busy, path.read_bytes()))
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(OSError):  # disque plein : le verrou tient quand même, sans nom
                file.truncate(0)
                file.write(b"%d" % os.getpid())
        try:
            yield file
        finally:  # fermer le fichier rend le verrou de flock ; Windows veut qu'on le rende avant
            if sys.platform == "win32":
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                with contextlib.suppress(OSError):
                    file.truncate(0)


def _waiting_sentence(busy: str, holder: bytes) -> str:
    if not holder.isdigit():
        return f"{busy} : on attend sa fin."
    pid = int(holder)
    return f"{busy} (pid {pid}) : on attend sa fin. Si Ctrl-Z l'a suspendu, « kill -CONT {pid} » le fait repartir."
