"""Exporte en CSV, toutes les deux minutes, les ventes de MongoDB qui ne l'ont pas encore été.

    python schedule_export.py             un export toutes les 2 minutes, sans fin
    python schedule_export.py --every 10  toutes les 10 secondes
    python schedule_export.py --once      un seul export, puis fin
    python schedule_export.py --full      en plus, toutes les ventes dans ventes_data.csv

Garantit : chaque vente est dans un fichier terminé et un seul, même après un kill -9 à
n'importe quel instant, avec deux exports à la fois ou des consommateurs qui écrivent
pendant l'export. Un fichier est terminé quand son manifeste .json existe : il donne le
nombre de lignes et la somme SHA-256 que pg.py vérifie.
Ne garantit pas : l'ordre des ventes d'un fichier à l'autre.
Ensuite : pg.py charge ces fichiers dans PostgreSQL.

Comment : les ventes sont groupées en lots numérotés. Un lot est un document de la
collection « lots_export » qui nomme une fois pour toutes ses ventes ; son numéro est la clé
unique. On n'ouvre le lot n+1 qu'après avoir inscrit le numéro n dans toutes les ventes du
lot n : aucune vente n'est donc dans deux lots, et deux exports simultanés ne peuvent
qu'écrire le même fichier. Un repère de temps ou d'ObjectId oublierait les ventes devenues
visibles en retard ; un offset Kafka repart de 0 quand le topic est recréé.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import schedule
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

from commun.cli import Parser, Stop, positive, run
from commun.errors import PipelineError
from commun.settings import export_dir
from commun.systems import publish
from exercice3.collection import DATABASE, IN_SIZE, JOURNALED, Document, open_client
from exercice3.ventes import DATE_FORMAT, FIELDS

log = logging.getLogger("pipeline")

FULL_NAME = "ventes_data.csv"
EVERY_SECONDS = 120
LOT_SIZE = 20_000  # ventes par fichier : borne la mémoire et la taille du document du lot (16 Mo au plus)
DRAFT_SECONDS = 3600


def export_new(
    database: Database[Document], folder: Path, lot_size: int, stop: Callable[[], bool] = lambda: False
) -> int:
    """Écrit un fichier par lot de ventes nouvelles ; renvoie leur nombre, tous lots confondus.

    Termine d'abord le lot qu'un export interrompu aurait laissé.
    """
    exported = 0
    while not stop():
        last = last_lot(database)
        lot = open_lot(database, last["_id"] + 1, lot_size) if last["termine"] else last
        if lot is None:
            break
        if not lot["termine"]:  # il l'est si un autre export a été plus vif
            exported += finish_lot(database, lot, folder)
    return exported


def last_lot(database: Database[Document]) -> Document:
    """Le lot de plus grand numéro ; un lot 0, terminé et vide, s'il n'y en a pas encore."""
    return database.lots_export.find_one(sort=[("_id", -1)]) or {"_id": 0, "termine": True}


def open_lot(database: Database[Document], number: int, size: int) -> Document | None:
    """Ouvre le lot ``number`` avec au plus ``size`` ventes nouvelles ; None s'il n'y en a pas.

    Si un autre export vient de l'ouvrir, c'est le sien qui est renvoyé : la clé unique tranche.
    """
    pending = database.ventes.find({"lot_export": 0}, {"_id": 1}).limit(size)
    ids = [vente["_id"] for vente in pending]
    if not ids:
        return None
    lot = {"_id": number, "ventes": ids, "ouvert": datetime.now(UTC), "termine": False}
    try:
        database.lots_export.insert_one(lot)
        return lot
    except DuplicateKeyError:
        return database.lots_export.find_one({"_id": number})


def finish_lot(database: Database[Document], lot: Document, folder: Path) -> int:
    """Marque les ventes du lot, écrit son fichier, puis le déclare terminé ; peut se répéter sans effet."""
    number, ids = lot["_id"], lot["ventes"]
    for start in range(0, len(ids), IN_SIZE):
        database.ventes.update_many({"_id": {"$in": ids[start : start + IN_SIZE]}}, {"$set": {"lot_export": number}})
    frame = to_frame(database.ventes.find({"lot_export": number}))
    frame = frame[frame["id"].isin(ids)]  # le lot fait foi
    if missing := len(set(ids) - set(frame["id"])):
        log.warning("Lot %d : %d ventes ont été supprimées de MongoDB depuis l'ouverture du lot.", number, missing)
    # Le nom porte le numéro et l'empreinte des identifiants : une base repartie de zéro n'écrase aucun ancien fichier.
    stamp = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:8]
    manifest = write_csv(folder / f"ventes_{number:06d}_{stamp}.csv", iter([frame]))
    database.lots_export.update_one(
        {"_id": number}, {"$set": {"termine": True, "manifeste": manifest}, "$unset": {"ventes": ""}}
    )
    log.info("%s : %d ventes exportées.", manifest["fichier"], manifest["lignes"])
    return len(frame)


def to_frame(ventes: Iterator[Document] | Any) -> pd.DataFrame:
    """Tableau des colonnes exportées, trié par identifiant : le même lot donne toujours les mêmes octets.

    Tout est texte : le montant garde ses deux décimales exactes, la date sa forme ISO.
    """
    rows = (
        (v["_id"], v["produit"], v["region"], f"{v['montant'].to_decimal():.2f}", v["date_vente"].strftime(DATE_FORMAT))
        for v in ventes
    )
    return pd.DataFrame(rows, columns=list(FIELDS), dtype="object").sort_values("id")


def write_csv(path: Path, frames: Iterator[pd.DataFrame]) -> Document:
    """Écrit les tableaux à la suite dans ``path``, puis son manifeste ``.json`` ; renvoie le manifeste.

    Chacun naît sous un nom provisoire, est forcé sur le disque, puis renommé : on ne voit
    jamais un fichier à moitié écrit. Le manifeste vient en dernier : lui seul dit « terminé ».
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, lines = hashlib.sha256(), 0
    with create_draft(path) as file:
        for number, frame in enumerate(frames):
            text = frame.to_csv(index=False, header=number == 0, lineterminator="\n").encode("utf-8")
            file.write(text)
            digest.update(text)
            lines += len(frame)
        publish(file, path)
    manifest = {"fichier": path.name, "lignes": lines, "sha256": digest.hexdigest()}
    manifest_path = path.with_suffix(".json")
    with create_draft(manifest_path) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
        publish(file, manifest_path)
    return manifest


