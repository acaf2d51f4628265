"""Le fichier .env, et ce qui en est déjà dans les données. Bibliothèque standard seulement."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from services.doctor.report import Check, Finding, Notes, ok, problem, warning

ROOT = Path(__file__).resolve().parents[2]
ENV = ROOT / ".env"
REQUIRED = (
    "PORT_KAFKA1",
    "PORT_KAFKA2",
    "PORT_KAFKA3",
    "PORT_CONNECT",
    "PORT_FLINK",
    "PORT_UI",
    "PORT_MONGO",
    "PORT_POSTGRES",
    "CLUSTER_ID",
    "MONGO_ADMIN_USER",
    "MONGO_ADMIN_PASSWORD",
    "MONGO_USER",
    "MONGO_PASSWORD",
    "MONGO_DATABASE",
    "MONGO_ROLES",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_INITDB_ARGS",
    "PIPELINE_DATABASE",
    "PIPELINE_USER",
    "PIPELINE_PASSWORD",
    "TABLEAU_PASSWORD",
)


def data_folder(environ: Mapping[str, str]) -> Path:
    """Dossier des serveurs sans Docker."""
    return (ROOT / (environ.get("SERVICES_DATA") or ".data")).resolve()


def read_env(path: Path = ENV) -> dict[str, str]:
    """Contenu de .env, sans python-dotenv, qui peut manquer : NOM=valeur, rien de plus savant."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    pairs = (line.strip().partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.removeprefix("export ").strip(): value.strip().strip("'\"") for name, _, value in pairs}


def value(name: str) -> str:
    """Valeur d'une variable : l'environnement, sinon .env, sinon rien. Comme ``commun.settings.setting``."""
    return os.environ.get(name) or read_env().get(name, "")


def judge_env(text: str | None) -> list[Finding]:
    """Le fichier .env est-il lisible par docker-compose comme par les scripts ?"""
    if text is None:
        return [
            problem(
                ".env",
                "le fichier .env manque : ports, noms et mots de passe y sont",
                "« git checkout .env » à la racine du projet.",
            )
        ]
    notes = Notes(".env")
    found = {
        line.partition("=")[0].strip(): line.partition("=")[2].strip()
        for line in text.splitlines()
        if "=" in line and not line.lstrip().startswith("#")
    }
    if lacking := [name for name in REQUIRED if not found.get(name)]:
        notes.problem(
            f"sans valeur dans .env : {', '.join(lacking)}", "Rendez-leur une valeur, ou « git checkout .env »."
        )
    if doubtful := [name for name, text in found.items() if name in REQUIRED and re.search(r"[$'\"`]| #", text)]:
        notes.warning(
            f"{', '.join(doubtful)} : un $, un guillemet ou un « # » dans la valeur, "
            "que docker-compose et les scripts ne lisent pas de même",
            "Choisissez une valeur sans eux.",
        )
    if "\ufffd" in text:
        notes.problem("n'est pas en UTF-8 : aucun script ne le lirait", "Enregistrez .env en UTF-8.")
    if "\r\n" in text:
        notes.warning(
            "les lignes de .env finissent à la manière de Windows (CRLF)", "Enregistrez-le avec des fins de ligne LF."
        )
    identifier = found.get("CLUSTER_ID", "")
    if identifier and not re.fullmatch(r"[\w-]{22}", identifier):
        notes.problem(
            f"CLUSTER_ID={identifier} n'a pas 22 caractères (lettres, chiffres, - et _) : Kafka refuserait de démarrer",
            "« git checkout .env ».",
        )
    return notes.or_ok(f"{len(found)} réglages")


def judge_cluster_id(wanted: str, nodes: Mapping[str, str]) -> list[Finding]:
    """L'identifiant de .env est-il celui des données ? ``nodes`` : celui de chaque nœud déjà formaté."""
    if len(set(nodes.values())) > 1:
        text = ", ".join(f"{name} {identifier}" for name, identifier in nodes.items())
        return [
            problem(
                "CLUSTER_ID",
                f"les nœuds de Kafka n'ont pas le même identifiant de cluster : {text}",
                "Il a changé entre deux formatages ; « make reset » efface tout et repart d'un seul.",
            )
        ]
    if nodes and wanted not in nodes.values():
        return [
            warning(
                "CLUSTER_ID",
                f"{wanted} n'est pas l'identifiant des données de Kafka "
                f"({next(iter(nodes.values()))}) : changé depuis le premier démarrage, il y est sans effet, mais un "
                "nœud dont on effacerait les données ne rejoindrait plus les autres",
                "Remettez l'ancien dans .env, ou « make reset », qui efface tout.",
            )
        ]
    return [ok("CLUSTER_ID", f"{wanted}" + (", celui des données" if nodes else ", rien n'est encore formaté"))]


def formatted_nodes(data: Path) -> dict[str, str]:
    """Identifiant de cluster des nœuds Kafka déjà formatés de la pile sans Docker."""
    found = {}
    for node in ("kafka1", "kafka2", "kafka3"):
        path = data / node / "meta.properties"
        if path.is_file() and (match := re.search(r"^cluster\.id=(.*)$", path.read_text(encoding="utf-8"), re.M)):
            found[node] = match[1].strip()
    return found


def env_file() -> list[Finding]:
    """Le fichier .env."""
    return judge_env(ENV.read_bytes().decode("utf-8-sig", errors="replace") if ENV.is_file() else None)


CHECKS: dict[str, Check] = {
    ".env": env_file,
    "CLUSTER_ID": lambda: judge_cluster_id(value("CLUSTER_ID"), formatted_nodes(data_folder(os.environ))),
}
