"""Des moniteurs de fenêtres devant un cluster simulé : chaque fenêtre publiée une fois, juste.

Le code essayé est le vrai : les deux étages de kafka_monitor.py (fenetres/counting.py, merging.py, partials.py) et
leurs deux membres de groupe. Des moniteurs sont tués, gelés, exclus, arrêtés, relancés, entre n'importe quels appels ;
des réponses se perdent ; le topic intermédiaire est purgé. L'oracle met chaque transaction du topic dans toutes ses
fenêtres, une par une (verdicts.py), sans rien partager avec elles. « python -m tests.models.monitors 2000 ».
"""

import random
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from chaos.verdicts import DELAY, SIZE, Window, expected_windows, judge_windows
from exercice2 import kafka_monitor
from exercice2.fenetres import counting, merging
from exercice2.kafka_monitor import Monitor
from exercice2.transactions import TYPES, Transaction, to_json
from tests.models.cluster import Admin, Record
from tests.models.cluster import Transaction as KafkaTransaction
from tests.models.histories import play
from tests.models.world import NoStop, Now, World, connector, tell

import msgspec

INPUT, PARTIALS, OUTPUT, LETTERS, GROUP = "in", "partiels", "out", "dlq", "g"
START = datetime(2026, 1, 1, tzinfo=UTC)
SLIDES = (10_000, 60_000, 7_000, None)
EARLY_MS = 4_900  # moins que le retard attendu : aucune transaction n'est refusée


class Life:
    """Un moniteur."""

    def __init__(self, args: Namespace, world: "Monitors") -> None:
        stop: Any = NoStop(world.cluster)
        self.monitor = Monitor(args, stop, {"group.id": ""}, {})
        self.members = (self.monitor.first, self.monitor.second)
        self.monitor.join()

    @property
    def consumers(self) -> list[Any]:
        """Ses clients."""
        return [member.consumer for member in self.members]

    def step(self) -> None:
        """Un tour."""
        self.monitor.step(False)

    def settle(self) -> None:
        """Valide ce qui est fait."""
        for member in self.members:
            member.checkpoint()

    def close(self) -> None:
        """Comme à la fin de kafka_monitor.py."""
        for one in (*self.members, self.monitor.merging):
            one.close()


class Monitors(World):
    """Une histoire."""

    final_turns = 400  # les comptes se lisent parfois un à un

    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed))
        dice, self.count = self.dice, 0
        self.times = [0] * dice.randint(1, 3)  # où en est le temps de chaque partition, en millisecondes
        for name, partitions in ((INPUT, len(self.times)), (PARTIALS, 1), (OUTPUT, 1), (LETTERS, 1)):
            self.cluster.create(name, partitions)
        self.args = Namespace(
            topic=INPUT, partials=PARTIALS, output=OUTPUT, dead_letters=LETTERS, group=GROUP, alert=[], grace_ms=0,
            size_ms=SIZE // timedelta(milliseconds=1), slide_ms=dice.choice(SLIDES), by=dice.choice((None, "type")),
            max_delay_ms=DELAY // timedelta(milliseconds=1), max_future_ms=0, idle_timeout=1e9,
            partitions=len(self.times),
        )  # fmt: skip

    def new_life(self, *_: Any) -> Life:
        """Un moniteur neuf."""
        return Life(self.args, self)

    def begin(self) -> None:
        """Chaque partition a dit quelque chose : aucune ne retient les autres pour toujours."""
        for number in range(len(self.times)):
            self.add(number, 1_000)
        self.born()

    def last_words(self) -> None:
        """Assez pour fermer bien des fenêtres."""
        for number in range(len(self.times)):
            self.add(number, 90_000)

    def write(self) -> None:
        """Des transactions de plus, dans une partition."""
        number = self.dice.randrange(len(self.times))
        for _ in range(self.dice.randint(1, 4)):
            self.add(number, self.dice.randint(0, 12_000))

    def add(self, number: int, later_ms: int) -> None:
        """Une transaction ; en avance sur la précédente, ou à peine en retard."""
        dice = self.dice
        self.count += 1
        self.times[number] += later_ms
        instant = START + timedelta(milliseconds=self.times[number] - dice.choice((0, dice.randint(0, EARLY_MS))))
        amount = Decimal(dice.randint(1, 9_999)) / 100
        one = Transaction(
            f"t-{self.count:06d}", instant, amount, dice.choice(tuple(TYPES)[:2]), "FR1", "Bretagne", "web"
        )
        self.cluster.topics[INPUT].logs[number].records.append(Record(to_json(one)))
        if dice.random() < 0.2:  # une transaction Kafka annulée ne compte pas, et laisse un trou d'offsets
            gone = KafkaTransaction(0, "aborted")
            self.cluster.topics[INPUT].logs[number].records += [Record(to_json(one), gone), Record(None, gone, True)]

    def judge(self) -> str:
        """Les fenêtres, ou ce qui les distingue de celles qu'il fallait."""
        topic, published = self.cluster.topics[INPUT], self.cluster.topics[OUTPUT].logs[0].visible()
        stream = [(number, row(value)) for number, log in enumerate(topic.logs) for _, value in log.visible()]
        if self.cluster.topics[LETTERS].logs[0].records:
            return "fenêtres : une transaction à l'heure est refusée"
        if self.args.slide_ms is None:
            return trailing_fault(stream, self.args.by, (value for _, value in published))
        slide = timedelta(milliseconds=self.args.slide_ms)
        expected = expected_windows(stream, self.args.by, slide)
        found = judge_windows(expected, (msgspec.json.decode(value, type=Window) for _, value in published))
        return f"fenêtres : {found}" if any(found) or not expected else ""


