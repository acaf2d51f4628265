"""Le superviseur : supervisord lance les services en arrière-plan, les surveille et les arrête.

Un service tué reste tué jusqu'au prochain ``up`` ou ``restart`` : c'est ce qu'il faut
pour regarder une panne. Sa configuration ne nomme aucun chemin : chaque service est un petit
script du dossier ``run``, que l'on peut lire et lancer soi-même.
"""

import configparser
import http.client
import itertools
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from commun import PipelineError
from services.stack import Service, Stack, server_environment

import psutil

STOP_SECONDS = 12  # comme Service.stop_seconds : le dernier broker attend un contrôleur qui n'est plus là
POSTGRES_PROGRAMS = ("postgres", "initdb", "pg_ctl", "psql")
RPC_SECONDS = 30  # plus que l'arrêt le plus long ; il répond à toute autre demande en quelques millisecondes
ALIVE = ("STARTING", "RUNNING", "STOPPING")
STOPPED_WORD = "arrêté"  # prié de l'être ; qui s'arrête sans cela est mort
UNATTENDED = "Aucun superviseur ne répond : « make services » démarre la pile, ou la reprend ; « make stop » l'arrête."

log = logging.getLogger("pipeline")


class GoneError(PipelineError):
    """Le superviseur ne répond pas, ou plus : il n'est pas là, il vient de mourir, ou il se tait."""


class State(NamedTuple):
    """Où en est un service."""

    name: str
    word: str  # STOPPED_WORD, « mort »… pour qui ne tourne pas ; vide s'il tourne
    pid: int = 0
    seconds: int = 0  # depuis son démarrage

    @property
    def alive(self) -> bool:
        """Vrai si son processus existe."""
        return self.pid > 0

    @property
    def frozen(self) -> bool:
        """Vrai s'il est gelé (SIGSTOP)."""
        return self.alive and is_frozen(self.pid)


