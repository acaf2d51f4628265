"""Compare, ligne à ligne, les fenêtres de kafka_monitor.py et celles d'Apache Flink, sur les mêmes transactions.

    python compare_windows.py                            quatre cas, les deux sortes de fenêtres chacun
    python compare_windows.py --partitions 1 --by region un seul cas

Deux topics : six partitions et un désordre que le watermark attend (5 s) ; une seule partition et jusqu'à 30 s de
désordre, où beaucoup de transactions sont en retard, parfois pour une partie de leurs fenêtres seulement. Avec
une partition, un watermark à chaque transaction et un seul lecteur, les deux moteurs doivent refuser les mêmes.
Garantit : le code de sortie est 0 si les deux moteurs ont publié les mêmes lignes, une fois chacune (clé, bornes,
nombre, total, moyenne, minimum, maximum, identifiant) ; 1 sinon. Le Flink de « make flink » n'est pas touché : il
en démarre un autre, à côté, et l'arrête ; ses topics sont effacés.
Ne garantit pas : les mêmes refus avec plusieurs partitions et plus de désordre que le watermark n'en attend. Ce
qui est en retard dépend alors de l'ordre dans lequel chaque moteur a lu les partitions.
Ensuite : flink/fenetres.sql est le job ; windows.py, le calcul du moniteur.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from commun.cli import Parser, Stop, french_number, positive, run
from commun.errors import PipelineError
from commun.kafka import Config, admin_config, client_config, connect, ensure_topics
from commun.transaction import Stopped, bounds, read_topic
from exercice2.kafka_monitor import count_partitions
from exercice2.producer_resilient import REPLICATION_FACTOR, TOPIC_CONFIG
from exercice2.results import ALL
from exercice2.sources import REPLAY_START
from exercice2.transactions import Transaction, disorder, generate, to_json
from services import health, install
from services.flink import Flink
from services.stack import JOBMANAGER, Stack

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).resolve().parent
DISORDER = {6: 5.0, 1: 30.0}  # secondes de désordre, par nombre de partitions
RATE = 50.0  # transactions par seconde, en temps des transactions
KINDS = {"HOP": (), "OVER": ("--slide", "event")}  # options du moniteur
COMPARED = ("cle", "debut", "fin", "nombre", "montant_total", "montant_moyen", "montant_min", "montant_max", "id")
PORT_OFFSET = 100  # ce Flink-ci écoute à côté de celui de la pile
RUN_SECONDS = 240.0  # au plus, pour chaque moteur et chaque cas
STOP_SECONDS = 20.0

Rows = Counter[tuple[object, ...]]
Process = subprocess.Popen[bytes]


class Case(NamedTuple):
    """Un topic et une clé."""

    topic: str
    partitions: int
    by: str

    @property
    def output(self) -> str:
        """Début des noms des topics de sortie."""
        return f"{self.topic}-{self.by}"


class Outcome(NamedTuple):
    """Ce qu'un cas a donné, pour une sorte de fenêtres."""

    case: Case
    kind: str
    refused: int  # par le moniteur, trop en retard
    monitor: Rows
    flink: Rows


# --- Les transactions ---


def transactions(partitions: int, count: int, seed: int) -> Iterator[Transaction]:
    """``count`` transactions en désordre."""
    ordered = islice(generate(seed, REPLAY_START, RATE), count)
    return disorder(ordered, DISORDER[partitions], seed)


def fill(config: Config, topic: str, partitions: int, count: int, seed: int) -> None:
    """Crée le topic et l'écrit.

    La dernière transaction de chaque partition est bien après les autres, au même instant partout : elle mène le
    watermark aussi loin dans toutes. Une partition dite inactive n'y change plus rien, et les deux moteurs ferment
    les mêmes fenêtres.
    """
    ensure_topics(config, NewTopic(topic, partitions, REPLICATION_FACTOR, config=TOPIC_CONFIG))
    producer: Producer = connect(Producer, config | {"acks": "all", "enable.idempotence": True})
    end = REPLAY_START + timedelta(seconds=count / RATE + 120)
    for transaction in transactions(partitions, count, seed):
        producer.produce(topic, to_json(transaction), transaction.compte)
        producer.poll(0)
    if producer.flush(60):
        raise PipelineError(f"Kafka ne confirme pas les transactions de {topic}.")
    for partition in range(partitions):
        last = next(generate(seed, end, RATE))._replace(id=f"fin-{partition}", timestamp=end)
        producer.produce(topic, to_json(last), partition=partition)
    producer.flush(60)


