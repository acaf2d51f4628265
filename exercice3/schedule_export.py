"""Exporte en CSV, toutes les deux minutes, les ventes de MongoDB qui ne l'ont pas encore été.

    python schedule_export.py             un export toutes les 2 minutes, sans fin
    python schedule_export.py --every 10  toutes les 10 secondes
    python schedule_export.py --once      un seul export, puis fin
    python schedule_export.py --full      en plus, toutes les ventes dans ventes_data.csv
    python schedule_export.py --lot 12    refait le fichier du lot 12, octet pour octet, puis fin
    python schedule_export.py --since 2026-11-01  refait de même tous les lots depuis ce jour

Garantit : chaque vente est dans un fichier terminé et un seul, même après un kill -9 à
n'importe quel instant, avec plusieurs exports à la fois ou des consommateurs qui écrivent
pendant l'export. Un fichier est terminé quand son manifeste .json existe : il donne le
nombre de lignes et la somme SHA-256 que pg.py vérifie.
Ne garantit pas : l'ordre des ventes d'un fichier à l'autre.
Ensuite : pg.py charge ces fichiers dans PostgreSQL.

Comment : consumer.py confirme ses ventes par arrivages (arrivages.py), qui ne changent plus.
Un lot est un document de « lots_export » qui nomme une fois pour toutes des arrivages ; son
numéro est la clé unique. Le lot n+1 ne s'ouvre qu'une fois le numéro n inscrit dans les
arrivages du lot n : aucune vente n'est dans deux lots, et tous les exports qui écrivent un
lot écrivent les mêmes octets. Aucune vente n'est récrite.
"""

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from commun import START_HINT, PipelineError
from commun.cli import Parser, Stop, moment, positive, run
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from commun.settings import export_dir
from commun.systems import reason
from exercice3 import lots
from exercice3.arrivages import IN_SIZE, sweep
from exercice3.collection import Document, account_error, explain, open_client, open_database
from exercice3.history import export_again, export_full, export_since, finish_former_lot, forget_archived, say_foreign
from exercice3.lot_content import MissingVentesError, read_lot, to_csv

import schedule
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

log = logging.getLogger("pipeline")

EVERY_SECONDS = 120
LOT_SIZE = 20_000  # ventes par fichier : borne la mémoire
LOT_SIZE_MAX = 100_000  # au pire une vente par arrivage : le document du lot reste loin des 16 Mo de MongoDB


def export_new(
    database: Database[Document], folder: Path, lot_size: int, stop: Callable[[], bool] = lambda: False
) -> int:
    """Écrit les ventes qui sont là, un fichier par lot ; renvoie leur nombre, tous lots confondus."""
    exported, faults = 0, list[tuple[int, str]]()
    for former in database.lots_export.find({"termine": False, "arrivages": None}):
        exported += finish_former_lot(database, former, folder)
    say_foreign(sweep(database, datetime.now(UTC)).foreign)
    # Ce qui arrive pendant ce passage est pour le suivant : un passage finit toujours.
    waiting = database.arrivages.count_documents({"lot": 0})
    while waiting > 0 and not stop() and (lot := open_lot(database, lot_size)):
        waiting -= len(lot["arrivages"])
        exported += _try(database, lot, folder, faults)
    # Puis les lots ouverts par d'autres, qui sont peut-être morts : au pire, le même fichier est écrit deux fois.
    for left in database.lots_export.find({"termine": False, "arrivages": {"$ne": None}}).sort("_id", 1):
        if not stop() and left["_id"] not in {number for number, _ in faults}:
            exported += _try(database, left, folder, faults)
    for number, missing in faults:
        log.warning("Lot %d : %s. Les autres lots sont exportés.", number, missing)
    return exported


def _try(database: Database[Document], lot: Document, folder: Path, faults: list[tuple[int, str]]) -> int:
    try:
        return finish_lot(database, lot, folder)
    except MissingVentesError as error:
        faults.append((lot["_id"], str(error)))
        return 0


