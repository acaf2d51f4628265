"""Un exercice 3 à part, sur les mêmes serveurs : les mesures et les pannes ne touchent pas à vos ventes.

Une base MongoDB et un schéma PostgreSQL nommés « mesure », des topics d'un préfixe donné, un dossier d'export. Un
script lancé de ce processus les trouve dans son environnement.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from commun.kafka import client_config, delete_topics
from commun.settings import LOCAL_HOST, mongo_uri, postgres_dsn, setting
from exercice3.collection import Document
from exercice3.schema import apply_schema

import psycopg2
from psycopg2.extensions import connection as Connection
from pymongo import MongoClient

NAME = "mesure"
WIPE_MS = 600_000  # un demi-million de ventes prend une minute à SecantusDB
TABLES = "ventes, ventes_chargements, ventes_rejets, ventes_suivi"


@contextmanager
def aside(topic: str) -> Iterator[Path]:
    """Le dossier d'export ; tout est effacé à la fin, et les topics dont le nom commence par ``topic``."""
    account = f"{setting('MONGO_ADMIN_USER')}:{setting('MONGO_ADMIN_PASSWORD')}"
    os.environ["MONGO_URI"] = f"mongodb://{account}@{LOCAL_HOST}:{setting('PORT_MONGO')}/{NAME}?authSource=admin"
    with closing(psycopg2.connect(**postgres_dsn())) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA IF EXISTS {NAME} CASCADE; CREATE SCHEMA {NAME}")
    os.environ["PGOPTIONS"] = f"-c search_path={NAME}"
    try:
        with closing(psycopg2.connect(**postgres_dsn())) as connection:
            apply_schema(connection)
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        with closing(psycopg2.connect(**postgres_dsn())) as connection, connection, connection.cursor() as cursor:
            cursor.execute(f"DROP SCHEMA {NAME} CASCADE")
        wipe()
        delete_topics(client_config({}), topic)


def wipe() -> None:
    """Vide la base MongoDB à part."""
    with MongoClient[Document](mongo_uri(), socketTimeoutMS=WIPE_MS) as mongo:
        database = mongo[NAME]
        for name in database.list_collection_names():
            database[name].delete_many({})  # d'abord : SecantusDB efface une collection pleine bien moins vite
        mongo.drop_database(NAME)


def empty(connection: Connection) -> None:
    """Vide les tables à part."""
    with connection, connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {TABLES}")
