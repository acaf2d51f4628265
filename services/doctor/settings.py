"""Les réglages : .env, les variables exportées et ce que chacune change, le proxy. Bibliothèque standard seulement."""

import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from services.doctor.machine import ROOT, data_folder
from services.doctor.report import OK, PROBLEM, WARNING, Check, Finding

ENV = ROOT / ".env"
REQUIRED = (
    "PORT_KAFKA1",
    "PORT_KAFKA2",
    "PORT_KAFKA3",
    "PORT_CONNECT",
    "PORT_FLINK",
    "PORT_UI",
    "PORT_MONGO",
    "PGPORT",
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
    "PGHOST",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "TABLEAU_PASSWORD",
)
SECRET = re.compile("PASSWORD|SECRET|_URI$|JAAS|OAUTH|SSL_KEY")

# Lignes sur lesquelles repose la garantie d'un script : commun.kafka.client_config refuse d'y toucher.
GUARANTEED = frozenset(
    (
        "acks",
        "auto.offset.reset",
        "delivery.report.only.error",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "isolation.level",
        "message.timeout.ms",
        "transaction.timeout.ms",
        "transactional.id",
    )
)
# Variables KAFKA_… d'autres outils, que commun.kafka n'écoute pas.
IGNORED = ("HOME", "OPTS", "HEAP_OPTS", "LOG4J_OPTS", "JVM_PERFORMANCE_OPTS", "JMX_OPTS", "GC_LOG_OPTS", "VERSION")
IGNORED_PREFIXES = ("PORT", "SERVICE_")

ELSEWHERE = {
    "PGSERVICE": "libpq prend tout dans ce service : pg.py, reconcile.py et l'aperçu iront où il dit, sans rien de "
    ".env",
    "PGHOSTADDR": "libpq s'y connecte quelle que soit PGHOST : pg.py, reconcile.py et l'aperçu iront là",
    "PGSERVICEFILE": "libpq y cherche les services de PGSERVICE",
    "PGPASSFILE": "libpq y cherche les mots de passe qui ne sont ni dans .env ni dans PGPASSWORD",
    "PGSSLMODE": "règle le chiffrement de pg.py, reconcile.py et de l'aperçu ; le PostgreSQL du projet n'a pas de TLS",
    "PGOPTIONS": "ces options partent à l'ouverture de chaque connexion de pg.py, reconcile.py et de l'aperçu",
    "PGCLIENTENCODING": "change l'encodage des connexions de pg.py, que les fichiers exportés ont en UTF-8",
    "PGTARGETSESSIONATTRS": "libpq refuse les serveurs qui n'ont pas cette qualité",
    "EXPORT_DIR": "schedule_export.py, pg.py et reconcile.py travaillent dans ce dossier ; « reset » efface ses "
    "exports",
    "EXPORT_EVERY": "secondes entre deux exports de schedule_export.py, au lieu de 120",
    "SERVICES_DATA": "les serveurs sans Docker ont leurs données là ; un terminal sans elle commande une autre pile",
    "MONGOD": "les serveurs sans Docker lancent ce programme pour MongoDB",
    "CSV_FILES": "exercice1/producer.py suit ces fichiers au lieu de data/ventes.csv",
    "COMPOSE_FILE": "docker-compose lit ce fichier au lieu de docker-compose.yml",
    "COMPOSE_PROJECT_NAME": "docker-compose range les conteneurs sous ce nom : un autre nom, ce sont d'autres données",
    "DOCKER_HOST": "Docker démarre les serveurs sur cette machine-là : sur localhost, rien ne répondra",
    "JAVA_TOOL_OPTIONS": "chaque serveur Java (Kafka, Connect, Flink) sans Docker reçoit ces options en plus",
    "JDK_JAVA_OPTIONS": "chaque serveur Java (Kafka, Connect, Flink) sans Docker reçoit ces options en plus",
    "_JAVA_OPTIONS": "chaque serveur Java (Kafka, Connect, Flink) sans Docker reçoit ces options, après les siennes",
}
OTHER_TOPIC = re.compile(r"(?:CSV|TRANSACTIONS|VENTES)_(?:TOPIC|VALIDEES|FENETRES|ALERTES|FENETRES_FLINK)$")
OTHER_GROUP = re.compile(r"(?:CSV|TRANSACTIONS|TRANSACTIONS_MONITOR|VENTES)_GROUP$")
LOCAL = ("localhost", "127.0.0.1", "::1", "")


