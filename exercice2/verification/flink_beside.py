"""Les deux moteurs de compare_windows.py, lancés l'un et l'autre sur un même topic, et les lignes qu'ils publient."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from commun import PipelineError
from commun.cli import Stop, Stopped
from commun.kafka import Config, connect, count_partitions, ensure_topics
from commun.systems import own_group
from commun.topics import bounds, read_topic
from exercice2.fenetres.published import ALL
from exercice2.topic import REPLICATION_FACTOR, TOPIC_CONFIG
from services import health, install
from services.flink import Flink
from services.stack import JOBMANAGER, Stack

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).resolve().parent.parent
KINDS = {"HOP": (), "OVER": ("--slide", "event")}  # options du moniteur
PORT_OFFSET = 100  # ce Flink-ci écoute à côté de celui de la pile
RUN_SECONDS = 240.0  # au plus, pour chaque moteur et chaque cas
STOP_SECONDS = 20.0

Process = subprocess.Popen[bytes]


class Row(NamedTuple):
    """Une ligne publiée ; ``id`` n'est que dans OVER."""

    cle: str
    debut: str
    fin: str
    nombre: int
    montant_total: Decimal
    montant_moyen: Decimal
    montant_min: Decimal
    montant_max: Decimal
    par_seconde: Decimal
    id: str | None


Rows = Counter[Row]


def rows(messages: Iterable[Message]) -> dict[str, Rows]:
    """Les lignes publiées, par sorte, avec leur nombre d'apparitions ; 19.9 et 19.90 sont le même nombre."""
    found: dict[str, Rows] = {kind: Counter() for kind in KINDS}
    for message in messages:
        line = json.loads(message.value() or b"{}", parse_float=Decimal)
        found["OVER" if "id" in line else "HOP"][Row(*map(line.get, Row._fields))] += 1
    return found


class Case(NamedTuple):
    """Un topic et une clé."""

    topic: str
    partitions: int
    by: str

    @property
    def output(self) -> str:
        """Début des noms des topics de sortie."""
        return f"{self.topic}-{self.by}"


def flink_reads_to_end(config: Config, case: Case, stop: Stop | None = None) -> Callable[[], bool]:
    """Une question : Flink a-t-il validé sa place à la fin du topic ? Tout ce qu'il en a tiré est alors publié."""
    ends = {p: bounds(config, TopicPartition(case.topic, p), stop)[1] for p in range(case.partitions)}
    group = {"group.id": f"{case.topic}-flink-{case.by}"}

    def reached() -> bool:
        consumer: Consumer = connect(Consumer, config | group)
        try:
            places = consumer.committed([TopicPartition(case.topic, partition) for partition in ends], timeout=10)
            return all(place.offset >= ends[place.partition] for place in places)
        except KafkaException:  # le groupe change de coordinateur
            return False
        finally:
            consumer.close()

    return reached


@contextlib.contextmanager
def process(
    command: Sequence[str], log_path: Path, environment: Mapping[str, str], folder: Path = FOLDER
) -> Iterator[Process]:
    """Un processus que le Ctrl-C du terminal n'atteint pas, arrêté à la fin quoi qu'il arrive."""
    with log_path.open("wb") as file:
        started = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=file, stderr=file, **own_group()
        )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(STOP_SECONDS)
        started.kill()
        started.wait()


@contextlib.contextmanager
def run_flink(flink: Flink, names: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[tuple[Process, Process]]:
    """Un JobManager, qui est le job, et un TaskManager ; arrêtés à la fin, et leur dossier effacé.

    ``names`` : les variables du job ; ``settings`` : des réglages de Flink en plus. Journaux : ceux de la pile.
    """
    jobmanager, taskmanager, _ = flink.services(install.classpath(install.jar_files("flink")))
    health.refuse_taken_ports([jobmanager, taskmanager])
    flink.write_config(**settings)
    logs, data = flink.stack.logs, flink.stack.data
    try:
        with (
            process(jobmanager.command, logs / "compare-flink.log", {**jobmanager.environment, **names}, data) as job,
            process(taskmanager.command, logs / "compare-taskmanager.log", {}, data) as worker,
        ):
            yield job, worker
    finally:
        shutil.rmtree(flink.home, ignore_errors=True)


class Outcome(NamedTuple):
    """Ce qu'un cas a donné, pour une sorte de fenêtres."""

    case: Case
    kind: str
    monitor: Rows
    flink: Rows

    @property
    def same(self) -> bool:
        """Les mêmes lignes, une fois chacune ; et il y en a."""
        return self.monitor == self.flink and self.monitor.total() == len(self.monitor) > 0


class Engines:
    """Les deux moteurs, lancés sur un même cas ; les jars de Flink sont téléchargés s'ils manquent."""

    def __init__(self, config: Config, stop: Stop) -> None:
        self.config, self.stack, self.stop = config, Stack(), stop
        self.stack.logs.mkdir(parents=True, exist_ok=True)
        install.jars(log.info, "flink")

    def compare(self, case: Case) -> list[Outcome]:
        """Les deux moteurs lisent le topic du cas, par la même clé."""
        output = NewTopic(f"{case.output}-flink", 6, REPLICATION_FACTOR, config=TOPIC_CONFIG)
        ensure_topics(self.config, output)
        with self._flink(case) as job:
            for kind in KINDS:
                self._run_monitor(case, kind)
            self._wait(job, flink_reads_to_end(self.config, case, self.stop), "Flink")
        flink = rows(self._read(output.topic))
        return [Outcome(case, kind, rows(self._read(f"{case.output}-{kind}"))[kind], flink[kind]) for kind in KINDS]

    @contextlib.contextmanager
    def _flink(self, case: Case) -> Iterator[Process]:
        """Flink sur un cas, dans un dossier et sur des ports à lui."""
        port = self.stack.ports[JOBMANAGER] + PORT_OFFSET
        # Une partition : un lecteur. Un second, sans partition, retiendrait le watermark pendant dix secondes.
        settings = {"pipeline.max-parallelism": "1"} if case.partitions == 1 else {}
        names = {
            "TRANSACTIONS_TOPIC": case.topic,
            "TRANSACTIONS_FENETRES_FLINK": f"{case.output}-flink",
            "FLINK_BY": case.by,
            "KAFKA_BOOTSTRAP_SERVERS": self.config["bootstrap.servers"],
        }
        with run_flink(Flink(self.stack, self.stack.data / "flink-compare", port), names, settings) as (job, _):
            yield job

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
