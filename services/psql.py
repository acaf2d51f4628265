r"""psql, le programme de PostgreSQL : celui de la pile sans Docker, ouvert sur la base du projet. Rien à installer.

    python -m services.psql                                  une console : \d montre les tables, \q en sort
    python -m services.psql --command "TABLE ventes LIMIT 5"

C'est ce que fait « make psql ». Garantit : le rôle tableau, qui ne peut que lire.
Avec Docker seul : docker-compose exec postgres psql -U tableau ventes_db
"""

import os
from collections.abc import Sequence

from commun import START_HINT, PipelineError
from commun.cli import Parser, run
from commun.settings import LIBPQ, postgres_dsn
from services.stack import Stack

import psycopg2


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    parser = Parser(__doc__, prog="python -m services.psql")
    parser.option("--command", metavar="REQUÊTE", help="exécute cette requête au lieu d'ouvrir une console")
    args = parser.parse(argv)
    dsn = postgres_dsn(reader=True)
    try:
        psycopg2.connect(**dsn, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        raise PipelineError(f"PostgreSQL ne répond pas ou refuse le rôle tableau : {START_HINT}.") from error
    program = str(Stack().postgres_bin / "psql")
    command = [program] if args.command is None else [program, "--command", args.command]
    address = {LIBPQ[key]: str(value) for key, value in dsn.items()}
    os.execve(program, command, os.environ | address)  # noqa: S606 - il prend notre place, et notre terminal


if __name__ == "__main__":
    run(main)
