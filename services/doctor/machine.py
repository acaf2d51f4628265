"""La machine : système, dossiers, disque, mémoire. Bibliothèque standard seulement."""

import importlib
import os
import platform
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from services.doctor.env_file import ROOT, data_folder, value
from services.doctor.jars import cache
from services.doctor.ports import HIGHEST, listening
from services.doctor.report import Check, Finding, ok, problem, unknown, warning

GIGABYTE = 1024**3
# Une pile vide pèse 60 Mo, Java, PostgreSQL et les jars 400, l'environnement des développeurs 1,2 Go ; un broker qui
# ne peut plus écrire s'arrête, et les trois écrivent sur le même disque.
DISK_PROBLEM, DISK_WARNING = 1 * GIGABYTE, 3 * GIGABYTE
# Trois brokers et Connect à 512 Mo de tas au plus, SecantusDB et PostgreSQL : 2 Go quand tout travaille.
MEMORY_TOTAL, MEMORY_FREE = 4 * GIGABYTE, 1.5 * GIGABYTE


def judge_system(system: str, machine: str, *, wsl_on_windows_disk: bool = False) -> list[Finding]:
    """Ce que la pile sans Docker ne sait pas faire sur ce système."""
    if system == "Windows":
        return [
            warning(
                "système",
                "Windows : les serveurs sans Docker n'y tournent pas, les scripts oui",
                "Démarrez les serveurs avec « docker-compose up -d ».",
            )
        ]
    if wsl_on_windows_disk:
        return [
            warning(
                "système",
                "le projet est sur un disque de Windows vu par WSL : PostgreSQL y refuse "
                "son dossier, faute de droits Unix",
                "Clonez le projet dans votre dossier de Linux (~).",
            )
        ]
    if (system, machine) == ("Darwin", "x86_64"):
        return [
            warning(
                "système",
                "Mac à processeur Intel : le paquet secantusdb n'y existe pas, les serveurs "
                "sans Docker ont besoin de mongod",
                "Installez mongod, ou utilisez Docker.",
            )
        ]
    return [ok("système", f"{system}, {machine}")]


# --- Dossiers ---


@dataclass(frozen=True)
class Folder:
    """Ce qu'on sait d'un dossier où quelqu'un doit écrire ; ``parent`` est le premier dossier qui existe."""

    path: Path
    parent: Path
    is_directory: bool
    writable: bool
    owner: int


def folder_facts(path: Path) -> Folder:
    """Regarde ``path`` sans rien créer."""
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    return Folder(path, parent, parent.is_dir(), os.access(parent, os.W_OK | os.X_OK), parent.stat().st_uid)


def cache_facts(path: Path) -> Folder:
    """Regarde le cache de Maven ; sous « sudo », son verrou a pu naître à un autre compte."""
    facts, lock = folder_facts(path), path / ".verrou"
    return replace(facts, writable=facts.writable and (not lock.exists() or os.access(lock, os.W_OK)))


def reopen(folder: Path, owner: int) -> str:
    """La commande qui rend ``folder`` à ce compte : « chown » ne change rien à un dossier qui est déjà à lui."""
    name = shlex.quote(str(folder))
    if owner == os.getuid():
        return f"« chmod -R u+rwX {name} »"
    return f"« sudo chown -R $USER {name} » s'il est à vous"


def closed_part(path: Path) -> Path:
    """Ce qui empêche d'écrire ``path`` : lui-même, ou le premier dossier fermé en remontant."""
    there = [part for part in (path, *path.parents) if os.path.exists(part)]
    return next((part for part in there if not os.access(part, os.W_OK)), there[0])


def judge_folder(what: str, variable: str, folder: Folder) -> Finding:
    """Pourra-t-on écrire dans ce dossier ?"""
    if not folder.is_directory:
        return problem(
            "dossiers",
            f"{what} : {folder.parent} est un fichier, {folder.path} ne peut pas exister",
            f"Corrigez ou retirez {variable}, ou déplacez ce fichier.",
        )
    if not folder.writable:
        return problem(
            "dossiers",
            f"{what} : vous ne pouvez pas écrire dans {folder.parent} (il est "
            + ("à vous)" if folder.owner == os.getuid() else f"au compte {folder.owner})"),
            f"{reopen(folder.parent, folder.owner)}, sinon un autre dossier avec {variable}.",
        )
    return ok("dossiers", f"{what} : {folder.path}")


