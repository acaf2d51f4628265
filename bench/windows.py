"""Les fenêtres d'une minute, quatre moteurs, côte à côte, sur le cluster local.

    python bench/windows.py                  trois millions de transactions ; vingt minutes
    python bench/windows.py --count 300000 --seconds 20 --latency 20
    python bench/windows.py --kind event     une seule sorte de fenêtres

Mêmes transactions (JSON, 100 comptes, six partitions, jusqu'à 4 s de désordre), mêmes fenêtres d'une minute par
compte, l'un après l'autre, chacun avec ce qu'il a de mieux :

- kafka_monitor.py : exactement une fois, places et résultats dans des transactions Kafka ;
- Apache Flink (flink/fenetres.sql, une des deux sortes) : exactement une fois, une photographie par seconde ;
- Quix Streams : exactement une fois, une validation par seconde, RocksDB ;
- Bytewax : sans garantie à l'écriture ; il n'a pas de fenêtres à chaque événement.

Débit : un lecteur read_committed note quand sortent les fenêtres ; il compte les transactions que leur temps
couvre, départ et premier tiers exclus. Processeur, mémoire : ceux du moteur, entre les mêmes instants. Délai : des
transactions datées de maintenant ; de celle qui ferme une fenêtre dans la dernière partition, à sa lecture au bout.
Égales : les fenêtres communes à kafka_monitor.py et au moteur qui ont le même nombre et les mêmes montants.

Les chiffres dépendent de la machine : seuls leurs rapports se comparent.
"""

import argparse
import contextlib
import logging
import math
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from commun import PipelineError
from commun.cli import Parser, french_number, positive, run
from commun.kafka import admin_config, client_config, delete_topics, ensure_topics
from commun.settings import ROOT
from exercice2.topic import PARTITIONS, REPLICATION_FACTOR, TOPIC_CONFIG
from exercice2.transactions import Transaction, disorder, generate, to_json
from exercice2.verification.flink_beside import PORT_OFFSET, Process, process, run_flink
from services import install
from services.flink import JOB, Flink
from services.stack import JOBMANAGER, Stack

import msgspec
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

KINDS = {"10": "une minute toutes les 10 s", "1": "une minute toutes les secondes", "event": "à chaque transaction"}
ACCOUNTS = 100
RATE = 1000.0  # transactions par seconde, en temps des transactions
LIVE_RATE = 1000.0  # et en temps réel, pour le délai
DELAY_MS = 5_000
WARM_UP = 1 / 3  # part de la mesure qui ne compte pas : Java n'a pas encore compilé
START_SECONDS = 60.0  # patience jusqu'à la première fenêtre
SETTLE_SECONDS = 8.0  # en plus de DELAY_MS, avant que le délai ne se mesure
QUIET_SECONDS = 3.0  # silence après lequel un topic est lu
PEERS = ROOT / ".venv-peers" / "bin" / "python"
READER = {"group.id": "bench", "enable.auto.commit": False, "fetch.wait.max.ms": 5, "fetch.queue.backoff.ms": 5}

LINE = "{:<18} {:>15} {:>8} {:>14} {:>6} {:>14} {:>10} {:>9}  {}"

Content = tuple[int, float, float, float]
Windows = dict[tuple[str, int], Content]


class Row(msgspec.Struct):
    """Ce qu'on lit d'une fenêtre ; Quix Streams donne sa fin en millisecondes."""

    cle: str
    nombre: int
    montant_total: float
    montant_min: float
    montant_max: float
    fin: datetime | None = None
    fin_ms: int = 0

    @property
    def end(self) -> int:
        """Fin, en millisecondes depuis 1970."""
        return round(self.fin.timestamp() * 1000) if self.fin else self.fin_ms


_row = msgspec.json.Decoder(Row).decode


# --- Les transactions ---


def transactions(count: int) -> Iterator[Transaction]:
    """Des transactions de 100 comptes, en désordre ; toujours les mêmes."""
    stream = disorder(islice(generate(1, datetime(2026, 1, 1, tzinfo=UTC), RATE), count), 4.0, 1)
    for number, one in enumerate(stream):
        yield one._replace(compte=f"FR{number * 7919 % ACCOUNTS:06d}")


