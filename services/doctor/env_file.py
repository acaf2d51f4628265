"""Le fichier .env, et ce qui en est déjà dans les données. Bibliothèque standard seulement."""

import codecs
import os
import re
from collections.abc import Iterable, Mapping
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


# La grammaire de python-dotenv, par quoi les scripts lisent .env, et qui peut manquer ici ; un test compare les deux.
# Une ligne est ces quatre motifs, chacun là où le précédent s'arrête.
_EXPORT = re.compile(r"(?:export[^\S\n]+)?")
_NAME = re.compile(r"(?:'([^']+)'|(?!')([^=#\s]+)|(?=#))[^\S\n]*")
_VALUE = re.compile(
    r"""(?:=(?:[^\S\n]+(?=\#)                           # « NOM= # commentaire » : une valeur vide
             | [^\S\n]*(?: '((?:\\.|[^'\\])*)'          # entre apostrophes
                         | "((?:\\.|[^"\\])*)"          # entre guillemets
                         | (?![^\S\n]|['"])([^\n]*))))? # jusqu'au bout de la ligne""",
    re.DOTALL | re.VERBOSE,
)
_END = re.compile(r"(?:[^\S\n]*#[^\n]*)?[^\S\n]*(?:\n|\Z)")


def parse_env(text: str) -> tuple[dict[str, str], list[int]]:
    """Les réglages que python-dotenv lirait dans ``text``, et les numéros des lignes qu'il ne lirait pas."""
    rest = re.sub(r"\r\n?", "\n", text.removeprefix("\ufeff"))
    total = rest.count("\n")
    found, wrong = dict[str, str](), list[int]()
    while rest := rest.lstrip():
        line, steps = total - rest.count("\n") + 1, list[re.Match[str]]()
        for pattern in (_EXPORT, _NAME, _VALUE, _END):
            if not (step := pattern.match(rest)):
                wrong.append(line)
                rest = rest.partition("\n")[2]
                break
            steps.append(step)
            rest = rest[step.end() :]
        else:
            _, name, value, _ = steps
            if name[1] or name[2]:
                found[name[1] or name[2]] = _unquote(*value.groups(""))
    return found, wrong


def _unquote(single: str, double: str, bare: str) -> str:
    """La valeur, selon ce qui l'entoure : une barre oblique inverse ne compte qu'entre guillemets ou apostrophes."""
    escape = re.compile(r"\\[\\'\"abfnrtv]" if double else r"\\[\\']")
    quoted = escape.sub(lambda match: codecs.decode(match[0], "unicode-escape"), single or double)
    return quoted or re.sub(r"\s+#.*", "", bare).rstrip()


def read_env() -> dict[str, str]:
    """Contenu de .env ; vide s'il ne se lit pas, ce que dit le contrôle « .env »."""
    try:
        return parse_env(ENV.read_text(encoding="utf-8", errors="replace"))[0]
    except OSError:
        return {}


def value(name: str) -> str:
    """Valeur d'une variable : l'environnement, sinon .env, sinon rien. Comme ``commun.settings.setting``."""
    return os.environ.get(name) or read_env().get(name, "")


def exported(
    names: Iterable[str], environ: Mapping[str, str], env: Mapping[str, str], others: Mapping[str, str] | None = None
) -> list[str]:
    """Celles de ``names`` que l'environnement pose, et autrement que .env (``env``) ; ``others`` : leur nom là-bas."""
    own = {name: (others or {}).get(name, name) for name in names}
    return [name for name, there in own.items() if environ.get(name) and environ[name] != env.get(there)]


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
    found, wrong = parse_env(text)
    for line in wrong:
        notes.problem(
            f"la ligne {line} de .env n'est ni « NOM=valeur » ni un commentaire : aucun script ne démarrerait",
            "Corrigez cette ligne, ou mettez un « # » devant.",
        )
    if lacking := [name for name in REQUIRED if not found.get(name)]:
        notes.problem(
            f"sans valeur dans .env : {', '.join(lacking)}", "Rendez-leur une valeur, ou « git checkout .env »."
        )
    if doubtful := [name for name, text in found.items() if name in REQUIRED and re.search(r"[$#'\"`\\\n]", text)]:
        notes.warning(
            f"{', '.join(doubtful)} : un $, un #, un guillemet ou une barre oblique inverse dans la valeur, "
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


def judge_cluster_id(wanted: str, nodes: Mapping[str, str], exported: str = "") -> list[Finding]:
    """L'identifiant de .env est-il celui des données ? ``nodes`` : celui de chaque nœud déjà formaté.

    ``exported`` : celui de l'environnement, que docker-compose préfère, et que les serveurs sans Docker n'écoutent pas.
    """
    if exported not in ("", wanted):
        return [
            warning(
                "CLUSTER_ID",
                f"{exported}, posé dans ce terminal, n'est pas celui de .env ({wanted}) : les conteneurs que "
                "docker-compose créerait d'ici ne seraient pas du même cluster",
                "« unset CLUSTER_ID ».",
            )
        ]
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
    try:
        return judge_env(ENV.read_bytes().decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return judge_env(None)
    except OSError as error:
        sentence = f"ce compte ne peut pas lire .env ({error.strerror}) : aucun script ne démarrerait"
        return [problem(".env", sentence, f"Rendez-le lisible (« chmod 644 {ENV} »).")]


CHECKS: dict[str, Check] = {
    ".env": env_file,
    "CLUSTER_ID": lambda: judge_cluster_id(
        read_env().get("CLUSTER_ID", ""), formatted_nodes(data_folder(os.environ)), os.environ.get("CLUSTER_ID", "")
    ),
}
