"""Le superviseur : supervisord lance les services en arrière-plan, les surveille et les arrête.

Un service tué reste tué jusqu'au prochain ``up`` ou ``restart`` : c'est ce qu'il faut
pour regarder une panne.
"""

import configparser
import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Sequence
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from commun.errors import PipelineError
from services.stack import Service, Stack

STOP_SECONDS = 30  # plus que le plus patient des services
RUNNING = ("STARTING", "RUNNING")
PROGRAMS = ("java", "postgres", "mongod", "python", "supervisord")


class Supervisor:
    """Commande le supervisord d'une pile par sa socket Unix."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.socket = stack.runtime / "supervisor.sock"
        self.config = stack.data / "supervisord.conf"
        self.pidfile = stack.data / "supervisord.pid"

    def alive(self) -> bool:
        """Vrai si supervisord répond."""
        try:
            return bool(self._rpc("getState"))
        except (OSError, xmlrpc.client.Error):
            return False

    def states(self) -> dict[str, dict[str, Any]]:
        """État, pid et ancienneté de chaque service, par nom ; vide si rien ne tourne."""
        if not self.alive():
            return {}
        return {info["name"]: info for info in self._rpc("getAllProcessInfo")}

    def start(self, services: list[Service], names: Sequence[str]) -> None:
        """Démarre supervisord au besoin, lui donne ``services``, puis démarre ceux de ``names`` qui ne tournent pas."""
        self._write_config(services)
        if not self.alive():
            self.end_orphans()
            self.socket.unlink(missing_ok=True)
            started = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)],
                capture_output=True, text=True, check=False, env=_environment(),
            )  # fmt: skip
            if started.returncode:
                raise PipelineError(f"supervisord ne démarre pas :\n{started.stderr.strip()}")
            self._wait_alive()
        else:
            self._reload()
        for name, info in self.states().items():
            if name in names and info["statename"] not in RUNNING:
                self._rpc("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Arrête un service proprement et attend qu'il soit arrêté."""
        if self.states().get(name, {}).get("statename") in RUNNING:
            self._rpc("stopProcess", name, True)

    def kill(self, name: str) -> int:
        """Tue un service (SIGKILL), sans lui laisser une chance ; renvoie son pid."""
        pid = self.signal(name, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.states()[name]["statename"] in RUNNING and time.monotonic() < deadline:
            time.sleep(0.05)
        return pid

    def signal(self, name: str, number: int) -> int:
        """Envoie un signal à un service qui tourne ; renvoie son pid."""
        pid = int(self.states().get(name, {}).get("pid", 0))
        if not pid:
            raise PipelineError(f"{name} ne tourne pas : pas de signal à lui envoyer.")
        os.killpg(pid, number)
        return pid

    def shutdown(self) -> None:
        """Arrête tous les services ensemble, puis supervisord, puis ce qui resterait."""
        if self.alive():
            self._rpc("stopAllProcesses", True)
            pid = self._rpc("getPID")
            self._rpc("shutdown")
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=STOP_SECONDS)
        self.end_orphans()

    def end_orphans(self) -> None:
        """Termine les processus de cette pile que plus personne ne surveille (supervisord tué, par exemple)."""
        processes = self.orphans()
        for process in processes:
            process.terminate()
        _, stubborn = psutil.wait_procs(processes, timeout=STOP_SECONDS)
        for process in stubborn:
            process.kill()
        psutil.wait_procs(stubborn, timeout=STOP_SECONDS)

    def orphans(self) -> list[psutil.Process]:
        """Processus dont la ligne de commande nomme le dossier de données de cette pile."""
        marks = {
            str(self.config),
            f"-Dpipeline={self.stack.data}",
            str(self.stack.mongo_data),
            str(self.stack.postgres_data),
        }
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"].startswith(PROGRAMS) and marks.intersection(process.info["cmdline"] or ())
        ]

    def _rpc(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _reload(self) -> None:
        """Fait relire la configuration : un port changé ne touche que les services arrêtés."""
        added, changed, removed = self._rpc("reloadConfig")[0]
        stopped = {name for name, info in self.states().items() if info["statename"] not in RUNNING}
        for name in (*(set(changed) & stopped), *removed):
            self._rpc("removeProcessGroup", name)
        for name in (*(set(changed) & stopped), *added):
            self._rpc("addProcessGroup", name)

    def _wait_alive(self) -> None:
        deadline = time.monotonic() + 15
        while not self.alive():
            if time.monotonic() > deadline:
                raise PipelineError(f"supervisord ne répond pas : lisez {self.stack.logs / 'supervisord.log'}.")
            time.sleep(0.05)

    def _write_config(self, services: list[Service]) -> None:
        config = configparser.RawConfigParser()
        config["unix_http_server"] = {"file": str(self.socket), "chmod": "0700"}
        config["supervisord"] = {
            "pidfile": str(self.pidfile),
            "logfile": str(self.stack.logs / "supervisord.log"),
            "directory": str(self.stack.data),
            "childlogdir": str(self.stack.logs),
            **({"user": "root"} if os.getuid() == 0 else {}),
        }
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        for rank, service in enumerate(services):
            config[f"program:{service.name}"] = {
                "command": " ".join(_quoted(part) for part in service.command),
                "environment": ",".join(f"{name}={_quoted(value)}" for name, value in service.environment.items()),
                "priority": str(rank),
                "autostart": "false",
                "autorestart": "false",
                "startsecs": "2",
                "startretries": "3",
                "stopsignal": service.stop_signal,
                "stopwaitsecs": str(service.stop_seconds),
                "stdout_logfile": _escaped(str(self.stack.logs / f"{service.name}.log")),
                "stdout_logfile_maxbytes": "10MB",
                "stdout_logfile_backups": "1",
                "redirect_stderr": "true",
                **({"user": service.user} if service.user else {}),
                **({"directory": _escaped(str(service.directory))} if service.directory else {}),
            }
        with self.config.open("w", encoding="utf-8") as file:
            config.write(file)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(part: str) -> str:
    """``part`` pour la ligne ``command`` de supervisord : guillemets pour les espaces, %% pour un %."""
    return '"' + _escaped(part).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _environment() -> dict[str, str]:
    """L'environnement des services, sans ce qui règle les clients (un ``PGPORT`` tromperait PostgreSQL)."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "KAFKA_", "MONGO_"))}
