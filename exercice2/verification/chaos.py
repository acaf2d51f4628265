"""Casse tout pendant que les transactions passent, puis compte : rien de perdu, rien de doublé, dans l'ordre.

    python chaos.py                        quinze minutes de pannes sur les serveurs locaux
    python chaos.py --seconds 60 --seed 7  toujours les mêmes pannes, dans le même ordre

Un producteur envoie à un rythme régulier, trois consommateurs valident avec --exactly-once, deux moniteurs
comptent par fenêtres. Au hasard : un broker tué, deux à la fois, un broker gelé plus longtemps que sa session,
les chefs de partition déplacés, un consommateur ou un moniteur tué, ou gelé plus longtemps que sa session, le
producteur tué ou gelé, son réseau ralenti, coupé, ou une fin de transaction qui y arrive après qu'il l'a redemandée.
Dans un topic à part, sous un consommateur à lui : une partition ajoutée, des messages effacés, le topic recréé.
À la fin, tout est relancé, et les topics de sortie sont relus en read_committed.
Garantit : le code de sortie est 0 si chaque transaction confirmée y est exactement une fois, dans l'ordre
de son compte, et chaque fenêtre une fois, juste ; 1 sinon, avec ce qui est perdu, doublé, mal rangé ou faux.
Ne garantit pas : de laisser vos serveurs tranquilles. Il tue ceux de « python -m services ».
Ensuite : les comptes sont dans verdicts.py, le réseau dans network.py, le topic à part dans apart.py ; le même
essai, court, est dans tests/faults/test_chaos.py.
"""

import argparse
import logging
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.kafka import admin_config, client_config
from commun.settings import bootstrap_servers
from commun.topics import read_topic
from exercice2.transactions import Transaction, parse
from exercice2.verification.apart import Apart, judge_apart
from exercice2.verification.network import Network
from exercice2.verification.verdicts import (
    Verdict,
    Window,
    WindowsVerdict,
    expected_windows,
    holes_of,
    judge,
    judge_windows,
)

import msgspec
from confluent_kafka import ElectionType, KafkaException, Message
from confluent_kafka.admin import AdminClient

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).resolve().parent.parent
BROKERS = ("kafka1", "kafka2", "kafka3")
CONSUMERS, MONITORS = 3, 2
FREEZE_SECONDS = 10.0  # plus que la session d'un consommateur (6 s) ou d'un broker (9 s)
LONG_SECONDS = 40.0  # plus que le délai de livraison du producteur (30 s) : sa transaction est annulée
LONG_RUN = 300.0  # un essai plus court n'a pas le temps d'une telle panne
SETTLE_SECONDS = 5.0
LOGS = Path(tempfile.gettempdir()) / "chaos"
SLOW_SECONDS = 0.3  # par requête
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

    def refuse_dead(self) -> None:
        """Lève PipelineError s'il s'est arrêté de lui-même : ce n'est pas une panne qu'on lui a faite."""
        if (code := self.process.poll()) is not None:
            raise PipelineError(f"{self.command[0]} s'est arrêté de lui-même (code {code}) : lisez {self.log_path}.")

    def restart(self) -> None:
        """Le relance, tué."""
        self.process = self._start()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Arrêt propre ; le code de sortie."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return self.process.wait(90)


class NotDoneError(Exception):
    """La panne voulue n'a pas eu lieu."""