# --- Les deux moteurs ---


@contextlib.contextmanager
def process(command: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> Iterator[Process]:
    """Un processus que le Ctrl-C du terminal n'atteint pas, arrêté à la fin quoi qu'il arrive."""
    with log_path.open("wb") as file:
        started = subprocess.Popen(
            command, cwd=FOLDER, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(STOP_SECONDS)
        started.kill()
        started.wait()


class Engines:
    """Les deux moteurs, lancés sur un même cas."""

    def __init__(self, config: Config, stack: Stack, stop: Stop) -> None:
        self.config, self.stack, self.stop = config, stack, stop

    def compare(self, case: Case) -> list[Outcome]:
        """Les deux moteurs lisent le topic du cas, par la même clé."""
        output = NewTopic(f"{case.output}-flink", 6, REPLICATION_FACTOR, config=TOPIC_CONFIG)
        ensure_topics(self.config, output)
        with self._flink(case) as job:
            for kind in KINDS:
                self._run_monitor(case, kind)
            self._wait(job, self._flink_reads_to_end(case), "Flink")
        flink = rows(self._read(output.topic))
        return [
            Outcome(case, kind, len(self._read(f"{case.output}-{kind}-dlq")),
                    rows(self._read(f"{case.output}-{kind}"))[kind], flink[kind])
            for kind in KINDS
        ]  # fmt: skip

    @contextlib.contextmanager
    def _flink(self, case: Case) -> Iterator[Process]:
        """Un JobManager, qui est le job, et un TaskManager, sur des ports et dans un dossier à eux."""
        flink = Flink(self.stack, self.stack.data / "flink-compare", self.stack.ports[JOBMANAGER] + PORT_OFFSET)
        jobmanager, taskmanager, _ = flink.services(install.classpath(install.jar_files("flink")))
        if taken := health.taken_port(jobmanager) or health.taken_port(taskmanager):
            raise PipelineError(taken)
        # Une partition : un lecteur. Un second, sans partition, retiendrait le watermark pendant dix secondes.
        flink.write_config(**{"pipeline.max-parallelism": "1"} if case.partitions == 1 else {})
        environment = {
            **jobmanager.environment,
            "TRANSACTIONS_TOPIC": case.topic,
            "TRANSACTIONS_FENETRES_FLINK": f"{case.output}-flink",
            "FLINK_BY": case.by,
            "KAFKA_BOOTSTRAP_SERVERS": self.config["bootstrap.servers"],
        }
        try:
            with (
                process(jobmanager.command, self._log("Flink"), environment) as job,
                process(taskmanager.command, self._log("taskmanager"), {}),
            ):
                yield job
        finally:
            shutil.rmtree(flink.home, ignore_errors=True)

    def _flink_reads_to_end(self, case: Case) -> Callable[[], bool]:
        """Flink a-t-il validé sa place à la fin du topic ? Tout ce qu'il en a tiré est alors publié."""
        ends = {p: bounds(self.config, TopicPartition(case.topic, p), self.stop)[1] for p in range(case.partitions)}
        group = {"group.id": f"{case.topic}-flink-{case.by}"}

        def reached() -> bool:
            consumer: Consumer = connect(Consumer, self.config | group)
            try:
                places = consumer.committed([TopicPartition(case.topic, partition) for partition in ends], timeout=10)
                return all(place.offset >= ends[place.partition] for place in places)
            except KafkaException:  # le groupe change de coordinateur
                return False
            finally:
                consumer.close()

        return reached

    def _run_monitor(self, case: Case, kind: str) -> None:
        """kafka_monitor.py, jusqu'au bout du topic."""
        name = f"{case.output}-{kind}"
        options = ["--topic", case.topic, "--output", name, "--group", name, *KINDS[kind]]
        options += ["--bootstrap-servers", self.config["bootstrap.servers"]]
        options += [] if case.by == ALL else ["--by", case.by]
        command = [sys.executable, "kafka_monitor.py", "--once", *options]
        with process(command, self._log("moniteur"), {}) as monitor:
            self._wait(monitor, lambda: monitor.poll() == 0, "moniteur")

    def _wait(self, process: Process, done: Callable[[], bool], engine: str) -> None:
        """Attend que ``done`` soit vrai. Lève PipelineError si le processus meurt avant, ou tarde trop."""
        deadline = time.monotonic() + RUN_SECONDS
        while not done():
            if self.stop.wait(0.3):
                raise Stopped
            if process.poll() or time.monotonic() > deadline:
                raise PipelineError(f"{engine} : le topic n'est pas lu jusqu'au bout, lisez {self._log(engine)}.")

    def _log(self, engine: str) -> Path:
        return self.stack.logs / f"compare-{engine.lower()}.log"

    def _read(self, topic: str) -> list[Message]:
        return list(read_topic(self.config, topic, range(count_partitions(self.config, topic)), self.stop))


# --- Comparer ---


def rows(messages: Iterable[Message]) -> dict[str, Rows]:
    """Les lignes publiées, par sorte, avec leur nombre d'apparitions ; 19.9 et 19.90 sont le même nombre."""
    found: dict[str, Rows] = {kind: Counter() for kind in KINDS}
    for message in messages:
        row = json.loads(message.value() or b"{}", parse_float=Decimal)
        found["OVER" if "id" in row else "HOP"][tuple(row.get(name) for name in COMPARED)] += 1
    return found


def show(outcomes: list[Outcome]) -> bool:
    """Affiche les comptes, et quelques lignes qui diffèrent ; vrai si tout est égal."""
    head = ("partitions", "par", "fenêtres", "refusées", "moniteur", "Flink", "égales", "moniteur seul", "Flink seul")
    print("  ".join(f"{name:>13}" for name in head))
    same = True
    for outcome in outcomes:
        alone = outcome.monitor - outcome.flink, outcome.flink - outcome.monitor
        counts = (outcome.monitor, outcome.flink, outcome.monitor & outcome.flink, *alone)
        cells = [str(outcome.case.partitions), outcome.case.by, outcome.kind, french_number(outcome.refused)]
        print("  ".join(f"{cell:>13}" for cell in (*cells, *(french_number(count.total()) for count in counts))))
        for engine, missing in zip(("moniteur", "Flink"), alone, strict=True):
            same &= not missing
            for row in list(missing)[:3]:
                log.error("%s seul : %s", engine, dict(zip(COMPARED, map(str, row), strict=True)))
    return same and any(outcome.monitor for outcome in outcomes)


def delete_topics(config: Config, prefix: str) -> None:
    """Efface les topics de cet essai."""
    admin = AdminClient(admin_config(config))
    if names := [name for name in admin.list_topics(timeout=20).topics if name.startswith(prefix)]:
        for outcome in admin.delete_topics(names).values():
            outcome.result()


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--partitions", type=int, choices=tuple(DISORDER), help="un seul des deux topics")
    parser.option("--by", choices=(ALL, "compte", "type", "region", "canal"),
                  help="une seule clé, au lieu de toutes et compte")  # fmt: skip
    parser.option("--count", type=positive(), default=12_000, help="transactions par topic")
    parser.option("--seed", type=positive(zero=True), default=1, help="graine des transactions")
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop, stack = Stop(), Stack()
    config = client_config({"partitioner": "murmur2_random"}, bootstrap=args.bootstrap_servers)
    prefix = f"comparaison-{uuid.uuid4().hex[:8]}"
    ensure_topics(config)  # Kafka répond-il ?
    stack.logs.mkdir(parents=True, exist_ok=True)
    install.jars(log.info, "flink")
    outcomes, engines = list[Outcome](), Engines(config, stack, stop)
    try:
        for partitions in [args.partitions] if args.partitions else DISORDER:
            topic = f"{prefix}-{partitions}"
            fill(config, topic, partitions, args.count, args.seed)
            for by in [args.by] if args.by else (ALL, "compte"):
                log.info("%d partition(s), par %s : %d transactions…", partitions, by, args.count)
                outcomes += engines.compare(Case(topic, partitions, by))
    except Stopped:
        log.warning("Arrêté avant la fin : la comparaison n'est pas faite.")
        return 0
    finally:
        delete_topics(config, prefix)
    same = show(outcomes)
    print("Les deux moteurs ont publié les mêmes lignes." if same else "Les deux moteurs ne sont pas d'accord.")
    return 0 if same else 1


if __name__ == "__main__":
    run(main)