def new_topic(name: str) -> str:
    """Crée un topic ; rend son nom."""
    ensure_topics(client_config({}), NewTopic(name, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG))
    return name


def new_producer() -> Producer:
    """Un producteur rapide."""
    return Producer(
        client_config({"linger.ms": 50, "compression.type": "lz4", "partitioner": "murmur2_random", "acks": "all"})
    )


def fill(topic: str, count: int) -> None:
    """Écrit les transactions."""
    producer = new_producer()
    for one in transactions(count):
        while True:
            try:
                producer.produce(topic, to_json(one), one.compte)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


# --- Les moteurs ---


def log_path() -> Path:
    """Journal des moteurs."""
    return Stack().logs / "bench-windows.log"


Start = Callable[[str, str, str], AbstractContextManager[list[Process]]]  # topic, topic des fenêtres, sorte


@contextmanager
def monitor(topic: str, output: str, kind: str) -> Iterator[list[Process]]:
    """kafka_monitor.py."""
    names = ["--topic", topic, "--output", output, "--alerts", f"{output}-alertes", "--group", output]
    command = [sys.executable, "kafka_monitor.py", *names, "--by", "compte", "--slide", kind]
    with process(command, log_path(), {}) as running:
        yield [running]


def peer(script: str) -> Start:
    """Un moteur de bench/peers, dans son environnement."""

    @contextmanager
    def start(topic: str, output: str, kind: str) -> Iterator[list[Process]]:
        brokers = client_config({})["bootstrap.servers"]
        command = [str(PEERS), str(ROOT / "bench" / "peers" / script), brokers, topic, output, kind]
        with process(command, log_path(), {}) as running:
            yield [running]

    return start


@contextmanager
def flink(topic: str, output: str, kind: str) -> Iterator[list[Process]]:
    """Apache Flink : un JobManager et un TaskManager de deux places, à côté de ceux de la pile."""
    install.jars(log.debug, "flink")
    names = {"TRANSACTIONS_TOPIC": topic, "TRANSACTIONS_FENETRES_FLINK": output, "FLINK_BY": "compte"}
    with tempfile.TemporaryDirectory() as name:
        job = Path(name)
        shutil.copy(JOB / "start-job.sh", job)
        (job / "fenetres.sql").write_text(flink_sql(kind), encoding="utf-8")
        stack = Stack()
        engine = Flink(stack, stack.data / "flink-bench", stack.ports[JOBMANAGER] + PORT_OFFSET, job)
        with run_flink(engine, names, {}) as running:
            yield list(running)


def flink_sql(kind: str) -> str:
    """fenetres.sql, réduit à une sorte de fenêtres."""
    text = (JOB / "fenetres.sql").read_text(encoding="utf-8")
    dropped = "fenetres" if kind == "event" else "fenetres_par_transaction"
    text, count = re.subn(rf"^INSERT INTO {dropped}\n.*?;\n", "", text, flags=re.DOTALL | re.MULTILINE)
    if count != 1:
        raise PipelineError("fenetres.sql a changé : bench/windows.py ne le reconnaît plus.")
    return text.replace("INTERVAL '10' SECOND", "INTERVAL '1' SECOND") if kind == "1" else text


class Engine(NamedTuple):
    """Un moteur, et comment le démarrer."""

    name: str
    start: Start
    kinds: tuple[str, ...] = tuple(KINDS)


ENGINES = (
    Engine("kafka_monitor.py", monitor),
    Engine("Apache Flink SQL", flink),
    Engine("Bytewax", peer("bytewax_windows.py"), ("10", "1")),
    Engine("Quix Streams", peer("quix_windows.py")),
)


# --- Les mesures ---


class Point(NamedTuple):
    """Où en est un moteur : heure, fin de la dernière fenêtre sortie, secondes de processeur."""

    at: float
    end: int
    cpu: float


class Speed(NamedTuple):
    """Débit d'un moteur."""

    per_second: float
    cpu: float  # secondes par million de transactions
    memory: float  # Mo, au plus
    steady: float  # débit de la seconde moitié, rapporté à celui de la première


def reader(topic: str) -> Consumer:
    """Un lecteur read_committed, au plus près du bout."""
    consumer = Consumer(admin_config(client_config({})) | READER)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer


