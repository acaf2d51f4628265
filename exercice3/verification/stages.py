"""Ce que chaque étape a de ventes : Kafka, MongoDB, les fichiers, PostgreSQL. Rien n'y est écrit.

Lues de la fin vers le début : une vente qui avance pendant la lecture manque à la fin, jamais au début.
"""

import csv
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
from bson.decimal128 import Decimal128
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from commun.errors import START_HINT, PipelineError
from commun.kafka import Config, admin_config, connect
from commun.settings import postgres_dsn
from commun.topics import bounds, read_topic
from exercice3.arrivages import IN_SIZE
from exercice3.collection import Document, account_error, explain, open_client, open_database, to_row
from exercice3.confirmations import SUFFIX, read_promises
from exercice3.lots import BadFile, manifests, open_file, read_manifest
from exercice3.ventes import CENT, InvalidVente, Vente, parse
from exercice3.verification.produced import ANY_DATE, Kafka, produced
from exercice3.verification.totals import Latest, Totals

KAFKA_SECONDS = 10.0
FAR = datetime(9000, 1, 1)  # noqa: DTZ001 - le verdict ne dépend pas du jour où l'on compare
IN_POSTGRES = (  # étape, table ou vue, colonne du montant, nombre de ventes
    ("PostgreSQL", "ventes WHERE NOT annulee", "montant", "count(*)"),
    ("par jour", "ventes_par_jour", "chiffre_affaires", "sum(nombre_ventes)"),
    ("tableaux", "ventes_analyse", "chiffre_affaires", "sum(nombre_ventes)"),
)

Place = tuple[int, int]  # partition, offset
Lots = set[int]
Loaded = set[tuple[str, str]]  # nom et somme des fichiers chargés


# --- Kafka ---


@dataclass
class Topics:
    """Les topics à lire, et où en était le groupe avant qu'on lise MongoDB."""

    config: Config
    names: dict[str, list[int]]  # topic → partitions
    committed: dict[int, int]  # partition → position validée

    def read(self, topic: str) -> Iterator[Message]:
        """Tous les messages d'un topic ; aucun s'il n'existe pas."""
        return read_topic(self.config, topic, self.names.get(topic, []))


def open_topics(config: Config, topic: str, group: str) -> Topics:
    """Lit les positions du groupe. Lève PipelineError si Kafka ne répond pas."""
    consumer = connect(Consumer, config | {"group.id": group, "enable.auto.commit": False})
    try:
        known = connect(AdminClient, admin_config(config)).list_topics(timeout=KAFKA_SECONDS).topics
        names = {name: sorted(found.partitions) for name, found in known.items() if not found.error}
        there = [TopicPartition(topic, number) for number in names.get(topic, [])]
        places = consumer.committed(there, timeout=KAFKA_SECONDS) if there else []
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond pas sur {config['bootstrap.servers']} : {START_HINT}.") from error
    finally:
        consumer.close()
    return Topics(config, names, {place.partition: max(place.offset, 0) for place in places})


def from_kafka(topics: Topics, topic: str) -> tuple[Totals, Totals, int]:
    """Ce que producer.py a dû produire, les ventes distinctes du topic, et les messages effacés restés sans nom."""
    promises, odd = read_promises(message.value() for message in topics.read(topic + SUFFIX))
    dead = dead_letters(topics, topic)
    kafka = Kafka(promises)
    invalid = buried = unseen = 0

    def ventes() -> Iterator[tuple[Vente, bool]]:
        nonlocal invalid, buried, unseen
        invalid = buried = unseen = 0
        for message in topics.read(topic):
            place, value = (message.partition() or 0, message.offset() or 0), message.value()
            late = place[1] >= topics.committed.get(place[0], 0)
            is_dead = dead.get(place) == _print(value)
            buried += is_dead
            try:
                vente = parse(value, FAR)
            except InvalidVente:
                invalid += 1
                unseen += not (late or is_dead)
                continue
            if is_dead:
                kafka.bury(vente)
            else:
                yield vente, late

    purged = sum(
        bounds(topics.config, TopicPartition(topic, number), None)[0] for number in topics.names.get(topic, [])
    )
    for vente, late in ventes():
        kafka.add(vente, late)
    for latest in (kafka, kafka.foreign):
        if latest.corrected:
            latest.replace(vente for vente, _ in ventes())
    totals = kafka.totals
    totals.notes += [f"{kafka.repeated} messages répétés"] if kafka.repeated else []
    totals.notes += [f"{invalid} messages invalides"] if invalid else []
    totals.notes += [f"{buried} lettres mortes"] if buried else []
    totals.notes += [f"{odd} messages illisibles dans {topic}{SUFFIX}"] if odd else []
    if unseen:
        totals.faults.append(f"{unseen} messages lus par consumer.py ne sont ni des ventes ni des lettres mortes")
    first, unknown = produced(kafka, purged)
    return first, totals, unknown


