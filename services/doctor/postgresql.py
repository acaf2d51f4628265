"""PostgreSQL : répond-il à ce compte, dans une version, un encodage et des droits qui conviennent ?"""

import os
import re
import time
from dataclasses import dataclass, replace

from commun.settings import LOCAL_NAMES, postgres_dsn
from services.doctor.env_file import exported, read_env
from services.doctor.ports import foreign_services, reachable
from services.doctor.refusals import START, Login, changed, cure, first_line, judge_time, restart
from services.doctor.report import PROBLEM, WARNING, Check, Finding, Notes, problem
from services.doctor.variables import LIBPQ, LOCAL

import psycopg2

POSTGRES_SECONDS = 6
POSTGRES_OLDEST = 160_000  # pg_input_is_valid, avec quoi pg.py juge chaque ligne, est de PostgreSQL 16
# Ce qui, posé dans un terminal, décide du sort d'une connexion à notre serveur ; de ces adresses-ci, s'il se tait.
ADDRESSES = ("PGHOSTADDR", "PGPORT")
INDECISIVE = ("PGHOST", "PGSERVICEFILE", "PGPASSFILE", "PORT_POSTGRES")
DECISIVE = tuple(name for name in (*LIBPQ, *LOCAL_NAMES.values()) if name not in INDECISIVE)
QUESTION = """SELECT current_setting('server_version_num')::int, current_setting('server_version'),
    current_setting('server_encoding'), pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
    has_schema_privilege(current_schema(), 'CREATE'), extract(epoch FROM clock_timestamp())::float8"""


@dataclass(frozen=True)
class Postgres:
    """Ce que PostgreSQL dit de lui."""

    number: int
    version: str
    encoding: str
    read_only: bool
    may_create: bool | None  # None : la base n'a plus de schéma par défaut
    ahead: float


def judge_postgres(found: Postgres, login: Login) -> list[Finding]:
    """La version, l'encodage, les droits et l'heure."""
    notes, where = Notes("PostgreSQL"), login.where

    def note(message: str, remedy: str) -> None:
        notes.problem(message, cure(login, remedy, remedy))

    if found.number < POSTGRES_OLDEST:
        note(
            f"{where} est en version {found.version} : pg.py demande 16 ou plus (pg_input_is_valid)",
            "Prenez le PostgreSQL du projet, ou un serveur 16 ou plus.",
        )
    if found.encoding != "UTF8":
        note(
            f"la base de {where} est en {found.encoding} : les noms accentués n'y entrent pas tous",
            "Créez-la avec « CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 », et PGDATABASE.",
        )
    if found.read_only:
        note(
            f"{where} est en lecture seule pour ce compte : pg.py ne pourrait rien charger",
            "Prenez le serveur principal, et un compte qui écrit (PGUSER).",
        )
    elif not found.may_create:
        note(
            f"ce compte n'a pas le droit de créer de table dans {where}",
            "Faites-le propriétaire de la base (« ALTER DATABASE … OWNER TO … »), ou changez PGUSER.",
        )
    notes.found += judge_time("PostgreSQL", found.ahead)
    return notes.or_ok(f"{found.version}, {found.encoding}, sur {where}")