def usage(running: list[Process]) -> tuple[float, float]:
    """Secondes de processeur et Mo de mémoire d'un moteur, enfants compris."""
    cpu = memory = 0.0
    for started in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(started.pid)
            for one in [root, *root.children(recursive=True)]:
                times = one.cpu_times()
                cpu += times.user + times.system
                memory += one.memory_info().rss / 1e6
    return cpu, memory


def throughput(engine: Engine, topic: str, output: str, kind: str, args: argparse.Namespace) -> Speed:
    """Débit d'un moteur, jusqu'au bout du topic, ou pendant --seconds."""
    points: list[Point] = []
    last = int((datetime(2026, 1, 1, tzinfo=UTC).timestamp() + args.count / RATE) * 1000) - DELAY_MS - 1000 * 10
    memory, consumer = 0.0, reader(output)
    with engine.start(topic, output, kind) as running:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not (points and points[-1].end >= last):
            messages = [message for message in consumer.consume(100_000, 0.05) if not message.error()]
            if any(one.poll() is not None for one in running):
                raise PipelineError(f"{engine.name} s'est arrêté pendant la mesure : lisez {Stack().logs}.")
            if messages:
                if not points:
                    deadline = time.monotonic() + args.seconds
                cpu, now = usage(running)
                memory = max(memory, now)
                end = max(_row(message.value() or b"").end for message in (messages[0], messages[-1]))
                points.append(Point(time.monotonic(), max(end, points[-1].end if points else 0), cpu))
    consumer.close()
    if len(points) < 4:
        raise PipelineError(
            f"{engine.name} a donné trop peu de fenêtres pour un débit : augmentez --count ou --seconds."
        )
    span = points[-1].end - points[0].end
    kept = [point for point in points if point.end >= points[0].end + span * WARM_UP]
    middle = next(point for point in kept if point.end >= (kept[0].end + kept[-1].end) / 2)

    def rate(one: Point, other: Point) -> float:
        return (other.end - one.end) / 1000 * RATE / max(other.at - one.at, 1e-9)

    events = (kept[-1].end - kept[0].end) / 1000 * RATE
    cpu = (kept[-1].cpu - kept[0].cpu) / events * 1e6
    return Speed(rate(kept[0], kept[-1]), cpu, memory, rate(middle, kept[-1]) / rate(kept[0], middle))


def windows(topic: str) -> Windows:
    """Les fenêtres lisibles. N'attend pas la fin de la transaction qu'un moteur arrêté a laissée ouverte."""
    found: Windows = {}
    consumer, heard_at = reader(topic), time.monotonic()
    while time.monotonic() - heard_at < QUIET_SECONDS:
        for message in consumer.consume(100_000, 0.1):
            if not message.error():
                row, heard_at = _row(message.value() or b""), time.monotonic()
                found[row.cle, row.end] = row.nombre, row.montant_total, row.montant_min, row.montant_max
    consumer.close()
    return found


def equal(ours: Windows, theirs: Windows) -> tuple[int, int]:
    """Fenêtres égales, et fenêtres communes."""
    common = ours.keys() & theirs.keys()
    same = sum(
        ours[place][0] == theirs[place][0]
        and all(math.isclose(one, other, abs_tol=0.001) for one, other in zip(ours[place], theirs[place], strict=True))
        for place in common
    )
    return same, len(common)


class Live:
    """Des transactions datées de maintenant, et l'instant où chaque partition a atteint chaque milliseconde."""

    def __init__(self, topic: str, seconds: float) -> None:
        self.topic, self.seconds = topic, seconds
        self.reached: list[list[tuple[int, float]]] = [[] for _ in range(PARTITIONS)]
        self.stop = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        producer, start = new_producer(), time.time()
        for number, one in enumerate(transactions(round(self.seconds * LIVE_RATE))):
            due = start + number / LIVE_RATE
            while (wait := due - time.time()) > 0 and not self.stop.wait(wait):
                producer.poll(0)
            instant = time.time()
            partition = number % PARTITIONS
            moved = one._replace(timestamp=datetime.fromtimestamp(instant, UTC), compte=f"FR{number % ACCOUNTS:06d}")
            producer.produce(self.topic, to_json(moved), moved.compte, partition=partition)
            self.reached[partition].append((int(instant * 1000), instant))
            if self.stop.is_set():
                break
        producer.flush()

    def __enter__(self) -> "Live":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()

    def closing(self) -> Callable[[int], float]:
        """Instant où la dernière partition a reçu de quoi fermer une fenêtre, d'après sa fin."""
        places = [0] * PARTITIONS

        def closed_at(end: int) -> float:
            latest = 0.0
            for partition, reached in enumerate(self.reached):
                place = places[partition]
                while place < len(reached) and reached[place][0] < end - 1 + DELAY_MS:
                    place += 1
                places[partition] = place
                latest = max(latest, reached[place][1] if place < len(reached) else math.inf)
            return latest

        return closed_at


