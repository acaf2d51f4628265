"""Les variables exportées, ce que chacune change, et le proxy. Bibliothèque standard seulement."""

import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from commun.cli import LEVELS
from services.doctor.env_file import read_env
from services.doctor.report import OK, PROBLEM, WARNING, Check, Finding, Notes

SECRET = re.compile("PASSWORD|SECRET|_URI$|JAAS|OAUTH|SSL_KEY")

# Lignes sur lesquelles repose la garantie d'un script : commun.kafka.client_config refuse d'y toucher.
GUARANTEED = frozenset(
    (
        "acks",
        "auto.offset.reset",
        "delivery.report.only.error",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "isolation.level",
        "message.timeout.ms",
        "partition.assignment.strategy",
        "partitioner",
        "transaction.timeout.ms",
        "transactional.id",
    )
)
# Variables KAFKA_… d'autres outils, que commun.kafka n'écoute pas.
IGNORED = ("HOME", "OPTS", "HEAP_OPTS", "LOG4J_OPTS", "JVM_PERFORMANCE_OPTS", "JMX_OPTS", "GC_LOG_OPTS", "VERSION")
IGNORED_PREFIXES = ("PORT", "SERVICE_")

TLS = "règle le chiffrement des connexions de libpq ; le PostgreSQL du projet n'a pas de TLS"
KERBEROS = "règle Kerberos dans les connexions de libpq ; le PostgreSQL du projet n'en a pas"
PICKY = "libpq refuse les serveurs qui n'ont pas cette qualité"
SESSION = "règle chaque session de pg.py, reconcile.py et de l'aperçu"
# Toutes les variables que libpq lit, hors les noms d'application et de langue : ceux-là ne changent rien.
LIBPQ = {
    "PGSERVICE": "libpq prend tout dans ce service : pg.py, reconcile.py et l'aperçu iront où il dit, sans rien de "
    ".env",
    "PGHOST": "pg.py, reconcile.py et l'aperçu iront là ; le mot de passe de .env n'y est pas envoyé (posez "
    "PGPASSWORD)",
    "PGHOSTADDR": "libpq s'y connecte quelle que soit PGHOST : pg.py, reconcile.py et l'aperçu iront là",
    "PGPORT": "pg.py, reconcile.py et l'aperçu iront à ce port, au lieu de celui de .env (PORT_POSTGRES)",
    "PGDATABASE": "pg.py, reconcile.py et l'aperçu iront dans cette base, au lieu de celle de .env",
    "PGUSER": "pg.py et reconcile.py prendront ce compte, au lieu de celui de .env",
    "PGPASSWORD": "remplace le mot de passe de .env pour pg.py et reconcile.py",
    "PGSERVICEFILE": "libpq y cherche les services de PGSERVICE",
    "PGSYSCONFDIR": "libpq y cherche les services de PGSERVICE",
    "PGPASSFILE": "libpq y cherche les mots de passe qui ne sont ni dans .env ni dans PGPASSWORD",
    "PGREQUIREAUTH": "libpq refuse les serveurs qui n'authentifient pas de cette façon",
    "PGCLIENTENCODING": "change l'encodage de psql et de vos programmes ; pg.py et l'aperçu demandent UTF-8",
    "PGOPTIONS": "ces options partent à l'ouverture de chaque connexion de pg.py, reconcile.py et de l'aperçu",
    "PGCONNECT_TIMEOUT": "secondes que libpq laisse à une connexion pour s'ouvrir",
    "PGLOADBALANCEHOSTS": "l'ordre dans lequel libpq essaie les adresses d'un serveur",
    **dict.fromkeys(("PGTARGETSESSIONATTRS", "PGREQUIREPEER", "PGCHANNELBINDING", "PGMINPROTOCOLVERSION",
                     "PGMAXPROTOCOLVERSION"), PICKY),
    **dict.fromkeys(("PGSSLMODE", "PGREQUIRESSL", "PGSSLNEGOTIATION", "PGSSLCOMPRESSION", "PGSSLCERT", "PGSSLKEY",
                     "PGSSLCERTMODE", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLSNI",
                     "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION"), TLS),
    **dict.fromkeys(("PGGSSENCMODE", "PGKRBSRVNAME", "PGGSSLIB", "PGGSSDELEGATION"), KERBEROS),
    **dict.fromkeys(("PGDATESTYLE", "PGTZ", "PGGEQO"), SESSION),
}  # fmt: skip
ELSEWHERE = LIBPQ | {
    "EXPORT_DIR": "schedule_export.py, pg.py et reconcile.py travaillent dans ce dossier ; « reset » n'y touche pas",
    "EXPORT_EVERY": "secondes entre deux exports de schedule_export.py, au lieu de 120",
    "SERVICES_DATA": "les serveurs sans Docker ont leurs données là ; un terminal sans elle commande une autre pile",
    "MONGOD": "les serveurs sans Docker lancent ce programme pour MongoDB",
    "CSV_FILES": "exercice1/producer.py suit ces fichiers au lieu de data/ventes.csv",
    "COMPOSE_FILE": "docker-compose lit ce fichier au lieu de docker-compose.yml",
    "COMPOSE_PROJECT_NAME": "docker-compose range les conteneurs sous ce nom : un autre nom, ce sont d'autres données",
    "DOCKER_HOST": "Docker démarre les serveurs sur cette machine-là : sur localhost, rien ne répondra",
}
OTHER_TOPIC = re.compile(r"(?:CSV|TRANSACTIONS|VENTES)_(?:TOPIC|VALIDEES|FENETRES|ALERTES|FENETRES_FLINK)$")
OTHER_GROUP = re.compile(r"(?:CSV|TRANSACTIONS|TRANSACTIONS_MONITOR|VENTES)_GROUP$")
LOCAL = ("localhost", "127.0.0.1", "::1", "")


