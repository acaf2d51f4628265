"""Lit les ventes dans Kafka (topic ventes-stream) et les écrit dans MongoDB (ventes_db.ventes).

    python consumer.py                    sans fin ; Ctrl-C pour arrêter
    python consumer.py --idle-timeout 10  s'arrête après 10 s sans message
    python consumer.py --from-beginning   relit tout : rien n'est doublé

Garantit : chaque vente est une fois dans MongoDB, quoi qu'il arrive à ce script, à Kafka
ou à MongoDB, et quel que soit le nombre de consommateurs : la vente est écrite et
journalisée avant que sa position soit validée, et son identifiant est la clé unique _id.
Ce qui n'est pas une vente va dans ventes-stream-dlq, avec la raison et l'origine.
Ne garantit pas : qu'une lettre morte n'y est qu'une fois après une coupure ; ses en-têtes
dlq.partition et dlq.offset la reconnaissent.
Ensuite : schedule_export.py exporte ces ventes en CSV.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson.decimal128 import Decimal128
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure, PyMongoError

from commun.cli import Parser, Stop, positive, run
from commun.errors import PipelineError
from commun.kafka import client_config, connect, dead_letter, ensure_topic
from commun.settings import mongo_uri
from exercice3.ventes import InvalidVente, Vente, parse

log = logging.getLogger("pipeline")

TOPIC = "ventes-stream"
GROUP = "ventes-consumer-group"
DATABASE = "ventes_db"
COLLECTION = "ventes"
BATCH_SIZE = 1000
BATCH_SECONDS = 0.5  # un lot incomplet n'attend pas plus
RETRY_SECONDS = (0.5, 1, 2, 5)  # attentes successives quand MongoDB ne répond pas ; la dernière se répète
REPORT_SECONDS = 5.0
# Codes d'erreur de MongoDB.
DUPLICATE_KEY, REFUSED_BY_VALIDATOR, NOT_ALLOWED = 11000, 121, (13, 18)
CONTENT = ("produit", "region", "montant", "date_vente")
SAME_ID = "cet identifiant désigne déjà une autre vente"

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la position n'avance qu'après l'écriture dans MongoDB
    "auto.offset.reset": "earliest",  # un groupe nouveau lit tout, il ne saute rien
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 10_000,  # un membre tué est remplacé au bout de 10 s
    "fetch.queue.backoff.ms": 10,  # 1 s par défaut, qui plafonne le débit
}
DEAD_LETTER_CONFIG = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": 0, "linger.ms": 5}
GUARANTEED = ("enable.auto.commit", "auto.offset.reset", "acks", "enable.idempotence", "message.timeout.ms")

# j=True : confirmé = dans le journal de MongoDB, sur le disque.
JOURNALED = WriteConcern(w="majority", j=True)
VALIDATOR = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["_id", "produit", "region", "montant", "date_vente", "timestamp_traitement", "lot_export"],
        "properties": {
            "_id": {"bsonType": "string"},
            "produit": {"bsonType": "string"},
            "region": {"bsonType": "string"},
            "montant": {"bsonType": "decimal"},  # Decimal128 : exact, là où un double dérive
            "date_vente": {"bsonType": "date"},
            "timestamp_traitement": {"bsonType": "date"},
            "lot_export": {"bsonType": ["int", "long"]},  # 0 : pas encore exportée
        },
    }
}
# Les trois filtres des tableaux de bord, et lot_export qui donne à l'export ce qui est nouveau.
INDEXES = ("date_vente", "produit", "region", "lot_export")

Document = dict[str, Any]
Batch = dict[str, tuple[Message, Vente]]  # par identifiant : le message d'origine et la vente
Rejected = list[tuple[Message, str]]  # messages refusés, avec la raison


@dataclass
class Counts:
    """Ce que le script a fait depuis son démarrage."""

    read: int = 0
    written: int = 0
    already_there: int = 0
    dead_letters: int = 0

    def __str__(self) -> str:
        return (
            f"{self.read} messages lus, {self.written} ventes écrites, {self.already_there} déjà là, "
            f"{self.dead_letters} lettres mortes"
        )


def to_document(vente: Vente, now: datetime) -> Document:
    """Document MongoDB d'une vente ; ``now`` (UTC) devient ``timestamp_traitement``.

    MongoDB n'a que des dates UTC : l'heure locale du magasin y est rangée telle quelle.
    """
    return {
        "_id": vente.id,
        "produit": vente.produit,
        "region": vente.region,
        "montant": Decimal128(vente.montant),
        "date_vente": vente.date_vente,
        "timestamp_traitement": now,
        "lot_export": 0,
    }


def prepare_collection(client: MongoClient[Document]) -> Collection[Document]:
    """Crée la collection, son validateur et ses index s'ils manquent."""
    database = client[DATABASE]
    try:
        database.create_collection(COLLECTION, validator=VALIDATOR)
    except CollectionInvalid:  # elle existe : son validateur est mis à jour
        database.command("collMod", COLLECTION, validator=VALIDATOR)
    collection = database.get_collection(COLLECTION, write_concern=JOURNALED)
    for field in INDEXES:
        collection.create_index(field)
    return collection