def latencies(engine: Engine, topic: str, output: str, kind: str, seconds: float) -> list[float]:
    """Millisecondes de la transaction qui ferme une fenêtre à la lecture de celle-ci ; triées."""
    seen: list[tuple[int, float]] = []
    consumer = reader(output)
    with engine.start(topic, output, kind), Live(topic, 10 * seconds + START_SECONDS) as live:
        deadline = time.monotonic() + START_SECONDS
        measuring = False
        while time.monotonic() < deadline:
            messages = [message for message in consumer.consume(10_000, 0.005) if not message.error()]
            now = time.time()
            if messages and not measuring:
                deadline, measuring = time.monotonic() + SETTLE_SECONDS + seconds, True
            if measuring and deadline - time.monotonic() < seconds:
                seen += [(_row(message.value() or b"").end, now) for message in messages]
    consumer.close()
    closed_at = live.closing()
    return sorted((now - closed_at(end)) * 1000 for end, now in sorted(seen))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options de la mesure."""
    parser = Parser(__doc__)
    parser.option("--count", type=positive(), default=3_000_000, help="transactions, pour le débit")
    parser.option("--seconds", type=positive(float), default=40.0, help="durée d'une mesure de débit, au plus")
    parser.option("--latency", type=positive(float), default=20.0, help="durée d'une mesure de délai")
    parser.option("--kind", choices=tuple(KINDS), action="append", help="sorte de fenêtres ; répétable")
    return parser.parse(argv)


def measure(args: argparse.Namespace, topic: str, kind: str) -> None:
    """Une sorte de fenêtres : tous les moteurs, l'un après l'autre."""
    print(f"\nFenêtres : {KINDS[kind]}")
    print(
        LINE.format(
            "", "transactions/s", "nous /", "CPU s/million", "Mo", "2e/1re moitié", "délai p50", "p99 (ms)", "égales"
        )
    )
    ours: tuple[float, Windows] | None = None
    for engine in ENGINES:
        if kind not in engine.kinds:
            continue
        log.info("%s : débit…", engine.name)
        output = new_topic(f"{topic}-{kind}-{uuid.uuid4().hex[:4]}")
        speed = throughput(engine, topic, output, kind, args)
        found = windows(output)
        ours = ours or (speed.per_second, found)
        same, common = equal(ours[1], found)
        log.info("%s : délai…", engine.name)
        live, late = new_topic(f"{output}-direct"), new_topic(f"{output}-delais")
        delays = latencies(engine, live, late, kind, args.latency) or [math.nan]
        numbers = (speed.per_second, ours[0] / speed.per_second, speed.cpu, speed.memory, speed.steady)
        cells = [french_number(value, places) for value, places in zip(numbers, (0, 2, 1, 0, 2), strict=True)]
        cells += [french_number(delays[int(len(delays) * part)]) for part in (0.5, 0.99)]
        print(LINE.format(engine.name, *cells, f"{french_number(same)} sur {french_number(common)}"), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    if not PEERS.exists():
        raise PipelineError("Les autres moteurs ne sont pas installés : lancez « make bench-windows ».")
    topic = new_topic(f"bench-{uuid.uuid4().hex[:8]}")
    try:
        log.info("Écriture de %s transactions…", french_number(args.count))
        fill(topic, args.count)
        for kind in args.kind or KINDS:
            measure(args, topic, kind)
    finally:
        delete_topics(client_config({}), topic)
    return 0


if __name__ == "__main__":
    run(main)
