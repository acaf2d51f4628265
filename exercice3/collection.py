"""La collection MongoDB des ventes : sa forme, ses index, et comment s'y connecter.

Un document par vente, et un de plus par correction ; aucun n'est jamais récrit :

    _id                   string      l'identifiant de la vente : la clé unique qui rend une redite sans effet ; une
                                      version corrigée y ajoute une tabulation et son numéro
    produit, region       string
    montant               decimal     Decimal128, exact, là où un double dérive
    date_vente            date        heure locale du magasin (MongoDB n'a que des dates UTC : elle y est telle quelle)
    timestamp_traitement  date        moment de l'écriture, UTC
    version, annulee      int, bool   sur une version corrigée seulement
    arrivage              string      l'essai d'écriture qui l'a apportée (voir arrivages.py)
    lot_export            int         sur les ventes écrites avant les arrivages : leur lot, 0 sans lot
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from commun import START_HINT, PipelineError
from commun.settings import bad_uri, mongo_uri, setting
from exercice3.ventes import CENT, InvalidVente, Vente

from bson.decimal128 import Decimal128
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, ConfigurationError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

Document = dict[str, Any]

COLLECTION = "ventes"
# MONGO_URI ne change ni l'un ni l'autre : un secondaire en retard cacherait une vente à l'export, pour toujours, et
# sans journal (j) « confirmé » ne voudrait rien dire.
JOURNALED = WriteConcern(w="majority", j=True)
READ = ReadConcern("majority")
# Les trois filtres que l'énoncé demande, et l'arrivage, qui donne à l'export les ventes d'un lot. lot_export le suit :
# les ventes sans arrivage, anciennes ou étrangères, se trouvent ainsi sans parcourir les autres.
INDEXES: Mapping[str, tuple[str | list[str], ...]] = {
    COLLECTION: ("date_vente", "produit", "region", ["arrivage", "lot_export"]),
    "arrivages": ("etat", "lot"),
    "lots_export": ("termine",),
}
FORMER_INDEX = "lot_export_1"
VALIDATOR = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["_id", "produit", "region", "montant", "date_vente", "timestamp_traitement"],
        "properties": {
            "_id": {"bsonType": "string"},
            "produit": {"bsonType": "string"},
            "region": {"bsonType": "string"},
            "montant": {"bsonType": "decimal", "minimum": Decimal128("0.01")},
            "date_vente": {"bsonType": "date"},
            "timestamp_traitement": {"bsonType": "date"},
            "version": {"bsonType": ["int", "long"], "minimum": 2},
            "annulee": {"bsonType": "bool"},
            "arrivage": {"bsonType": "string"},
        },
    }
}
NOT_ALLOWED, WRONG_PASSWORD = 13, 18
NOT_A_BASE = ("admin", "local", "config")
VERSION_MARK = (
    "\t"  # un identifiant n'a pas de caractère de contrôle : « id, tabulation, 2 » ne peut être que la version 2
)


def open_client() -> MongoClient[Document]:
    """Client MongoDB ; il ne se connecte qu'à la première requête, et ne reste jamais muet plus de 30 s."""
    try:
        return MongoClient(mongo_uri(), serverSelectionTimeoutMS=6000, socketTimeoutMS=30_000)
    except (PyMongoError, ValueError) as error:
        raise PipelineError(bad_uri(error)) from None


def open_database(client: MongoClient[Document]) -> Database[Document]:
    """La base que nomme MONGO_URI, sinon MONGO_DATABASE ; lue et écrite de façon sûre, quoi que dise MONGO_URI."""
    try:
        name = client.get_default_database().name
    except ConfigurationError:
        name = setting("MONGO_DATABASE")
    if name in NOT_A_BASE:
        raise PipelineError(
            f"MONGO_URI mène à la base « {name} », celle des comptes : nommez celle des ventes, "
            f"« …/ventes_db?authSource={name} »."
        )
    return client.get_database(name, read_preference=ReadPreference.PRIMARY, read_concern=READ, write_concern=JOURNALED)


def explain(error: PyMongoError) -> str:
    """Ce qui est arrivé à MongoDB, en quelques mots : il ne répond pas, ou il refuse, et alors ce qu'il dit."""
    if not isinstance(error, OperationFailure):
        return f"MongoDB ne répond pas ({type(error).__name__})"
    details = error.details or {}
    faults = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
    return f"MongoDB refuse : {(faults[0] if faults else details).get('errmsg') or error}"


