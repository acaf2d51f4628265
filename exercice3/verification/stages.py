"""Ce que chaque étape a de ventes : Kafka, MongoDB, les fichiers, PostgreSQL. Rien n'y est écrit.

Lues de la fin vers le début : une vente qui avance pendant la lecture manque à la fin, jamais au début.
"""

import csv
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from commun import START_HINT, PipelineError
from commun.kafka import Config, admin_config, connect
from commun.settings import postgres_dsn
from commun.topics import bounds, identity, read_from
from exercice3.arrivages import IN_SIZE
from exercice3.collection import Document, account_error, explain, open_client, open_database, to_row
from exercice3.confirmations import SUFFIX, read_promises
from exercice3.lots import DAMAGED, BadFile, manifests, number_of, open_file, read_manifest
from exercice3.ventes import CENT, InvalidVente, Vente, parse
from exercice3.verification.point import SUFFIX as POINT_SUFFIX
from exercice3.verification.point import Point, Reread, read_point, totals_of
from exercice3.verification.produced import ANY_DATE, Kafka, Produced, produced
from exercice3.verification.totals import Latest, Totals

import psycopg2
from bson.decimal128 import Decimal128
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

KAFKA_SECONDS = 10.0
IDS_SIZE = 10_000
FAR = datetime(9000, 1, 1)  # noqa: DTZ001 - le verdict ne dépend pas du jour où l'on compare
IN_POSTGRES = (  # étape, table ou vue, colonne du montant, nombre de ventes
    ("PostgreSQL", "ventes WHERE NOT annulee", "montant", "count(*)"),
    ("par jour", "ventes_par_jour", "chiffre_affaires", "sum(nombre_ventes)"),
    ("tableaux", "ventes_analyse", "chiffre_affaires", "sum(nombre_ventes)"),
)

Place = tuple[int, int]  # partition, offset
Lots = dict[int, tuple[str, int]]  # numéro → fichier, lignes
Loaded = set[tuple[str, str]]  # nom et somme des fichiers chargés


# --- Kafka ---


@dataclass
class Topics:
    """Les topics à lire, et où en était le groupe avant qu'on lise MongoDB."""

    config: Config
    names: dict[str, list[int]]  # topic → partitions
    committed: dict[int, int]  # partition → position validée
    topic_id: str

    def read(self, topic: str, point: Point | None = None) -> Iterator[Message]:
        """Tous les messages d'un topic, ou ceux qui sont venus depuis le point ; aucun s'il n'existe pas."""
        starts = {number: point.offsets.get(str(number), 0) if point else 0 for number in self.names.get(topic, [])}
        return read_from(self.config, topic, starts)


def open_topics(config: Config, topic: str, group: str) -> Topics:
    """Lit les positions du groupe. Lève PipelineError si Kafka ne répond pas."""
    consumer = connect(Consumer, config | {"group.id": group, "enable.auto.commit": False})
    try:
        admin = connect(AdminClient, admin_config(config))
        known = admin.list_topics(timeout=KAFKA_SECONDS).topics
        names = {name: sorted(found.partitions) for name, found in known.items() if not found.error}
        there = [TopicPartition(topic, number) for number in names.get(topic, [])]
        places = consumer.committed(there, timeout=KAFKA_SECONDS) if there else []
        topic_id = identity(admin, topic) or ""
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond pas sur {config['bootstrap.servers']} : {START_HINT}.") from error
    finally:
        consumer.close()
    return Topics(config, names, {place.partition: max(place.offset, 0) for place in places}, topic_id)


def from_kafka(topics: Topics, topic: str, point: Point | None = None) -> tuple[Kafka, Produced]:
    """Les ventes distinctes du topic, et ce que producer.py a dû produire."""
    promises, odd = read_promises(message.value() for message in topics.read(topic + SUFFIX))
    dead = dead_letters(topics, topic)
    kafka = Kafka(promises, point)
    invalid = buried = unseen = 0

    def ventes() -> Iterator[tuple[Vente, bool]]:
        nonlocal invalid, buried, unseen
        invalid = buried = unseen = 0
        for message in topics.read(topic, point):
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

    purged = 0
    for number in topics.names.get(topic, []):
        low, high = bounds(topics.config, TopicPartition(topic, number), None)
        known = point.offsets.get(str(number), 0) if point else 0
        purged += max(0, low - known)
        if point and known > min(high, topics.committed.get(number, 0)):
            raise Reread  # le groupe, ou le topic, est revenu en arrière
    for vente, late in ventes():
        kafka.add(vente, late)
    for latest in (kafka, kafka.foreign):
        if latest.corrected:
            forget(latest.replace(vente for vente, _ in ventes()), point)
    totals = kafka.totals
    totals.notes += [f"{kafka.repeated} messages répétés"] if kafka.repeated else []
    totals.notes += [f"{invalid} messages invalides"] if invalid else []
    totals.notes += [f"{buried} lettres mortes"] if buried else []
    totals.notes += [f"{odd} messages illisibles dans {topic}{SUFFIX}"] if odd else []
    if unseen:
        totals.faults.append(f"{unseen} messages lus par consumer.py ne sont ni des ventes ni des lettres mortes")
    return kafka, produced(kafka, purged)