def dead_letters(topics: Topics, topic: str) -> dict[Place, bytes]:
    """L'origine des lettres mortes du topic, et l'empreinte de leur contenu : un topic recréé repart de 0."""
    found = {}
    for message in topics.read(f"{topic}-dlq"):
        headers = dict(message.headers() or [])
        with suppress(KeyError, TypeError, ValueError):
            place = int(headers["dlq.partition"] or 0), int(headers["dlq.offset"] or 0)
            found[place] = _print(message.value())
    return found


def _print(value: bytes | None) -> bytes:
    return hashlib.sha256(value or b"").digest()[:8]


# --- MongoDB ---


def finished_lots() -> Lots:
    """Numéros des lots terminés."""
    with mongo() as database:
        return {lot["_id"] for lot in database.lots_export.find({"termine": True}, {"_id": 1})}


class mongo:
    """La base des ventes, le temps d'un « with » ; une erreur de MongoDB y devient une PipelineError."""

    def __enter__(self) -> Database[Document]:
        self.client = open_client()
        return open_database(self.client)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.client.close()
        if isinstance(error, PyMongoError):
            raise account_error(error) or PipelineError(f"{explain(error)} : {START_HINT}.") from error


def from_mongodb(finished: Collection[int]) -> Totals:
    """Les ventes de MongoDB ; en route, celles qu'aucun lot de ``finished`` ne porte."""
    latest = Latest(Totals("MongoDB"))
    with mongo() as database:
        names, others = unfinished(database, finished)
        add_groups(database, {"version": None}, latest.totals)
        # Sans arrivage : d'un autre programme, ou de la version d'avant.
        alone: Document = {"arrivage": None, "lot_export": {"$in": [None, 0, *others]}}
        for wanted in [alone, *({"arrivage": {"$in": part}} for part in parts(names))]:
            add_groups(database, {"version": None, **wanted}, latest.late)
        late = set(names)
        for document in database.ventes.find({"version": {"$gt": 1}}):
            latest.add(from_row(to_row(document)), document.get("arrivage") in late)
        firsts = (database.ventes.find({"_id": {"$in": part}}) for part in parts(latest.corrected))
        latest.replace(from_row(to_row(document)) for found in firsts for document in found)
    return latest.totals


def unfinished(database: Database[Document], finished: Collection[int]) -> tuple[list[str], list[int]]:
    """Les arrivages qu'aucun lot terminé ne porte, et les numéros des lots ouverts, ou terminés depuis."""
    others = [lot["_id"] for lot in database.lots_export.find({}, {"_id": 1}) if lot["_id"] not in finished]
    wanted = [{"lot": None}, *({"lot": {"$in": part}} for part in parts([0, *others]))]
    return [found["_id"] for one in wanted for found in database.arrivages.find(one, {"_id": 1})], others


def parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    """``values`` par listes assez courtes pour « $in »."""
    known = list(values)
    for start in range(0, len(known), IN_SIZE):
        yield known[start : start + IN_SIZE]


