"""Remet le dossier des fichiers exportés d'accord avec MongoDB, après une perte ou une restauration.

    python rebuild.py            refait les fichiers qui manquent, écarte ceux qu'aucun lot ne nomme
    python rebuild.py --dry-run  dit seulement ce qui serait fait

Garantit : un fichier refait a les octets qu'il avait ; un fichier écarté n'est pas effacé, il passe
dans le sous-dossier « ecartes ». Relancé, il n'a plus rien à faire.
Ne garantit pas : qu'un lot puisse être refait si ses ventes ne sont plus dans MongoDB ; il le dit.
Ensuite : schedule_export.py --once, puis pg.py, puis reconcile.py --full. Quoi lancer après quelle perte :
README.md, « Reconstruire ».
"""

import argparse
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from commun import START_HINT, PipelineError
from commun.cli import Parser, run
from commun.settings import export_dir, exported_files
from commun.systems import reason
from exercice3.collection import Document, account_error, explain, open_client, open_database
from exercice3.history import export_again
from exercice3.lots import DAMAGED, FULL_NAME, BadFile, digest, name_of, open_file, read_manifest

from pymongo.database import Database
from pymongo.errors import PyMongoError

log = logging.getLogger("pipeline")

ASIDE = "ecartes"


def unknown_files(database: Database[Document], folder: Path) -> list[Path]:
    """Les fichiers de lots, et leurs manifestes, qu'aucun lot de MongoDB ne nomme."""
    known = {FULL_NAME}
    for lot in database.lots_export.find({}, {"manifeste.fichier": 1, "arrivages": 1}):
        known.add(lot["manifeste"]["fichier"] if "manifeste" in lot else name_of(lot["_id"], lot.get("arrivages", ())))
    return [
        path
        for path in exported_files(folder)
        if path.suffix != ".tmp" and f"{path.name.split('.')[0]}.csv" not in known  # .csv, .json, .csv.gz
    ]


def missing_lots(database: Database[Document], folder: Path) -> list[int]:
    """Les lots terminés dont le fichier manque, ou n'est plus ce qu'il était."""
    return [
        lot["_id"]
        for lot in database.lots_export.find({"termine": True}, {"manifeste": 1}).sort("_id", 1)
        if not is_there(folder / lot["manifeste"]["fichier"], lot["manifeste"]["sha256"])
    ]


def is_there(path: Path, sha256: str) -> bool:
    """Vrai si ce fichier et son manifeste sont là, avec cette somme."""
    try:
        manifest = read_manifest(path)
        with open_file(manifest) as file:
            return digest(file.read()) == manifest.sha256 == sha256
    except (BadFile, *DAMAGED):
        return False


def set_aside(path: Path, folder: Path) -> None:
    """Passe ce fichier dans ``folder``, sous son nom ; un autre y est déjà : sous ce nom et un numéro."""
    folder.mkdir(exist_ok=True)
    names = (folder / (path.name + (f".{number}" if number else "")) for number in count())
    path.replace(next(name for name in names if not name.exists()))


def rebuild(database: Database[Document], folder: Path, *, dry_run: bool) -> int:
    """Écarte, puis refait ; renvoie ce qui reste : les lots qui n'ont pas pu l'être, ou tout, avec ``dry_run``."""
    left = 0
    for path in unknown_files(database, folder):
        log.info("%s : aucun lot ne le nomme, écarté dans %s.", path.name, ASIDE)
        if dry_run:
            left += 1
        else:
            set_aside(path, folder / ASIDE)
    for number in missing_lots(database, folder):
        if dry_run:
            log.info("Lot %d : à refaire.", number)
            left += 1
            continue
        try:
            export_again(database, folder, number)
        except PipelineError as error:
            left += 1
            log.error("%s", error)
    return left


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers")
    parser.option("--dry-run", action="store_true", help="dit ce qui serait fait, sans le faire")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    try:
        with open_client() as client:
            left = rebuild(open_database(client), args.export_dir, dry_run=args.dry_run)
    except PyMongoError as error:
        raise account_error(error) or PipelineError(f"{explain(error)} : {START_HINT}.") from error
    except OSError as error:
        raise PipelineError(f"Écriture impossible dans {args.export_dir} : {reason(error)}.") from error
    if args.dry_run and left:
        log.info("%d choses à faire : la même commande, sans --dry-run, les fait.", left)
        return 0
    if left:
        raise PipelineError(f"{left} lots n'ont pas pu être refaits : voyez ci-dessus.")
    log.info("Le dossier %s a les fichiers des lots de MongoDB, et eux seuls.", args.export_dir)
    return 0


if __name__ == "__main__":
    run(main)
