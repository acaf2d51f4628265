"""Du CSV à Kafka, cinq routes, côte à côte, sur le cluster local.

    python bench/csv_to_kafka.py             300 000 lignes, puis 100 lignes par seconde ; quatre minutes
    python bench/csv_to_kafka.py --rows 30000 --seconds 5

Débit : le fichier reçoit toutes ses lignes d'un coup ; on mesure jusqu'à ce qu'un consommateur
read_committed ait lu la dernière. Latence : une ligne à la fois ; de son ajout au fichier à sa
lecture. Les routes passent l'une après l'autre, chacune sur un topic neuf :

- producer.py, exactement une fois ;
- FileStreamSource, exactement une fois (le Connect de la pile) ;
- FileStreamSource, au moins une fois (un Connect de plus, le temps de la mesure) ;
- une simple boucle produce(), sans fichier, sans transaction, messages déjà faits : d'abord ceux de producer.py, avec
  leur clé et leurs en-têtes ; puis leur valeur seule, le plafond.

Ce que producer.py fait en plus de la boucle, lire et mettre en JSON, est mesuré à part, sans Kafka : ce fil
Python fait les deux l'un après l'autre, et leurs durées s'ajoutent.

Les chiffres dépendent de la machine : seuls leurs rapports se comparent.
"""

import argparse
import csv
import io
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from commun import PipelineError
from commun.cli import Parser, french_number, positive, run
from commun.csv_header import Options, read_header
from commun.csv_rows import Place
from commun.kafka import admin_config, client_config, delete_topics, ensure_topics
from commun.settings import ROOT, setting
from exercice1.producer import PRODUCER_CONFIG
from exercice1.reading import Format, OpenCsv
from exercice1.topic import REPLICATION_FACTOR, TOPIC_CONFIG
from services import install
from services.stack import Stack

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

HEADER = "id,produit,region,montant,date_vente\n"
PRODUITS = ('Casque "audio", sans fil', "Smartphone", "Téléviseur", "Imprimante, couleur", "Enceinte")
REGIONS = ("Île-de-France", "Auvergne-Rhône-Alpes", "Provence-Alpes-Côte d'Azur", "Belgique", "Suisse")
PER_SECOND = 100
REPEATS = 3  # mesures de débit par route ; la médiane est gardée
PATIENCE_SECONDS = 300.0
SETTLE_SECONDS = 2.0


def make_rows(count: int) -> str:
    """Des ventes en CSV ; deux lignes sur cinq ont des guillemets."""
    dice, out = random.Random(1), io.StringIO(newline="")  # noqa: S311 - des ventes d'exemple
    writer = csv.writer(out, lineterminator="\n")
    for number in range(count):
        amount = f"{dice.randrange(1000, 200000) / 100:.2f}"
        when = f"2025-{dice.randrange(1, 13):02}-{dice.randrange(1, 29):02} {dice.randrange(24):02}:00:00"
        writer.writerow([number, dice.choice(PRODUITS), dice.choice(REGIONS), amount, when])
    return out.getvalue()