def open_lot(database: Database[Document], size: int) -> Document | None:
    """Ouvre le lot suivant, avec des arrivages confirmés d'au plus ``size`` ventes (un au moins) ; None sans arrivage.

    Si un autre export vient de l'ouvrir, la clé unique tranche, et l'on passe au suivant.
    """
    while True:
        last = database.lots_export.find_one(sort=[("_id", -1)]) or {"_id": 0}
        mark(database, last)
        names: list[str] = []
        count = 0
        for arrivage in database.arrivages.find({"lot": 0}, {"ventes": 1}).limit(size):
            if names and count + arrivage["ventes"] > size:
                break
            names.append(arrivage["_id"])
            count += arrivage["ventes"]
        if not names:
            return None
        opened = datetime.now(UTC)
        lot = {"_id": last["_id"] + 1, "arrivages": names, "nombre": count, "ouvert": opened, "termine": False}
        with contextlib.suppress(DuplicateKeyError):
            database.lots_export.insert_one(lot)
            mark(database, lot)  # aussitôt : si quelqu'un efface lots_export, rien n'est exporté deux fois
            return lot


def mark(database: Database[Document], lot: Document) -> None:
    """Inscrit le numéro du lot dans ses arrivages ; peut se répéter sans effet."""
    names = lot.get("arrivages", ())
    for start in range(0, len(names), IN_SIZE):
        wanted = {"_id": {"$in": names[start : start + IN_SIZE]}, "lot": 0}
        database.arrivages.update_many(wanted, {"$set": {"lot": lot["_id"]}})


def finish_lot(database: Database[Document], lot: Document, folder: Path) -> int:
    """Écrit le fichier du lot, puis le déclare terminé ; peut se répéter sans effet."""
    content, lines = to_csv(read_lot(database, lot))
    path = folder / lots.name_of(lot["_id"], lot["arrivages"])
    manifest = lots.write(path, [(content, lines)])
    end = {"termine": True, "manifeste": manifest, "dossier": str(folder.resolve())}
    database.lots_export.update_one({"_id": lot["_id"], "termine": False}, {"$set": end})
    log.info("%s : %d ventes exportées.", manifest["fichier"], lines)
    return lines


def warn_other_folder(database: Database[Document], folder: Path) -> None:
    """Dit que le dernier lot est allé dans un autre dossier : pg.py doit les lire tous."""
    last = database.lots_export.find_one({"dossier": {"$ne": None}}, sort=[("_id", -1)])
    if last and last["dossier"] != str(folder.resolve()):
        log.warning(
            "Le lot %d est dans %s ; les suivants iront dans %s. Pour en refaire un ici : --lot %d.",
            last["_id"], last["dossier"], folder, last["_id"],
        )  # fmt: skip


def export(
    database: Database[Document], args: argparse.Namespace, stop: Stop, done: Measures, *, tidy: bool = False
) -> bool:
    """Un passage de l'export ; faux, dit en une phrase, s'il doit être repris au suivant.

    ``tidy`` : d'abord, les lots chargés et compressés par « pg.py --keep » sont oubliés.
    """
    start = time.monotonic()
    try:
        if tidy:
            forget_archived(database, args.export_dir)
        lots.remove_old_drafts(args.export_dir)
        warn_other_folder(database, args.export_dir)
        count = export_new(database, args.export_dir, args.lot_size, lambda: bool(stop))
        done.add(count, time.monotonic() - start)
        if args.full and not stop:
            export_full(database, args.export_dir)
    except PyMongoError as error:
        if fault := account_error(error):
            raise fault from error
        log.warning("%s, l'export sera repris là où il en est.", explain(error))
        return False
    except OSError as error:
        log.warning("Écriture impossible dans %s (%s), l'export sera repris.", args.export_dir, reason(error))
        return False
    if not count:
        log.info("Rien de nouveau à exporter.")
    return True