def row(value: bytes) -> Transaction:
    """La transaction d'un message."""
    found = msgspec.json.decode(value, type=Row)
    return Transaction(found.id, found.timestamp, found.montant, found.type, found.compte, found.region, found.canal)


class Row(msgspec.Struct):
    """Un message."""

    id: str
    timestamp: datetime
    montant: Decimal
    type: str
    compte: str
    region: str
    canal: str


class Trailing(Window):
    """Une fenêtre qui finit à une transaction."""

    id: str


def trailing_fault(stream: list[tuple[int, Transaction]], by: str | None, published: Iterable[bytes]) -> str:
    """--slide event : pour chaque transaction close, les soixante secondes qui la précèdent, bornes comprises."""
    highest: dict[int, datetime] = {}
    for number, one in stream:
        highest[number] = max(one.timestamp, highest.get(number, START))
    expected: Counter[Any] = Counter()
    for _, one in stream:
        if one.timestamp <= min(highest.values()) - DELAY:
            inside = [
                other.montant
                for _, other in stream
                if one.timestamp - SIZE <= other.timestamp <= one.timestamp and (not by or other.type == one.type)
            ]
            expected[one.id, one.timestamp, len(inside), sum(inside), min(inside), max(inside)] += 1
    rows = [msgspec.json.decode(value, type=Trailing) for value in published]
    found = Counter((w.id, w.fin, w.nombre, w.montant_total, w.montant_min, w.montant_max) for w in rows)
    missing, extra = (expected - found).total(), (found - expected).total()
    return f"fenêtres : {missing} manquent, {extra} de trop ou fausses" if missing or extra else ""


def live(seed: int) -> str:
    """Une histoire ; ce qui n'y est pas allé, ou rien."""
    world = Monitors(seed)
    cluster, now = world.cluster, Now(world.cluster)
    more: dict[Any, dict[str, Any]] = {
        kafka_monitor: {
            "time": now, "BATCH": world.dice.randint(1, 6), "PARTIALS_BATCH": world.dice.randint(1, 4),
            "LIVE_SECONDS": world.dice.choice((0.0, 0.5, 2.0)),
        },
        counting: {"time": now},
        merging: {
            "time": now, "connect": connector(cluster), "AdminClient": lambda _: Admin(cluster), "PURGE_SECONDS": 5.0,
        },
    }  # fmt: skip
    return tell(world, more, seed)


if __name__ == "__main__":
    play(live, "histoires")
