"""Écrire des ventes dans MongoDB de façon que l'export sache, sans les récrire, lesquelles sont nouvelles.

Chaque essai d'écriture a un nom neuf, son **arrivage**, que portent les ventes qu'il insère :

1. l'arrivage est annoncé (un document {_id, etat: ouvert} de la collection « arrivages ») ;
2. les ventes sont insérées, en une requête ; celles qui y sont déjà ne changent rien ;
3. l'arrivage est confirmé, avec le nombre de ses ventes.

Un essai sans réponse n'est jamais confirmé : le suivant prend un autre nom. ``sweep``, que l'export appelle, abandonne
les arrivages restés ouverts, et passe leurs ventes sous un arrivage à lui ; de même les ventes sans arrivage. Ouvert
devient confirmé ou abandonné, une fois pour toutes, dans un seul document : un arrivage confirmé ne change donc plus
jamais, et schedule_export.py en fait des lots.

Prouvé par tests/models/lots.py. Ce qui ne marche pas : un rang par partition, une date, un ObjectId (des ventes
deviennent visibles en retard), un offset (un topic recréé repart de 0).
"""

import contextlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from exercice3.collection import NOT_ALLOWED, Document, key, to_document, to_row
from exercice3.ventes import InvalidVente, Vente

from pymongo.database import Database
from pymongo.errors import BulkWriteError, OperationFailure, WriteError

OPEN, CONFIRMED, ABANDONED = "ouvert", "confirmé", "abandonné"
SWEEP_AFTER = timedelta(seconds=20)  # abandonner un essai en cours est sans danger : ses ventes seront reprises
SWEEP_SIZE = 1000
IN_SIZE = 100  # taille des listes « $in » : courtes, elles vont vite sur tous les serveurs
DUPLICATE_KEY, REFUSED_BY_VALIDATOR = 11000, 121
# Un document que le serveur ne prendra jamais : validateur, valeur, type, clé de partition absente, trop gros.
REFUSED = {REFUSED_BY_VALIDATOR, 2, 9, 14, 22, 52, 57, 61, 171, 10334, 16755, 17280}
SAME_ID = "cet identifiant désigne déjà une autre vente"
Reasons = dict[str, str]
CONTENT = ("produit", "region", "montant", "date_vente", "annulee")


@dataclass
class Outcome:
    """Résultat d'une écriture : ventes nouvelles, et ventes refusées avec la raison, par clé."""

    written: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def write(database: Database[Document], ventes: Iterable[Vente], now: datetime) -> Outcome:
    """Un essai d'écriture, sous un arrivage neuf ; ``now`` en UTC.

    Une vente est refusée si le serveur n'en voudra jamais, ou si son identifiant désigne déjà une autre vente. Lève
    PyMongoError si MongoDB n'est pas en état de répondre : à répéter sans crainte.
    """
    documents = {key(vente): to_document(vente, now) for vente in ventes}
    if not documents:
        return Outcome()
    name = announce(database, now)
    refused, present = _insert(database, name, list(documents.values()))
    written = len(documents) - len(refused) - len(present)
    end(database, name, written)
    for stored in _by_keys(database, list(present)):
        del present[stored["_id"]]
        if any(stored.get(part) != documents[stored["_id"]].get(part) for part in CONTENT):
            refused[stored["_id"]] = SAME_ID
    return Outcome(written, refused | present)  # ce qui reste : la clé d'un autre index unique


def new_name() -> str:
    """Un nom d'arrivage que personne n'a eu."""
    return secrets.token_hex(10)


def announce(database: Database[Document], now: datetime) -> str:
    """Ouvre un arrivage neuf."""
    name = new_name()
    database.arrivages.insert_one({"_id": name, "etat": OPEN, "ouvert": now})
    return name


def end(database: Database[Document], name: str, count: int) -> None:
    """Confirme cet arrivage, qui a ``count`` ventes, ou l'oublie s'il n'a rien apporté.

    S'il a été abandonné entre-temps, rien ne change : ``sweep`` reprend ses ventes.
    """
    mine = {"_id": name, "etat": OPEN}
    if count:
        database.arrivages.update_one(mine, {"$set": {"etat": CONFIRMED, "ventes": count, "lot": 0}})
    else:
        database.arrivages.delete_one(mine)