def keep_on(
    database: Database[Document], args: argparse.Namespace, stop: Stop, done: Measures, *, tidy: bool = False
) -> None:
    """Un passage de plus ; un compte refusé en route se dit, et n'arrête pas les suivants."""
    try:
        export(database, args, stop, done, tidy=tidy)
    except PipelineError as error:
        log.warning("%s", error)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option(
        "--every", env="EXPORT_EVERY", type=positive(float), default=EVERY_SECONDS, help="secondes entre deux exports"
    )
    parser.option("--once", action="store_true", help="un seul export, puis fin")
    parser.option("--full", action="store_true", help=f"écrit aussi tout l'historique dans {lots.FULL_NAME}")
    parser.option("--lot", type=positive(), help="refait le fichier de ce lot, puis fin")
    parser.option("--since", type=moment, help="refait les fichiers des lots ouverts depuis cette date, puis fin")
    parser.option("--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers")
    parser.option(
        "--lot-size", type=positive(), default=LOT_SIZE, help=f"ventes par fichier, {LOT_SIZE_MAX} au plus ; un lot "
        "finit avec un arrivage de consumer.py, d'un millier de ventes au plus",
    )  # fmt: skip
    metrics_option(parser)
    args = parser.parse(argv)
    if args.lot_size > LOT_SIZE_MAX:
        parser.error(f"--lot-size : {LOT_SIZE_MAX} au plus")
    if args.lot and args.since:
        parser.error("--lot et --since ne vont pas ensemble")
    return args


class SteadyClock(datetime):
    """L'horloge de ``schedule`` : un changement d'heure, ou une horloge remise à l'heure, ne l'arrête pas."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "SteadyClock":
        """Comme datetime.now, mais ne recule ni ne saute jamais."""
        return cls(2000, 1, 1) + timedelta(seconds=time.monotonic())


def every(seconds: float, job: Callable[[], object], stop: Stop, daily: Callable[[], object] = lambda: None) -> None:
    """Exécute ``job`` toutes les ``seconds`` secondes, comptées depuis sa fin : deux exports ne se chevauchent pas.

    ``daily`` l'est une fois par jour.
    """
    # schedule compte sur l'heure de la machine (son issue 649) : à l'heure d'hiver, une heure sans export.
    schedule.datetime = SimpleNamespace(datetime=SteadyClock, timedelta=timedelta)  # type: ignore[attr-defined, assignment]
    scheduler = schedule.Scheduler()
    scheduler.every(seconds).seconds.do(job)  # type: ignore[arg-type]
    scheduler.every().day.do(daily)
    while not stop:
        scheduler.run_pending()
        stop.wait(min(scheduler.idle_seconds or 0, 1))


def again(database: Database[Document], args: argparse.Namespace) -> int:
    """--lot et --since."""
    try:
        if args.lot:
            export_again(database, args.export_dir, args.lot)
        else:
            export_since(database, args.export_dir, args.since)
    except PyMongoError as error:
        raise account_error(error) or PipelineError(f"{explain(error)} : {START_HINT}.") from error
    except OSError as error:
        raise PipelineError(f"Écriture impossible dans {args.export_dir} : {reason(error)}.") from error
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    with open_client() as client:
        database = open_database(client)
        if args.lot or args.since:
            return again(database, args)
        done = Measures(0, batches=Durations())
        serve_metrics(args.metrics_port, lambda: done)
        complete = export(database, args, stop, done, tidy=True)
        if args.once:
            if not complete:
                raise PipelineError("L'export n'a pas pu se faire : voyez ci-dessus, puis relancez.")
            return 0
        daily = partial(keep_on, database, args, stop, done, tidy=True)
        every(args.every, lambda: keep_on(database, args, stop, done), stop, daily)
    log.info("Arrêt demandé : terminé.")
    return 0


if __name__ == "__main__":
    run(main)