# --- .env ---


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
            Finding(
                ".env",
                PROBLEM,
                "le fichier .env manque : ports, noms et mots de passe y sont",
                "« git checkout .env » à la racine du projet.",
            )
        ]
    findings = []
    found = {
        line.partition("=")[0].strip(): line.partition("=")[2].strip()
        for line in text.splitlines()
        if "=" in line and not line.lstrip().startswith("#")
    }
    if lacking := [name for name in REQUIRED if not found.get(name)]:
        findings.append(
            Finding(
                ".env",
                PROBLEM,
                f"sans valeur dans .env : {', '.join(lacking)}",
                "Rendez-leur une valeur, ou « git checkout .env ».",
            )
        )
    if doubtful := [name for name, text in found.items() if name in REQUIRED and re.search(r"[$'\"`]| #", text)]:
        findings.append(
            Finding(
                ".env",
                WARNING,
                f"{', '.join(doubtful)} : un $, un guillemet ou un « # » dans la valeur, "
                "que docker-compose et les scripts ne lisent pas de même",
                "Choisissez une valeur sans eux.",
            )
        )
    if "\r\n" in text:
        findings.append(
            Finding(
                ".env",
                WARNING,
                "les lignes de .env finissent à la manière de Windows (CRLF)",
                "Enregistrez-le avec des fins de ligne LF.",
            )
        )
    identifier = found.get("CLUSTER_ID", "")
    if identifier and not re.fullmatch(r"[\w-]{22}", identifier):
        findings.append(
            Finding(
                ".env",
                PROBLEM,
                f"CLUSTER_ID={identifier} n'a pas 22 caractères (lettres, chiffres, - et _) : "
                "Kafka refuserait de démarrer",
                "« git checkout .env ».",
            )
        )
    return findings or [Finding(".env", OK, f"{len(found)} réglages")]


def judge_cluster_id(wanted: str, nodes: Mapping[str, str]) -> list[Finding]:
    """L'identifiant de .env est-il celui des données ? ``nodes`` : celui de chaque nœud déjà formaté."""
    if len(set(nodes.values())) > 1:
        text = ", ".join(f"{name} {identifier}" for name, identifier in nodes.items())
        return [
            Finding(
                "CLUSTER_ID",
                PROBLEM,
                f"les nœuds de Kafka n'ont pas le même identifiant de cluster : {text}",
                "Il a changé entre deux formatages ; « make reset » efface tout et repart d'un seul.",
            )
        ]
    if nodes and wanted not in nodes.values():
        return [
            Finding(
                "CLUSTER_ID",
                WARNING,
                f"{wanted} n'est pas l'identifiant des données de Kafka "
                f"({next(iter(nodes.values()))}) : changé depuis le premier démarrage, il y est sans effet, mais un "
                "nœud dont on effacerait les données ne rejoindrait plus les autres",
                "Remettez l'ancien dans .env, ou « make reset », qui efface tout.",
            )
        ]
    return [
        Finding("CLUSTER_ID", OK, f"{wanted}" + (", celui des données" if nodes else ", rien n'est encore formaté"))
    ]


def formatted_nodes(data: Path) -> dict[str, str]:
    """Identifiant de cluster des nœuds Kafka déjà formatés de la pile sans Docker."""
    found = {}
    for node in ("kafka1", "kafka2", "kafka3"):
        path = data / node / "meta.properties"
        if path.is_file() and (match := re.search(r"^cluster\.id=(.*)$", path.read_text(encoding="utf-8"), re.M)):
            found[node] = match[1].strip()
    return found


# --- Variables ---


def judge_variables(environ: Mapping[str, str], defaults: Mapping[str, str]) -> list[Finding]:
    """Chaque variable exportée qui change les scripts ou les serveurs, et ce qu'elle y change."""
    findings = []
    ports = {
        name: text
        for name, text in sorted(environ.items())
        if text and _is_port(name) and text != defaults.get(name, text)
    }
    if ports:
        shown = ", ".join(f"{name}={text}" for name, text in ports.items())
        findings.append(
            Finding(
                "variables",
                WARNING,
                f"{shown} : ports des serveurs et des scripts lancés de ce terminal, au lieu de ceux de .env",
                f"« unset {' '.join(ports)} » si ce n'est pas voulu ; dans .env, ils vaudraient partout.",
            )
        )
    for name, text in sorted(environ.items()):
        if not text or _is_port(name):
            continue
        if name.startswith("KAFKA_"):
            state, effect = _kafka_effect(name.removeprefix("KAFKA_"), text)
        else:
            state, effect = WARNING, _effect(name, text, defaults)
        if effect:
            shown = "…" if SECRET.search(name) else text
            findings.append(
                Finding("variables", state, f"{name}={shown} : {effect}", f"« unset {name} » si ce n'est pas voulu.")
            )
    return findings or [Finding("variables", OK, "aucune variable exportée ne remplace un réglage")]


def _is_port(name: str) -> bool:
    return name.startswith("PORT_") or name == "PGPORT"


def _kafka_effect(name: str, text: str) -> tuple[str, str]:
    """Ce que la variable KAFKA_<name> change ; une phrase vide si rien."""
    if name == "BOOTSTRAP_SERVERS":
        return WARNING, "les scripts parlent à ce cluster-là, pas à la pile de .env"
    if name in IGNORED or name.startswith(IGNORED_PREFIXES):
        return OK, ""
    key = name.lower().replace("__", "\0").replace("_", ".").replace("\0", "_")
    if key in GUARANTEED:
        return PROBLEM, f"changerait « {key} », sur quoi repose la garantie d'un script, qui refuse de démarrer"
    return WARNING, f"règle « {key} » dans le client Kafka de chaque script"


