"""Les ports de la pile : libres, à nos serveurs, à Docker ou à un autre programme. psutil les nomme, s'il est là."""

import importlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.doctor.env_file import ROOT, data_folder, exported, read_env, value
from services.doctor.report import OK, PROBLEM, WARNING, Check, Finding, Notes, ok, problem, warning
from services.doctor.variables import LOCAL

# Ceux de services.stack, qui ne s'importe pas sans les paquets des serveurs ; un test compare les deux.
VARIABLES = {
    "kafka1": "PORT_KAFKA1",
    "kafka2": "PORT_KAFKA2",
    "kafka3": "PORT_KAFKA3",
    "connect": "PORT_CONNECT",
    "mongodb": "PORT_MONGO",
    "postgres": "PORT_POSTGRES",
    "jobmanager": "PORT_FLINK",
}
ON_DEMAND = ("jobmanager",)
CONTROLLER_OFFSET = 1000
# Ce que chacun prend en plus de son port : le contrôleur de Kafka ; le JobManager et les deux TaskManagers de Flink.
INNER = dict.fromkeys(("kafka1", "kafka2", "kafka3"), (CONTROLLER_OFFSET,)) | {
    "jobmanager": tuple(range(CONTROLLER_OFFSET, CONTROLLER_OFFSET + 3))
}
CONNECT_SECONDS = 1.0
UNRESERVED = 1024  # en dessous, la plupart des systèmes réservent les ports à root
HIGHEST = 65_535 - CONTROLLER_OFFSET - 2  # Flink écoute aussi deux ports après le sien + 1000
DOCKER = re.compile(r"docker|rootlessport|rootlesskit|vpnkit|wslrelay|slirp4netns|colima|lima|orbstack", re.IGNORECASE)
OURS, CONTAINER, COPY, OTHER, HIDDEN = "nous", "Docker", "une autre copie", "un autre", "caché"


@dataclass(frozen=True)
class Holder:
    """Qui écoute sur un port : de quelle sorte, et son nom."""

    kind: str
    name: str


def judge_numbers(ports: Mapping[str, str], exported: Collection[str] = ()) -> list[Finding]:
    """Les numéros de port sont-ils des nombres, et tous différents ? ``ports`` : service → texte.

    ``exported`` : les variables qui viennent de l'environnement ; les autres sont de .env.
    """
    notes, seen = Notes("ports"), dict[int, str]()

    def note(service: str, message: str, cure: str) -> None:
        variable = VARIABLES[service]
        notes.problem(message, f"« unset {variable} »." if variable in exported else cure)

    for service, text in ports.items():
        if not text.isdecimal() or not 0 < int(text) <= HIGHEST:
            note(
                service,
                f"{VARIABLES[service]}={text} n'est pas un port (1 à {HIGHEST})",
                "Corrigez-le dans .env.",
            )
            continue
        for port in (int(text) + offset for offset in (0, *INNER.get(service, ()))):
            if port in seen:
                note(
                    service if VARIABLES[service] in exported else seen[port],
                    f"le port {port} est à la fois celui de {seen[port]} et de {service} (Kafka prend aussi son port "
                    f"+ {CONTROLLER_OFFSET}, Flink les trois à partir de son port + {CONTROLLER_OFFSET})",
                    f"Donnez un autre port à {VARIABLES[service]}, dans .env.",
                )
            seen[port] = service
    return notes.found


def judge_holder(service: str, port: int, holder: Holder, *, foreign: bool) -> Finding | None:
    """Ce qu'il y a à dire de l'occupant du port d'un service ; ``foreign`` : les scripts n'utilisent pas le nôtre."""
    if holder.kind in (OURS, CONTAINER, COPY):
        return None
    variable = VARIABLES[service]
    state = WARNING if foreign or service in ON_DEMAND else PROBLEM
    change = f"choisissez un autre port avec {variable}, dans .env ou l'environnement."
    if holder.kind == HIDDEN:
        return warning(
            "ports",
            f"le port {port} de {service} est pris par un programme d'un autre compte, que je ne peux pas nommer",
            f"Si ce n'est pas Docker : arrêtez ce programme, ou {change}",
        )
    return Finding(
        "ports", state, f"le port {port} de {service} est pris par {holder.name}", f"Arrêtez ce programme, ou {change}"
    )


