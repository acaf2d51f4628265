"""MongoDB et PostgreSQL : répondent-ils, à ce compte, avec ce que les scripts demandent ?"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import psycopg2
from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError

from commun.errors import START_HINT
from commun.settings import mongo_uri, postgres_dsn
from services.doctor.kafka import AHEAD_SECONDS, duration, reachable
from services.doctor.report import OK, PROBLEM, WARNING, Check, Finding
from services.doctor.settings import LOCAL, value

MONGO_MILLISECONDS = 2500
POSTGRES_SECONDS = 2  # libpq n'attend pas moins
POSTGRES_OLDEST = 160_000  # pg_input_is_valid, avec quoi pg.py juge chaque ligne, est de PostgreSQL 16
WRITERS = {"readWrite", "readWriteAnyDatabase", "dbOwner", "root"}
INDEXERS = {"dbAdmin", "dbAdminAnyDatabase", "dbOwner", "root"}
START = f"{START_HINT[0].upper()}{START_HINT[1:]}."
QUESTION = """SELECT current_setting('server_version_num')::int, current_setting('server_version'),
    current_setting('server_encoding'), pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
    has_schema_privilege(current_schema(), 'CREATE'), extract(epoch FROM clock_timestamp())::float8"""


# --- MongoDB ---


@dataclass(frozen=True)
class Mongo:
    """Ce que MongoDB dit de lui."""

    version: str
    engine: str
    roles: Mapping[str, set[str]]  # base → rôles du compte ; vide sans authentification
    authenticated: bool
    writable: bool
    ahead: float  # secondes dont son horloge devance celle d'ici


def judge_mongo(mongo: Mongo, database: str, where: str) -> list[Finding]:
    """Le moteur, les droits du compte et l'heure."""
    findings = []
    if not mongo.writable:
        findings.append(
            Finding(
                "MongoDB",
                PROBLEM,
                f"{where} est un membre secondaire : il refuse les écritures",
                "Nommez dans MONGO_URI tous les membres et « replicaSet=… ».",
            )
        )
    roles = {role for base, names in mongo.roles.items() if base in (database, "admin") for role in names}
    for wanted, right in ((WRITERS, "écrire dans"), (INDEXERS, "régler les collections de")):
        if mongo.authenticated and roles and not roles & wanted:
            findings.append(
                Finding(
                    "MongoDB",
                    PROBLEM,
                    f"le compte de {where} n'a pas le droit d'{right} {database}"
                    if right[0] in "aeéiou"
                    else f"le compte de {where} n'a pas le droit de {right} {database}",
                    f"Donnez-lui les rôles readWrite et dbAdmin sur {database} (MONGO_ROLES, avant le premier "
                    "démarrage).",
                )
            )
    findings += judge_time("MongoDB", mongo.ahead)
    return findings or [Finding("MongoDB", OK, f"{mongo.engine} {mongo.version}, sur {where}")]


def changed(variables: Sequence[str], environ: Mapping[str, str]) -> str:
    """Le remède d'un mot de passe refusé : le compte date du premier démarrage, ``variables`` ont changé depuis."""
    if exported := [name for name in variables if name in environ]:
        return (
            f"« unset {' '.join(exported)} » : exportée, elle remplace .env, mais pas le compte du premier démarrage."
        )
    return (
        f"Remettez dans .env {' et '.join(variables)} du premier démarrage, ou repartez de zéro, données comprises "
        "(« make reset » ou « docker-compose down -v »)."
    )


def judge_mongo_failure(code: int | None, said: str, where: str, silence: str, *, local: bool) -> Finding:
    """Pourquoi MongoDB n'a pas servi : un compte refusé (``code`` 18) n'est pas un serveur muet.

    ``silence`` : pourquoi on ne se connecte pas à ``where`` ; vide si on s'y connecte.
    """
    if code == 18:
        cure = (
            changed(("MONGO_USER", "MONGO_PASSWORD"), os.environ)
            if local
            else "Vérifiez le compte et authSource dans MONGO_URI."
        )
        return Finding("MongoDB", PROBLEM, f"{where} répond mais refuse ce compte ou ce mot de passe", cure)
    if code is not None:
        return Finding("MongoDB", PROBLEM, f"{where} répond mais refuse : {said}", "Vérifiez les droits du compte.")
    if silence:
        return Finding(
            "MongoDB",
            PROBLEM,
            f"ne répond pas sur {where} : {silence}",
            START if local else "Vérifiez MONGO_URI et le réseau.",
        )
    return Finding(
        "MongoDB",
        PROBLEM,
        f"{where} accepte la connexion mais ne répond pas comme MongoDB : {said}",
        START if local else "Vérifiez MONGO_URI (port, tls=true, replicaSet).",
    )


