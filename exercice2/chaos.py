"""Casse tout pendant que les transactions passent, puis compte : rien de perdu, rien de doublé, dans l'ordre.

    python chaos.py                        quinze minutes de pannes sur les serveurs locaux
    python chaos.py --seconds 60 --seed 7  toujours les mêmes pannes, dans le même ordre

Un producteur envoie à un rythme régulier, trois consommateurs valident avec --exactly-once. Au hasard :
un broker tué, deux à la fois, un broker gelé plus longtemps que sa session, les chefs de partition déplacés,
un consommateur tué, un autre gelé plus longtemps que sa session, le producteur tué ou gelé. À la fin, tout
est relancé, et le topic de sortie est relu en read_committed.
Garantit : le code de sortie est 0 si chaque transaction confirmée y est exactement une fois, dans l'ordre
de son compte ; 1 sinon, avec le nombre de perdues, de doublées et de mal rangées.
Ne garantit pas : de laisser vos serveurs tranquilles. Il tue ceux de « python -m services ».
Ensuite : le même essai, court, est dans tests/faults/test_chaos.py.
"""

import argparse
import logging
import random
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient

from commun.cli import Parser, Stop, french_number, positive, run
from commun.errors import PipelineError
from commun.kafka import admin_config, client_config
from commun.transaction import Stopped, read_topic
from exercice2.transactions import number_of

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).resolve().parent
BROKERS = ("kafka1", "kafka2", "kafka3")
CONSUMERS = 3
FREEZE_SECONDS = 10.0  # plus que la session d'un consommateur (6 s) ou d'un broker (9 s)
LONG_SECONDS = 40.0  # plus que le délai de livraison du producteur (30 s) : sa transaction est annulée
LONG_RUN = 300.0  # un essai plus court n'a pas le temps d'une telle panne
SETTLE_SECONDS = 5.0
DRAIN_SECONDS = 180.0  # patience, à la fin, pour que tout soit validé


