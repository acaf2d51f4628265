"""Un, deux, trois exemplaires de chaque script de l'exercice 3, et ce que chaque vente coûte de calcul à chacun.

    make bench-scale                       100 000 ventes par mesure ; cinq minutes
    python -m bench.scale --count 10000 --most 2

Le débit de N exemplaires se compare à celui d'un seul ; le rapport ne peut dépasser ce que la machine a de cœurs
libres. Le calcul (temps processeur, en microsecondes par vente) dit ce qu'il faudrait ailleurs : qui en prend le plus
est ce qui arrêterait en premier une machine à lui. Tout se passe à part, comme dans bench/ventes.py, sur la pile
locale (« make services »).
"""

import argparse
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.ventes import LOT_SIZE, READY_SECONDS, TOPIC
from commun import PipelineError
from commun.cli import Parser, Stop, french_number, positive, run
from commun.kafka import admin_config, client_config, connect, delete_topics, ensure_topics
from commun.settings import ROOT, postgres_dsn, refuse_elsewhere
from commun.systems import ask_to_stop, own_group
from exercice3 import producer
from exercice3.verification.aside import aside, empty, wipe
from services.stack import KAFKA_NODES, Stack
from services.supervise import Supervisor

import psutil
import psycopg2
from confluent_kafka import Consumer, ConsumerGroupState, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

SERVERS = {"Kafka": KAFKA_NODES, "MongoDB": ("mongodb",), "PostgreSQL": ("postgres",)}
NAMES = ("scripts", *SERVERS)
PATIENCE_SECONDS = 600.0


class Cost(NamedTuple):
    """Une mesure : secondes écoulées, et secondes de calcul de chacun de NAMES."""

    seconds: float
    cpu: dict[str, float]


class Scripts:
    """Des exemplaires d'un script de l'exercice 3."""

    def __init__(self, name: str, options: Sequence[Sequence[str]]) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "cwd": ROOT / "exercice3", **own_group()}
        common = ["--log-level", "error"]
        self.running = [
            subprocess.Popen([sys.executable, f"{name}.py", *common, *words], **quiet) for words in options
        ]  # fmt: skip

    def end(self, *, ask: bool = False) -> float:
        """Attend leur fin, demandée si ``ask`` ; rend leurs secondes de calcul."""
        total = 0.0
        for script in self.running if ask else ():
            ask_to_stop(script)
        for script in self.running:
            _, status, used = os.wait4(script.pid, 0)
            script.returncode = os.waitstatus_to_exitcode(status)
            if script.returncode:
                raise PipelineError(f"Un des scripts a fini avec le code {script.returncode}.")
            total += used.ru_utime + used.ru_stime
        return total


def server_seconds(supervisor: Supervisor) -> dict[str, float]:
    """Secondes de calcul des serveurs depuis leur démarrage."""
    states = supervisor.states()
    total = dict.fromkeys(SERVERS, 0.0)
    for server, services in SERVERS.items():
        for first in (psutil.Process(states[service].pid) for service in services):
            for process in (first, *first.children(recursive=True)):
                used = process.cpu_times()
                # Une connexion de PostgreSQL est un processus, compté dans son père une fois fini.
                total[server] += used.user + used.system + getattr(used, "children_user", 0.0)
                total[server] += getattr(used, "children_system", 0.0)
    return total


def measured(supervisor: Supervisor, work: Callable[[], tuple[float, float]]) -> Cost:
    """Le coût de ``work``, qui rend les secondes écoulées et le calcul des scripts."""
    before = server_seconds(supervisor)
    seconds, scripts = work()
    after = server_seconds(supervisor)
    return Cost(seconds, {"scripts": scripts} | {server: after[server] - before[server] for server in SERVERS})


# --- Les étapes : secondes écoulées, secondes de calcul des scripts ---


def new_topic() -> None:
    """Un topic vide."""
    config = client_config({})
    delete_topics(config, TOPIC)
    ensure_topics(
        config, NewTopic(TOPIC, producer.PARTITIONS, producer.REPLICATION_FACTOR, config=producer.TOPIC_CONFIG)
    )