def sort_messages(messages: list[Message], now: datetime) -> tuple[Batch, Rejected]:
    """Sépare les ventes valides, par identifiant, et les autres messages avec leur raison."""
    ventes: Batch = {}
    rejected: Rejected = []
    for message in messages:
        try:
            vente = parse(message.value(), now)
        except InvalidVente as error:
            rejected.append((message, str(error)))
            continue
        _, first = ventes.setdefault(vente.id, (message, vente))
        if first != vente:
            rejected.append((message, SAME_ID))
    return ventes, rejected


def write(collection: Collection[Document], ventes: Batch, counts: Counts) -> Rejected:
    """Écrit les ventes en une fois ; renvoie celles que MongoDB refuse, avec la raison.

    Une vente déjà là n'est pas une erreur : l'insertion bute sur la clé _id et rien ne change.
    Lève PyMongoError si MongoDB n'est pas en état de répondre.
    """
    if not ventes:
        return []
    now = datetime.now(UTC)
    try:
        collection.insert_many([to_document(vente, now) for _, vente in ventes.values()], ordered=False)
        counts.written += len(ventes)
        return []
    except BulkWriteError as error:
        if error.details["writeConcernErrors"]:
            raise
        errors = error.details["writeErrors"]
    if transient := [fault for fault in errors if fault["code"] not in (DUPLICATE_KEY, REFUSED_BY_VALIDATOR)]:
        raise PyMongoError(f"écriture interrompue : {transient[0]['errmsg']}")
    counts.written += len(ventes) - len(errors)
    refused = {fault["op"]["_id"]: fault["errmsg"] for fault in errors if fault["code"] == REFUSED_BY_VALIDATOR}
    present = [fault["op"]["_id"] for fault in errors if fault["code"] == DUPLICATE_KEY]
    rejected: Rejected = [(ventes[id][0], f"MongoDB refuse : {reason}") for id, reason in refused.items()]
    return rejected + compare(collection, {id: ventes[id] for id in present}, counts)


def compare(collection: Collection[Document], ventes: Batch, counts: Counts) -> Rejected:
    """Parmi des ventes déjà dans MongoDB, renvoie celles dont le contenu diffère."""
    different, ids = [], list(ventes)
    for start in range(0, len(ids), 100):
        for stored in collection.find({"_id": {"$in": ids[start : start + 100]}}):
            message, vente = ventes[stored["_id"]]
            document = to_document(vente, stored["timestamp_traitement"])
            if all(stored[field] == document[field] for field in CONTENT):
                counts.already_there += 1
            else:
                different.append((message, SAME_ID))
    return different


def bury(producer: Producer, topic: str, rejected: Rejected, stop: Stop) -> bool:
    """Range les messages refusés dans ``topic`` et attend leur confirmation ; faux si l'arrêt vient avant."""
    for message, reason in rejected:
        dead_letter(producer, topic, message, reason)
        log.warning("Lettre morte (partition %s, offset %s) : %s", message.partition(), message.offset(), reason)
    while rejected and producer.flush(1):
        if stop:
            return False
    return True


def wait_paused(consumer: Consumer, seconds: float) -> None:
    """Attend sans quitter le groupe : partitions en pause, mais ``poll`` continue de battre."""
    consumer.pause(consumer.assignment())
    message = consumer.poll(seconds)
    if message is not None and not message.error():
        # D'une partition arrivée pendant l'attente : on la relira, rien n'est sauté.
        consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))