def mongodb() -> list[Finding]:
    """Se connecte comme les scripts, demande, n'écrit rien."""
    uri, database, local = mongo_uri(), value("MONGO_DATABASE") or "ventes_db", not os.environ.get("MONGO_URI")
    where = re.sub(r"^mongodb(\+srv)?://(?:[^@/]*@)?([^/?]*).*$", r"\2", uri)
    try:
        with MongoClient[dict[str, Any]](
            uri,
            serverSelectionTimeoutMS=MONGO_MILLISECONDS,
            connectTimeoutMS=MONGO_MILLISECONDS,
            socketTimeoutMS=MONGO_MILLISECONDS,
        ) as client:
            asked = time.time()
            hello = client.admin.command("hello")
            about = client[database].command("connectionStatus")["authInfo"]
            client[database].list_collection_names()
            build = client.admin.command("buildInfo")
        roles: dict[str, set[str]] = {}
        for role in about["authenticatedUserRoles"]:
            roles.setdefault(role["db"], set()).add(role["role"])
        secantus = build.get("secantusVersion")
        mongo = Mongo(
            secantus or build["version"],
            "SecantusDB" if secantus else "mongod",
            roles,
            bool(about["authenticatedUsers"]),
            bool(hello.get("isWritablePrimary", True)),
            hello["localTime"].replace(tzinfo=UTC).timestamp() - asked,
        )
        return judge_mongo(mongo, database, where)
    except OperationFailure as error:
        return [
            judge_mongo_failure(
                error.code or 0,
                _first(error.details.get("errmsg", "") if error.details else str(error)),
                where,
                "",
                local=local,
            )
        ]
    except (InvalidURI, ConfigurationError) as error:
        return [Finding("MongoDB", PROBLEM, f"MONGO_URI ne se lit pas : {_first(str(error))}", "Corrigez MONGO_URI.")]
    except PyMongoError as error:
        silences = [reachable(host if ":" in host else f"{host}:27017") for host in where.split(",")]
        return [judge_mongo_failure(None, _first(str(error)), where, silences[0] if all(silences) else "", local=local)]


# --- PostgreSQL ---


@dataclass(frozen=True)
class Postgres:
    """Ce que PostgreSQL dit de lui."""

    number: int
    version: str
    encoding: str
    read_only: bool
    may_create: bool | None  # None : la base n'a plus de schéma par défaut
    ahead: float


def judge_postgres(found: Postgres, where: str) -> list[Finding]:
    """La version, l'encodage, les droits et l'heure."""
    findings = []
    if found.number < POSTGRES_OLDEST:
        findings.append(
            Finding(
                "PostgreSQL",
                PROBLEM,
                f"{where} est en version {found.version} : pg.py demande 16 ou plus (pg_input_is_valid)",
                "Prenez le PostgreSQL du projet, ou un serveur 16 ou plus.",
            )
        )
    if found.encoding != "UTF8":
        findings.append(
            Finding(
                "PostgreSQL",
                PROBLEM,
                f"la base de {where} est en {found.encoding} : les noms accentués n'y entrent pas tous",
                "Créez-la avec « CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 », et PGDATABASE.",
            )
        )
    if found.read_only:
        findings.append(
            Finding(
                "PostgreSQL",
                PROBLEM,
                f"{where} est en lecture seule pour ce compte : pg.py ne pourrait rien charger",
                "Prenez le serveur principal, et un compte qui écrit (PGUSER).",
            )
        )
    elif not found.may_create:
        findings.append(
            Finding(
                "PostgreSQL",
                PROBLEM,
                f"ce compte n'a pas le droit de créer de table dans {where}",
                "Faites-le propriétaire de la base (« ALTER DATABASE … OWNER TO … »), ou changez PGUSER.",
            )
        )
    findings += judge_time("PostgreSQL", found.ahead)
    return findings or [Finding("PostgreSQL", OK, f"{found.version}, {found.encoding}, sur {where}")]