def produce(number: int, count: int) -> tuple[float, float]:
    """``count`` ventes, par ``number`` producteurs de graines différentes."""
    new_topic()
    shares = [count // number + (rank < count % number) for rank in range(number)]
    start = time.monotonic()
    options = (("--topic", TOPIC, "--count", str(share), "--seed", str(rank)) for rank, share in enumerate(shares))
    used = Scripts("producer", [(*words, "--rate", "0") for words in options]).end()
    return time.monotonic() - start, used


def consume(number: int, count: int) -> tuple[float, float]:
    """Les consommateurs attendent, leurs partitions attribuées ; puis un producteur les envoie toutes."""
    new_topic()
    wipe()
    group = f"{TOPIC}-{uuid.uuid4().hex}"
    scripts = Scripts("consumer", [("--topic", TOPIC, "--group", group)] * number)
    admin = connect(AdminClient, admin_config(client_config({})))
    wait(lambda: assigned(admin, group) == number, READY_SECONDS)
    start = time.monotonic()
    load = Scripts("producer", [("--topic", TOPIC, "--count", str(count), "--rate", "0", "--seed", "0")])
    load.end()
    watcher = connect(Consumer, client_config({"group.id": group, "enable.auto.commit": False}))
    places = [TopicPartition(TOPIC, partition) for partition in range(producer.PARTITIONS)]
    wait(lambda: sum(max(0, place.offset) for place in watcher.committed(places, 20)) >= count, PATIENCE_SECONDS)
    seconds = time.monotonic() - start
    watcher.close()
    return seconds, scripts.end(ask=True)


def assigned(admin: AdminClient, group: str) -> int:
    """Membres du groupe, une fois toutes les partitions attribuées ; 0 avant."""
    found = admin.describe_consumer_groups([group])[group].result(20)
    held = sum(len(member.assignment.topic_partitions) for member in found.members)
    return len(found.members) if found.state == ConsumerGroupState.STABLE and held == producer.PARTITIONS else 0


def wait(done: Callable[[], bool], seconds: float) -> None:
    """Attend que ``done``, regardé vingt fois par seconde, soit vrai."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise PipelineError(f"Rien au bout de {seconds:.0f} s.")
        time.sleep(0.05)


def export(number: int, folder: Path) -> tuple[float, float]:
    """Ce que les consommateurs ont écrit, par ``number`` exports."""
    start = time.monotonic()
    options = ("--once", "--lot-size", str(LOT_SIZE), "--export-dir", str(folder))
    used = Scripts("schedule_export", [options] * number).end()
    return time.monotonic() - start, used


def load(number: int, folder: Path) -> tuple[float, float]:
    """Ces fichiers, par ``number`` chargements."""
    start = time.monotonic()
    used = Scripts("pg", [("--export-dir", str(folder))] * number).end()
    return time.monotonic() - start, used


def measure(number: int, count: int, supervisor: Supervisor, folder: Path) -> dict[str, Cost]:
    """Les quatre étapes, chacune par ``number`` exemplaires."""
    with closing(psycopg2.connect(**postgres_dsn())) as connection:
        empty(connection)
    costs = {
        "producer.py": measured(supervisor, lambda: produce(number, count)),
        "consumer.py": measured(supervisor, lambda: consume(number, count)),
        "schedule_export.py": measured(supervisor, lambda: export(number, folder)),
        "pg.py": measured(supervisor, lambda: load(number, folder)),
    }
    for path in folder.iterdir():
        path.unlink()
    return costs


def show(found: dict[int, dict[str, Cost]], count: int) -> None:
    """La table : débit, rapport à un seul, cœurs occupés, et microsecondes de calcul par vente."""
    columns = "".join(f"{name:>12}" for name in NAMES)
    print(f"\n{'étape':<20}{'nombre':>7}{'ventes/s':>10}{'rapport':>9}{'cœurs':>7}{columns}")
    for step in found[1]:
        for number, costs in found.items():
            cost = costs[step]
            ratio = french_number(found[1][step].seconds / cost.seconds, 2)
            busy = french_number(sum(cost.cpu.values()) / cost.seconds, 1)
            used = "".join(f"{french_number(cost.cpu[name] / count * 1e6):>12}" for name in NAMES)
            print(f"{step:<20}{number:>7}{french_number(count / cost.seconds):>10}{ratio:>9}{busy:>7}{used}")
    print("\nÀ droite, le calcul de chacun : microsecondes par vente.")


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    refuse_elsewhere(any_server=False)
    supervisor = Supervisor(Stack())
    states = supervisor.states()
    if not all(name in states and states[name].alive for names in SERVERS.values() for name in names):
        raise PipelineError("La pile locale ne tourne pas : « make services ».")
    found: dict[int, dict[str, Cost]] = {}
    with aside(TOPIC) as folder:
        for number in range(1, args.most + 1):
            if not stop:
                log.info("%d de chaque…", number)
                found[number] = measure(number, args.count, supervisor, folder)
    if found:
        show(found, args.count)
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--count", type=positive(), default=100_000, help="ventes par mesure")
    parser.option("--most", type=positive(), default=3, help="exemplaires, au plus")
    return parser.parse(argv)


if __name__ == "__main__":
    run(main)
