"""L'état des données : retard des groupes, ventes à exporter, lots à charger, âges, refus, lignes à chaque étape.

Rien n'est écrit, rien n'est relu en entier : des comptes que chaque serveur tient déjà, quelques secondes au plus. Qui
veut savoir si tout est égal lance exercice3/reconcile.py.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import Any

from commun import PipelineError
from commun.cli import NeverStopped, duration, french_number
from commun.dead_letters import MARKS_SUFFIX, SUFFIX, Letters
from commun.kafka import admin_config, client_config, connect
from commun.settings import bad_uri, export_dir, mongo_uri, postgres_dsn, setting
from services.doctor.report import together

import psycopg2
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from pymongo import MongoClient
from pymongo.errors import PyMongoError

SECONDS = 6.0
STATE_SECONDS = 10.0  # au-delà, on dit ce qu'on sait
SALES = ("VENTES_TOPIC", "ventes-stream")
MANIFESTS = "ventes_[0-9]*.json"

# De quoi voir s'il reste un message : sans entrer dans un groupe, ni en charger beaucoup.
READER = {
    "group.id": "status", "enable.auto.commit": False, "isolation.level": "read_committed",
    "enable.partition.eof": True, "fetch.wait.max.ms": 10, "max.partition.fetch.bytes": 1000,
    "auto.offset.reset": "earliest",
}  # fmt: skip

State = dict[str, Any]
Partition = tuple[str, int]


def read_state(seconds: float = STATE_SECONDS) -> State:
    """Ce qu'on sait au bout de ``seconds``, par serveur ; un serveur muet a « erreur », et n'arrête pas les autres."""
    found: State = {}

    def one(name: str, read: Callable[[], State]) -> None:
        try:
            found[name] = read()
        except (PipelineError, KafkaException, PyMongoError, psycopg2.Error, OSError) as error:
            found[name] = {"erreur": " ".join(str(error).split())[:200]}

    readers = {"kafka": kafka_state, "mongodb": mongodb_state, "postgresql": postgresql_state}
    together(one, readers, seconds)
    state = {name: found.get(name, {"erreur": f"pas de réponse en {seconds:g} s"}) for name in readers}
    state["fichiers"] = files_state(state["postgresql"].pop("charges", None))
    return state


# --- Kafka ---


def kafka_state() -> State:
    """Messages de chaque topic, retard de chaque groupe qui a une position, lettres mortes à traiter."""
    config = client_config({})
    admin: AdminClient = connect(AdminClient, admin_config(config))
    known = admin.list_topics(timeout=SECONDS).topics
    places = [TopicPartition(name, number) for name, topic in known.items() if name[:2] != "__"
              for number in topic.partitions]  # fmt: skip
    lows, highs = (bounds(admin, places, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))  # type: ignore[no-untyped-call]
    rows: dict[str, int] = {}
    for place in places:
        low, high = (found.get((place.topic, place.partition), 0) for found in (lows, highs))
        rows[place.topic] = rows.get(place.topic, 0) + high - low
    letters = {
        name: sum(1 for _ in left(config, name.removesuffix(SUFFIX)))
        for name, count in rows.items()
        if name.endswith(SUFFIX) and count
    }
    return {
        "messages": {name: count for name, count in sorted(rows.items()) if not name.endswith(MARKS_SUFFIX)},
        "retard": dict(sorted(lags(admin, config, lows, highs))),
        "lettres_mortes": letters,
    }


def bounds(admin: AdminClient, places: list[TopicPartition], spec: OffsetSpec) -> dict[Partition, int]:
    """Le premier ou le dernier offset de chaque partition ; rien d'une partition sans chef."""
    found = {}
    answers = admin.list_offsets(dict.fromkeys(places, spec), request_timeout=SECONDS) if places else {}
    for place, answer in answers.items():
        try:
            found[place.topic, place.partition] = int(answer.result().offset)
        except KafkaException:
            continue
    return found