class Chaos:
    """Un essai : ses topics, ses scripts, ses pannes."""

    def __init__(self, args: argparse.Namespace, stop: Stop, network: Network) -> None:
        self.args, self.stop, self.network = args, stop, network
        self.dice = random.Random(args.seed)  # noqa: S311 - des pannes rejouables
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        self.topic, self.output, self.windows = name, f"{name}-validees", f"{name}-fenetres"
        self.logs = args.logs / name
        self.logs.mkdir(parents=True)
        self.faults: Counter[str] = Counter()
        self.config = admin_config(client_config({}))
        self.producer = Script(
            self.logs / "producer.log", "producer_resilient.py", "--topic", name, "--generate",
            "--seed", str(args.seed), "--rate", str(args.rate), "--bootstrap-servers", network.servers,
        )  # fmt: skip
        self.consumers = [
            Script(
                self.logs / f"consumer{number}.log", "consumer_resilient.py", "--topic", name, "--output", self.output,
                "--group", name, "--exactly-once",
            )
            for number in range(1, CONSUMERS + 1)
        ]  # fmt: skip
        # Aucune partition n'est dite inactive pendant une panne : l'oracle ne connaît pas l'horloge.
        self.monitor = [
            "kafka_monitor.py", "--topic", name, "--output", self.windows, "--alerts", f"{name}-alertes",
            "--group", f"{name}-fenetres", "--by", "type", "--slide", "1", "--idle-timeout", "600",
        ]  # fmt: skip
        self.monitors = [Script(self.logs / f"monitor{n}.log", *self.monitor) for n in range(1, MONITORS + 1)]
        self.apart = Apart(f"{name}-a-part", self.config, self.dice)
        self.apart_output = f"{self.apart.name}-validees"
        self.apart_consumer = Script(
            self.logs / "consumer-a-part.log", "consumer_resilient.py", "--topic", self.apart.name,
            "--output", self.apart_output, "--group", self.apart.name, "--exactly-once",
        )  # fmt: skip

    # --- Les pannes ---

    def break_things(self) -> None:
        """Une panne après l'autre, jusqu'à la fin du temps."""
        kinds: list[Callable[[], None]] = [
            self.one_broker, self.two_brokers, self.freeze_broker, self.move_leaders,
            self.kill_consumer, self.freeze_consumer, self.kill_monitor, self.freeze_monitor,
            self.kill_producer, self.freeze_producer, self.slow_network, self.cut_network, self.late_end,
            self.grow_apart, self.erase_apart, self.recreate_apart,
        ]  # fmt: skip
        if self.args.seconds >= LONG_RUN:
            kinds.append(self.two_brokers_for_long)
        deadline = time.monotonic() + self.args.seconds
        self.dice.shuffle(kinds)
        number = 0
        while time.monotonic() < deadline and not self.stop.wait(self.dice.uniform(1, 4)):
            # Un premier tour passe par toutes, dans un ordre tiré au sort ; ensuite, au hasard.
            fault = kinds[number] if number < len(kinds) else self.dice.choice(kinds)
            log.info("Panne : %s", fault.__doc__)
            try:
                fault()
                self.faults[fault.__doc__ or ""] += 1
            except NotDoneError as error:
                self.faults["(pannes qui n'ont pas eu lieu)"] += 1
                log.warning("Cette panne n'a pas eu lieu : %s", error)
            for script in self.scripts:
                script.refuse_dead()
            number += 1

    @property
    def scripts(self) -> list[Script]:
        """Tous les scripts de l'essai."""
        return [self.producer, *self.consumers, *self.monitors, self.apart_consumer]

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
        dead: list[str] = []
        try:
            for name in self.dice.sample(BROKERS, count):
                services("kill", name)
                dead.append(name)
            self.stop.wait(seconds)
        finally:
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

    def kill_monitor(self) -> None:
        """Un moniteur tué"""
        self._kill(self.dice.choice(self.monitors))

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

    def freeze_monitor(self) -> None:
        """Un moniteur gelé plus longtemps que sa session"""
        self._freeze(self.dice.choice(self.monitors))

    def freeze_producer(self) -> None:
        """Le producteur gelé"""
        self._freeze(self.producer)

    def _freeze(self, script: Script) -> None:
        script.send(signal.SIGSTOP)
        self.stop.wait(FREEZE_SECONDS)
        script.send(signal.SIGCONT)

    def slow_network(self) -> None:
        """Le réseau du producteur ralenti"""
        self.network.seconds = SLOW_SECONDS
        self.stop.wait(self.dice.uniform(3, 6))
        self.network.seconds = 0.0

    def cut_network(self) -> None:
        """Le réseau du producteur coupé"""
        seconds = self.dice.uniform(1, 6)
        self.network.cut(seconds)
        self.stop.wait(seconds)

    def late_end(self) -> None:
        """Une fin de transaction redemandée, puis reçue en retard"""
        self.network.hold_end()
        held = self.network.held.wait(FREEZE_SECONDS)
        self.stop.wait(self.dice.uniform(0, 1.5))
        self.network.release()
        if not held:
            raise NotDoneError("aucune transaction n'a fini pendant ce temps")

    def grow_apart(self) -> None:
        """Une partition ajoutée au topic à part"""
        self._change_apart(self.apart.grow)

    def erase_apart(self) -> None:
        """Des messages du topic à part effacés"""
        self._change_apart(self.apart.erase)

    def recreate_apart(self) -> None:
        """Le topic à part effacé, puis recréé"""
        self._change_apart(self.apart.recreate)

    def _change_apart(self, change: Callable[[], None]) -> None:
        """Entre deux écritures ; la première n'est pas forcément lue, la seconde le sera."""
        self.apart.write()
        try:
            change()
        except KafkaException as error:
            raise NotDoneError(error.args[0].str()) from error
        self.apart.write()

    def move_leaders(self) -> None:
        """Les chefs de partition déplacés"""
        # Après une panne, d'autres brokers mènent les partitions : on les rend à leurs chefs d'origine.
        admin = AdminClient(self.config)
        try:
            admin.elect_leaders(ElectionType.PREFERRED, None).result(60)  # le client 2.16 refuse les délais
        except KafkaException as error:
            raise NotDoneError(error.args[0].str()) from error

    # --- La fin, et les comptes ---

    def settle(self) -> list[str]:
        """Tout est relancé, le producteur arrêté ; rend les identifiants confirmés, une fois qu'ils sont traités."""
        services("up")
        time.sleep(SETTLE_SECONDS)
        for script in self.scripts:
            script.refuse_dead()
        self._end([self.producer])
        confirmed = [id for ids in self.read_ids(self.topic) for id in ids]
        deadline = time.monotonic() + DRAIN_SECONDS
        while sum(map(len, self.read_ids(self.output))) < len(confirmed) and time.monotonic() < deadline:
            time.sleep(1)
        while judge_apart(*self.read_apart())[0] and time.monotonic() < deadline:
            time.sleep(1)
        self._end([*self.consumers, *self.monitors, self.apart_consumer])
        self.monitors[0] = Script(self.logs / "monitor.log", *self.monitor, "--once")  # ce qui restait à publier
        if self.monitors[0].process.wait(DRAIN_SECONDS):
            raise PipelineError(f"kafka_monitor.py --once n'a pas fini : lisez {self.logs}.")
        return confirmed

    def _end(self, scripts: Sequence[Script]) -> None:
        for script in scripts:
            if code := script.end():
                raise PipelineError(f"{script.command[0]} s'est arrêté avec le code {code} : lisez {self.logs}.")

    def read(self, topic: str) -> Iterator[Message]:
        """Messages lisibles en read_committed, dans l'ordre de chaque partition."""
        partitions = AdminClient(self.config).list_topics(topic, timeout=30).topics[topic].partitions
        return read_topic(self.config, topic, partitions, self.stop)

    def read_ids(self, topic: str) -> list[list[str]]:
        """Identifiants des transactions d'un topic, partition par partition."""
        found: dict[int, list[str]] = defaultdict(list)
        for message in self.read(topic):
            found[message.partition() or 0].append(msgspec.json.decode(message.value() or b"", type=Identified).id)
        return list(found.values())

    def read_apart(self) -> tuple[list[str], list[str]]:
        """Identifiants du topic à part, et de sa sortie."""
        topic, output = map(self.read_ids, (self.apart.name, self.apart_output))
        return [id for ids in topic for id in ids], [id for ids in output for id in ids]

    def judge_windows(self) -> tuple[int, WindowsVerdict]:
        """Nombre de fenêtres attendues, recalculées à partir du topic, et ce qui a été publié à la place."""
        expected = expected_windows(transactions(self.read(self.topic)), "type", timedelta(seconds=1))
        decode = msgspec.json.Decoder(Window).decode
        published = (decode(message.value() or b"") for message in self.read(self.windows))
        return len(expected), judge_windows(expected, published)

    def close(self) -> None:
        """Termine les scripts qui restent."""
        for script in self.scripts:
            script.kill()