class Reader:
    """Le consommateur read_committed qui attend les lignes au bout de la route."""

    def __init__(self, topic: str) -> None:
        config = client_config({})
        self.topic, self.config = topic, config
        ensure_topics(config, NewTopic(topic, 3, REPLICATION_FACTOR, config=TOPIC_CONFIG))
        reader = {"group.id": "bench", "enable.auto.commit": False, "fetch.queue.backoff.ms": 10}  # read_committed
        self.consumer = Consumer(admin_config(config) | reader)
        self.consumer.assign([TopicPartition(topic, partition, 0) for partition in range(3)])

    def close(self) -> None:
        """Efface les topics de la mesure : un cluster encombré est plus lent."""
        self.consumer.close()
        delete_topics(self.config, self.topic)

    def count(self, wanted: int) -> None:
        """Attend ``wanted`` lignes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted > 0:
            wanted -= sum(not message.error() for message in self.consumer.consume(10_000, 0.05))
            if time.monotonic() > deadline:
                raise PipelineError(f"Il manque {wanted} lignes au bout de {PATIENCE_SECONDS:.0f} s.")


# --- Les routes ---


@contextmanager
def producer_py(path: Path, topic: str) -> Iterator[None]:
    """producer.py, lancé à la main."""
    command = [sys.executable, "producer.py", str(path), "--topic", topic, "--log-level", "error"]
    process = subprocess.Popen(command, cwd=ROOT / "exercice1")
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def connector(path: Path, topic: str) -> dict[str, str]:
    """Les réglages de connector.json, pour un autre fichier et un autre topic."""
    config: dict[str, str] = json.loads((ROOT / "exercice1" / "connector.json").read_text(encoding="utf-8"))["config"]
    return config | {"file": str(path), "topic": topic}


@contextmanager
def connect_exactly_once(path: Path, topic: str) -> Iterator[None]:
    """FileStreamSource dans le Connect de la pile."""
    url = f"http://127.0.0.1:{setting('PORT_CONNECT')}/connectors/{topic}"

    def call(method: str, suffix: str, body: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(  # noqa: S310 - toujours http, toujours ici
            url + suffix, data, {"Content-Type": "application/json"}, method=method
        )
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310

    call("PUT", "/config", connector(path, topic))
    try:
        yield
    finally:
        call("DELETE", "")


@contextmanager
def connect_at_least_once(path: Path, topic: str) -> Iterator[None]:
    """FileStreamSource dans un Connect autonome, qui n'a pas de transactions."""
    stack = Stack()
    settings = {name: value for name, value in connector(path, topic).items() if "exactly" not in name}
    worker = {
        "bootstrap.servers": client_config({})["bootstrap.servers"],
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        "offset.storage.file.filename": str(path.with_suffix(".offsets")),
        "plugin.path": str(stack.data / "connect-plugins"),
        "listeners": "http://127.0.0.1:0",
    }
    files = [path.with_suffix(".worker"), path.with_suffix(".connector")]
    for file, content in zip(files, (worker, settings | {"name": topic}), strict=True):
        file.write_text("".join(f"{name}={value}\n" for name, value in content.items()), encoding="utf-8")
    classpath = install.classpath(install.jars(log.debug))
    command = stack.java(classpath, "org.apache.kafka.connect.cli.ConnectStandalone", *map(str, files))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def same_messages(path: Path, topic: str, *, bare: bool = False) -> Iterator[None]:
    """Un programme qui a déjà fait tous les messages, et les envoie quand le fichier grandit."""
    process = multiprocessing.get_context("spawn").Process(target=send_made_messages, args=(path, topic, bare))
    process.start()
    try:
        yield
    finally:
        process.join(60)


def send_made_messages(path: Path, topic: str, bare: bool) -> None:
    """Le premier message tout de suite, les autres quand ``path`` grandit ; ``bare`` : ni clé ni en-têtes."""
    header = read_header(HEADER.encode(), Options())
    if header is None:
        raise ValueError("l'en-tête de la mesure est fini")
    chunk = Format().parser(header, Place()).feed((path.parent / ROWS_FILE).read_bytes())
    name, key = os.fsencode(path), os.fsencode(path.name)
    more: list[dict[str, Any]] = [
        {} if bare else {"key": key, "headers": [("source.file", name), ("source.line", b"%d" % line)]}
        for line in chunk.numbers
    ]
    messages = list(zip((value for value, _ in chunk.values), more, strict=True))
    config = {name: value for name, value in PRODUCER_CONFIG.items() if "transaction" not in name}
    producer = Producer(client_config(config))
    producer.produce(topic, messages[0][0])
    producer.flush()
    size = path.stat().st_size
    while path.stat().st_size == size:
        time.sleep(0.001)
    for value, others in messages:
        try:
            producer.produce(topic, value, **others)
        except BufferError:
            producer.poll(0.05)
            producer.produce(topic, value, **others)
    producer.flush()


class Route(NamedTuple):
    """Une route d'un fichier vers un topic."""

    name: str
    start: Callable[[Path, str], AbstractContextManager[None]]
    header_lines: int  # messages que donne l'en-tête : Connect l'envoie comme une ligne


ROUTES = (
    Route("producer.py, exactement une fois", producer_py, 0),
    Route("FileStreamSource, exactement une fois", connect_exactly_once, 1),
    Route("FileStreamSource, au moins une fois", connect_at_least_once, 1),
    Route("boucle produce(), mêmes messages", same_messages, 0),
    Route("boucle produce() nue", partial(same_messages, bare=True), 0),
)
ROWS_FILE = "lignes.csv"


