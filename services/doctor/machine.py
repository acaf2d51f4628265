"""La machine : Python, paquets, projet installé, dossiers, disque, mémoire. Bibliothèque standard seulement."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from services.doctor.report import OK, PROBLEM, UNKNOWN, WARNING, Check, Finding

ROOT = Path(__file__).resolve().parents[2]
ACTIVATE = "« source .venv/bin/activate », dans chaque terminal"
INSTALL = "« make install », ou « pip install -r requirements.txt » dans un environnement virtuel"
PYTHONS = ((3, 11), (3, 13))  # les mêmes bornes que pyproject.toml

GIGABYTE = 1024**3
# Une pile vide pèse 60 Mo, Java, PostgreSQL et les jars 400, l'environnement des développeurs 1,2 Go ; un broker qui
# ne peut plus écrire s'arrête, et les trois écrivent sur le même disque.
DISK_PROBLEM, DISK_WARNING = 1 * GIGABYTE, 3 * GIGABYTE
# Trois brokers et Connect à 512 Mo de tas au plus, SecantusDB et PostgreSQL : 2 Go quand tout travaille.
MEMORY_TOTAL, MEMORY_FREE = 4 * GIGABYTE, 1.5 * GIGABYTE


# --- Python et paquets ---


def judge_python(version: Sequence[int], executable: str) -> Finding:
    """La version de Python est-elle de celles pour lesquelles tous les paquets existent ?"""
    text = f"Python {'.'.join(map(str, version[:3]))} ({executable})"
    if PYTHONS[0] <= tuple(version[:2]) <= PYTHONS[1]:
        return Finding("Python", OK, text)
    return Finding(
        "Python",
        PROBLEM,
        f"{text} : il faut 3.11, 3.12 ou 3.13, seules versions où tous les paquets sont essayés",
        "Installez l'une d'elles, puis « make PYTHON=python3.13 install ».",
    )


def judge_system(system: str, machine: str, *, wsl_on_windows_disk: bool = False) -> list[Finding]:
    """Ce que la pile sans Docker ne sait pas faire sur ce système."""
    if system == "Windows":
        return [
            Finding(
                "système",
                WARNING,
                "Windows : les serveurs sans Docker n'y tournent pas, les scripts oui",
                "Démarrez les serveurs avec « docker-compose up -d ».",
            )
        ]
    if wsl_on_windows_disk:
        return [
            Finding(
                "système",
                WARNING,
                "le projet est sur un disque de Windows vu par WSL : PostgreSQL y refuse "
                "son dossier, faute de droits Unix",
                "Clonez le projet dans votre dossier de Linux (~).",
            )
        ]
    if (system, machine) == ("Darwin", "x86_64"):
        return [
            Finding(
                "système",
                WARNING,
                "Mac à processeur Intel : le paquet secantusdb n'y existe pas, les serveurs "
                "sans Docker ont besoin de mongod",
                "Installez mongod, ou utilisez Docker.",
            )
        ]
    return [Finding("système", OK, f"{system}, {machine}")]


def wanted_versions(path: Path) -> dict[str, str]:
    """Paquet → version épinglée, d'un fichier requirements."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {m[1]: m[2] for line in lines if (m := re.match(r"([\w.-]+)==([^\s;#]+)", line))}


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Paquet → version installée dans l'environnement de ce programme ; les absents n'y sont pas."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def judge_packages(
    scripts: Mapping[str, str], servers: Mapping[str, str], installed: Mapping[str, str], venv: bool
) -> list[Finding]:
    """Les paquets des scripts, puis ceux des serveurs sans Docker, à la version épinglée ?"""
    findings = []
    missing = [name for name in scripts if name not in installed]
    others = [name for name in servers if name not in installed]
    if missing:
        cure = f"Activez l'environnement : {ACTIVATE}." if venv else f"{INSTALL}."
        findings.append(Finding("paquets", PROBLEM, f"absents de {sys.executable} : {', '.join(missing)}", cure))
    if others and not missing:
        findings.append(
            Finding(
                "paquets",
                WARNING,
                f"les serveurs sans Docker ne sont pas installés : {', '.join(others)}",
                "Rien à faire avec Docker ; sinon « pip install -r services/requirements.txt ».",
            )
        )
    wrong = [
        f"{name} {installed[name]} au lieu de {version}"
        for name, version in {**scripts, **servers}.items()
        if installed.get(name, version) != version
    ]
    if wrong:
        findings.append(
            Finding(
                "paquets",
                WARNING,
                f"autre version que l'épinglée : {', '.join(wrong)}",
                "« pip install -r requirements.txt » (et services/requirements.txt sans Docker).",
            )
        )
    return findings or [Finding("paquets", OK, f"{len(scripts) + len(servers)} paquets, aux versions épinglées")]


