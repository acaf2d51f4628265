"""Chaque script de l'exercice 3 à côté d'une boucle nue, sur les mêmes serveurs, dans le même passage.

    python bench/ventes.py                100 000 ventes, trois passages ; cinq minutes
    python bench/ventes.py --count 10000

Un script est appelé dans ce processus, par son ``main`` ; la boucle nue fait le même travail sans ses garanties :
produire les mêmes octets, lire et insérer par mille, écrire un curseur en CSV, COPY puis la même écriture. La médiane
des passages est gardée. Tout se passe dans une base MongoDB et un schéma PostgreSQL nommés « mesure » et dans un topic
à part, effacés à la fin : vos ventes ne sont pas touchées.
"""

import argparse
import csv
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, Stop, french_number, positive, run
from commun.kafka import admin_config, client_config, connect, delete_topics, ensure_topics
from commun.settings import ROOT, postgres_dsn, refuse_elsewhere
from commun.systems import ask_to_stop, own_group
from commun.topics import read_topic
from exercice3 import consumer, pg, producer, schedule_export
from exercice3.collection import open_client, open_database, prepare, to_document, to_row
from exercice3.confirmations import new_topic
from exercice3.lots import manifests
from exercice3.ventes import FIELDS, Vente, generate, parse, to_json
from exercice3.verification.aside import aside, empty, wipe

import psycopg2
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from psycopg2.extensions import connection as Connection

log = logging.getLogger("pipeline")

SEED, DAYS = 1, 90
TOPIC = f"mesure-{uuid.uuid4().hex[:8]}"
LOT_SIZE = 5000
BATCH = 1000
NAKED_READER = {"auto.offset.reset": "earliest", "enable.partition.eof": False}  # ce que GroupMember fait lui-même
E2E_RATE, E2E_SECONDS = 500, 20
READY_SECONDS = 120.0
UPSERT = """
    INSERT INTO ventes (id, produit, region, montant, date_vente)
    SELECT id, produit, region, montant, date_vente FROM nu ORDER BY id
    ON CONFLICT (id) DO UPDATE SET montant = excluded.montant WHERE ventes.montant <> excluded.montant
"""
NAKED = "CREATE TEMPORARY TABLE nu (id text, produit text, region text, montant numeric(10, 2), date_vente timestamp)"


def timed(work: Callable[[], object]) -> float:
    """Secondes que prend ``work``."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


# --- Les boucles nues ---


def produce(ventes: list[Vente]) -> None:
    """Les mêmes octets, par le même client."""
    client = connect(Producer, client_config(producer.PRODUCER_CONFIG))
    for key, value in [(vente.id, to_json(vente)) for vente in ventes]:
        while True:
            try:
                client.produce(f"{TOPIC}-nu", value=value, key=key)
                break
            except BufferError:
                client.poll(0.05)
    client.flush()


def consume(count: int) -> None:
    """Lire, analyser, insérer par mille, dans une collection qui a les mêmes index."""
    config = client_config(consumer.CONSUMER_CONFIG | NAKED_READER | {"group.id": f"{TOPIC}-{uuid.uuid4().hex}"})
    with open_client() as mongo, closing(connect(Consumer, config)) as reader:
        database = open_database(mongo)
        prepare(database)
        reader.subscribe([TOPIC])
        now, left = datetime.now(), count  # noqa: DTZ005 - heure locale, comme date_vente
        while left:
            messages = [message for message in reader.consume(min(BATCH, left), 0.5) if not message.error()]
            if messages:
                ventes = [to_document(parse(message.value(), now), datetime.now(UTC)) for message in messages]
                database.ventes.insert_many(ventes, ordered=False)
                left -= len(messages)


def export(folder: Path) -> None:
    """Un curseur, et csv.writer."""
    with open_client() as mongo, (folder / "nu.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(to_row(document)[:5] for document in open_database(mongo).ventes.find(batch_size=5000))


def load(connection: Connection, folder: Path) -> None:
    """COPY des mêmes fichiers dans une table temporaire, puis la même écriture, sommes comprises ; rien n'est jugé."""
    with connection, connection.cursor() as cursor:
        cursor.execute(NAKED)
    for manifest in manifests(folder):
        with connection, connection.cursor() as cursor, manifest.with_suffix(".csv").open("rb") as file:
            cursor.execute("TRUNCATE nu")
            cursor.copy_expert("COPY nu FROM STDIN WITH (FORMAT csv, HEADER)", file)
            cursor.execute(UPSERT)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE nu")


# --- Les passages ---