def judge_reserved(reserved: Mapping[str, int], foreign: Sequence[str]) -> list[Finding]:
    """Les ports que le système refuse à ce compte ; ``reserved`` : service → port."""
    return [
        Finding(
            "ports",
            WARNING if service in foreign or service in ON_DEMAND else PROBLEM,
            f"le port {port} de {service} est réservé à root par ce système : les serveurs sans Docker ne peuvent pas "
            "l'avoir",
            f"Choisissez un port à partir de {UNRESERVED} avec {VARIABLES[service]}, dans .env ou l'environnement.",
        )
        for service, port in reserved.items()
    ]


def judge_ports(holders: Mapping[str, tuple[int, Holder | None]], foreign: Sequence[str]) -> list[Finding]:
    """Chaque port de la pile ; ``holders`` : service → port et occupant ; ``foreign`` : services pris ailleurs."""
    notes = Notes("ports")
    notes.found = [
        finding
        for service, (port, holder) in holders.items()
        if holder and (finding := judge_holder(service, port, holder, foreign=service in foreign))
    ]
    for name in sorted({holder.name for _, holder in holders.values() if holder and holder.kind == COPY}):
        taken = {service: port for service, (port, holder) in holders.items() if holder and holder.name == name}
        state = WARNING if taken.keys() <= {*foreign, *ON_DEMAND} else PROBLEM
        text = ", ".join(f"{port} ({service})" for service, port in taken.items())
        notes.add(
            state,
            f"pris par une autre copie du projet, de données {name} : {text}",
            "« make stop » dans son dossier, ou d'autres ports ici (PORT_…, dans .env).",
        )
    kinds = {holder.kind for service, (_, holder) in holders.items() if holder and service not in foreign}
    if {OURS, CONTAINER} <= kinds:
        notes.warning(
            "les deux piles tournent à la fois, chacune avec une partie des ports : "
            "leurs données ne sont pas les mêmes",
            "Gardez-en une : « make stop » ou « docker-compose down ».",
        )
    sorts = {
        sort: ", ".join(
            f"{service} {port}" for service, (port, holder) in holders.items() if holder and holder.kind == sort
        )
        for sort in (OURS, CONTAINER)
    }
    rows = [f"à {sort} : {text}" for sort, text in sorts.items() if text]
    return notes.or_ok(" ; ".join(rows) or "tous libres : aucun serveur ne tourne")