def forget(missing: Collection[str], point: Point | None) -> None:
    """Une correction d'une vente d'avant le point : lève Reread, car il faut savoir ce qu'elle valait."""
    if missing and point:
        raise Reread


def last_point(topics: Topics, topic: str) -> Point | None:
    """Le dernier point, s'il est de ce topic-ci."""
    point = None
    for message in topics.read(topic + POINT_SUFFIX):
        point = read_point(message.value())
    return point if point and point.topic_id == topics.topic_id != "" else None


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


def finished_lots(point: Point | None = None) -> Lots:
    """Les lots terminés depuis le point, et le sien. Lève Reread s'il n'est plus le même."""
    with mongo() as database:
        wanted = {"termine": True, "_id": {"$gte": point.lot if point else 0}}
        lots = database.lots_export.find(wanted, {"manifeste.fichier": 1, "manifeste.lignes": 1})
        found = {lot["_id"]: (lot["manifeste"]["fichier"], lot["manifeste"]["lignes"]) for lot in lots}
    if point and found.get(point.lot, ("", 0))[0] != point.file:
        raise Reread
    return found


@contextmanager
def mongo() -> Iterator[Database[Document]]:
    """La base des ventes, le temps d'un « with » ; lève PipelineError si MongoDB ne répond pas, ou refuse."""
    try:
        with open_client() as client:
            yield open_database(client)
    except PyMongoError as error:
        raise account_error(error) or PipelineError(f"{explain(error)} : {START_HINT}.") from error


def from_mongodb(finished: Lots, point: Point | None = None) -> tuple[Totals, int]:
    """Les ventes de MongoDB, et le nombre de ses documents ; en route, celles qu'aucun lot de ``finished`` ne porte."""
    latest = Latest(totals_of("MongoDB", point.rows if point else ()))
    with mongo() as database:
        documents = database.ventes.estimated_document_count()  # sans les lire ; SecantusDB, lui, les compte
        names, others = unfinished(database, finished, point)
        # Sans arrivage : d'un autre programme, ou de la version d'avant.
        alone: Document = {"arrivage": None, "lot_export": {"$in": [None, 0, *others]}}
        late = [alone, *({"arrivage": {"$in": part}} for part in parts(names))]
        since: list[Document] = [{}]
        if point:
            lots = [number for number in finished if number > point.lot]
            done = [found["_id"] for part in parts(lots) for found in database.arrivages.find({"lot": {"$in": part}})]
            since = [*late, *({"arrivage": {"$in": part}} for part in parts(done))]
        for queries, totals in ((since, latest.totals), (late, latest.late)):
            for wanted in queries:
                add_groups(database, {"version": None, **wanted}, totals)
        late_names = set(names)
        foreign: set[str] = set()
        changes = (database.ventes.find({"version": {"$gt": 1}, **one}) for one in since)
        for vente, name in as_ventes(changes, foreign):
            latest.add(vente, name in late_names)
        firsts = (database.ventes.find({"_id": {"$in": part}}) for part in parts(latest.corrected))
        latest.replace(vente for vente, _ in as_ventes(firsts, foreign))
    if foreign:
        latest.totals.faults.append(f"{len(foreign)} documents portent une version, et ne sont pas des ventes")
    finished_rows = sum(rows for number, (_, rows) in finished.items() if point and number > point.lot)
    new = latest.totals.count.total() - (sum(row[2] for row in point.rows) if point else 0)
    if point and (latest.corrected or not finished_rows <= documents - point.documents <= new):
        raise Reread  # une correction, ou des documents effacés, ou venus d'ailleurs
    return latest.totals, documents


def as_ventes(found: Iterable[Iterable[Document]], foreign: set[str]) -> Iterator[tuple[Vente, str | None]]:
    """Les ventes de ces documents, et leur arrivage ; ceux d'un autre programme sont nommés dans ``foreign``."""
    for document in chain.from_iterable(found):
        try:
            yield from_row(to_row(document)), document.get("arrivage")
        except (InvalidVente, ValueError, ArithmeticError):
            foreign.add(str(document["_id"]))