def lags(
    admin: AdminClient, config: dict[str, Any], lows: dict[Partition, int], highs: dict[Partition, int]
) -> Iterator[tuple[str, int]]:
    """Groupe → messages qu'il n'a pas encore validés, dans les topics où il a une position.

    D'une partition où il n'en a pas encore, il lira tout. Les marques de fin d'une transaction, que personne ne lit,
    occupent chacune une place : elles comptent parmi les messages qu'elles suivent, et seules, elles ne sont rien.
    """
    groups = [group.group_id for group in admin.list_consumer_groups(request_timeout=SECONDS).result().valid]
    positions: dict[str, dict[Partition, int]] = {}
    for group in groups:
        asked = [ConsumerGroupTopicPartitions(group)]
        (answer,) = admin.list_consumer_group_offsets(asked, request_timeout=SECONDS).values()
        found = {(p.topic, p.partition): p.offset for p in answer.result().topic_partitions if p.offset >= 0}
        if topics := {topic for topic, _ in found}:
            positions[group] = {place: found.get(place, lows.get(place, 0)) for place in highs if place[0] in topics}
    behind = {(place, at) for found in positions.values() for place, at in found.items() if at < highs[place]}
    first = first_messages(config, behind, highs)
    for group, found in positions.items():
        yield group, sum(max(0, highs[place] - first.get((place, at), at)) for place, at in found.items())


def first_messages(
    config: dict[str, Any], places: Collection[tuple[Partition, int]], highs: dict[Partition, int]
) -> dict[tuple[Partition, int], int]:
    """Place (partition, offset) → offset du premier message lisible à partir d'elle, ou la fin s'il n'y en a aucun.

    Sans réponse en SECONDS, une place n'a rien.
    """
    left, found = set(places), dict[tuple[Partition, int], int]()
    deadline = time.monotonic() + SECONDS
    consumer = connect(Consumer, admin_config(config) | READER) if left else None
    while consumer and left and time.monotonic() < deadline:
        turn = dict(left)  # d'une partition, une place à la fois
        consumer.assign([TopicPartition(topic, number, at) for (topic, number), at in turn.items()])
        while turn and time.monotonic() < deadline:
            for message in consumer.consume(100, 0.05):
                partition, error = (message.topic() or "", message.partition() or 0), message.error()
                ended = error is not None and error.code() == KafkaError._PARTITION_EOF
                if partition in turn and (ended or error is None):
                    at = turn.pop(partition)
                    found[partition, at] = highs[partition] if ended else message.offset() or 0
                    left.discard((partition, at))
    if consumer:
        consumer.close()
    return found


def left(config: dict[str, Any], topic: str) -> Iterator[str]:
    """Les lettres mortes d'un topic qui ne sont ni renvoyées ni classées."""
    letters = Letters(config, topic, NeverStopped())
    marks = letters.marks()
    return (line["lettre"] for line in letters.read() if line["lettre"] not in marks)


# --- MongoDB, fichiers, PostgreSQL ---


def mongodb_state() -> State:
    """Ventes, ventes qu'aucun lot ne porte, lots ouverts, âge du dernier lot terminé."""
    patience = int(SECONDS * 1000)
    try:
        opened = MongoClient[dict[str, Any]](mongo_uri(), serverSelectionTimeoutMS=patience, socketTimeoutMS=patience)
    except (PyMongoError, ValueError) as error:
        raise PipelineError(bad_uri(error)) from None
    with opened as client:
        database = client.get_default_database(setting("MONGO_DATABASE"))
        waiting = database.arrivages.aggregate(
            [{"$match": {"lot": 0}}, {"$group": {"_id": None, "ventes": {"$sum": "$ventes"}}}]
        )
        last = database.lots_export.find_one({"termine": True}, sort=[("_id", -1)]) or {}
        return {
            "ventes": database.ventes.estimated_document_count(),
            "a_exporter": sum(row["ventes"] for row in waiting),
            "lots_ouverts": database.lots_export.count_documents({"termine": False}),
            "dernier_export": age(last.get("ouvert")),
        }