def judge_variables(environ: Mapping[str, str], defaults: Mapping[str, str]) -> list[Finding]:
    """Chaque variable exportée qui change les scripts ou les serveurs, et ce qu'elle y change."""
    notes = Notes("variables")
    ports = {
        name: text
        for name, text in sorted(environ.items())
        if text and _is_port(name) and text != defaults.get(name, text)
    }
    if ports:
        shown = ", ".join(f"{name}={text}" for name, text in ports.items())
        notes.warning(
            f"{shown} : ports des serveurs et des scripts lancés de ce terminal, au lieu de ceux de .env",
            f"« unset {' '.join(ports)} » si ce n'est pas voulu ; dans .env, ils vaudraient partout.",
        )
    for name, text in sorted(environ.items()):
        if not text or _is_port(name):
            continue
        if name.startswith("KAFKA_"):
            state, effect = _kafka_effect(name.removeprefix("KAFKA_"), text)
        elif name == "LOG_LEVEL":
            state, effect = _level_effect(text)
        else:
            state, effect = WARNING, _effect(name, text, defaults)
        if effect:
            shown = "…" if SECRET.search(name) else text
            notes.add(state, f"{name}={shown} : {effect}", f"« unset {name} » si ce n'est pas voulu.")
    return notes.or_ok("aucune variable exportée ne remplace un réglage")


def _is_port(name: str) -> bool:
    return name.startswith("PORT_")


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


def _level_effect(text: str) -> tuple[str, str]:
    """Ce que la variable LOG_LEVEL arrête ; une phrase vide si rien."""
    if text.lower() in LEVELS:
        return OK, ""
    return PROBLEM, f"ce n'est pas un niveau de journal ({', '.join(LEVELS)}) : les scripts refusent de démarrer"


def _effect(name: str, text: str, defaults: Mapping[str, str]) -> str:  # noqa: PLR0911 - un par cas
    """Ce que cette variable change ; une phrase vide si rien."""
    if name == "MONGO_URI":
        return f"les scripts de l'exercice 3 parlent au MongoDB de {_host_of(text)}, pas à la pile de .env"
    if name == "PGHOST" and text in LOCAL:
        return ""
    if name in defaults:
        if text == defaults[name]:
            return ""
        if name == "CLUSTER_ID" or name.startswith(("POSTGRES_", "MONGO_ADMIN", "MONGO_ROLES")):
            return "remplace la valeur de .env pour des conteneurs encore à créer ; sans effet sur ceux qui le sont"
        old = "la valeur" if SECRET.search(name) else defaults[name]
        return f"remplace {old} de .env pour les scripts et pour des conteneurs encore à créer, pas pour les serveurs"
    if OTHER_TOPIC.match(name):
        return "les scripts lisent et écrivent ce topic-là au lieu de celui par défaut"
    if OTHER_GROUP.match(name):
        return "les consommateurs sont de ce groupe-là au lieu de celui par défaut"
    if name == "EXPORT_DIR" and not os.path.isabs(text):
        return "chemin relatif : chaque script le compte depuis le dossier où il est lancé"
    if name == "DOCKER_HOST" and text.startswith(("unix:", "npipe:")):  # une socket de cette machine
        return ""
    return ELSEWHERE.get(name, "")


def _host_of(uri: str) -> str:
    """Machines d'une adresse MongoDB, sans le compte ni le mot de passe."""
    return urlsplit(uri).netloc.rpartition("@")[2] or "cette adresse"


# --- Proxy ---


def judge_proxy(proxies: Mapping[str, str], *, bypassed: bool, bundles: Mapping[str, str]) -> list[Finding]:
    """Les variables de proxy.

    Args:
        proxies: protocole → proxy, tels que les bibliothèques les lisent.
        bypassed: localhost ne passe pas par le proxy.
        bundles: variables qui nomment un fichier de certificats, et ce fichier.
    """
    notes = Notes("proxy")
    if lacking := ", ".join(f"{name}={path}" for name, path in bundles.items() if not Path(path).exists()):
        notes.warning(
            f"{lacking} : ce fichier n'existe pas, les téléchargements échoueront",
            "Donnez le chemin du certificat de votre entreprise, ou retirez la variable.",
        )
    if any(scheme in proxies for scheme in ("http", "all")) and not bypassed:
        notes.warning(
            "un proxy est posé et no_proxy n'exempte pas localhost : curl et d'autres peuvent lui envoyer ce qui est "
            "pour Kafka Connect ou l'aperçu",
            "« export no_proxy=localhost,127.0.0.1 NO_PROXY=localhost,127.0.0.1 ».",
        )
    if any(scheme in proxies for scheme in ("https", "all")) and not bundles:
        notes.warning(
            "les téléchargements passent par un proxy ; s'il ouvre le TLS, ils échouent sur "
            "« certificate verify failed »",
            "Dans ce cas seulement, « export REQUESTS_CA_BUNDLE=… », le "
            "certificat de votre entreprise (PIP_CERT pour pip).",
        )
    return notes.or_ok("aucun ne gêne" if proxies else "aucun")


def proxy() -> list[Finding]:
    """Ce que l'environnement dit du proxy, comme Python et curl le lisent."""
    proxies = urllib.request.getproxies_environment()
    bypassed = bool(urllib.request.proxy_bypass("localhost", proxies))
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "SSL_CERT_FILE")
    bundles = {name: os.environ[name] for name in names if os.environ.get(name)}
    proxies = {scheme: text for scheme, text in proxies.items() if scheme != "no"}
    return judge_proxy(proxies, bypassed=bypassed, bundles=bundles)


CHECKS: dict[str, Check] = {"variables": lambda: judge_variables(os.environ, read_env()), "proxy": proxy}
