"""La connexion à PostgreSQL : ouverte, jamais muette, et ce qu'elle refuse dit tel quel."""

import logging

from commun import START_HINT, PipelineError
from commun.cli import Stop
from commun.settings import postgres_dsn
from exercice3.schema import apply_schema

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger("pipeline")

LOCK_SECONDS = 2  # une attente plus longue est dite, et Ctrl-C entendu
CONNECTION = {
    "connect_timeout": 5,
    "application_name": "pg.py",
    "client_encoding": "UTF8",  # celui des fichiers, quoi que dise PGCLIENTENCODING
    # Un serveur disparu sans un mot (câble, machine éteinte) se sait en une minute.
    "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000,
}  # fmt: skip
GONE = ("08", "57P")  # classes d'erreur de PostgreSQL : connexion, arrêt du serveur


def say(said: set[str], sentence: str) -> None:
    """Dit une phrase, une fois."""
    if sentence not in said:
        log.warning(sentence)
        said.add(sentence)


def first_line(error: psycopg2.Error) -> str:
    """Ce que dit PostgreSQL, en une ligne."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_gone(error: psycopg2.Error) -> bool:
    """Vrai si le serveur ne répond plus ; faux s'il répond, et refuse."""
    return error.pgcode is None or error.pgcode.startswith(GONE)


def explain(error: psycopg2.Error) -> PipelineError:
    """La phrase d'une erreur qui arrête un passage."""
    if is_gone(error):
        return PipelineError("PostgreSQL s'est arrêté pendant le chargement : relancez, rien n'est doublé.")
    return PipelineError(f"PostgreSQL refuse le chargement : {first_line(error)}. Rien n'est perdu ; relancez ensuite.")


class Unreachable(PipelineError):
    """Personne ne répond à cette adresse, ou pas encore."""


# Ce que dit un serveur qui démarre, s'arrête ou est plein : il faut attendre. Tout autre refus est pour de bon.
_FOR_NOW = ("starting up", "shutting down", "recovery", "not yet accepting", "too many", "remaining connection")


def open_postgres(stop: Stop) -> Connection:
    """Connexion à PostgreSQL, schéma en place ; Unreachable si personne ne répond, PipelineError s'il refuse."""
    try:
        connection: Connection = psycopg2.connect(**postgres_dsn() | CONNECTION)
    except psycopg2.OperationalError as error:
        said = first_line(error)
        if "FATAL" in said and not any(words in said for words in _FOR_NOW):
            raise PipelineError(f"PostgreSQL refuse la connexion ({said}) : vérifiez les variables PG….") from error
        raise Unreachable(
            f"PostgreSQL ne répond pas ({said}) : {START_HINT}, ou vérifiez les variables PG…."
        ) from error
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{LOCK_SECONDS}s",))
    said_once: set[str] = set()
    while not stop:
        try:
            apply_schema(connection)
            break
        except psycopg2.errors.LockNotAvailable:
            say(
                said_once,
                "Une transaction ouverte par un autre programme empêche de poser le schéma : j'attends sa fin.",
            )
    return connection