def reachable(address: str) -> str:
    """Pourquoi on ne se connecte pas à « machine:port » ; vide si on s'y connecte."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return ""
    except socket.gaierror:
        return f"la machine « {host} » est inconnue d'ici"
    except ConnectionRefusedError:
        return "rien n'y écoute"
    except TimeoutError:
        return "aucune réponse : pare-feu, ou autre réseau"
    except (OSError, ValueError) as error:
        return str(error)


def reach_all(addresses: Iterable[str]) -> dict[str, str]:
    """``reachable`` de chaque adresse, toutes à la fois."""
    wanted = list(addresses)
    with ThreadPoolExecutor(len(wanted) or 1) as pool:
        return dict(zip(wanted, pool.map(reachable, wanted), strict=True))


def listening(port: int) -> bool:
    """Quelqu'un répond-il sur ce port de la machine ?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_reserved(port: int) -> bool:
    """Vrai si le système refuse ce port à notre compte, que quelqu'un y soit ou non."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return True
        except OSError:  # il est pris
            return False
    return False


def published() -> dict[int, str]:
    """Port publié → conteneur, et son dossier de projet si ce n'est pas le nôtre ; vide si Docker se tait."""
    if not shutil.which("docker"):
        return {}
    layout = '{{.Names}}\t{{.Label "com.docker.compose.project.working_dir"}}\t{{.Ports}}'
    try:
        done = subprocess.run(
            ["docker", "ps", "--format", layout], capture_output=True, text=True, timeout=3, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return containers(done.stdout, str(ROOT)) if done.returncode == 0 else {}


def containers(listing: str, root: str) -> dict[int, str]:
    """Lit « docker ps » : port de la machine → nom, vide si le conteneur est de ce projet."""
    found = {}
    for line in listing.splitlines():
        name, _, rest = line.partition("\t")
        folder, _, ports = rest.partition("\t")
        for port in re.findall(r":(\d+)->", ports):
            found[int(port)] = "" if folder == root else f"le conteneur {name}" + (f" de {folder}" if folder else "")
    return found


def holder_of(port: int, docker: Mapping[int, str], listeners: Mapping[int, int | None] | None) -> Holder | None:
    """Qui écoute sur ``port`` ; None si personne. ``listeners`` : port → pid, None si psutil manque."""
    if not listening(port):
        return None
    if port in docker:
        return Holder(OTHER, docker[port]) if docker[port] else Holder(CONTAINER, "Docker")
    if pid := (listeners or {}).get(port):
        psutil = importlib.import_module("psutil")
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            return kind_of(process.name(), pid, process.cmdline(), our_folders())
    return Holder(HIDDEN, "")


def listeners() -> dict[int, int | None] | None:
    """Port → pid de qui y écoute (None s'il est d'un autre compte) ; None si psutil manque ou n'a pas le droit."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None
    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:  # macOS : réservé à root
        return None
    return {c.laddr.port: c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr}


@cache
def our_folders() -> list[str]:
    """Dossiers des données de nos serveurs : PostgreSQL a parfois le sien (root dans un dossier fermé)."""
    found = {str(data_folder(os.environ))}
    with suppress(Exception):  # sans les paquets des serveurs, il n'y a pas de pile à connaître
        found.add(str(importlib.import_module("services.stack").Stack().postgres_home))
    return sorted(found)


def kind_of(name: str, pid: int, command: Sequence[str], ours: Sequence[str]) -> Holder:
    """De quelle sorte est le programme qui a cette ligne de commande ; ``ours`` : les dossiers de nos serveurs."""
    if folder := stack_folder(command):
        return Holder(OURS, name) if folder in ours else Holder(COPY, folder)
    return Holder(CONTAINER, "Docker") if DOCKER.search(name) else Holder(OTHER, f"{name} (pid {pid})")


def stack_folder(command: Sequence[str]) -> str:
    """Dossier de données que nomme la ligne de commande d'un serveur du projet ; vide si ce n'en est pas un."""
    for before, word in zip(("", *command), command, strict=False):
        if word.startswith("-Dpipeline="):
            return word.removeprefix("-Dpipeline=")
        path = Path(word)
        if (before, path.name) in (("--storage-path", "mongodb-secantusdb"), ("--dbpath", "mongodb-mongod")):
            return str(path.parent)
        if (before, path.name) == ("-D", "postgres") and "pginstall" in command[0]:
            return str(path.parent)
    return ""


def foreign_services(environ: Mapping[str, str]) -> list[str]:
    """Services que les scripts cherchent ailleurs que dans la pile de .env."""
    found = ["kafka1", "kafka2", "kafka3", "connect"] if environ.get("KAFKA_BOOTSTRAP_SERVERS") else []
    found += ["mongodb"] if environ.get("MONGO_URI") else []
    elsewhere = environ.get("PGHOST", "") not in LOCAL or not {"PGSERVICE", "PGPORT"}.isdisjoint(environ)
    return found + (["postgres"] if elsewhere else [])


def ports() -> list[Finding]:
    """Les ports de .env et leurs occupants."""
    texts = {service: value(variable) for service, variable in VARIABLES.items()}
    if wrong := judge_numbers(texts, exported(VARIABLES.values(), os.environ, read_env())):
        return wrong
    docker = published()
    known = listeners()
    holders = {service: (int(text), holder_of(int(text), docker, known)) for service, text in texts.items()}
    free = {service: port for service, (port, holder) in holders.items() if holder is None}
    foreign = foreign_services(os.environ)
    refused = judge_reserved({service: port for service, port in free.items() if is_reserved(port)}, foreign)
    return refused + [finding for finding in judge_ports(holders, foreign) if not refused or finding.state != OK]


def judge_localhost(addresses: Sequence[str]) -> Finding:
    """Tous les serveurs écoutent sur 127.0.0.1 : localhost y mène-t-il ?"""
    if "127.0.0.1" in addresses:
        return ok("localhost", ", ".join(addresses))
    return problem(
        "localhost",
        f"« localhost » mène à {', '.join(addresses) or 'rien'} et pas à 127.0.0.1, où tout écoute",
        "Ajoutez la ligne « 127.0.0.1 localhost » au fichier hosts du système.",
    )


def localhost() -> list[Finding]:
    """Ce que la machine fait du nom « localhost »."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)]
    except socket.gaierror:
        found = []
    return [judge_localhost(list(dict.fromkeys(found)))]


CHECKS: dict[str, Check] = {"localhost": localhost, "ports": ports}
