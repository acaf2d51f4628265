"""La collection MongoDB des ventes : sa forme, ses index, et une écriture que l'on peut répéter.

Un document :

    _id                   string      l'identifiant de la vente : la clé unique qui rend une redite sans effet
    produit, region       string
    montant               decimal     Decimal128, exact, là où un double dérive
    date_vente            date        heure locale du magasin (MongoDB n'a que des dates UTC : elle y est telle quelle)
    timestamp_traitement  date        moment de l'écriture, UTC
    lot_export            int         lot de schedule_export.py, 0 tant que la vente n'est pas exportée
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson.decimal128 import Decimal128
from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure, PyMongoError

from commun.errors import PipelineError
from commun.settings import mongo_uri
from exercice3.ventes import Vente

Document = dict[str, Any]

DATABASE = "ventes_db"
COLLECTION = "ventes"
# j=True : confirmé = dans le journal de MongoDB, sur le disque.
JOURNALED = WriteConcern(w="majority", j=True)
# Les trois filtres des tableaux de bord, et lot_export qui donne à l'export ce qui est nouveau.
INDEXES = ("date_vente", "produit", "region", "lot_export")
VALIDATOR = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["_id", "produit", "region", "montant", "date_vente", "timestamp_traitement", "lot_export"],
        "properties": {
            "_id": {"bsonType": "string"},
            "produit": {"bsonType": "string"},
            "region": {"bsonType": "string"},
            "montant": {"bsonType": "decimal", "minimum": Decimal128("0.01")},
            "date_vente": {"bsonType": "date"},
            "timestamp_traitement": {"bsonType": "date"},
            "lot_export": {"bsonType": ["int", "long"]},
        },
    }
}
# Codes d'erreur de MongoDB.
DUPLICATE_KEY, REFUSED_BY_VALIDATOR = 11000, 121
NOT_ALLOWED = (13, 18)
CONTENT = ("produit", "region", "montant", "date_vente")
SAME_ID = "cet identifiant désigne déjà une autre vente"
# Taille des listes « $in » : courtes, elles vont vite sur tous les serveurs.
IN_SIZE = 100


@dataclass
class Outcome:
    """Résultat d'une écriture : ventes nouvelles, et ventes refusées avec la raison, par identifiant."""

    written: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def open_client() -> MongoClient[Document]:
    """Client MongoDB ; il ne se connecte qu'à la première requête, et ne reste jamais muet plus de 30 s."""
    return MongoClient(mongo_uri(), serverSelectionTimeoutMS=3000, socketTimeoutMS=30_000)


def prepare(client: MongoClient[Document]) -> Collection[Document]:
    """Crée la collection, son validateur et ses index s'ils manquent.

    Lève PipelineError si MongoDB ne répond pas ou refuse le compte.
    """
    database = client.get_database(DATABASE, write_concern=JOURNALED)
    try:
        try:
            database.create_collection(COLLECTION, validator=VALIDATOR)
        except CollectionInvalid:  # elle existe : son validateur est mis à jour
            database.command("collMod", COLLECTION, validator=VALIDATOR)
        for name in INDEXES:
            database[COLLECTION].create_index(name)
    except OperationFailure as error:
        reason = (error.details or {}).get("errmsg", error)
        raise PipelineError(f"MongoDB refuse : {reason}. Vérifiez MONGO_URI.") from error
    except PyMongoError as error:
        raise PipelineError(
            "MongoDB ne répond pas : démarrez les services avec « make services » ou « docker-compose up -d »."
        ) from error
    return database[COLLECTION]


def to_document(vente: Vente, now: datetime) -> Document:
    """Document d'une vente ; ``now`` (UTC) devient ``timestamp_traitement``."""
    return {
        "_id": vente.id,
        "produit": vente.produit,
        "region": vente.region,
        "montant": Decimal128(vente.montant),
        "date_vente": vente.date_vente,
        "timestamp_traitement": now,
        "lot_export": 0,
    }


def insert(collection: Collection[Document], ventes: Mapping[str, Vente], now: datetime) -> Outcome:
    """Écrit des ventes (par identifiant) en une requête ; celles qui y sont déjà ne changent rien.

    Une vente est refusée si le validateur n'en veut pas ou si son identifiant désigne déjà une
    autre vente. Lève PyMongoError si MongoDB n'est pas en état de répondre : à répéter sans crainte.
    """
    if not ventes:
        return Outcome()
    try:
        collection.insert_many([to_document(vente, now) for vente in ventes.values()], ordered=False)
        return Outcome(len(ventes))
    except BulkWriteError as error:
        faults = error.details["writeErrors"]
        if error.details["writeConcernErrors"] or any(
            fault["code"] not in (DUPLICATE_KEY, REFUSED_BY_VALIDATOR) for fault in faults
        ):
            raise
    refused = {fault["op"]["_id"]: fault["errmsg"] for fault in faults if fault["code"] == REFUSED_BY_VALIDATOR}
    present = [fault["op"]["_id"] for fault in faults if fault["code"] == DUPLICATE_KEY]
    return Outcome(len(ventes) - len(faults), refused | _conflicts(collection, ventes, present))


def _conflicts(collection: Collection[Document], ventes: Mapping[str, Vente], ids: list[str]) -> dict[str, str]:
    """Parmi les identifiants déjà présents, ceux dont le contenu n'est pas celui de ``ventes``."""
    different = {}
    for start in range(0, len(ids), IN_SIZE):
        for stored in collection.find({"_id": {"$in": ids[start : start + IN_SIZE]}}):
            document = to_document(ventes[stored["_id"]], stored["timestamp_traitement"])
            if any(stored[name] != document[name] for name in CONTENT):
                different[stored["_id"]] = SAME_ID
    return different