def judge_postgres_failure(
    said: str, where: str, *, local: bool, who: str = "pipeline", reader: bool = False
) -> Finding:
    """Pourquoi PostgreSQL n'a pas servi, d'après la phrase de libpq : « FATAL » vient du serveur, le reste d'ici."""
    state = WARNING if reader else PROBLEM
    variables = ("TABLEAU_PASSWORD",) if reader else ("PGUSER", "PGPASSWORD")
    said = _first(said)
    reason = said.rpartition("failed: ")[2]
    if "no password supplied" in said or "aucun mot de passe" in said:
        return Finding(
            "PostgreSQL",
            state,
            f"{where} demande un mot de passe pour {who}, et il n'y en a pas",
            "Posez PGPASSWORD : celui de .env ne part que vers le serveur de .env.",
        )
    if "FATAL" in said and re.search("password|mot de passe", said):
        return Finding(
            "PostgreSQL",
            state,
            f"{where} répond mais refuse le mot de passe de {who}",
            changed(variables, os.environ) if local else "Vérifiez PGUSER et PGPASSWORD.",
        )
    if "FATAL" in said:
        return Finding(
            "PostgreSQL",
            state,
            f"{where} répond mais refuse : {reason}",
            "Vérifiez PGDATABASE et PGUSER ; après un premier "
            "démarrage manqué sous Docker, « docker-compose down -v » puis « up -d ».",
        )
    if "SSL" in said:
        return Finding(
            "PostgreSQL",
            state,
            f"{where} : {reason}",
            "Le PostgreSQL du projet n'a pas de TLS : « unset PGSSLMODE »."
            if local
            else "Vérifiez PGSSLMODE et PGSSLROOTCERT.",
        )
    if re.search("definition of service|service file", said):
        return Finding("PostgreSQL", state, said, "Corrigez PGSERVICE, ou « unset PGSERVICE ».")
    return Finding(
        "PostgreSQL",
        state,
        f"ne répond pas sur {where} : {reason}",
        START if local else "Vérifiez PGHOST, PGPORT et le réseau.",
    )


def postgresql() -> list[Finding]:
    """Se connecte comme pg.py, demande, n'écrit rien ; puis comme Tableau."""
    dsn = postgres_dsn()
    local = dsn.get("host", os.environ.get("PGSERVICE", "")) in LOCAL
    where = f"{dsn['host']}:{dsn['port']}/{dsn['dbname']}" if dsn else f"le service {os.environ.get('PGSERVICE')}"
    try:
        connection = psycopg2.connect(**dsn, connect_timeout=POSTGRES_SECONDS)
    except psycopg2.OperationalError as error:
        return [judge_postgres_failure(str(error), where, local=local, who=dsn.get("user", "ce compte"))]
    try:
        with connection.cursor() as cursor:
            asked = time.time()
            cursor.execute(QUESTION)
            *facts, clock = cursor.fetchone() or ()
    finally:
        connection.close()
    return judge_postgres(Postgres(*facts, ahead=clock - asked), where) + reader(where, local=local)


def reader(where: str, *, local: bool) -> list[Finding]:
    """Le rôle tableau entre-t-il ? Rien à dire s'il entre, ou si on ne connaît pas son mot de passe."""
    dsn = postgres_dsn(reader=True)
    if not dsn.get("password"):
        return []
    try:
        psycopg2.connect(**dsn, connect_timeout=POSTGRES_SECONDS).close()
    except psycopg2.OperationalError as error:
        return [judge_postgres_failure(str(error), where, local=local, who="tableau", reader=True)]
    return []


def judge_time(check: str, ahead: float) -> list[Finding]:
    """L'horloge du serveur et celle d'ici."""
    if abs(ahead) <= AHEAD_SECONDS:
        return []
    word = "avance" if ahead > 0 else "retarde"
    return [
        Finding(
            check,
            WARNING,
            f"son horloge {word} de {duration(abs(ahead))} sur celle d'ici",
            "Mettez les deux machines à l'heure (NTP).",
        )
    ]


def _first(text: str) -> str:
    """Première ligne d'une phrase d'erreur, sans ce que le client y répète."""
    return (text.strip().splitlines() or ["sans explication"])[0].split(", Timeout:")[0].split(", full error:")[0]


CHECKS: dict[str, Check] = {"MongoDB": mongodb, "PostgreSQL": postgresql}