def transactions(messages: Iterable[Message]) -> Iterator[tuple[int, Transaction]]:
    """Partition et transaction de chaque message."""
    now = datetime.now(UTC)
    return ((message.partition() or 0, parse(message.value(), now)) for message in messages)


class Identified(msgspec.Struct):
    """Ce que les comptes lisent d'une transaction."""

    id: str


def report(chaos: Chaos, confirmed: list[str], verdict: Verdict, windows: int, judged: WindowsVerdict) -> None:
    """Les comptes, sur la sortie."""
    holes = holes_of(confirmed)
    rows = sorted(chaos.faults.items())
    rows += [("transactions confirmées", len(confirmed)), ("numéros manquants ou répétés en entrée", holes)]
    rows += zip(("perdues", "doublées", "inconnues", "mal rangées"), verdict, strict=True)
    apart = judge_apart(*chaos.read_apart())
    rows += zip(("topic à part : perdues", "topic à part : doublées"), apart, strict=True)
    rows += [("fenêtres attendues", windows)]
    rows += zip(("manquantes", "publiées deux fois", "inconnues", "fausses"), judged, strict=True)
    for name, count in rows:
        print(f"{name:<63} {french_number(count):>8}")
    if holes or any(verdict) or any(apart) or any(judged) or not windows:
        raise PipelineError(
            f"La garantie n'est pas tenue (graine {chaos.args.seed}) : les journaux sont dans {chaos.logs}."
        )
    print("Chaque transaction confirmée est sortie une fois, dans l'ordre ; chaque fenêtre une fois, juste.")