def add_groups(database: Database[Document], wanted: Document, totals: Totals) -> None:
    """Ajoute les ventes de cette requête, sommées par MongoDB."""
    group = {"_id": {"r": "$region", "p": "$produit"}, "n": {"$sum": 1}, "montant": {"$sum": "$montant"}}
    foreign = 0
    for row in database.ventes.aggregate([{"$match": wanted}, {"$group": group}]):
        region, produit, amount = row["_id"].get("r"), row["_id"].get("p"), row["montant"]
        if isinstance(region, str) and isinstance(produit, str) and isinstance(amount, Decimal128):
            totals.add(region, produit, amount.to_decimal(), row["n"])
        else:
            foreign += row["n"]
    if foreign:
        totals.faults.append(f"{foreign} documents ne se comptent pas : des champs n'ont pas le type d'une vente")


# --- Fichiers ---


def from_row(row: Sequence[str]) -> Vente:
    """Vente d'une ligne CSV, avec ou sans les colonnes des corrections ; lève ValueError si elle n'en est pas une."""
    id, produit, region, montant, _, *version = row
    number, cancelled = version or ("1", "false")
    amount = Decimal(montant)
    if not amount.is_finite() or amount % CENT or int(number) < 1:
        raise ValueError(f"montant {montant}, version {number}")
    return Vente(id, produit, region, amount, ANY_DATE, int(number), cancelled == "true")


def from_files(folder: Path, loaded: Loaded) -> Totals:
    """Les ventes des fichiers terminés ; en route, celles des fichiers qui ne sont pas de ``loaded``.

    Une vente dans deux fichiers est une faute.
    """
    latest = Latest(Totals("CSV"))
    faults: set[str] = set()

    def ventes() -> Iterator[tuple[Vente, bool]]:
        for path in manifests(folder):
            name = path.with_suffix(".csv").name
            try:
                manifest = read_manifest(path)
                late = (manifest.fichier, manifest.sha256) not in loaded
                digest = hashlib.sha256()
                with open_file(manifest) as file:
                    rows = csv.reader(_text(file, digest))
                    next(rows, None)
                    yield from ((from_row(row), late) for row in rows)
                if digest.hexdigest() != manifest.sha256:
                    faults.add(f"{name} : son contenu n'est pas celui de son manifeste")
            except BadFile as error:
                faults.add(f"{name} : {error}")
            except (ArithmeticError, ValueError, csv.Error) as error:
                faults.add(f"{name} : une ligne illisible ({error})")

    for vente, late in ventes():
        latest.add(vente, late)
    if latest.corrected:
        latest.replace(vente for vente, _ in ventes())
    latest.totals.faults += sorted(faults)
    if latest.repeated:
        latest.totals.faults.append(f"{latest.repeated} ventes sont dans deux fichiers")
    return latest.totals


def _text(file: Iterable[bytes], digest: Any) -> Iterator[str]:
    for line in file:
        digest.update(line)
        yield line.decode()


# --- PostgreSQL ---


def from_postgres() -> tuple[list[Totals], Loaded]:
    """Les ventes de PostgreSQL, ce que les tableaux de bord en montrent, et les fichiers chargés, au même instant."""
    found, loaded = [], Loaded()
    try:
        connection = psycopg2.connect(
            **postgres_dsn(), connect_timeout=5, application_name="reconcile.py", client_encoding="UTF8"
        )
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection, connection.cursor() as cursor:

            def ask(relation: str, query: str) -> list[tuple[Any, ...]]:
                cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (relation.split(maxsplit=1)[0],))
                if cursor.fetchone() != (True,):
                    return []
                cursor.execute(query)
                return list(cursor)

            for name, relation, amount, count in IN_POSTGRES:
                found.append(Totals(name))
                sums = f"SELECT region, produit, sum({amount}), {count} FROM {relation} GROUP BY 1, 2"  # noqa: S608
                for region, produit, euros, ventes in ask(relation, sums):
                    found[-1].add(region, produit, euros, int(ventes))
            loaded = set(ask("ventes_chargements", "SELECT fichier, sha256 FROM ventes_chargements"))
            for (rejects,) in ask("ventes_rejets", "SELECT count(*) FROM ventes_rejets HAVING count(*) > 0"):
                found[0].notes.append(f"{rejects} lignes rejetées")
        connection.close()
    except psycopg2.OperationalError as error:
        raise PipelineError(f"PostgreSQL ne répond pas : {START_HINT}.") from error
    return found, loaded