class Script:
    """Un script de l'exercice, qu'on peut tuer, geler et relancer ; son journal va dans un fichier."""

    def __init__(self, log_path: Path, *command: str) -> None:
        self.log_path, self.command = log_path, command
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log_path.open("ab") as file:
            return subprocess.Popen([sys.executable, *self.command], cwd=FOLDER, stdout=file, stderr=file)

    def send(self, number: int) -> None:
        """Envoie un signal, si le script tourne."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def restart(self) -> None:
        """Le relance s'il ne tourne plus."""
        if self.process.poll() is not None:
            self.process = self._start()

    def kill(self) -> None:
        """``kill -9``."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Arrêt propre ; le code de sortie."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return self.process.wait(90)


class Chaos:
    """Un essai : ses topics, ses scripts, ses pannes."""

    def __init__(self, args: argparse.Namespace, stop: Stop) -> None:
        self.args, self.stop = args, stop
        self.dice = random.Random(args.seed)  # noqa: S311 - des pannes rejouables
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        self.topic, self.output = name, f"{name}-validees"
        self.logs = args.logs / name
        self.logs.mkdir(parents=True)
        self.faults: Counter[str] = Counter()
        self.config = admin_config(client_config({}))
        self.producer = Script(
            self.logs / "producer.log", "producer_resilient.py", "--topic", name, "--generate",
            "--seed", str(args.seed), "--rate", str(args.rate),
        )  # fmt: skip
        self.consumers = [
            Script(
                self.logs / f"consumer{number}.log", "consumer_resilient.py", "--topic", name, "--output", self.output,
                "--group", name, "--exactly-once",
            )
            for number in range(1, CONSUMERS + 1)
        ]  # fmt: skip

    # --- Les pannes ---

    def break_things(self) -> None:
        """Une panne après l'autre, jusqu'à la fin du temps."""
        kinds: list[Callable[[], None]] = [
            self.one_broker, self.two_brokers, self.freeze_broker, self.move_leaders,
            self.kill_consumer, self.freeze_consumer, self.kill_producer, self.freeze_producer,
        ]  # fmt: skip
        if self.args.seconds >= LONG_RUN:
            kinds.append(self.two_brokers_for_long)
        deadline = time.monotonic() + self.args.seconds
        self.dice.shuffle(kinds)
        number = 0
        while time.monotonic() < deadline and not self.stop.wait(self.dice.uniform(1, 4)):
            # Un premier tour passe par toutes, dans un ordre tiré au sort ; ensuite, au hasard.
            fault = kinds[number] if number < len(kinds) else self.dice.choice(kinds)
            self.faults[fault.__doc__ or ""] += 1
            log.info("Panne : %s", fault.__doc__)
            fault()
            number += 1

    def one_broker(self) -> None:
        """Un broker tué"""
        self._kill_brokers(1, self.dice.uniform(2, 6))

    def two_brokers(self) -> None:
        """Deux brokers tués à la fois"""
        self._kill_brokers(2, self.dice.uniform(2, 6))

    def two_brokers_for_long(self) -> None:
        """Deux brokers tués, plus longtemps que le délai de livraison"""
        self._kill_brokers(2, LONG_SECONDS)

    def _kill_brokers(self, count: int, seconds: float) -> None:
        dead = self.dice.sample(BROKERS, count)
        for name in dead:
            services("kill", name)
        self.stop.wait(seconds)
        for name in dead:
            services("restart", name)

    def freeze_broker(self) -> None:
        """Un broker gelé plus longtemps que sa session"""
        name = self.dice.choice(BROKERS)
        services("pause", name)
        self.stop.wait(FREEZE_SECONDS)
        services("resume", name)

    def kill_consumer(self) -> None:
        """Un consommateur tué"""
        self._kill(self.dice.choice(self.consumers))

    def kill_producer(self) -> None:
        """Le producteur tué"""
        self._kill(self.producer)

    def _kill(self, script: Script) -> None:
        script.kill()
        self.stop.wait(self.dice.uniform(0, 3))
        script.restart()

    def freeze_consumer(self) -> None:
        """Un consommateur gelé plus longtemps que sa session"""
        self._freeze(self.dice.choice(self.consumers))

    def freeze_producer(self) -> None:
        """Le producteur gelé"""
        self._freeze(self.producer)

    def _freeze(self, script: Script) -> None:
        script.send(signal.SIGSTOP)
        self.stop.wait(FREEZE_SECONDS)
        script.send(signal.SIGCONT)

    def move_leaders(self) -> None:
        """Les chefs de partition déplacés"""
        # Après une panne, d'autres brokers mènent les partitions : on les rend à leurs chefs d'origine.
        admin = AdminClient(self.config)
        try:
            admin.elect_leaders(ElectionType.PREFERRED, None).result(60)  # le client 2.16 refuse les délais
        except KafkaException as error:
            log.debug("Élection refusée : %s", error)

    # --- La fin, et les comptes ---

    def settle(self) -> list[str]:
        """Tout est relancé, le producteur arrêté ; rend les identifiants confirmés, une fois qu'ils sont traités."""
        services("up")
        self.producer.restart()
        for script in self.consumers:
            script.restart()
        time.sleep(SETTLE_SECONDS)
        if code := self.producer.end():
            raise PipelineError(f"producer_resilient.py s'est arrêté avec le code {code} : lisez {self.logs}.")
        confirmed = [id for ids in self.read(self.topic) for id in ids]
        deadline = time.monotonic() + DRAIN_SECONDS
        while sum(map(len, self.read(self.output))) < len(confirmed) and time.monotonic() < deadline:
            time.sleep(1)
        if any(codes := [script.end() for script in self.consumers]):
            raise PipelineError(f"consumer_resilient.py s'est arrêté avec les codes {codes} : lisez {self.logs}.")
        return confirmed

    def read(self, topic: str) -> list[list[str]]:
        """Identifiants lisibles en read_committed, partition par partition, dans l'ordre."""
        partitions = AdminClient(self.config).list_topics(topic, timeout=30).topics[topic].partitions
        found: list[list[str]] = [[] for _ in partitions]
        for message in read_topic(self.config, topic, partitions, self.stop):
            found[message.partition() or 0].append(msgspec.json.decode(message.value() or b"", type=Identified).id)
        return found

    def close(self) -> None:
        """Termine les scripts qui restent."""
        for script in (self.producer, *self.consumers):
            script.kill()