# --- Les mesures ---


@contextmanager
def running(route: Route, folder: Path) -> Iterator[tuple[Path, Reader]]:
    """Une route en marche sur un fichier neuf d'une ligne, que le lecteur a déjà reçue."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    path, reader = folder / f"{topic}.csv", Reader(topic)
    path.write_text(HEADER + make_rows(1), encoding="utf-8")
    try:
        with route.start(path, topic):
            reader.count(1 + route.header_lines)
            time.sleep(SETTLE_SECONDS)
            yield path, reader
    finally:
        reader.close()


def file_throughput(route: Route, rows: str, count: int, folder: Path) -> float:
    """Lignes par seconde, de leur ajout au fichier à la lecture de la dernière."""
    with running(route, folder) as (path, reader):
        start = time.perf_counter()
        append(path, rows)
        reader.count(count)
        return count / (time.perf_counter() - start)


def reading_speed(folder: Path) -> float:
    """Lignes par seconde que producer.py lit et met en JSON, quand il ne les envoie pas."""
    path, count = folder / "lecture.csv", 0
    path.write_text(HEADER + (folder / ROWS_FILE).read_text(encoding="utf-8"), encoding="utf-8")
    with path.open("rb") as file:
        start, rows = time.perf_counter(), OpenCsv(file, Format())
        while chunk := rows.next_chunk():
            count += len(chunk.values)
        return count / (time.perf_counter() - start)


def latencies(route: Route, seconds: float, folder: Path) -> list[float]:
    """Millisecondes de l'ajout d'une ligne à sa lecture, à PER_SECOND lignes par seconde."""
    count = round(seconds * PER_SECOND)
    found: list[float] = []
    with running(route, folder) as (path, reader):
        writer = threading.Thread(target=write_slowly, args=(path, count), daemon=True)
        writer.start()
        deadline = time.monotonic() + seconds + PATIENCE_SECONDS
        while len(found) < count and time.monotonic() < deadline:
            message = reader.consumer.poll(1)
            if message is not None and (written := re.search(rb"\d{19}", message.value() or b"")):
                found.append((time.time_ns() - int(written[0])) / 1e6)
        writer.join()
    return found


def write_slowly(path: Path, count: int) -> None:
    """Ajoute ``count`` lignes, une à la fois, qui portent l'instant de leur ajout."""
    start = time.monotonic()
    with path.open("ab", buffering=0) as file:
        for number in range(count):
            time.sleep(max(0.0, start + number / PER_SECOND - time.monotonic()))
            file.write(b"%d,x,y,1,%d\n" % (number, time.time_ns()))


def append(path: Path, text: str) -> None:
    """Ajoute du texte au fichier."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options de la mesure."""
    parser = Parser(__doc__)
    parser.option("--rows", type=positive(), default=300_000, help="lignes du fichier, pour le débit")
    parser.option("--seconds", type=positive(float), default=20.0, help="durée de la mesure de latence")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    rows = make_rows(args.rows)
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ROWS_FILE).write_text(rows, encoding="utf-8")
        file_throughput(ROUTES[-1], rows, args.rows, folder)  # pour rien : un cluster froid est plus lent
        for route in ROUTES:
            log.info("Débit : %s…", route.name)
            measures = [file_throughput(route, rows, args.rows, folder) for _ in range(REPEATS)]
            speeds[route.name] = statistics.median(measures)
        ours = speeds[ROUTES[0].name]
        speeds["lire et mettre en JSON, sans Kafka"] = statistics.median(reading_speed(folder) for _ in range(REPEATS))
        print(f"{'débit, ' + french_number(args.rows) + ' lignes':<40} {'lignes/s':>12} {'producer.py /':>14}")
        for route_name, speed in speeds.items():
            print(f"{route_name:<40} {french_number(speed):>12} {french_number(ours / speed, 2):>14}")
        print(f"\n{f'latence, {PER_SECOND} lignes/s':<40} {'p50 (ms)':>12} {'p99 (ms)':>14}")
        for route in ROUTES[:-2]:
            log.info("Latence : %s…", route.name)
            found = sorted(latencies(route, args.seconds, folder))
            p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
            print(f"{route.name:<40} {french_number(p50, 1):>12} {french_number(p99, 1):>14}")
    return 0


if __name__ == "__main__":
    run(main)
