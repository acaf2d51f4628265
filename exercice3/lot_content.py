"""Ce que contient un lot : lu dans MongoDB, mis en CSV ; le même lot donne toujours les mêmes octets."""

import logging
from collections.abc import Iterable

from exercice3.arrivages import IN_SIZE
from exercice3.collection import Document, to_row
from exercice3.lots import Part
from exercice3.ventes import FIELDS, VERSION_FIELDS, InvalidVente

import pandas as pd
from pymongo.database import Database

log = logging.getLogger("pipeline")

READ_SIZE = 5000


class MissingVentesError(Exception):
    """MongoDB n'a pas toutes les ventes de ce lot : il n'est pas écrit, et le sera quand elles y seront."""


def read_lot(database: Database[Document], lot: Document) -> list[tuple[str, ...]]:
    """Lignes CSV des ventes du lot ; lève MissingVentesError s'il en manque."""
    rows: list[tuple[str, ...]] = []
    for start in range(0, len(lot["arrivages"]), IN_SIZE):
        names = lot["arrivages"][start : start + IN_SIZE]
        try:
            rows += map(to_row, database.ventes.find({"arrivage": {"$in": names}}, batch_size=READ_SIZE))
        except InvalidVente as error:
            raise MissingVentesError(f"une vente a été changée dans MongoDB depuis son arrivée ({error})") from error
    if len(rows) != lot["nombre"]:
        raise MissingVentesError(f"MongoDB a {len(rows)} de ses {lot['nombre']} ventes : effacées, ou pas encore là")
    return rows


# --- Les lots de la version d'avant : ils nommaient leurs ventes, marquées une à une ---


def read_former_lot(database: Database[Document], number: int, ids: set[str] | None = None) -> list[tuple[str, ...]]:
    """Lignes CSV d'un lot de la version d'avant ; ``ids`` : ses ventes, et elles seules."""
    found = database.ventes.find({"lot_export": number, "arrivage": None})
    return [to_row(vente) for vente in found if ids is None or vente["_id"] in ids]


# --- En CSV ---


def to_csv(rows: Iterable[tuple[str, ...]], *, header: bool = True, versions: bool | None = None) -> Part:
    """Octets et nombre des ventes, triées par identifiant et version : le même lot donne toujours les mêmes.

    ``versions`` : avec les colonnes version et annulee ; non précisé, s'il y a au moins une correction.
    """
    frame = pd.DataFrame(rows, columns=[*FIELDS, *VERSION_FIELDS], dtype="object")
    frame = frame.sort_values(["id", "version"], key=lambda c: c.astype("int64") if c.name == "version" else c)
    if not (versions if versions is not None else bool((frame["version"] != "1").any())):
        frame = frame[list(FIELDS)]
    return frame.to_csv(index=False, header=header, lineterminator="\n").encode("utf-8"), len(frame)