def account_error(error: PyMongoError) -> PipelineError | None:
    """L'erreur à lever si MongoDB refuse le compte lui-même, ce que le temps ne change pas."""
    codes = {error.code} if isinstance(error, OperationFailure) else set()
    codes |= {fault["code"] for fault in (getattr(error, "details", None) or {}).get("writeErrors", ())}
    if WRONG_PASSWORD in codes:
        return PipelineError(
            "MongoDB refuse le compte ou son mot de passe : vérifiez MONGO_URI, MONGO_USER, MONGO_PASSWORD."
        )
    if NOT_ALLOWED in codes:
        return PipelineError(f"{explain(error)}. Ce compte n'en a pas le droit : donnez-le-lui, ou changez MONGO_URI.")
    return None


def prepare(database: Database[Document]) -> None:
    """Crée la collection, son validateur et les index qui manquent ; ne demande rien de plus que lire s'ils y sont.

    Lève PipelineError si MongoDB ne répond pas, ou refuse.
    """
    try:
        known = {found["name"]: found.get("options", {}) for found in database.list_collections()}
        if COLLECTION not in known:
            _create(database)
        elif known[COLLECTION].get("validator") != VALIDATOR or known[COLLECTION].get("validationLevel") != "moderate":
            # moderate : un document d'avant, auquel il manque un champ nouveau, peut encore changer d'arrivage.
            database.command("collMod", COLLECTION, validator=VALIDATOR, validationLevel="moderate")
        for name, fields in INDEXES.items():
            present = database[name].index_information() if name in known else {}
            for field in fields:
                keys = [(key, 1) for key in ([field] if isinstance(field, str) else field)]
                if not any(index["key"] == keys for index in present.values()):
                    database[name].create_index(keys)
            if FORMER_INDEX in present:
                database[name].drop_index(FORMER_INDEX)
    except PyMongoError as error:
        if isinstance(error, OperationFailure) and error.code == NOT_ALLOWED:
            raise PipelineError(
                f"{explain(error)}. Préparer la collection demande le rôle dbAdmin : lancez une fois "
                "« python consumer.py --prepare » avec un compte qui l'a ; readWrite suffit ensuite."
            ) from error
        hint = "" if isinstance(error, OperationFailure) else f" : {START_HINT}"
        raise account_error(error) or PipelineError(f"{explain(error)}{hint}.") from error


def _create(database: Database[Document]) -> None:
    try:
        database.create_collection(COLLECTION, validator=VALIDATOR, validationLevel="moderate")
    except CollectionInvalid:  # un autre consommateur vient de le faire
        return


def key(vente: Vente) -> str:
    """Clé unique d'une version d'une vente."""
    return vente.id if vente.version == 1 else f"{vente.id}{VERSION_MARK}{vente.version}"


def to_document(vente: Vente, now: datetime) -> Document:
    """Document d'une vente ; ``now`` (UTC) devient ``timestamp_traitement``."""
    document = {
        "_id": key(vente),
        "produit": vente.produit,
        "region": vente.region,
        "montant": Decimal128(vente.montant),
        "date_vente": vente.date_vente,
        "timestamp_traitement": now,
    }
    return document if vente.version == 1 else document | {"version": vente.version, "annulee": vente.annulee}


def to_row(document: Document) -> tuple[str, str, str, str, str, str, str]:
    """Ligne CSV d'un document, tout en texte : rien n'est arrondi.

    Lève InvalidVente pour le document d'un autre programme qui n'est pas une vente au centime et à la seconde.
    """
    try:
        amount, when, version = document["montant"].to_decimal(), document["date_vente"], document.get("version", 1)
        row = (
            document["_id"].partition(VERSION_MARK)[0], document["produit"], document["region"], f"{amount:.2f}",
            when.isoformat(" "), str(version), "true" if document.get("annulee") else "false",
        )  # fmt: skip
    except (KeyError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidVente(f"un champ manque, ou n'est pas de son type ({error})") from error
    if not all(isinstance(text, str) for text in row):
        raise InvalidVente("un texte était attendu")
    if not amount.is_finite() or amount % CENT:
        raise InvalidVente(f"montant {amount} : plus de deux décimales")
    if when.microsecond:
        raise InvalidVente(f"date_vente {when} : plus fine que la seconde")
    return row