def age(when: datetime | None) -> float | None:
    """Secondes depuis ``when`` (UTC s'il n'a pas de fuseau) ; None s'il n'y a rien eu."""
    if when is None:
        return None
    instant = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round((datetime.now(UTC) - instant).total_seconds(), 1)


def files_state(loaded: set[str] | None) -> State:
    """Lots du dossier, et ceux que PostgreSQL n'a pas chargés (None : on ne sait pas)."""
    names = {path.with_suffix(".csv").name for path in export_dir().glob(MANIFESTS)}
    return {"lots": len(names), "a_charger": None if loaded is None else len(names - loaded)}


def postgresql_state() -> State:
    """Ventes, lignes rejetées, âge du dernier chargement ; et les fichiers chargés."""
    connection = psycopg2.connect(**postgres_dsn() | {"connect_timeout": int(SECONDS), "application_name": "status"})
    try:
        with connection, connection.cursor() as cursor:

            def ask(table: str, query: str) -> list[tuple[Any, ...]]:
                cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
                if cursor.fetchone() != (True,):
                    return []
                cursor.execute(query)
                return list(cursor)

            loads = ask("ventes_chargements", "SELECT fichier, charge_le FROM ventes_chargements")
            rows, rejects = (ask(table, f"SELECT count(*) FROM {table}") for table in ("ventes", "ventes_rejets"))  # noqa: S608
            return {
                "ventes": rows[0][0] if rows else 0,
                "rejets": rejects[0][0] if rejects else 0,
                "dernier_chargement": age(max((when for _, when in loads), default=None)),
                "charges": {name for name, _ in loads},
            }
    finally:
        connection.close()


# --- Dire ---


def waiting(state: State) -> int:
    """Le plus grand des retards : messages d'un groupe, ventes à exporter, lots à charger."""
    values = [*state["kafka"].get("retard", {}).values(), state["mongodb"].get("a_exporter"),
              state["fichiers"].get("a_charger")]  # fmt: skip
    return max((value for value in values if value is not None), default=0)


def silent(state: State) -> list[str]:
    """Les serveurs dont l'état n'a pu être lu."""
    return [name for name, found in state.items() if "erreur" in found]


def lines(state: State) -> Iterator[str]:
    """L'état, en quelques lignes."""
    kafka, mongodb, files, postgresql = (state[name] for name in ("kafka", "mongodb", "fichiers", "postgresql"))
    sales = os.environ.get(SALES[0]) or SALES[1]
    steps = {
        "Kafka": kafka.get("messages", {}).get(sales), "MongoDB": mongodb.get("ventes"),
        "PostgreSQL": postgresql.get("ventes"),
    }  # fmt: skip
    yield "ventes       " + ", ".join(f"{name} {number(count)}" for name, count in steps.items())
    for group, lag in kafka.get("retard", {}).items():
        yield f"retard       {group} : {number(lag)} message{'s' if lag > 1 else ''}"
    yield (
        f"à exporter   {number(mongodb.get('a_exporter'))} ventes, {number(mongodb.get('lots_ouverts'))} lots ouverts"
        f" ; dernier lot {ago(mongodb.get('dernier_export'))}"
    )
    yield (
        f"à charger    {number(files['a_charger'])} lots sur {number(files['lots'])} ; "
        f"dernier chargement {ago(postgresql.get('dernier_chargement'))}"
    )
    refused = [f"{name} {number(count)}" for name, count in kafka.get("lettres_mortes", {}).items() if count]
    refused += [f"ventes_rejets {number(postgresql['rejets'])}"] if postgresql.get("rejets") else []
    yield f"à réparer    {', '.join(refused) or 'rien'}"
    for name in silent(state):
        yield f"sans état    {name} : {state[name]['erreur']}"


def number(value: int | None) -> str:
    """Un nombre, ou « ? » si le serveur ne l'a pas dit."""
    return "?" if value is None else french_number(value)


def ago(seconds: float | None) -> str:
    """« il y a 12 s »."""
    return "jamais" if seconds is None else f"il y a {duration(seconds)}"
