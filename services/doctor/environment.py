"""L'environnement Python : version, paquets, projet installé, terminal. Bibliothèque standard seulement."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from services.doctor.env_file import ROOT
from services.doctor.report import Check, Finding, Notes, ok, problem, warning

ACTIVATE = "« source .venv/bin/activate », dans chaque terminal"
INSTALL = "« make install », ou « pip install -r requirements.txt » dans un environnement virtuel"
PYTHONS = ((3, 11), (3, 14))  # les mêmes bornes que pyproject.toml


def judge_python(version: Sequence[int], executable: str) -> Finding:
    """La version de Python est-elle de celles pour lesquelles tous les paquets existent ?"""
    text = f"Python {'.'.join(map(str, version[:3]))} ({executable})"
    if tuple(version[:2]) == PYTHONS[1]:
        return warning(
            "Python",
            f"{text} : rien n'y a encore été essayé, et SecantusDB, le MongoDB de la pile sans Docker, n'y existe pas",
            "Prenez 3.13, ou Docker, ou installez mongod.",
        )
    if PYTHONS[0] <= tuple(version[:2]) < PYTHONS[1]:
        return ok("Python", text)
    return problem(
        "Python",
        f"{text} : il faut 3.11, 3.12 ou 3.13, les versions où tous les paquets sont essayés",
        "Installez l'une d'elles, puis « make PYTHON=python3.13 install ».",
    )


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
    scripts: Mapping[str, str], servers: Mapping[str, str], installed: Mapping[str, str], not_activated: bool
) -> list[Finding]:
    """Les paquets des scripts, puis ceux des serveurs sans Docker, à la version épinglée ?

    ``not_activated`` : l'environnement du projet existe, et ce programme n'y tourne pas.
    """
    notes = Notes("paquets")
    missing = [name for name in scripts if name not in installed]
    others = [name for name in servers if name not in installed]
    if missing:
        cure = f"Activez l'environnement : {ACTIVATE}." if not_activated else f"{INSTALL}."
        notes.problem(f"absents de {sys.executable} : {', '.join(missing)}", cure)
    if others and not missing:
        notes.warning(
            f"les serveurs sans Docker ne sont pas installés : {', '.join(others)}",
            "Rien à faire avec Docker ; sinon « pip install -r services/requirements.txt ».",
        )
    wrong = [
        f"{name} {installed[name]} au lieu de {version}"
        for name, version in {**scripts, **servers}.items()
        if installed.get(name, version) != version
    ]
    if wrong:
        notes.warning(
            f"autre version que l'épinglée : {', '.join(wrong)}",
            "« pip install -r requirements.txt » (et services/requirements.txt sans Docker).",
        )
    return notes.or_ok(f"{len(scripts) + len(servers)} paquets, aux versions épinglées")


def judge_project(folder: Path | None, root: Path, *, ours: bool = False) -> Finding:
    """D'où un script lancé dans son dossier importe-t-il ``commun`` ? ``folder`` : None s'il ne le trouve pas.

    ``ours`` : ce programme tourne dans le .venv du projet. Déplacé avec lui, cet environnement ne s'active plus.
    """
    if folder is None:
        again = "« make install » refait .venv (sans make, effacez ce dossier et recommencez l'installation)"
        return problem(
            "projet",
            "un script lancé dans son dossier ne trouverait pas le module commun",
            f"Le projet a-t-il changé de dossier ? {again} ; puis {ACTIVATE}."
            if ours
            else "Depuis la racine du projet : « pip install -e . », dans l'environnement activé.",
        )
    if folder != root:
        return problem(
            "projet",
            f"les scripts de {root} importeraient commun depuis {folder}",
            "Un environnement .venv par copie du projet : « make install » ici, et activez celui-là.",
        )
    return ok("projet", f"les scripts importent commun depuis {folder}")


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
        return warning(
            "terminal", "« python » n'existe pas dans ce terminal : l'environnement n'y est pas activé", f"{ACTIVATE}."
        )
    if not Path(python).absolute().is_relative_to(prefix):
        return warning("terminal", f"« python » est ici {python}, pas {executable}", f"{ACTIVATE}.")
    return ok("terminal", f"« python » est {python}")


def is_current(venv: Path) -> bool:
    """Vrai si ce programme tourne dans cet environnement."""
    return Path(sys.prefix).resolve() == venv.resolve()


def not_activated(venv: Path) -> bool:
    """Vrai si l'environnement du projet est installé, et que ce programme tourne ailleurs."""
    return (venv / "installed").exists() and not is_current(venv)


def packages() -> list[Finding]:
    """Les paquets installés ici."""
    scripts = wanted_versions(ROOT / "requirements.txt")
    servers = wanted_versions(ROOT / "services" / "requirements.txt")
    return judge_packages(scripts, servers, installed_versions([*scripts, *servers]), not_activated(ROOT / ".venv"))


CHECKS: dict[str, Check] = {
    "Python": lambda: [judge_python(tuple(sys.version_info[:3]), sys.executable)],
    "paquets": packages,
    "projet": lambda: [judge_project(imported_from(ROOT), ROOT, ours=is_current(ROOT / ".venv"))],
    "terminal": lambda: [judge_terminal(shutil.which("python"), sys.prefix, sys.executable)],
}
