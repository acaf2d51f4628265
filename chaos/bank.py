"""L'exercice 2 sous les pannes : des transactions, leurs consommateurs, et les fenêtres des moniteurs.

À côté, un topic à part (apart.py), sous un consommateur à lui : il y arrive ce que le topic jugé ne permet pas.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from chaos.apart import Apart, judge_apart
from chaos.network import Network
from chaos.script import NotDoneError, Script, Trial, messages, written
from chaos.verdicts import Window, WindowsVerdict, expected_windows, holes_of, judge, judge_windows
from commun import PipelineError
from commun.kafka import admin_config, client_config
from exercice2.transactions import Transaction, parse

import msgspec
from confluent_kafka import KafkaException, Message

CONSUMERS, MONITORS = 3, 2
FREEZE_SECONDS = 10.0  # plus que la session d'un consommateur (6 s)
SLOW_SECONDS = 0.3  # par requête
DRAIN_SECONDS = 180.0  # patience, à la fin, pour que tout soit validé


class Bank:
    """Un producteur, par un réseau qui va mal ; trois consommateurs exactement-une-fois ; deux moniteurs."""

    def __init__(self, topic: str, network: Network, seed: int, trial: Trial) -> None:
        self.topic, self.network, self.dice, self.stop = topic, network, trial.dice, trial.stop
        self.output, self.windows = f"{topic}-validees", f"{topic}-fenetres"
        self.config, self.confirmed = admin_config(client_config({})), list[str]()

        def script(log: str, name: str, *options: str) -> Script:
            return Script(trial.logs / f"{log}.log", f"exercice2/{name}.py", *options)

        self.producer = script(
            "transactions", "producer_resilient", "--topic", topic, "--generate", "--seed", str(seed),
            "--rate", str(trial.rate / 5), "--bootstrap-servers", network.servers,
        )  # fmt: skip
        consume = ("consumer_resilient", "--topic", topic, "--output", self.output, "--group", topic, "--exactly-once")
        self.consumers = [script(f"validation{number}", *consume) for number in range(1, CONSUMERS + 1)]
        # Aucune partition n'est dite inactive pendant une panne : l'oracle ne connaît pas l'horloge.
        monitor = (
            "kafka_monitor", "--topic", topic, "--output", self.windows, "--alerts", f"{topic}-alertes",
            "--group", self.windows, "--by", "type", "--slide", "1", "--idle-timeout", "600",
        )  # fmt: skip
        self.monitors = [script(f"moniteur{number}", *monitor) for number in range(1, MONITORS + 1)]
        self.last_monitor = partial(script, "moniteur-fin", *monitor, "--once")
        self.apart = Apart(f"{topic}-a-part", self.config, self.dice)
        self.apart_output = f"{self.apart.name}-validees"
        self.apart_consumer = script(
            "validation-a-part", "consumer_resilient", "--topic", self.apart.name,
            "--output", self.apart_output, "--group", self.apart.name, "--exactly-once",
        )  # fmt: skip

    @property
    def scripts(self) -> list[Script]:
        """Tout ce qui tourne."""
        return [self.producer, *self.consumers, *self.monitors, self.apart_consumer]

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom."""
        faults: dict[str, Callable[[], None]] = {
            "le réseau du producteur ralenti": self.slow_network, "le réseau du producteur coupé": self.cut_network,
            "une fin de transaction redemandée, puis reçue en retard": self.late_end,
            "une partition ajoutée au topic à part": partial(self._change_apart, self.apart.grow),
            "des messages du topic à part effacés": partial(self._change_apart, self.apart.erase),
            "le topic à part effacé, puis recréé": partial(self._change_apart, self.apart.recreate),
        }  # fmt: skip
        for name, scripts in (
            ("le producteur de transactions", [self.producer]), ("un consommateur de transactions", self.consumers),
            ("un moniteur", self.monitors),
        ):  # fmt: skip
            faults[f"{name} tué"] = partial(self._kill, scripts)
            faults[f"{name} gelé"] = partial(self._freeze, scripts)
        return faults

    def _kill(self, scripts: Sequence[Script]) -> None:
        self.dice.choice(scripts).kill_then_restart(self.stop, self.dice.uniform(0, 3))

    def _freeze(self, scripts: Sequence[Script]) -> None:
        self.dice.choice(scripts).freeze_then_wake(self.stop, FREEZE_SECONDS)

    def slow_network(self) -> None:
        """Chaque requête du producteur attend."""
        self.network.seconds = SLOW_SECONDS
        self.stop.wait(self.dice.uniform(3, 6))
        self.network.seconds = 0.0

    def cut_network(self) -> None:
        """Plus rien ne passe."""
        seconds = self.dice.uniform(1, 6)
        self.network.cut(seconds)
        self.stop.wait(seconds)

    def late_end(self) -> None:
        """Une fin de transaction arrive après que le producteur l'a redemandée."""
        self.network.hold_end()
        held = self.network.held.wait(FREEZE_SECONDS)
        self.stop.wait(self.dice.uniform(0, 1.5))
        self.network.release()
        if not held:
            raise NotDoneError("aucune transaction n'a fini pendant ce temps")

    def _change_apart(self, change: Callable[[], None]) -> None:
        """Entre deux écritures ; la première n'est pas forcément lue, la seconde le sera."""
        self.apart.write()
        try:
            change()
        except KafkaException as error:
            raise NotDoneError(error.args[0].str()) from error
        self.apart.write()

    def progress(self) -> int:
        """Un nombre qui monte tant que des transactions sont validées."""
        return written(self.output)

    # --- La fin, et les comptes ---

    def settle(self) -> None:
        """Le producteur finit ; ce qu'il a confirmé est traité, et les dernières fenêtres publiées."""
        self.producer.end()
        self.confirmed = [id for ids in self.read_ids(self.topic) for id in ids]
        deadline = time.monotonic() + DRAIN_SECONDS
        while sum(map(len, self.read_ids(self.output))) < len(self.confirmed) and time.monotonic() < deadline:
            time.sleep(1)
        while judge_apart(*self.read_apart())[0] and time.monotonic() < deadline:
            time.sleep(1)
        for script in [*self.consumers, *self.monitors, self.apart_consumer]:
            script.end()
        self.monitors[0] = self.last_monitor()  # ce qui restait à publier
        if self.monitors[0].process.wait(DRAIN_SECONDS):
            raise PipelineError(f"kafka_monitor.py --once n'a pas fini : lisez {self.monitors[0].log_path}.")

    def judge(self) -> tuple[list[tuple[str, int]], int]:
        """Ce qui a été compté, et le nombre de fautes."""
        expected, windows = self.judge_windows()
        wrong = [
            ("numéros manquants ou répétés en entrée", holes_of(self.confirmed)),
            *zip(("transactions perdues", "doublées", "inconnues", "mal rangées"),
                 judge(self.confirmed, self.read_ids(self.output)), strict=True),
            *zip(("topic à part : perdues", "topic à part : doublées"), judge_apart(*self.read_apart()), strict=True),
            *zip(("fenêtres manquantes", "publiées deux fois", "inconnues", "fausses"), windows, strict=True),
        ]  # fmt: skip
        counts = [("transactions confirmées", len(self.confirmed)), ("fenêtres attendues", expected), *wrong]
        return counts, sum(count for _, count in wrong) + (not expected)

    def read_ids(self, topic: str) -> list[list[str]]:
        """Identifiants des transactions d'un topic, partition par partition."""
        found: dict[int, list[str]] = defaultdict(list)
        for message in messages(topic):
            found[message.partition() or 0].append(msgspec.json.decode(message.value() or b"", type=Identified).id)
        return list(found.values())

    def read_apart(self) -> tuple[list[str], list[str]]:
        """Identifiants du topic à part, et de sa sortie."""
        topic, output = map(self.read_ids, (self.apart.name, self.apart_output))
        return [id for ids in topic for id in ids], [id for ids in output for id in ids]

    def judge_windows(self) -> tuple[int, WindowsVerdict]:
        """Nombre de fenêtres attendues, recalculées à partir du topic, et ce qui a été publié à la place."""
        expected = expected_windows(transactions(messages(self.topic)), "type", timedelta(seconds=1))
        decode = msgspec.json.Decoder(Window).decode
        published = (decode(message.value() or b"") for message in messages(self.windows))
        return len(expected), judge_windows(expected, published)

    def close(self) -> None:
        """Termine ce qui reste."""
        for script in self.scripts:
            script.kill()


def transactions(found: Iterable[Message]) -> Iterator[tuple[int, Transaction]]:
    """Partition et transaction de chaque message."""
    now = datetime.now(UTC)
    return ((message.partition() or 0, parse(message.value(), now)) for message in found)


class Identified(msgspec.Struct):
    """Ce que les comptes lisent d'une transaction."""

    id: str
