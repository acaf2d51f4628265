"""Réglages : l'environnement d'abord, le fichier .env de la pile locale ensuite.

Aucune adresse et aucun mot de passe n'est écrit dans un script : ils viennent
d'ici. Pour un autre serveur, posez la variable dans l'environnement.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from dotenv import dotenv_values

from commun.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
LIBPQ = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}


@cache
def defaults() -> dict[str, str]:
    """Contenu de .env, le fichier que docker-compose lit aussi."""
    return {name: value or "" for name, value in dotenv_values(ROOT / ".env", interpolate=False).items()}


def setting(name: str) -> str:
    """Valeur de la variable ``name`` : environnement, sinon .env.

    Lève PipelineError si elle n'est ni dans l'un ni dans l'autre.
    """
    value = os.environ.get(name) or defaults().get(name)
    if not value:
        raise PipelineError(
            f"La variable {name} n'a pas de valeur : posez-la dans l'environnement ou dans {ROOT / '.env'}."
        )
    return value


def bootstrap_servers() -> str:
    """Adresses des brokers : ``KAFKA_BOOTSTRAP_SERVERS``, sinon les trois ports de la pile locale."""
    ports = (setting(f"PORT_KAFKA{node}") for node in (1, 2, 3))
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or ",".join(f"localhost:{port}" for port in ports)


def mongo_uri() -> str:
    """Adresse de MongoDB : ``MONGO_URI``, sinon le compte des scripts sur la pile locale."""
    if uri := os.environ.get("MONGO_URI"):
        return uri
    user, password, database = (quote_plus(setting(f"MONGO_{part}")) for part in ("USER", "PASSWORD", "DATABASE"))
    return f"mongodb://{user}:{password}@localhost:{setting('PORT_MONGO')}/{database}?authSource={database}"


def postgres_dsn(*, reader: bool = False, host: str | None = None) -> dict[str, Any]:
    """Paramètres de connexion pour psycopg2 : les variables ``PG*`` de libpq, complétées par .env.

    ``reader`` : avec le rôle tableau et ``TABLEAU_PASSWORD``, au lieu du propriétaire de la base ;
    ``host`` : ce serveur-là, au lieu de ``PGHOST``.

    libpq lit lui-même les autres variables (``PGSSLMODE``, ``PGSERVICE``, ``PGPASSFILE``…). Si
    ``PGSERVICE`` est posée, c'est lui qui décide de tout et .env n'ajoute rien. Dès que le
    serveur n'est pas celui de .env, le mot de passe de .env ne lui est pas envoyé.
    """
    names = LIBPQ | ({"password": "TABLEAU_PASSWORD"} if reader else {})
    foreign = (host or os.environ.get("PGHOST", setting("PGHOST"))) != defaults().get("PGHOST")
    found = {
        key: setting(name)
        for key, name in ({} if "PGSERVICE" in os.environ else names).items()
        if not (foreign and key == "password" and name not in os.environ)
    }
    return found | ({"user": "tableau"} if reader else {}) | ({"host": host} if host else {})