def write_until_done(
    consumer: Consumer, collection: Collection[Document], ventes: Batch, counts: Counts, stop: Stop
) -> Rejected | None:
    """``write``, répété jusqu'à ce que MongoDB réponde ; None si l'arrêt est demandé avant."""
    attempt = 0
    while True:
        try:
            refused = write(collection, ventes, counts)
            break
        except PyMongoError as error:
            if isinstance(error, OperationFailure) and error.code in NOT_ALLOWED:
                raise PipelineError(f"MongoDB refuse l'écriture : {error}. Vérifiez MONGO_URI.") from error
            if attempt == 0:
                log.warning("MongoDB ne répond plus : j'attends son retour, rien n'est perdu. (%s)", type(error).__name__)
            if stop:
                return None
            wait_paused(consumer, RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
    if attempt:
        log.info("MongoDB répond de nouveau.")
        consumer.resume(consumer.assignment())
    return refused


def commit(consumer: Consumer, messages: list[Message]) -> None:
    """Valide la position qui suit le dernier message de chaque partition."""
    following: dict[tuple[str, int], int] = {}
    for message in messages:
        following[message.topic(), message.partition()] = message.offset() + 1
    try:
        consumer.commit(offsets=[TopicPartition(*place, offset) for place, offset in following.items()], asynchronous=False)
    except KafkaException as error:
        # Partition passée à un autre membre entre-temps : il relira ces ventes, MongoDB les reconnaîtra.
        log.info("Position non validée (%s) : ces messages seront relus sans doublon.", error.args[0].name())


def consume(consumer: Consumer, producer: Producer, collection: Collection[Document], args: argparse.Namespace, stop: Stop) -> Counts:
    """La boucle : lire un lot, l'écrire, ranger les lettres mortes, valider la position."""
    counts = Counts()
    active = reported = time.monotonic()
    while not stop and (args.max_messages is None or counts.read < args.max_messages):
        room = BATCH_SIZE if args.max_messages is None else min(BATCH_SIZE, args.max_messages - counts.read)
        messages = [message for message in consumer.consume(room, BATCH_SECONDS) if readable(message)]
        now = time.monotonic()
        if messages:
            ventes, rejected = sort_messages(messages, datetime.now())  # noqa: DTZ005 - heure locale, comme date_vente
            refused = write_until_done(consumer, collection, ventes, counts, stop)
            if refused is None or not bury(producer, args.topic + "-dlq", rejected + refused, stop):
                log.warning("Arrêt : %d messages non traités seront relus au prochain démarrage.", len(messages))
                break
            commit(consumer, messages)
            counts.read += len(messages)
            counts.dead_letters += len(rejected) + len(refused)
            active = time.monotonic()
        elif args.idle_timeout and now - active > args.idle_timeout:
            break
        if now - reported > REPORT_SECONDS and messages:
            log.info("%s", counts)
            reported = now
    return counts


def readable(message: Message) -> bool:
    """Vrai pour un message, faux pour une nouvelle du client Kafka (dite si elle est grave)."""
    error = message.error()
    if error is None:
        return True
    if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise PipelineError(f"Kafka refuse la lecture : {error.str()}.")
    log.debug("Kafka : %s", error.str())
    return False


def rewind(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    """Rappel d'attribution de --from-beginning : chaque partition reçue repart de son début."""
    for partition in partitions:
        partition.offset = OFFSET_BEGINNING
    consumer.incremental_assign(partitions)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--group", env="VENTES_GROUP", default=GROUP, help="groupe de consommateurs")
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option("--from-beginning", action="store_true", help="relit le topic depuis son début")
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages")
    parser.option("--idle-timeout", type=positive(float), help="s'arrête après S secondes sans message")
    return parser.parse(argv)


def open_mongodb() -> tuple[MongoClient[Document], Collection[Document]]:
    """Connexion à MongoDB et collection prête ; PipelineError si MongoDB ne répond pas."""
    client: MongoClient[Document] = MongoClient(mongo_uri(), serverSelectionTimeoutMS=3000, socketTimeoutMS=30_000)
    try:
        return client, prepare_collection(client)
    except OperationFailure as error:
        raise PipelineError(f"MongoDB refuse : {error.details and error.details.get('errmsg')}. Vérifiez MONGO_URI.") from error
    except PyMongoError as error:
        raise PipelineError("MongoDB ne répond pas : démarrez les services avec « make services » ou « docker-compose up -d ».") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(CONSUMER_CONFIG | {"group.id": args.group}, GUARANTEED, args.bootstrap_servers)
    producer_config = client_config(DEAD_LETTER_CONFIG, GUARANTEED, args.bootstrap_servers)
    ensure_topic(config, args.topic, partitions=6, replication_factor=3)
    ensure_topic(config, args.topic + "-dlq", partitions=1, replication_factor=3)
    client, collection = open_mongodb()
    consumer, producer = connect(Consumer, config), connect(Producer, producer_config)
    log.info("Lecture de %s (groupe %s), écriture dans MongoDB %s.%s.", args.topic, args.group, DATABASE, COLLECTION)
    with client:
        try:
            consumer.subscribe([args.topic], **({"on_assign": rewind} if args.from_beginning else {}))
            counts = consume(consumer, producer, collection, args, stop)
        finally:
            consumer.close()  # quitte le groupe tout de suite : un autre membre prend la suite
    log.info("Terminé : %s.", counts)
    return 0


if __name__ == "__main__":
    run(main)
