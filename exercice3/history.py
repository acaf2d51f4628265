"""L'historique, à la demande : des lots refaits (--lot, --since), toutes les ventes (--full).

Et un lot que la version d'avant avait ouvert.
"""

import logging
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from commun import PipelineError
from exercice3 import lots
from exercice3.arrivages import IN_SIZE
from exercice3.collection import Document, to_row
from exercice3.lot_content import READ_SIZE, MissingVentesError, read_former_lot, read_lot, to_csv
from exercice3.ventes import FIELDS, InvalidVente

from pymongo.database import Database

log = logging.getLogger("pipeline")


def export_again(database: Database[Document], folder: Path, number: int) -> None:
    """Refait le fichier d'un lot terminé (--lot) ; lève PipelineError si MongoDB n'a plus les mêmes ventes."""
    lot = database.lots_export.find_one({"_id": number})
    if lot is None or not lot["termine"]:
        raise PipelineError(f"Le lot {number} n'existe pas, ou n'est pas terminé : il n'y a rien à refaire.")
    if lot.get("oublie"):
        raise PipelineError(f"Le lot {number} est oublié : son fichier, chargé, est gardé compressé (.csv.gz).")
    try:
        rows = read_lot(database, lot) if "arrivages" in lot else read_former_lot(database, number)
    except (MissingVentesError, InvalidVente) as error:
        raise PipelineError(f"Le lot {number} ne peut pas être refait : {error}.") from error
    content, lines = to_csv(rows)
    if lots.digest(content) != lot["manifeste"]["sha256"]:
        raise PipelineError(f"Le lot {number} ne peut pas être refait : ses ventes ont changé dans MongoDB.")
    lots.write(folder / lot["manifeste"]["fichier"], [(content, lines)])
    log.info("%s : %d ventes, refait octet pour octet.", lot["manifeste"]["fichier"], lines)


def forget_archived(database: Database[Document], folder: Path) -> None:
    """Oublie les lots dont pg.py a compressé le fichier, donc chargé : leurs arrivages s'en vont, leur numéro reste.

    Pas le dernier : seuls les lots d'avant sont, à coup sûr, inscrits dans leurs arrivages.
    """
    last = database.lots_export.find_one(sort=[("_id", -1)]) or {"_id": 0}
    wanted = {"_id": {"$lt": last["_id"]}, "termine": True, "oublie": None, "dossier": str(folder.resolve())}
    for lot in list(database.lots_export.find(wanted, {"manifeste.fichier": 1})):
        if lots.archived(folder / lot["manifeste"]["fichier"]).exists():
            database.arrivages.delete_many({"lot": lot["_id"]})
            change = {"$set": {"oublie": True}, "$unset": {"arrivages": ""}}
            database.lots_export.update_one({"_id": lot["_id"]}, change)
            log.info("Lot %d oublié : son fichier est chargé, et compressé.", lot["_id"])


def export_since(database: Database[Document], folder: Path, since: datetime) -> None:
    """Refait les fichiers des lots ouverts depuis ``since`` (UTC) ; un lot impossible n'arrête pas les autres.

    Lève PipelineError, à la fin, s'il y en a un, ou s'il n'y a aucun lot.
    """
    wanted = {"termine": True, "ouvert": {"$gte": since}, "oublie": None}
    numbers = [lot["_id"] for lot in database.lots_export.find(wanted, {"_id": 1}).sort("_id", 1)]
    if not numbers:
        raise PipelineError("Aucun lot terminé n'a été ouvert depuis cette date : il n'y a rien à refaire.")
    faults = []
    for number in numbers:
        try:
            export_again(database, folder, number)
        except PipelineError as error:
            faults.append(number)
            log.warning("%s", error)
    if faults:
        raise PipelineError(f"{len(faults)} lots sur {len(numbers)} n'ont pas pu être refaits.")


def export_full(database: Database[Document], folder: Path) -> None:
    """Écrit toutes les ventes dans ``ventes_data.csv``, par tranches : la mémoire reste bornée."""
    versions = database.ventes.find_one({"version": {"$gt": 1}}) is not None
    foreign: dict[str, str] = {}

    def rows() -> Iterator[tuple[str, ...]]:
        for vente in database.ventes.find(batch_size=READ_SIZE).sort("_id", 1):
            try:
                if (row := to_row(vente))[len(FIELDS)] == "1" or versions:  # une correction née depuis attendra
                    yield row
            except InvalidVente as error:
                foreign[str(vente["_id"])] = str(error)

    def parts() -> Iterator[lots.Part]:
        yield to_csv((), versions=versions)  # l'en-tête, même sans vente
        found = rows()
        while part := list(islice(found, READ_SIZE)):
            yield to_csv(part, header=False, versions=versions)

    manifest = lots.write(folder / lots.FULL_NAME, parts())
    say_foreign(foreign)
    log.info("%s : %d ventes, tout l'historique.", manifest["fichier"], manifest["lignes"])


def say_foreign(foreign: dict[str, str]) -> None:
    """Dit les documents d'un autre programme, qui ne sont pas des ventes et ne s'exportent pas."""
    for id, why in islice(foreign.items(), 1):
        log.warning("%d documents de MongoDB ne s'exportent pas ; le premier, « %s » : %s.", len(foreign), id, why)


def finish_former_lot(database: Database[Document], lot: Document, folder: Path) -> int:
    """Termine un lot que la version d'avant avait ouvert : ses ventes sont marquées, et écrites."""
    number, ids = lot["_id"], lot["ventes"]
    for start in range(0, len(ids), IN_SIZE):
        wanted = {"_id": {"$in": ids[start : start + IN_SIZE]}}
        database.ventes.update_many(wanted, {"$set": {"lot_export": number}}, bypass_document_validation=True)
    content, lines = to_csv(read_former_lot(database, number, set(ids)))
    manifest = lots.write(folder / lots.name_of(number, ids), [(content, lines)])
    change = {"$set": {"termine": True, "manifeste": manifest}, "$unset": {"ventes": ""}}
    database.lots_export.update_one({"_id": number}, change)
    log.info("%s : %d ventes exportées.", manifest["fichier"], lines)
    return lines