def judge_postgres_failure(said: str, login: Login, silence: str) -> Finding:
    """Pourquoi PostgreSQL n'a pas servi : dans la phrase de libpq, « FATAL » vient du serveur, le reste d'ici.

    ``silence`` : pourquoi on ne se connecte pas à son port ; vide si on s'y connecte.
    """
    state, where = WARNING if login.spare else PROBLEM, login.where
    said = first_line(said)
    reason = said.rpartition("failed: ")[2]
    if re.search("no password supplied|aucun mot de passe", said):
        message = f"{where} demande un mot de passe pour {login.user}, et il n'y en a pas"
        own = foreign = "Posez PGPASSWORD : celui de .env ne part que vers localhost."
    elif "FATAL" in said and re.search("password|mot de passe", said):
        message = f"{where} répond mais refuse le mot de passe de {login.user}"
        own = changed(login.spare or ("PIPELINE_USER", "PIPELINE_PASSWORD"))
        foreign = "Vérifiez PGUSER et PGPASSWORD."
    elif "FATAL" in said:
        message = f"{where} répond mais refuse : « {reason} »"
        own = foreign = (
            "Vérifiez PGDATABASE et PGUSER ; après un premier démarrage manqué sous Docker, « docker-compose down -v » "
            "puis « docker-compose up -d »."
        )
    elif "SSL" in said:
        message = f"{where} : « {reason} »"
        own = "Le PostgreSQL du projet n'a pas de TLS : retirez ce qui en demande (~/.postgresql, PGSSLMODE)."
        foreign = "Vérifiez PGSSLMODE et PGSSLROOTCERT."
    elif re.search("definition of service|service file", said):
        message = f"PGSERVICE ne se lit pas : « {said} »"
        own = foreign = "Corrigez PGSERVICE, ou « unset PGSERVICE »."
    elif silence:
        message = f"ne répond pas sur {where} : {silence}"
        own, foreign = START, "Vérifiez PGHOST, PGPORT et le réseau."
        login = replace(login, exported=[name for name in login.exported if name in ADDRESSES])
    else:
        message = f"la connexion s'ouvre sur {where}, mais personne n'y répond comme PostgreSQL : « {reason} »"
        own, foreign = restart("postgres"), "Vérifiez PGHOST et PGPORT."
    return Finding("PostgreSQL", state, message, cure(login, own, foreign))


def postgresql() -> list[Finding]:
    """Se connecte comme pg.py, demande, n'écrit rien ; puis sous les comptes dont pg.py se passe."""
    dsn = postgres_dsn()
    where = f"{dsn['host']}:{dsn['port']}/{dsn['dbname']}" if dsn else f"le service {os.environ.get('PGSERVICE')}"
    local, names = dsn.get("host", "?") in LOCAL, exported(DECISIVE, os.environ, read_env(), LOCAL_NAMES)
    login = Login(where, dsn.get("user", "ce compte"), local, names)
    try:
        connection = psycopg2.connect(**dsn, connect_timeout=POSTGRES_SECONDS)
    except psycopg2.OperationalError as error:
        return [judge_postgres_failure(str(error), login, reachable(f"{dsn['host']}:{dsn['port']}") if dsn else "")]
    try:
        with connection.cursor() as cursor:
            asked = time.time()
            cursor.execute(QUESTION)
            *facts, clock = cursor.fetchone() or [None] * 6
    except psycopg2.Error as error:  # « statement_timeout » dans PGOPTIONS, par exemple
        refused = f"{where} répond mais refuse une question : « {first_line(str(error))} »"
        return [problem("PostgreSQL", refused, cure(login, restart("postgres"), "Vérifiez les réglages de ce compte."))]
    finally:
        connection.close()
    return judge_postgres(Postgres(*(*facts, clock - asked)), login) + spare_accounts(login)


def spare_accounts(login: Login) -> list[Finding]:
    """Le rôle tableau entre-t-il ? Et, sur notre pile, le superutilisateur de .env ?

    Rien à dire d'un compte qui entre, ou dont on ne connaît pas le mot de passe.
    """
    spare = ("TABLEAU_PASSWORD",)
    reader = replace(login, user="tableau", spare=spare, exported=exported(spare, os.environ, read_env()))
    accounts = [(postgres_dsn(reader=True), reader)]
    if "postgres" not in foreign_services(os.environ):
        names, env = ("POSTGRES_USER", "POSTGRES_PASSWORD"), read_env()
        user, password = (env.get(name, "") for name in names)
        # .env seul : une POSTGRES_PASSWORD exportée ne règle ni un script ni un serveur déjà créé.
        own = replace(login, user=user, spare=names, exported=())
        accounts.append((postgres_dsn() | {"user": user, "password": password}, own))
    found = []
    for dsn, account in accounts:
        try:
            if dsn.get("password"):
                psycopg2.connect(**dsn, connect_timeout=POSTGRES_SECONDS).close()
        except psycopg2.OperationalError as error:
            found.append(judge_postgres_failure(str(error), account, ""))
    return found


CHECKS: dict[str, Check] = {"PostgreSQL": postgresql}