def create_draft(path: Path) -> BinaryIO:
    """Ouvre le brouillon de ``path``, d'un nom caché que personne d'autre n'utilise.

    Les brouillons d'exports tués, vieux de plus d'une heure, sont effacés au passage.
    """
    for old in path.parent.glob(".ventes_*.tmp"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # un autre export vient de le faire, ou y écrit
            if time.time() - old.stat().st_mtime > DRAFT_SECONDS:
                old.unlink()
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp").open("xb")


def export_full(database: Database[Document], folder: Path) -> Document:
    """Écrit toutes les ventes dans ``ventes_data.csv``, par tranches : la mémoire reste bornée."""

    def frames() -> Iterator[pd.DataFrame]:
        yield to_frame([])  # l'en-tête, même sans vente
        rows: list[Document] = []
        for vente in database.ventes.find().sort("_id", 1):
            rows.append(vente)
            if len(rows) == LOT_SIZE:
                yield to_frame(rows)
                rows = []
        if rows:
            yield to_frame(rows)

    manifest = write_csv(folder / FULL_NAME, frames())
    log.info("%s : %d ventes, tout l'historique.", manifest["fichier"], manifest["lignes"])
    return manifest


def export(client: MongoClient[Document], args: argparse.Namespace, stop: Stop) -> bool:
    """Un passage de l'export ; faux, dit en une phrase, s'il doit être repris au suivant."""
    database = client.get_database(DATABASE, write_concern=JOURNALED)
    try:
        count = export_new(database, args.export_dir, args.lot_size, lambda: bool(stop))
        if args.full and not stop:
            export_full(database, args.export_dir)
    except PyMongoError as error:
        log.warning("MongoDB ne répond pas, l'export sera repris là où il en est. (%s)", type(error).__name__)
        return False
    except OSError as error:
        log.warning("Écriture impossible dans %s (%s), l'export sera repris.", args.export_dir, error.strerror)
        return False
    if not count:
        log.info("Rien de nouveau à exporter.")
    return True


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option(
        "--every", env="EXPORT_EVERY", type=positive(float), default=EVERY_SECONDS, help="secondes entre deux exports"
    )
    parser.option("--once", action="store_true", help="un seul export, puis fin")
    parser.option("--full", action="store_true", help=f"écrit aussi tout l'historique dans {FULL_NAME}")
    parser.option("--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers")
    parser.option("--lot-size", type=positive(), default=LOT_SIZE, help="ventes par fichier, au plus")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    with open_client() as client:
        done = export(client, args, stop)
        if args.once:
            if not done:
                raise PipelineError("L'export n'a pas pu se faire : démarrez les services, puis relancez.")
            return 0
        # schedule compte son délai à partir de la fin d'un export : deux exports ne se chevauchent pas.
        schedule.every(args.every).seconds.do(export, client, args, stop)
        while not stop:
            schedule.run_pending()
            stop.wait(min(schedule.idle_seconds() or 0, 1))
    log.info("Arrêt demandé : terminé.")
    return 0


if __name__ == "__main__":
    run(main)