def unfinished(
    database: Database[Document], finished: Collection[int], point: Point | None
) -> tuple[list[str], list[int]]:
    """Les arrivages qu'aucun lot terminé ne porte, et les numéros des lots ouverts, ou terminés depuis."""
    after = {"_id": {"$gt": point.lot if point else 0}}
    others = [lot["_id"] for lot in database.lots_export.find(after, {"_id": 1}) if lot["_id"] not in finished]
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


@dataclass
class Files:
    """Les ventes des fichiers terminés, le numéro du dernier, et les identifiants lus, s'il y a un point."""

    totals: Totals
    last: int
    ids: list[str]


def from_files(folder: Path, loaded: Loaded, point: Point | None = None) -> Files:
    """Les ventes des fichiers terminés ; en route, celles des fichiers qui ne sont pas de ``loaded``.

    Une vente dans deux fichiers est une faute.
    """
    latest = Latest(totals_of("CSV", point.rows if point else ()), point.distinct() if point else None)
    faults: set[str] = set()
    ids: list[str] = []
    paths = [path for path in manifests(folder) if not point or number_of(path) > point.lot]

    def ventes() -> Iterator[tuple[Vente, bool]]:
        for path in paths:
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
            except (ArithmeticError, ValueError, csv.Error, *DAMAGED) as error:
                faults.add(f"{name} : une ligne illisible ({error})")

    for vente, late in ventes():
        latest.add(vente, late)
        if point:
            ids.append(vente.id)
    if latest.corrected:
        forget(latest.replace(vente for vente, _ in ventes()), point)
    latest.totals.faults += sorted(faults)
    if latest.repeated:
        latest.totals.faults.append(f"{latest.repeated} ventes sont dans deux fichiers")
    return Files(latest.totals, max(map(number_of, paths), default=point.lot if point else 0), ids)


def _text(file: Iterable[bytes], digest: Any) -> Iterator[str]:
    for line in file:
        digest.update(line)
        yield line.decode()


# --- PostgreSQL ---


class Snapshot:
    """PostgreSQL à un instant : ses ventes, ce que les tableaux de bord en montrent, les fichiers chargés."""

    def __init__(self) -> None:
        self.connection = psycopg2.connect(
            **postgres_dsn(), connect_timeout=5, application_name="reconcile.py", client_encoding="UTF8"
        )
        self.connection.set_session(isolation_level="REPEATABLE READ", readonly=True)

    def ask(self, relation: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Les lignes d'une requête ; aucune si la table n'existe pas."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (relation.split(maxsplit=1)[0],))
            if cursor.fetchone() != (True,):
                return []
            cursor.execute(query, values or None)
            return list(cursor)

    def steps(self, point: Point | None = None) -> list[Totals]:
        """Les trois étapes ; la première, depuis le point, est à compléter (``add``)."""
        found = []
        for name, relation, amount, count in IN_POSTGRES:
            known = point if relation.startswith("ventes ") else None
            found.append(totals_of(name, known.rows if known else ()))
            if not known:
                self._sum(found[-1], relation, f"sum({amount}), {count} FROM {relation}")
        for (rejects,) in self.ask("ventes_rejets", "SELECT count(*) FROM ventes_rejets HAVING count(*) > 0"):
            found[0].notes.append(f"{rejects} lignes rejetées")
        return found

    def add(self, totals: Totals, ids: Sequence[str]) -> None:
        """Ajoute ces ventes-là."""
        for start in range(0, len(ids), IDS_SIZE):
            wanted = "sum(montant), count(*) FROM ventes WHERE NOT annulee AND id = ANY(%s)"
            self._sum(totals, "ventes", wanted, ids[start : start + IDS_SIZE])

    def _sum(self, totals: Totals, relation: str, query: str, *values: object) -> None:
        rows = self.ask(relation, f"SELECT region, produit, {query} GROUP BY 1, 2", *values)
        for region, produit, euros, count in rows:
            totals.add(region, produit, euros, int(count))

    def loaded(self) -> Loaded:
        """Les fichiers chargés."""
        return set(self.ask("ventes_chargements", "SELECT fichier, sha256 FROM ventes_chargements"))


@contextmanager
def postgres() -> Iterator[Snapshot]:
    """PostgreSQL, le temps d'un « with » ; lève PipelineError s'il ne répond pas."""
    try:
        snapshot = Snapshot()
        try:
            yield snapshot
        finally:
            snapshot.connection.close()
    except psycopg2.OperationalError as error:
        raise PipelineError(f"PostgreSQL ne répond pas : {START_HINT}.") from error
