"""Lit PostgreSQL comme Tableau le fait : avec le rôle tableau, qui ne peut que lire."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from commun.errors import PipelineError
from commun.settings import postgres_dsn, setting
from tableau.sheet_sql import Query

UNREACHABLE = (
    "PostgreSQL ne répond pas ou refuse le rôle tableau : démarrez les services avec « make services » ou "
    "« docker-compose up -d », ou vérifiez PGHOST, PGPORT et TABLEAU_PASSWORD."
)
NO_VIEW = "La vue ventes_analyse manque : chargez des ventes avec « python pg.py », dans exercice3."
QUERY_MILLISECONDS = 20_000
BATCH = 10_000


def connect() -> Connection:
    """Connexion en lecture seule, une transaction par requête ; PipelineError si elle est impossible."""
    dsn = postgres_dsn() | {"user": "tableau", "password": setting("TABLEAU_PASSWORD")}
    try:
        connection: Connection = psycopg2.connect(
            **dsn, connect_timeout=5, application_name="tableau", options=f"-c statement_timeout={QUERY_MILLISECONDS}"
        )
    except psycopg2.OperationalError as error:
        raise PipelineError(UNREACHABLE) from error
    connection.set_session(readonly=True, autocommit=True)
    return connection


def batches(connection: Connection, query: Query) -> Iterator[list[tuple[Any, ...]]]:
    """Lignes d'une requête, par lots ; PipelineError si la base s'arrête, tarde trop ou n'a pas la vue."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(query.sql, query.values)
            while rows := cursor.fetchmany(BATCH):
                yield rows
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InsufficientPrivilege) as error:
        raise PipelineError(NO_VIEW) from error
    except psycopg2.errors.QueryCanceled as error:
        raise PipelineError("PostgreSQL met trop de temps à répondre : réduisez la période.") from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise PipelineError(UNREACHABLE) from error


def fetch(connection: Connection, query: Query) -> list[tuple[Any, ...]]:
    """Toutes les lignes d'une requête ; PipelineError comme ``batches``."""
    return list(chain.from_iterable(batches(connection, query)))