def services(*command: str) -> None:
    """« python -m services … », pour casser et réparer ; lève NotDoneError si ce n'est pas fait."""
    done = subprocess.run([sys.executable, "-m", "services", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise PipelineError(why) if command[0] in ("up", "restart", "resume") else NotDoneError(why)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--seconds", type=positive(float), default=900.0, help="durée des pannes")
    parser.option("--rate", type=positive(float), default=200.0, help="transactions par seconde")
    parser.option("--seed", type=positive(zero=True), help="graine des pannes et des transactions")
    parser.option("--logs", type=Path, default=LOGS, help="dossier des journaux")
    args = parser.parse(argv)
    args.seed = secrets.randbits(16) if args.seed is None else args.seed
    return args


def play(chaos: Chaos) -> int:
    """Les pannes, puis les comptes."""
    args = chaos.args
    log.info("Graine %d, topics %s et %s, journaux dans %s.", args.seed, chaos.topic, chaos.output, chaos.logs)
    try:
        time.sleep(SETTLE_SECONDS)
        chaos.break_things()
        log.info("Fin des pannes : tout est relancé, puis compté.")
        confirmed = chaos.settle()
        report(chaos, confirmed, judge(confirmed, chaos.read_ids(chaos.output)), *chaos.judge_windows())
    except Stopped:
        raise PipelineError("Arrêté avant les comptes.") from None
    finally:
        chaos.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    services("up")
    with Network(bootstrap_servers()) as network:
        return play(Chaos(args, stop, network))


if __name__ == "__main__":
    run(main)