class Supervisor:
    """Commande le supervisord d'une pile par sa socket Unix."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.socket = stack.runtime / "supervisor.sock"
        self.config = stack.data / "supervisord.conf"
        self.scripts = stack.data / "run"

    def alive(self) -> bool:
        """Vrai si supervisord répond. Lève PipelineError si un autre compte seul peut lui parler."""
        try:
            return bool(self._rpc("getState"))
        except (GoneError, xmlrpc.client.Fault):  # absent, ou en train de s'arrêter
            return False

    def states(self) -> dict[str, State]:
        """État de chaque service, par nom ; vide si aucun superviseur ne répond."""
        try:
            return {info["name"]: _state(info) for info in self._rpc("getAllProcessInfo")}
        except (GoneError, xmlrpc.client.Fault):
            return {}

    def is_alive(self, name: str) -> bool:
        """Vrai si le processus de ce service existe, qu'il réponde ou non."""
        return name in (states := self.states()) and states[name].alive

    def start(self, services: list[Service], names: Sequence[str]) -> None:
        """Démarre supervisord au besoin, puis ceux de ``names`` qui ne tournent pas ; ``services`` : toute la pile.

        Ceux qui sont gelés sont réveillés. Lève PipelineError si l'un d'eux ne peut pas être lancé.
        """
        self._write_scripts(services)
        if not self.alive():
            self._write_config(services)
            self.end_orphans()
            self.socket.unlink(missing_ok=True)
            started = subprocess.run(
                [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(self.config)],
                cwd=self.stack.data, capture_output=True, text=True, check=False, env=server_environment(),
            )  # fmt: skip
            if started.returncode:
                raise PipelineError(f"supervisord ne démarre pas :\n{started.stderr.strip()}")
            self._wait_alive()
        states = {name: state for name, state in self.states().items() if name in names}
        for name in (name for name, state in states.items() if state.frozen):
            log.warning("%s (pid %d) était gelé : il est réveillé.", name, self.resume(name))
        wanted = [name for name, state in states.items() if not state.alive]
        if "postgres" in wanted:  # le chef a pu mourir seul, en laissant une requête qui tient encore les données
            _end(self._postgres_left())
        self.stack.remember_ports(wanted)
        for name in wanted:
            try:
                self._rpc("startProcess", name, False)
            except xmlrpc.client.Fault as fault:
                raise PipelineError(f"{name} ne peut pas être lancé ({fault.faultString}).") from fault

    def stop(self, name: str) -> None:
        """Arrête un service proprement, et attend qu'il n'en reste aucun processus.

        Lève PipelineError si la pile tourne sans superviseur : on ne saurait plus quel processus est ce service.
        """
        if not self.alive() and self.orphans():
            raise PipelineError(UNATTENDED)
        tree = self.tree(name)
        _signal(tree, signal.SIGCONT)  # gelé, il n'entendrait pas qu'on l'arrête
        with suppress(GoneError, xmlrpc.client.Fault):  # plus de superviseur, ou le service ne tourne pas
            self._rpc("stopProcess", name, True)
        _end([*tree, *(self._postgres_left() if name == "postgres" else [])])

    def kill(self, name: str) -> int:
        """Tue un service et tous ses processus (SIGKILL), sans leur laisser une chance ; renvoie son pid."""
        first, *_ = self._running_tree(name)
        _signal([first], signal.SIGSTOP)  # gelé, le premier ne crée plus personne
        tree = self.tree(name)
        _signal(tree, signal.SIGKILL)
        psutil.wait_procs(tree, timeout=10)
        deadline = time.monotonic() + 10
        while self.is_alive(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        return first.pid

    def pause(self, name: str) -> int:
        """Gèle un service et tous ses processus (SIGSTOP) ; renvoie son pid."""
        tree = self._running_tree(name)
        _signal(tree[:1], signal.SIGSTOP)
        _signal(self.tree(name), signal.SIGSTOP)
        return tree[0].pid

    def resume(self, name: str) -> int:
        """Réveille un service gelé ; renvoie son pid."""
        tree = self._running_tree(name)
        _signal(reversed(tree), signal.SIGCONT)
        return tree[0].pid

    def shutdown(self) -> None:
        """Arrête tous les services ensemble, puis supervisord, puis ce qui resterait d'eux."""
        tree: list[psutil.Process] = []
        with suppress(GoneError, xmlrpc.client.Fault):  # supervisord meurt en chemin : le reste est fait sans lui
            tree = _family(int(self._rpc("getPID")))
            _signal(tree, signal.SIGCONT)  # gelés, ils n'entendraient pas qu'on les arrête
            with suppress(xmlrpc.client.Fault):  # Connect ne tourne pas
                # Lui d'abord : il quitte son groupe, où le suivant l'attendrait dix secondes.
                self._rpc("stopProcess", "connect", True)
            self._rpc("stopAllProcesses", True)
            self._rpc("shutdown")
            psutil.wait_procs(tree, timeout=5)
        _end(tree)
        self.end_orphans()

    def end_orphans(self) -> None:
        """Termine les processus de cette pile que plus personne ne surveille (supervisord tué, par exemple)."""
        _end([process for orphan in self.orphans() for process in _family(orphan.pid)])

    def orphans(self) -> list[psutil.Process]:
        """Processus de cette pile, reconnus à leur ligne de commande ; ceux de PostgreSQL, à leur dossier."""
        data = self.stack.data
        pairs = {
            self._own_words,
            *(("--dbpath", str(path)) for path in data.glob("mongodb-*")),
            *(("--storage-path", str(path)) for path in data.glob("mongodb-*")),
        }
        found = []
        for process in psutil.process_iter():
            words = _asked(process, "cmdline")
            if f"-Dpipeline={data}" in words or not pairs.isdisjoint(itertools.pairwise(words)):
                found.append(process)
        return [*found, *self._postgres_left()]

    def _postgres_left(self) -> list[psutil.Process]:
        """Les processus de PostgreSQL de cette pile : son chef, ceux qu'il a laissés, et ceux qui le font naître."""
        homes = {str(home / name) for home in (self.stack.data, self.stack.closed_home)
                 for name in ("postgres", "postgres.tmp")}  # fmt: skip
        homes.add(str(self.stack.postgres_private))
        return [
            process
            for process in psutil.process_iter()
            if _asked(process, "name") in POSTGRES_PROGRAMS
            and (_asked(process, "cwd") in homes or not homes.isdisjoint(_asked(process, "cmdline")))
        ]

    def tree(self, name: str) -> list[psutil.Process]:
        """Le processus d'un service, puis ses descendants ; vide s'il ne tourne pas."""
        state = self.states().get(name)
        return _family(state.pid) if state and state.alive else []

    def _running_tree(self, name: str) -> list[psutil.Process]:
        if not self.alive():
            raise PipelineError(UNATTENDED)
        if not (tree := self.tree(name)):
            raise PipelineError(f"{name} ne tourne pas : « python -m services restart {name} » le démarre.")
        return tree

    def process(self) -> psutil.Process | None:
        """Le processus de supervisord ; None s'il est mort, même si un autre programme a pris son numéro."""
        try:
            process = psutil.Process(int((self.stack.data / "supervisord.pid").read_text(encoding="utf-8")))
            return process if self._own_words in itertools.pairwise(process.cmdline()) else None
        except (OSError, ValueError, psutil.Error):
            return None

    @property
    def _own_words(self) -> tuple[str, str]:
        """À quoi l'on reconnaît la ligne de commande du supervisord de cette pile."""
        return "-c", str(self.config)

    def _rpc(self, method: str, *arguments: Any) -> Any:
        """Ce que supervisord répond. Lève GoneError s'il ne répond pas, xmlrpc.client.Fault s'il refuse."""
        if (process := self.process()) and is_frozen(process.pid):
            _signal([process], signal.SIGCONT)
            log.warning("Le superviseur (pid %d) était gelé : il est réveillé.", process.pid)
        body = xmlrpc.client.dumps(arguments, f"supervisor.{method}").encode()
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(RPC_SECONDS)
                line.connect(str(self.socket))
                connection = http.client.HTTPConnection("localhost")
                connection.sock = line
                connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
                response = connection.getresponse()
                if response.status != http.HTTPStatus.OK:
                    raise http.client.HTTPException(response.reason)
                (value,), _ = xmlrpc.client.loads(response.read())
        except PermissionError:
            self.stack.refuse_foreign()
            raise
        except (OSError, http.client.HTTPException) as error:
            raise GoneError(UNATTENDED) from error
        return value

    def _wait_alive(self) -> None:
        deadline = time.monotonic() + 15
        while not self.alive():
            if time.monotonic() > deadline:
                raise PipelineError(f"supervisord ne répond pas : lisez {self.stack.logs / 'supervisord.log'}.")
            time.sleep(0.05)

    def _write_scripts(self, services: list[Service]) -> None:
        """Un script par service : ses variables, sa commande. Relu à chaque démarrage du service."""
        self.scripts.mkdir(exist_ok=True)
        self.scripts.chmod(0o755)
        for service in services:
            path = self.scripts / f"{service.name}.sh"
            lines = [
                f"# {service.name}, tel que « python -m services » le lance depuis le dossier des données.",
                *(f"export {name}={shlex.quote(value)}" for name, value in service.environment.items()),
                f"exec {shlex.join(service.command)}",
            ]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            path.chmod(0o644)

    def _write_config(self, services: list[Service]) -> None:
        """La configuration de supervisord : rien que des noms et des chemins relatifs au dossier des données."""
        config = configparser.RawConfigParser()
        outside = self.socket.parent != self.stack.data
        config["unix_http_server"] = {
            "file": str(self.socket) if outside else self.socket.name,
            "chmod": "0700",
        }
        config["supervisord"] = {
            "pidfile": "supervisord.pid",
            "logfile": "logs/supervisord.log",
            "childlogdir": "logs",
            **({"user": "root"} if os.getuid() == 0 else {}),
        }
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        for rank, service in enumerate(services):
            config[f"program:{service.name}"] = {
                "command": f"/bin/sh run/{service.name}.sh",
                "priority": str(rank),
                "autostart": "false",
                "autorestart": "false",
                "startsecs": "0",  # lancé, il tourne ; répond-il ? c'est à nous de le demander
                "startretries": "0",
                "stopsignal": service.stop_signal,
                "stopwaitsecs": str(service.stop_seconds),
                "stdout_logfile": f"logs/{service.name}.log",
                "stdout_logfile_maxbytes": "10MB",
                "stdout_logfile_backups": "1",
                "redirect_stderr": "true",
                **({"user": service.user} if service.user else {}),
            }
        with self.config.open("w", encoding="utf-8") as file:
            config.write(file)


def _state(info: dict[str, Any]) -> State:
    """L'état que rend supervisord, en nos mots."""
    name, code = info["name"], info["exitstatus"]
    if info["statename"] in ALIVE and info["pid"]:
        return State(name, "", info["pid"], max(0, info["now"] - info["start"]))
    if info["statename"] in ("STOPPED", "STARTING"):
        return State(name, STOPPED_WORD)
    return State(name, f"mort (code {code})" if code > 0 else "mort")


def is_frozen(pid: int) -> bool:
    """Vrai si ce processus est gelé (SIGSTOP)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _family(pid: int) -> list[psutil.Process]:
    """Un processus et ses descendants. Ceux de PostgreSQL ont chacun leur groupe : un signal au groupe les manque."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _asked(process: psutil.Process, question: str) -> Any:
    """Nom, mots ou dossier d'un processus ; rien si le système le cache, ou s'il meurt à cet instant.

    psutil laisse passer l'erreur d'un mourant qui a déjà perdu ses fichiers, et pas encore sa place dans /proc.
    """
    try:
        return getattr(process, question)()
    except (psutil.Error, OSError):
        return ""


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _end(processes: list[psutil.Process]) -> None:
    """Attend la fin de ces processus : priés, puis forcés."""
    left = [process for process in processes if process.is_running()]
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5)):
        _signal(left, signal.SIGCONT)
        _signal(left, number)
        _, left = psutil.wait_procs(left, timeout=seconds)