class Identified(msgspec.Struct):
    """Ce que les comptes lisent d'une transaction."""

    id: str


class Verdict(NamedTuple):
    """Les comptes : transactions perdues, doublées, inconnues, ou sorties avant une plus ancienne."""

    lost: int
    doubled: int
    unknown: int
    misplaced: int


def judge(confirmed: list[str], output: list[list[str]]) -> Verdict:
    """Compare ce que le producteur a fait confirmer à ce qui est sorti, partition par partition."""
    expected, found = Counter(confirmed), Counter(id for ids in output for id in ids)
    numbers = [[number_of(id) for id in ids] for ids in output]
    return Verdict(
        lost=sum((expected - found).values()),
        doubled=sum(count - 1 for count in found.values()),
        unknown=sum(count for id, count in found.items() if id not in expected),
        misplaced=sum(later < earlier for ids in numbers for earlier, later in pairwise(ids)),
    )


def report(chaos: Chaos, confirmed: list[str], verdict: Verdict) -> None:
    """Les comptes, sur la sortie."""
    for fault, count in sorted(chaos.faults.items()):
        print(f"{fault:<63} {count:>8}")
    holes = len(confirmed) - max(map(number_of, confirmed), default=0)
    print(f"{'transactions confirmées':<63} {french_number(len(confirmed)):>8}")
    print(f"{'numéros manquants ou répétés en entrée':<63} {abs(holes):>8}")
    for name, count in zip(("perdues", "doublées", "inconnues", "mal rangées"), verdict, strict=True):
        print(f"{name:<63} {count:>8}")
    if holes or any(verdict):
        raise PipelineError(
            f"La garantie n'est pas tenue (graine {chaos.args.seed}) : les journaux sont dans {chaos.logs}."
        )
    print("Chaque transaction confirmée est sortie une fois, dans l'ordre.")


def services(*command: str) -> None:
    """« python -m services … », pour casser et réparer."""
    done = subprocess.run([sys.executable, "-m", "services", *command], capture_output=True, text=True, check=False)
    if done.returncode and command[0] == "up":
        raise PipelineError(done.stderr.strip().splitlines()[-1])


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--seconds", type=positive(float), default=900.0, help="durée des pannes")
    parser.option("--rate", type=positive(float), default=200.0, help="transactions par seconde")
    parser.option("--seed", type=positive(zero=True), help="graine des pannes et des transactions")
    parser.option("--logs", type=Path, default=Path("/tmp/chaos"), help="dossier des journaux")  # noqa: S108
    args = parser.parse(argv)
    args.seed = secrets.randbits(16) if args.seed is None else args.seed
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    services("up")
    chaos = Chaos(args, stop)
    log.info("Graine %d, topics %s et %s, journaux dans %s.", args.seed, chaos.topic, chaos.output, chaos.logs)
    try:
        time.sleep(SETTLE_SECONDS)
        chaos.break_things()
        log.info("Fin des pannes : tout est relancé, puis compté.")
        confirmed = chaos.settle()
        report(chaos, confirmed, judge(confirmed, chaos.read(chaos.output)))
    except Stopped:
        raise PipelineError("Arrêté avant les comptes.") from None
    finally:
        chaos.close()
    return 0


if __name__ == "__main__":
    run(main)