def _effect(name: str, text: str, defaults: Mapping[str, str]) -> str:
    """Ce que cette variable change ; une phrase vide si rien."""
    if name == "MONGO_URI":
        return f"les scripts de l'exercice 3 parlent au MongoDB de {_host_of(text)}, pas à la pile de .env"
    if name == "PGHOST" and text != defaults.get("PGHOST"):
        return (
            "pg.py, reconcile.py et l'aperçu iront là ; le mot de passe de .env n'y est pas envoyé (posez PGPASSWORD)"
        )
    if name in defaults:
        if text == defaults[name]:
            return ""
        if name == "CLUSTER_ID" or name.startswith(("POSTGRES_", "MONGO_ADMIN", "MONGO_ROLES")):
            return "remplace la valeur de .env pour des serveurs encore à créer ; sans effet sur ceux qui le sont"
        old = "la valeur" if SECRET.search(name) else defaults[name]
        return (
            f"remplace {old} de .env pour les scripts, et pour des serveurs encore à créer ; pas pour ceux qui le sont"
        )
    if OTHER_TOPIC.match(name):
        return "les scripts lisent et écrivent ce topic-là au lieu de celui par défaut"
    if OTHER_GROUP.match(name):
        return "les consommateurs sont de ce groupe-là au lieu de celui par défaut"
    if name == "EXPORT_DIR" and not os.path.isabs(text):
        return "chemin relatif : chaque script le compte depuis le dossier où il est lancé"
    return ELSEWHERE.get(name, "")


def _host_of(uri: str) -> str:
    """Machines d'une adresse MongoDB, sans le compte ni le mot de passe."""
    return urlsplit(uri).netloc.rpartition("@")[2] or "cette adresse"


# --- Proxy ---


def judge_proxy(
    proxies: Mapping[str, str], *, bypassed: bool, bundles: Mapping[str, str], existing: bool
) -> list[Finding]:
    """Les variables de proxy.

    Args:
        proxies: protocole → proxy, tels que les bibliothèques les lisent.
        bypassed: localhost ne passe pas par le proxy.
        bundles: variables qui nomment un fichier de certificats, et ce fichier.
        existing: tous ces fichiers existent.
    """
    findings = []
    if not existing:
        lacking = ", ".join(f"{name}={path}" for name, path in bundles.items() if not Path(path).exists())
        findings.append(
            Finding(
                "proxy",
                WARNING,
                f"{lacking} : ce fichier n'existe pas, les téléchargements échoueront",
                "Donnez le chemin du certificat de votre entreprise, ou retirez la variable.",
            )
        )
    if any(scheme in proxies for scheme in ("http", "all")) and not bypassed:
        findings.append(
            Finding(
                "proxy",
                WARNING,
                "http_proxy ou all_proxy est posée et no_proxy n'exempte pas localhost : curl vers Kafka "
                "Connect (localhost:8083) partirait au proxy",
                "« export no_proxy=localhost,127.0.0.1 NO_PROXY=localhost,127.0.0.1 ».",
            )
        )
    if any(scheme in proxies for scheme in ("https", "all")) and not bundles:
        findings.append(
            Finding(
                "proxy",
                WARNING,
                "les téléchargements passent par un proxy ; s'il ouvre le TLS, ils échouent sur "
                "« certificate verify failed »",
                "Dans ce cas seulement, « export REQUESTS_CA_BUNDLE=… », le "
                "certificat de votre entreprise (PIP_CERT pour pip).",
            )
        )
    return findings or [Finding("proxy", OK, "aucun ne gêne" if proxies else "aucun")]


def proxy() -> list[Finding]:
    """Ce que l'environnement dit du proxy, comme Python et curl le lisent."""
    proxies = urllib.request.getproxies_environment()
    bypassed = bool(urllib.request.proxy_bypass("localhost", proxies))
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "SSL_CERT_FILE")
    bundles = {name: os.environ[name] for name in names if os.environ.get(name)}
    proxies = {scheme: text for scheme, text in proxies.items() if scheme != "no"}
    return judge_proxy(
        proxies, bypassed=bypassed, bundles=bundles, existing=all(Path(p).exists() for p in bundles.values())
    )


def env_file() -> list[Finding]:
    """Le fichier .env."""
    return judge_env(ENV.read_bytes().decode("utf-8-sig", errors="replace") if ENV.is_file() else None)


CHECKS: dict[str, Check] = {
    ".env": env_file,
    "CLUSTER_ID": lambda: judge_cluster_id(value("CLUSTER_ID"), formatted_nodes(data_folder(os.environ))),
    "variables": lambda: judge_variables(os.environ, read_env()),
    "proxy": proxy,
}