def judge_project(folder: Path | None, root: Path) -> Finding:
    """D'où un script lancé dans son dossier importe-t-il ``commun`` ? ``folder`` : None s'il ne le trouve pas."""
    if folder is None:
        return Finding(
            "projet",
            PROBLEM,
            "un script lancé dans son dossier ne trouverait pas le module commun",
            "Depuis la racine du projet : « pip install -e . », dans l'environnement activé.",
        )
    if folder != root:
        return Finding(
            "projet",
            PROBLEM,
            f"les scripts de {root} importeraient commun depuis {folder}",
            "Un environnement .venv par copie du projet : « make install » ici, et activez celui-là.",
        )
    return Finding("projet", OK, f"les scripts importent commun depuis {folder}")


def imported_from(root: Path) -> Path | None:
    """Dossier d'où viendrait ``commun`` : on le demande à Python, dans le dossier d'un exercice."""
    code = "import importlib.util as u; s = u.find_spec('commun'); print(s.origin if s and s.origin else '')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "exercice1", capture_output=True, text=True, timeout=4, check=True
    )
    return Path(done.stdout.strip()).resolve().parent.parent if done.stdout.strip() else None


def judge_terminal(python: str | None, prefix: str, executable: str) -> Finding:
    """« python », dans ce terminal, est-ce l'environnement où sont les paquets ? ``prefix`` : le sien."""
    if python is None:
        return Finding(
            "terminal",
            WARNING,
            "« python » n'existe pas dans ce terminal : l'environnement n'y est pas activé",
            f"{ACTIVATE}.",
        )
    if not Path(python).absolute().is_relative_to(prefix):
        return Finding("terminal", WARNING, f"« python » est ici {python}, pas {executable}", f"{ACTIVATE}.")
    return Finding("terminal", OK, f"« python » est {python}")


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


def judge_folder(what: str, variable: str, folder: Folder) -> Finding:
    """Pourra-t-on écrire dans ce dossier ?"""
    if not folder.is_directory:
        return Finding(
            "dossiers",
            PROBLEM,
            f"{what} : {folder.parent} est un fichier, {folder.path} ne peut pas exister",
            f"Corrigez ou retirez {variable}, ou déplacez ce fichier.",
        )
    if not folder.writable:
        return Finding(
            "dossiers",
            PROBLEM,
            f"{what} : vous ne pouvez pas écrire dans {folder.parent} (il est au compte {folder.owner})",
            f"« sudo chown -R $USER {folder.parent} » s'il est à vous, sinon un autre dossier avec {variable}.",
        )
    return Finding("dossiers", OK, f"{what} : {folder.path}")


def judge_path(path: Path) -> list[Finding]:
    """Les caractères d'un chemin que des outils prendraient pour des séparateurs."""
    reasons = {
        ":": "Docker et Python y voient la fin du chemin",
        ",": "Kafka y voit deux dossiers",
        "\\": "Kafka l'efface du chemin",
    }
    return [
        Finding("dossiers", WARNING, f"le chemin {path} contient « {mark} » : {reason}", "Renommez ce dossier.")
        for mark, reason in reasons.items()
        if mark in str(path)
    ]