def judge_path(path: Path) -> list[Finding]:
    """Le signe d'un chemin que des outils prendraient pour un séparateur."""
    if ":" not in str(path):
        return []
    sentence = f"le chemin {path} contient « : » : Docker et Python y voient la fin du chemin"
    return [warning("dossiers", sentence, "Renommez ce dossier.")]


def folders() -> list[Finding]:
    """Données des serveurs, fichiers exportés et jars."""
    if os.name == "nt":
        return []
    data = data_folder(os.environ)
    exports = ROOT / "exercice3" / (os.environ.get("EXPORT_DIR") or data / "exports")
    return [
        judge_folder("données des serveurs", "SERVICES_DATA", folder_facts(data)),
        judge_folder("fichiers exportés", "EXPORT_DIR", folder_facts(exports.absolute())),
        judge_folder("jars des serveurs", "M2_REPO", cache_facts(cache())),
        *judge_path(data),
    ]


# --- Disque et mémoire ---


def in_gigabytes(size: float) -> str:
    """« 1,5 Go »."""
    return f"{size / GIGABYTE:.1f} Go".replace(".", ",")


def judge_disk(free: int, path: Path) -> Finding:
    """Reste-t-il de quoi écrire ? En dessous de 1 Go, un broker peut s'arrêter au milieu d'un exercice."""
    text = f"{in_gigabytes(free)} libres sur le disque de {path}"
    cure = "Libérez de la place ; « make reset » efface les données des serveurs."
    if free < DISK_PROBLEM:
        return problem("disque", f"{text} : Kafka s'arrête dès qu'il ne peut plus écrire", cure)
    if free < DISK_WARNING:
        return warning("disque", f"{text} : l'installation en prend 1,6, et Kafka garde tout en trois copies", cure)
    return ok("disque", text)


def judge_memory(total: int, available: int, *, running: bool) -> Finding:
    """De quoi tenir trois brokers, Connect et deux bases ? ``running`` : ils tournent déjà."""
    text = f"{in_gigabytes(available)} disponibles sur {in_gigabytes(total)}"
    if total < MEMORY_TOTAL * 0.95:  # une machine de 4 Go en montre un peu moins
        return warning(
            "mémoire",
            f"{text} : le projet compte sur 4 Go (8 avec Docker)",
            "Fermez le reste, ou utilisez les serveurs d'une autre machine (KAFKA_BOOTSTRAP_SERVERS, MONGO_URI, "
            "PGHOST).",
        )
    if available < MEMORY_FREE and not running:
        return warning(
            "mémoire",
            f"{text} : les serveurs en prennent 2 quand tout travaille",
            "Fermez des programmes avant de démarrer les serveurs.",
        )
    return ok("mémoire", text)


def memory_facts() -> tuple[int, int] | None:
    """Mémoire totale et disponible de la machine ; None si rien ne les donne."""
    with suppress(ImportError):
        psutil = importlib.import_module("psutil")
        return psutil.virtual_memory().total, psutil.virtual_memory().available
    with suppress(OSError, KeyError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    return None


def memory() -> list[Finding]:
    """La mémoire, et si les serveurs en ont déjà pris leur part."""
    facts = memory_facts()
    if facts is None:
        return [unknown("mémoire", "pas regardée : il manque le paquet psutil", "Voyez la ligne « paquets ».")]
    total, available = facts
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        total, available = min(total, limit), min(available, max(0, limit - used))
    port = value("PORT_KAFKA1")
    exists = port.isdecimal() and int(port) <= HIGHEST
    return [judge_memory(total, available, running=exists and listening(int(port)))]


def system() -> list[Finding]:
    """Le système, et WSL."""
    release = platform.release().lower()
    return judge_system(
        platform.system(),
        platform.machine(),
        wsl_on_windows_disk="microsoft" in release and str(ROOT).startswith("/mnt/"),
    )


def disk() -> list[Finding]:
    """La place qui reste là où les serveurs écrivent."""
    folder = folder_facts(data_folder(os.environ)).parent
    return [judge_disk(shutil.disk_usage(folder).free, folder)]


CHECKS: dict[str, Check] = {"système": system, "dossiers": folders, "disque": disk, "mémoire": memory}
