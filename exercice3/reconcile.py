"""Compare les ventes à chaque étape du pipeline : nombre et somme, au centime, quand vous voulez.

    python reconcile.py                  compare maintenant
    python reconcile.py --wait 30        attend jusqu'à 30 s que tout soit arrivé
    python reconcile.py --expect 10000   exige en plus 10 000 ventes produites

Étapes : produites (recalculées depuis la graine de chaque suite, sans croire aucun serveur),
Kafka (ventes distinctes du topic), MongoDB, fichiers CSV terminés, PostgreSQL, ses sommes par jour,
la vue des tableaux de bord. Chaque étape est comparée à la première, en tout puis par région
et par produit.
Termine avec le code 0 si tout est égal, 1 sinon en disant où.
Des ventes encore en route sont une différence : relancez, ou donnez --wait.
"""

import argparse
import csv
import io
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg2
from confluent_kafka import Consumer, KafkaException, TopicPartition
from pymongo.errors import PyMongoError

from commun.cli import Parser, french_number, positive, run
from commun.errors import START_HINT, PipelineError
from commun.kafka import client_config, connect, kafka_options
from commun.settings import export_dir, postgres_dsn
from exercice3.arrivages import IN_SIZE
from exercice3.collection import account_error, explain, open_client, open_database, to_row
from exercice3.lots import BadFile, manifests, open_file, read_manifest
from exercice3.ventes import InvalidVente, Vente, generate, parse, run_of

log = logging.getLogger("pipeline")

TOPIC = "ventes-stream"
RETRY_SECONDS = 1.0
ANY_DATE = datetime(2026, 1, 1)  # noqa: DTZ001 - les dates ne se comparent pas ici
IN_POSTGRES = (  # étape, table ou vue, colonne du montant, nombre de ventes
    ("PostgreSQL", "ventes WHERE NOT annulee", "montant", "count(*)"),
    ("par jour", "ventes_par_jour", "chiffre_affaires", "sum(nombre_ventes)"),
    ("tableaux", "ventes_analyse", "chiffre_affaires", "sum(nombre_ventes)"),
)
SHOWN = 5  # différences citées par étape

Key = tuple[str, str]  # région, produit


@dataclass
class Totals:
    """Ventes d'une étape : nombre et somme en centimes par (région, produit), et remarques."""

    name: str
    count: Counter[Key] = field(default_factory=Counter)
    cents: Counter[Key] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, region: str, produit: str, amount: Decimal, count: int = 1) -> None:
        """Ajoute ``count`` ventes d'un montant total de ``amount`` euros."""
        self.count[region, produit] += count
        self.cents[region, produit] += int(amount * 100)

    def by(self, axis: int) -> dict[str, tuple[int, int]]:
        """Nombre et centimes par région (``axis`` 0) ou par produit (``axis`` 1)."""
        result: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for key, count in self.count.items():
            known = result[key[axis]]
            result[key[axis]] = (known[0] + count, known[1] + self.cents[key])
        return dict(result)


class Distinct:
    """Identifiants déjà vus : des entiers par graine pour les ventes de producer.py, du texte pour les autres."""

    def __init__(self) -> None:
        self.runs: dict[int, set[int]] = defaultdict(set)
        self.others: set[str] = set()

    def add(self, id: str) -> bool:
        """Retient ``id`` ; faux s'il l'était déjà."""
        run_number = run_of(id)
        seen: set[Any] = self.runs[run_number[0]] if run_number else self.others
        mark = run_number[1] if run_number else id
        if mark in seen:
            return False
        seen.add(mark)
        return True


class Latest:
    """Compte chaque vente une fois, dans sa plus grande version ; annulée, elle ne compte pas.

    Les corrections sont rares : elles seules sont gardées en mémoire. Il faut pour cela relire les premières versions
    quand il y a des corrections (``replace``).
    """

    def __init__(self, totals: Totals) -> None:
        self.totals, self.corrected = totals, dict[str, Vente]()
        self.distinct, self.repeated = Distinct(), 0
        self._versions: set[tuple[str, int]] = set()

    def add(self, vente: Vente) -> None:
        """Une vente lue."""
        if vente.version == 1:
            if self.distinct.add(vente.id):
                self.totals.add(vente.region, vente.produit, vente.montant)
            else:
                self.repeated += 1
            return
        self.repeated += (vente.id, vente.version) in self._versions
        self._versions.add((vente.id, vente.version))
        if vente.version > self.corrected.get(vente.id, vente).version or vente.id not in self.corrected:
            self.corrected[vente.id] = vente

    def replace(self, again: Iterable[Vente]) -> None:
        """``again`` : toutes les ventes, de nouveau ; les premières versions corrigées laissent la place."""
        left = set(self.corrected)
        for vente in again:
            if vente.version == 1 and vente.id in left:
                left.discard(vente.id)
                self.totals.add(vente.region, vente.produit, -vente.montant, -1)
        for vente in self.corrected.values():
            if not vente.annulee:
                self.totals.add(vente.region, vente.produit, vente.montant)
        if self.corrected:
            self.totals.notes.append(f"{len(self.corrected)} corrigées ou annulées")