def data_folder(environ: Mapping[str, str]) -> Path:
    """Dossier des serveurs sans Docker."""
    return Path(environ.get("SERVICES_DATA") or ROOT / ".data").resolve()


def folders() -> list[Finding]:
    """Données des serveurs et fichiers exportés."""
    if os.name == "nt":
        return []
    data, exports = data_folder(os.environ), Path(os.environ.get("EXPORT_DIR") or ROOT / "exercice3" / "exports")
    return [
        judge_folder("données des serveurs", "SERVICES_DATA", folder_facts(data)),
        judge_folder("fichiers exportés", "EXPORT_DIR", folder_facts((ROOT / "exercice3" / exports).absolute())),
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
        return Finding("disque", PROBLEM, f"{text} : Kafka s'arrête dès qu'il ne peut plus écrire", cure)
    if free < DISK_WARNING:
        return Finding(
            "disque", WARNING, f"{text} : l'installation en prend 1,6, et Kafka garde tout en trois copies", cure
        )
    return Finding("disque", OK, text)


def judge_memory(total: int, available: int, *, running: bool) -> Finding:
    """De quoi tenir trois brokers, Connect et deux bases ? ``running`` : ils tournent déjà."""
    text = f"{in_gigabytes(available)} disponibles sur {in_gigabytes(total)}"
    if total < MEMORY_TOTAL * 0.95:  # une machine de 4 Go en montre un peu moins
        return Finding(
            "mémoire",
            WARNING,
            f"{text} : le projet compte sur 4 Go (8 avec Docker)",
            "Fermez le reste, ou utilisez les serveurs d'une autre machine (KAFKA_BOOTSTRAP_SERVERS, MONGO_URI, "
            "PGHOST).",
        )
    if available < MEMORY_FREE and not running:
        return Finding(
            "mémoire",
            WARNING,
            f"{text} : les serveurs en prennent 2 quand tout travaille",
            "Fermez des programmes avant de démarrer les serveurs.",
        )
    return Finding("mémoire", OK, text)


def memory() -> list[Finding]:
    """Mémoire de la machine, ou la part que le conteneur où nous sommes en reçoit."""
    try:
        import psutil  # noqa: PLC0415 - le seul paquet d'ici, et il peut manquer
    except ImportError:
        return [Finding("mémoire", UNKNOWN, "pas regardée : il manque le paquet psutil", "Voyez la ligne « paquets ».")]
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        total, available = min(total, limit), min(available, max(0, limit - used))
    mark = str(data_folder(os.environ))
    running = any(mark in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [judge_memory(total, available, running=running)]


def system() -> list[Finding]:
    """Le système, et WSL."""
    release = platform.release().lower()
    return judge_system(
        platform.system(),
        platform.machine(),
        wsl_on_windows_disk="microsoft" in release and str(ROOT).startswith("/mnt/"),
    )


def packages() -> list[Finding]:
    """Les paquets installés ici."""
    scripts = wanted_versions(ROOT / "requirements.txt")
    servers = wanted_versions(ROOT / "services" / "requirements.txt")
    return judge_packages(scripts, servers, installed_versions([*scripts, *servers]), (ROOT / ".venv").is_dir())


def disk() -> list[Finding]:
    """La place qui reste là où les serveurs écrivent."""
    folder = folder_facts(data_folder(os.environ)).parent
    return [judge_disk(shutil.disk_usage(folder).free, folder)]


CHECKS: dict[str, Check] = {
    "Python": lambda: [judge_python(sys.version_info, sys.executable)],
    "système": system,
    "paquets": packages,
    "projet": lambda: [judge_project(imported_from(ROOT), ROOT)],
    "terminal": lambda: [judge_terminal(shutil.which("python"), sys.prefix, sys.executable)],
    "dossiers": folders,
    "disque": disk,
    "mémoire": memory,
}