def measure(count: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Un passage : secondes du script, et de la boucle nue, par étape."""
    ventes = list(islice(generate(SEED, lambda: producer.REPLAY_END, DAYS), count))
    delete_topics(client_config({}), TOPIC)
    wipe()
    seconds: dict[str, tuple[float, float]] = {}
    options = ["--topic", TOPIC, "--log-level", "error"]
    copies = producer.REPLICATION_FACTOR
    topics = [
        NewTopic(name, producer.PARTITIONS, copies, config=producer.TOPIC_CONFIG) for name in (TOPIC, f"{TOPIC}-nu")
    ]
    ensure_topics(client_config({}), *topics, new_topic(TOPIC, copies))
    made = timed(lambda: producer.main([*options, "--count", str(count), "--rate", "0", "--seed", str(SEED)]))
    seconds["producer.py"] = made, timed(lambda: produce(ventes))
    naked = timed(lambda: consume(count))
    wipe()
    group = ["--group", f"{TOPIC}-{uuid.uuid4().hex}"]
    seconds["consumer.py"] = timed(lambda: consumer.main([*options, *group, "--max-messages", str(count)])), naked
    lots = ["--export-dir", str(folder), "--log-level", "error"]
    exported = timed(lambda: schedule_export.main([*lots, "--once", "--lot-size", str(LOT_SIZE)]))
    seconds["schedule_export.py"] = exported, timed(lambda: export(folder))
    with closing(psycopg2.connect(**postgres_dsn())) as connection:
        empty(connection)  # le passage d'avant l'a remplie
        naked = timed(lambda: load(connection, folder))
        empty(connection)
        one = timed(lambda: pg.main(lots))
        seconds["pg.py"] = one, naked
        empty(connection)
        seconds["deux pg.py"] = timed(lambda: together(lots)), one
    for path in folder.iterdir():
        path.unlink()
    return seconds


def together(options: list[str]) -> None:
    """Deux chargements à la fois."""
    context = multiprocessing.get_context("fork")
    loaders = [context.Process(target=pg.main, args=(options,)) for _ in range(2)]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()


# --- De bout en bout ---


def delays(folder: Path) -> list[float]:
    """Secondes de l'envoi de chaque vente à sa lecture dans PostgreSQL, les quatre scripts en marche."""
    delete_topics(client_config({}), TOPIC)
    wipe()
    count = E2E_RATE * E2E_SECONDS
    names = {"VENTES_TOPIC": TOPIC, "VENTES_GROUP": f"{TOPIC}-{uuid.uuid4().hex}", "EXPORT_DIR": str(folder)}
    scripts: list[subprocess.Popen[bytes]] = []

    def start(name: str, *options: str) -> None:
        command = [sys.executable, f"{name}.py", *options]
        quiet = {"stderr": subprocess.DEVNULL, **own_group()}
        scripts.append(subprocess.Popen(command, cwd=ROOT / "exercice3", env=os.environ | names, **quiet))

    with closing(psycopg2.connect(**postgres_dsn())) as connection:
        empty(connection)
    try:
        start("consumer")
        start("schedule_export", "--every", "1")
        start("pg", "--watch", "--every", "0.5")
        # Une vente d'une autre graine, d'abord : une fois lisible, tout a démarré.
        start("producer", "--rate", "0", "--count", "1", "--seed", str(SEED + 1))
        watch(SEED + 1, 1, READY_SECONDS)
        start("producer", "--rate", str(E2E_RATE), "--count", str(count), "--seed", str(SEED))
        readable = watch(SEED, count, E2E_SECONDS + 60)
    finally:
        for script in scripts:
            ask_to_stop(script)
        for script in scripts:
            script.wait()
    config = client_config({})
    partitions = connect(AdminClient, admin_config(config)).list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
    sent = {message.key(): message.timestamp()[1] / 1000 for message in read_topic(config, TOPIC, partitions)}
    return sorted(moment - sent[id.encode()] for id, moment in readable.items())


def watch(seed: int, count: int, most: float) -> dict[str, float]:
    """L'instant où chaque vente de cette graine est lue dans PostgreSQL, à un dixième de seconde près."""
    readable: dict[str, float] = {}
    with closing(psycopg2.connect(**postgres_dsn())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        deadline = time.monotonic() + most
        while len(readable) < count and time.monotonic() < deadline:
            cursor.execute(
                "SELECT id FROM ventes WHERE charge_le > now() - interval '10 s' AND starts_with(id, %s)",
                (f"{seed:08x}-",),
            )
            now = time.time()
            for (id,) in cursor:
                readable.setdefault(id, now)
            time.sleep(0.1)
    if len(readable) < count:
        raise PipelineError(f"{count - len(readable)} ventes ne sont pas arrivées.")
    return readable


def show(passes: list[dict[str, tuple[float, float]]], count: int) -> None:
    """La table : ventes par seconde, médianes des passages."""
    print(f"\n{'étape':<20}{'nous (ventes/s)':>18}{'boucle nue':>14}{'rapport':>10}")
    for step in passes[0]:
        ours, naked = (count / statistics.median(seconds[step][side] for seconds in passes) for side in (0, 1))
        ratio = french_number(ours / naked, 2)
        print(f"{step:<20}{french_number(ours):>18}{french_number(naked):>14}{ratio:>10}")
    print("\n« deux pg.py » se compare à un seul.")


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--count", type=positive(), default=100_000, help="nombre de ventes")
    parser.option("--passes", type=positive(), default=3, help="nombre de passages")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    refuse_elsewhere(any_server=False)
    passes: list[dict[str, tuple[float, float]]] = []
    with aside(TOPIC) as folder:
        while len(passes) < args.passes and not stop:
            passes.append(measure(args.count, folder))
            log.info("Passage %d sur %d.", len(passes), args.passes)
        found = [] if stop else delays(folder)
    if passes:
        show(passes, args.count)
    if found:
        half, most = (french_number(found[int(len(found) * part)], 2) for part in (0.5, 0.99))
        print(f"De l'envoi à la lecture, {E2E_RATE} ventes/s : {half} s une fois sur deux, {most} s à 99 %.")
    return 0


if __name__ == "__main__":
    run(main)