def from_kafka(args: argparse.Namespace) -> tuple[Totals, Totals]:
    """Les ventes distinctes du topic, et ce que producer.py a dû produire d'après leurs identifiants."""
    config = client_config({"group.id": "reconcile", "enable.auto.commit": False, "fetch.queue.backoff.ms": 10}, (),
                           args)  # fmt: skip
    kafka, foreign = Latest(Totals("Kafka")), Latest(Totals(""))
    invalid = 0

    def ventes() -> Iterator[Vente]:
        nonlocal invalid
        for value in read_topic(consumer, args.topic):
            try:
                yield parse(value, datetime.now())  # noqa: DTZ005 - heure locale, comme date_vente
            except InvalidVente:
                invalid += 1

    consumer = connect(Consumer, config)
    try:
        for vente in ventes():
            kafka.add(vente)
            if not run_of(vente.id):
                foreign.add(vente)
        notes = [f"{kafka.repeated} messages répétés"] if kafka.repeated else []
        notes += [f"{invalid} messages invalides"] if invalid else []
        if kafka.corrected:
            kafka.replace(ventes())
            foreign.replace(ventes())
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond pas : {START_HINT}.") from error
    finally:
        consumer.close()
    kafka.totals.notes[:0] = notes
    return produced(kafka, foreign.totals), kafka.totals


def read_topic(consumer: Consumer, topic: str) -> Iterable[bytes | None]:
    """Valeurs de tous les messages présents dans ``topic`` au moment de l'appel."""
    metadata = consumer.list_topics(topic, timeout=10).topics[topic]
    if metadata.error:
        return
    ends, starts = {}, []
    for number in metadata.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
        if high > low:
            ends[number] = high
            starts.append(TopicPartition(topic, number, low))  # et non 0 : Kafka a pu effacer le début
    consumer.assign(starts)
    silent_since = time.monotonic()
    while ends:
        for message in consumer.consume(5000, 0.2):
            if message.error():
                continue
            silent_since = time.monotonic()
            yield message.value()
        for place in consumer.position([TopicPartition(topic, number) for number in ends]):
            if place.offset >= ends[place.partition]:
                del ends[place.partition]
        if time.monotonic() - silent_since > 30:
            raise PipelineError(f"Kafka ne donne plus rien du topic {topic} depuis 30 s : voyez « make status ».")


def produced(kafka: Latest, foreign: Totals) -> Totals:
    """Refait les ventes 1, 2, 3… de chaque graine vue dans Kafka, jusqu'au plus grand numéro.

    Un numéro qui manque dans Kafka fait donc une différence : une vente perdue. Les corrections, et les ventes
    écrites autrement que par producer.py, sont prises telles quelles.
    """
    totals = Totals("produites", Counter(foreign.count), Counter(foreign.cents))
    corrected = {run_of(id): vente for id, vente in kafka.corrected.items() if run_of(id)}
    for seed, numbers in kafka.distinct.runs.items():
        first, last = min(numbers), max(numbers)
        if first > 1:
            totals.notes.append(f"la suite {seed} commence à {first}")
        for number, made in enumerate(islice(generate(seed, lambda: ANY_DATE, 1, first), last - first + 1), first):
            vente = corrected.get((seed, number), made)
            if not vente.annulee:
                totals.add(vente.region, vente.produit, vente.montant)
        if lost := last - first + 1 - len(numbers):
            totals.faults.append(f"graine {seed} : {lost} ventes ne sont pas dans Kafka")
    return totals


def from_mongodb() -> Totals:
    """Les ventes de MongoDB."""
    latest = Latest(Totals("MongoDB"))
    group = {"_id": {"r": "$region", "p": "$produit"}, "n": {"$sum": 1}, "montant": {"$sum": "$montant"}}
    try:
        with open_client() as client:
            ventes = open_database(client).ventes
            for row in ventes.aggregate([{"$match": {"version": None}}, {"$group": group}]):
                latest.totals.add(row["_id"]["r"], row["_id"]["p"], row["montant"].to_decimal(), row["n"])
            for document in ventes.find({"version": {"$gt": 1}}):
                latest.add(from_row(to_row(document)))
            ids = list(latest.corrected)
            parts = (ids[start : start + IN_SIZE] for start in range(0, len(ids), IN_SIZE))
            latest.replace(from_row(to_row(first)) for part in parts for first in ventes.find({"_id": {"$in": part}}))
    except PyMongoError as error:
        raise account_error(error) or PipelineError(f"{explain(error)} : {START_HINT}.") from error
    return latest.totals


def from_row(row: Sequence[str]) -> Vente:
    """Vente d'une ligne CSV, avec ou sans les colonnes des corrections ; lève ValueError si elle n'en est pas une."""
    id, produit, region, montant, _, *version = row
    number, cancelled = version or ("1", "false")
    return Vente(id, produit, region, Decimal(montant), ANY_DATE, int(number), cancelled == "true")


