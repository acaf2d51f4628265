"""Écrit ventes.twb (le classeur Tableau) et ventes.tds (sa source de données).

    python build_workbook.py                                          pour le PostgreSQL du projet
    python build_workbook.py --server db.exemple.fr --output-dir ici  pour un autre
    python build_workbook.py --extract                                ventes.twbx, avec les données dedans

Garantit : les mêmes options donnent les mêmes octets ; aucun mot de passe n'est écrit,
Tableau le demande à l'ouverture.
Ne garantit pas : que Tableau ouvre le fichier. Il suit les schémas que Tableau publie, mais
ses auteurs n'ont pas Tableau.
Ensuite : ouvrez ventes.twb dans Tableau Desktop, ou ventes.twbx dans Tableau Public ou Reader.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, port, run
from commun.settings import setting
from tableau.workbook import Server, build_datasource, build_workbook

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--server", env="PGHOST", default=setting("PGHOST"), help="machine où est PostgreSQL")
    parser.option("--port", env="PGPORT", type=port, default=setting("PGPORT"), help="son port")
    parser.option("--database", env="PGDATABASE", default=setting("PGDATABASE"), help="sa base")
    parser.option("--user", default=Server().user, help="le rôle de Tableau")
    parser.option("--output-dir", type=Path, default=FOLDER, help="dossier où écrire")
    parser.option("--extract", action="store_true", help="écrit ventes.twbx, et lui seul (paquet tableauhyperapi)")
    return parser.parse(argv)


def write_extract(path: Path, server: Server) -> None:
    """Écrit ventes.twbx ; PipelineError si tableauhyperapi n'est pas installé ou si PostgreSQL ne répond pas."""
    try:
        from tableau.extract import build_packaged_workbook  # noqa: PLC0415 - paquet lourd, facultatif
    except ImportError as error:
        raise PipelineError(
            "--extract demande le paquet tableauhyperapi (300 Mo) : « make twbx » l'installe et recommence."
        ) from error
    rows = build_packaged_workbook(path, server)
    log.info("%s : %d lignes, lisibles sans base de données.", path.name, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    server = Server(args.server, args.port, args.database, args.user)
    try:
        if args.extract:
            write_extract(args.output_dir / "ventes.twbx", server)
            return 0
        for name, content in (("ventes.twb", build_workbook(server)), ("ventes.tds", build_datasource(server))):
            (args.output_dir / name).write_bytes(content)
            log.info("%s écrit : %s, rôle %s.", name, f"{server.host}:{server.port}/{server.database}", server.user)
    except OSError as error:
        raise PipelineError(f"Impossible d'écrire dans {args.output_dir} ({error.strerror}).") from error
    return 0


if __name__ == "__main__":
    run(main)