def _insert(database: Database[Document], name: str, documents: list[Document]) -> tuple[Reasons, Reasons]:
    """Insère ; renvoie, avec ce que dit le serveur, les ventes refusées, et celles dont une clé était déjà là."""
    try:
        database.ventes.insert_many([document | {"arrivage": name} for document in documents], ordered=False)
        return {}, {}
    except BulkWriteError as error:
        faults = error.details["writeErrors"]
        if error.details["writeConcernErrors"] or any(f["code"] not in {DUPLICATE_KEY, *REFUSED} for f in faults):
            raise
    refused = {fault["op"]["_id"]: fault["errmsg"] for fault in faults if fault["code"] != DUPLICATE_KEY}
    return refused, {fault["op"]["_id"]: fault["errmsg"] for fault in faults if fault["code"] == DUPLICATE_KEY}


def _by_keys(database: Database[Document], keys: list[str]) -> Iterator[Document]:
    for start in range(0, len(keys), IN_SIZE):
        yield from database.ventes.find({"_id": {"$in": keys[start : start + IN_SIZE]}})


# --- Ce qu'aucun arrivage confirmé ne porte ---


@dataclass
class Swept:
    """Ce que ``sweep`` a fait : ventes reprises, et documents qui ne sont pas des ventes, avec la raison."""

    taken: int = 0
    foreign: dict[str, str] = field(default_factory=dict)


def sweep(database: Database[Document], now: datetime, after: timedelta = SWEEP_AFTER) -> Swept:
    """Reprend les ventes sans arrivage, et celles des arrivages abandonnés, ou ouverts depuis plus de ``after``."""
    swept = Swept()
    for arrivage in list(database.arrivages.find({"etat": OPEN, "ouvert": {"$lt": now - after}}, {"_id": 1})):
        opened = {"_id": arrivage["_id"], "etat": OPEN}
        database.arrivages.update_one(opened, {"$set": {"etat": ABANDONED}})
    # Tous, à chaque fois : une insertion peut devenir visible après l'abandon. Ils sont aussi rares que les pannes.
    names = [arrivage["_id"] for arrivage in database.arrivages.find({"etat": ABANDONED}, {"_id": 1})]
    _take(database, {"arrivage": None, "lot_export": {"$in": [None, 0]}}, now, swept)
    for start in range(0, len(names), IN_SIZE):
        _take(database, {"arrivage": {"$in": names[start : start + IN_SIZE]}}, now, swept)
    return swept


def _take(database: Database[Document], wanted: Document, now: datetime, swept: Swept) -> None:
    """Passe ces ventes sous des arrivages neufs ; les documents qui ne sont pas des ventes restent là."""

    def ventes() -> Iterator[tuple[str | None, str]]:
        for document in database.ventes.find(wanted):
            try:
                to_row(document)
                yield document.get("arrivage"), document["_id"]
            except InvalidVente as error:
                swept.foreign[str(document.get("_id"))] = str(error)

    found = ventes()
    while part := list(islice(found, SWEEP_SIZE)):
        groups: dict[str | None, list[str]] = defaultdict(list)
        for source, id in part:
            groups[source].append(id)
        name = announce(database, now)
        moved = _move(database, groups, name)
        end(database, name, moved)
        swept.taken += moved


def _move(database: Database[Document], groups: Mapping[str | None, list[str]], name: str) -> int:
    """Passe ces ventes de leur arrivage à ``name``, sauf celles qui n'y sont plus ; renvoie leur nombre."""
    moved = 0
    for source, ids in groups.items():
        for start in range(0, len(ids), IN_SIZE):
            part = ids[start : start + IN_SIZE]
            wanted = {"_id": {"$in": part}, "arrivage": source}
            try:
                moved += database.ventes.update_many(wanted, {"$set": {"arrivage": name}}).modified_count
            except WriteError as error:
                if error.code != REFUSED_BY_VALIDATOR:
                    raise
                _force(database, wanted, part, name)
                moved += database.ventes.count_documents({"_id": {"$in": part}, "arrivage": name})
    return moved


def _force(database: Database[Document], wanted: Document, ids: list[str], name: str) -> None:
    """Un validateur devenu plus sévère ne bloque pas des ventes déjà écrites, ni celles-là les autres."""
    change = {"$set": {"arrivage": name}}
    try:
        database.ventes.update_many(wanted, change, bypass_document_validation=True)
    except OperationFailure as error:
        if error.code != NOT_ALLOWED:
            raise
        for id in ids:  # ce compte ne peut pas passer outre : une par une, celles qui passent
            with contextlib.suppress(WriteError):
                database.ventes.update_one(wanted | {"_id": id}, change)
