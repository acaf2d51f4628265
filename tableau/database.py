"""Lit PostgreSQL comme Tableau le fait : avec le rôle tableau, qui ne peut que lire."""

from typing import Any

from commun import START_HINT, PipelineError
from commun.settings import postgres_dsn
from tableau.sheet_sql import Query

import psycopg2
from psycopg2.extensions import connection as Connection

TIMEOUT_SECONDS = 20
NO_VIEW = "La vue ventes_analyse manque : chargez des ventes avec « python pg.py », dans exercice3."
NO_RIGHT = (
    "Le rôle tableau n'a pas le droit de lire ventes_analyse : relancez « python pg.py », dans exercice3, "
    "avec le propriétaire de la base."
)
TOO_SLOW = f"PostgreSQL met plus de {TIMEOUT_SECONDS} s à répondre : réessayez, sur une période plus courte."


class Unreachable(PipelineError):
    """PostgreSQL est arrêté, ou refuse la connexion."""

    def __init__(self) -> None:
        super().__init__(
            f"PostgreSQL ne répond pas ou refuse le rôle tableau : {START_HINT}, "
            "ou vérifiez PGHOST, PGPORT et TABLEAU_PASSWORD."
        )


def connect(host: str | None = None, **address: Any) -> Connection:
    """Connexion en lecture seule, une transaction par requête ; Unreachable si elle est impossible.

    ``host`` et ``address`` (port, dbname, user) l'emportent sur les variables ``PG*``.
    """
    dsn = postgres_dsn(reader=True, host=host) | address
    timeout = f"-c statement_timeout={TIMEOUT_SECONDS}s"
    try:
        connection: Connection = psycopg2.connect(
            **dsn, connect_timeout=5, application_name="tableau", options=timeout, client_encoding="UTF8"
        )
    except psycopg2.OperationalError as error:
        raise Unreachable from error
    connection.set_session(readonly=True, autocommit=True)
    return connection


def fetch(connection: Connection, query: Query) -> list[tuple[Any, ...]]:
    """Lignes d'une requête ; PipelineError si la base s'arrête, tarde trop, n'a pas la vue ou la refuse."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(query.sql, query.values)
            return cursor.fetchall()
    except psycopg2.errors.UndefinedTable as error:
        raise PipelineError(NO_VIEW) from error
    except psycopg2.errors.InsufficientPrivilege as error:
        raise PipelineError(NO_RIGHT) from error
    except psycopg2.errors.QueryCanceled as error:
        raise PipelineError(TOO_SLOW) from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise Unreachable from error