def from_files(args: argparse.Namespace) -> Totals:
    """Les ventes des fichiers terminés ; une vente dans deux fichiers est une faute."""
    latest = Latest(Totals("CSV"))

    def ventes() -> Iterator[Vente]:
        for path in manifests(args.export_dir):
            name = path.with_suffix(".csv").name
            try:
                content = open_file(read_manifest(path))
                with io.TextIOWrapper(content, encoding="utf-8", newline="") as text:
                    rows = csv.reader(text)
                    next(rows, None)
                    yield from map(from_row, rows)
            except BadFile as error:
                faults.add(f"{name} : {error}")
            except (ArithmeticError, ValueError, csv.Error) as error:
                faults.add(f"{name} : une ligne illisible ({error})")

    faults: set[str] = set()
    for vente in ventes():
        latest.add(vente)
    if latest.corrected:
        latest.replace(ventes())
    latest.totals.faults += sorted(faults)
    if latest.repeated:
        latest.totals.faults.append(f"{latest.repeated} ventes sont dans deux fichiers")
    return latest.totals


def from_postgres() -> list[Totals]:
    """Les ventes de PostgreSQL, et ce que la vue des tableaux de bord en montre, au même instant."""
    found = []
    try:
        connection = psycopg2.connect(
            **postgres_dsn(), connect_timeout=5, application_name="reconcile.py", client_encoding="UTF8"
        )
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection, connection.cursor() as cursor:
            for name, relation, amount, count in IN_POSTGRES:
                found.append(Totals(name))
                cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (relation.split()[0],))
                if cursor.fetchone() == (True,):
                    cursor.execute(f"SELECT region, produit, sum({amount}), {count} FROM {relation} GROUP BY 1, 2")  # noqa: S608
                    for region, produit, euros, ventes in cursor:
                        found[-1].add(region, produit, euros, int(ventes))
        connection.close()
    except psycopg2.OperationalError as error:
        raise PipelineError(f"PostgreSQL ne répond pas : {START_HINT}.") from error
    return found


def differences(steps: Sequence[Totals], expected: int | None) -> list[str]:
    """Phrases qui disent où les étapes diffèrent de la première ; vide si tout est égal."""
    reference = steps[0]
    found = [f"{step.name} : {fault}." for step in steps for fault in step.faults]
    if expected is not None and reference.count.total() != expected:
        found.append(f"{expected} ventes étaient attendues, {reference.count.total()} ont été produites.")
    for step in steps[1:]:
        gaps = []
        for key in sorted(reference.count.keys() | step.count.keys()):
            count, cents = step.count[key] - reference.count[key], step.cents[key] - reference.cents[key]
            if count or cents:
                gaps.append(f"{step.name}, {key[0]}, {key[1]} : {count:+d} ventes, {french_number(cents / 100, 2)} €.")
        found += gaps[:SHOWN] + (
            [f"{step.name} : et {len(gaps) - SHOWN} autres différences."] if len(gaps) > SHOWN else []
        )
    return found


def show(steps: Sequence[Totals]) -> None:
    """Affiche les totaux de chaque étape, puis le détail par région et par produit."""
    print(f"{'étape':<12}{'ventes':>10}{'montant (€)':>18}")
    for step in steps:
        amount = french_number(sum(step.cents.values()) / 100, 2)
        notes = f"   ({', '.join(step.notes)})" if step.notes else ""
        print(f"{step.name:<12}{french_number(step.count.total()):>10}{amount:>18}{notes}")
    for axis, title in enumerate(("région", "produit")):
        tables = [step.by(axis) for step in steps]
        print(f"\n{title:<28}{'ventes':>10}{'montant (€)':>18}   étapes égales")
        for value in sorted(set().union(*tables)):
            count, cents = tables[0].get(value, (0, 0))
            equal = [
                step.name
                for step, table in zip(steps, tables, strict=True)
                if table.get(value, (0, 0)) == (count, cents)
            ]
            verdict = "toutes" if len(equal) == len(steps) else ", ".join(equal)
            print(f"{value:<28}{french_number(count):>10}{french_number(cents / 100, 2):>18}   {verdict}")


def collect(args: argparse.Namespace) -> list[Totals]:
    """Les sept étapes. De la fin vers le début : une vente en route manque à la fin, jamais au début."""
    in_postgres, files, mongodb = from_postgres(), from_files(args), from_mongodb()
    return [*from_kafka(args), mongodb, files, *in_postgres]


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic des ventes")
    kafka_options(parser)
    parser.option(
        "--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers exportés"
    )
    parser.option("--expect", type=positive(zero=True), help="nombre de ventes qui doivent avoir été produites")
    parser.option(
        "--wait", type=positive(float, zero=True), default=0.0, help="attend S secondes au plus que tout soit égal"
    )
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    deadline = time.monotonic() + args.wait
    while True:
        steps = collect(args)
        found = differences(steps, args.expect)
        if not found or time.monotonic() > deadline:
            break
        time.sleep(RETRY_SECONDS)
    show(steps)
    if found:
        print("\nDIFFÉRENCES :", *found, sep="\n  ")
        return 1
    total = french_number(steps[0].count.total())
    print(f"\nTout est égal, au centime, de producer.py aux tableaux de bord ({total} ventes).")
    return 0


if __name__ == "__main__":
    run(main)
