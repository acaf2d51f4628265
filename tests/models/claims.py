"""Des producteurs qui se disputent des sources, dans un ordre quelconque, devant un Kafka simulé.

Le code essayé est le vrai (commun.exactly_once.Positions). Kafka est une liste en mémoire, avec ce qui compte ici :
transactions et époques, lecteurs qui attendent la fin des transactions, refus, réponses perdues, compaction. Un seul
fil tourne à la fois ; à chaque appel du client Kafka, le hasard choisit qui continue, et qui est tué. L'oracle :
chaque ligne de chaque source est lisible une fois, dans l'ordre. ``python -m tests.models.claims 5000``.
"""

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from commun import Aborted, exactly_once
from commun.exactly_once import Positions
from tests.models.histories import play

from confluent_kafka import KafkaError, KafkaException

TOPIC = "t"
ROWS = 12
FORMER = b"0123456789abcdef"
MOST_TURNS = 20_000
TIMEOUT_TURNS = 60  # une transaction abandonnée est annulée au bout de ce nombre de tours


class KilledError(BaseException):
    """Ce processus est tué net, à cet instant."""


@dataclass
class Transaction:
    """Une transaction : ouverte, validée ou annulée."""

    state: str = "open"
    turn: int = 0


@dataclass
class Record:
    """Un message ; sans transaction, il est lisible aussitôt."""

    topic_name: str
    key_bytes: bytes | None
    value_bytes: bytes | None
    transaction: Transaction | None = None
    dropped: bool = False  # effacé par la compaction

    def key(self) -> bytes | None:
        """Comme Message."""
        return self.key_bytes

    def value(self) -> bytes | None:
        """Comme Message."""
        return self.value_bytes

    def topic(self) -> str:
        """Comme Message."""
        return self.topic_name


def refused(code: int, *, fatal: bool = False, retriable: bool = False, abort: bool = False) -> KafkaException:
    """Un refus du client Kafka."""
    return KafkaException(KafkaError(code, "simulé", fatal, retriable, abort))


@dataclass
class World:
    """Kafka, et le tour de parole."""

    dice: random.Random
    log: list[Record] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    current: dict[str, Transaction] = field(default_factory=dict)  # transaction ouverte de chaque identifiant
    turns: int = 0
    doomed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.baton = threading.Condition()
        self.here = threading.local()  # number : le numéro du processus de ce fil
        self.running: list[int] = []
        self.speaking: int | None = None

    # --- Un seul fil à la fois ---

    def turn(self) -> None:
        """Un point où un autre peut passer, et celui-ci mourir."""
        me = getattr(self.here, "number", None)
        if me is None:  # un fil que le code essayé a ouvert, et attend : il parle pour lui
            return
        with self.baton:
            self.turns += 1
            assert self.turns < MOST_TURNS, "deux processus ne font que se gêner"
            self.end_forgotten()
            if self.dice.random() < 0.05:
                self.compact()
            self.speaking = self.dice.choice(self.running)
            self.baton.notify_all()
            self.baton.wait_for(lambda: self.speaking == me)
        if me in self.doomed:
            raise KilledError

    def run(self, lives: list[Callable[[], None]]) -> None:
        """Fait vivre ces processus jusqu'au bout."""
        ready = threading.Barrier(len(lives) + 1)
        faults: list[BaseException] = []

        def one(me: int, life: Callable[[], None]) -> None:
            self.here.number = me
            ready.wait()
            with self.baton:
                self.baton.wait_for(lambda: self.speaking == me)
            try:
                life()
            except KilledError:
                pass
            except BaseException as error:
                faults.append(error)
            finally:
                with self.baton:
                    self.running.remove(me)
                    self.speaking = self.dice.choice(self.running) if self.running else None
                    self.baton.notify_all()

        threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in enumerate(lives)]
        self.running = list(range(len(lives)))
        for thread in threads:
            thread.start()
        ready.wait()
        with self.baton:
            self.speaking = self.dice.choice(self.running)
            self.baton.notify_all()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "un processus ne finit pas"
        if faults:
            raise faults[0]

    # --- Kafka ---

    def end_forgotten(self) -> None:
        """Une transaction que personne ne finit est annulée au bout d'un temps."""
        for name, transaction in list(self.current.items()):
            if transaction.state == "open" and self.turns - transaction.turn > TIMEOUT_TURNS:
                transaction.state = "aborted"
                self.epochs[name] += 1

    def compact(self) -> None:
        """Kafka ne garde que la dernière valeur de chaque clé du topic des positions."""
        last: dict[bytes | None, Record] = {}
        for record in self.log:
            if record.topic_name == f"{TOPIC}-positions" and (
                not record.transaction or record.transaction.state != "open"
            ):
                if record.transaction and record.transaction.state == "aborted":
                    record.dropped = True
                    continue
                if record.key_bytes in last:
                    last[record.key_bytes].dropped = True
                last[record.key_bytes] = record

    def read(self, topic: str, isolation: str) -> Iterator[Record]:
        """Ce que voit un lecteur ; read_committed attend la fin des transactions ouvertes."""
        end = len(self.log)
        while isolation == "read_committed" and any(
            record.transaction and record.transaction.state == "open" for record in self.log[:end]
        ):
            self.turn()
        for record in self.log[:end]:
            aborted = record.transaction and record.transaction.state == "aborted"
            if record.topic_name == topic and not record.dropped and not (aborted and isolation == "read_committed"):
                yield record


class Client:
    """Un Producer, transactionnel ou non."""

    def __init__(self, world: World, config: dict[str, Any]) -> None:
        self.world, self.name = world, str(config.get("transactional.id", ""))
        self.epoch, self.steady = -1, False
        self.transaction: Transaction | None = None

    def init_transactions(self, _: float) -> None:
        """Une époque de plus : qui avait la précédente est écarté, sa transaction annulée."""
        self.world.turn()
        if self.world.dice.random() < 0.1:
            raise refused(KafkaError._TIMED_OUT, retriable=True)
        self.epoch = self.world.epochs[self.name] = self.world.epochs.get(self.name, 0) + 1
        before = self.world.current.pop(self.name, None)
        if before and before.state == "open":
            before.state = "aborted"
        self.world.turn()

    def _fenced(self) -> bool:
        return self.world.epochs[self.name] != self.epoch

    def begin_transaction(self) -> None:
        """Local, comme dans librdkafka."""
        self.transaction = Transaction(turn=self.world.turns)

    def produce(self, topic: str, value: bytes | None, key: bytes | str | None = None, **_: Any) -> None:
        """Un message de plus ; d'une époque passée, il n'arrive jamais, et rien ne le dit avant la validation."""
        self.world.turn()
        raw = key.encode() if isinstance(key, str) else key
        if not self.name:
            self.world.log.append(Record(topic, raw, value))
        elif not self._fenced() and self.transaction and self.transaction.state == "open":
            self.world.current[self.name] = self.transaction
            self.world.log.append(Record(topic, raw, value, self.transaction))

    def commit_transaction(self, _: float) -> None:
        """Tout, ou rien ; la réponse peut se perdre, avant ou après."""
        self.world.turn()
        chance = self.world.dice.random()
        assert self.transaction is not None
        if self._fenced():
            raise refused(KafkaError._FENCED, fatal=True)
        if self.transaction.state == "committed":  # la réponse s'était perdue
            return
        if chance < 0.1 and not self.steady:
            raise refused(KafkaError._TIMED_OUT, abort=True)
        if chance < 0.2:
            raise refused(KafkaError._TIMED_OUT, retriable=True)
        self.transaction.state = "committed"
        self.world.current.pop(self.name, None)
        if chance < 0.3:
            raise refused(KafkaError._TIMED_OUT, retriable=True)

    def abort_transaction(self, _: float) -> None:
        """Rien."""
        self.world.turn()
        if self._fenced():
            raise refused(KafkaError._FENCED, fatal=True)
        if self.transaction and self.transaction.state == "open":
            self.transaction.state = "aborted"
        self.world.current.pop(self.name, None)

    def flush(self, _: float) -> int:
        """Tout est parti."""
        self.world.turn()
        return 0

    def poll(self, _: float = 0) -> int:
        """Rien à servir."""
        return 0

    def purge(self) -> None:
        """Rien en vol."""


class NoStop:
    """Personne ne demande l'arrêt."""

    def __bool__(self) -> bool:
        return False


def process(world: World, sources: list[bytes], *, clean: bool) -> None:
    """Un producteur : prend des sources, et en envoie les lignes jusqu'à la dernière, ou jusqu'à les perdre."""
    positions = Positions({}, TOPIC, NoStop())  # type: ignore[arg-type]
    places = dict.fromkeys(sources, 0) | {s: int(v) for s, v in positions.take(sources).items()}
    while mine := [source for source in sources if source in positions.mine and places[source] < ROWS]:
        new = dict(places)
        try:
            for source in world.dice.sample(mine, world.dice.randint(1, len(mine))):
                for _ in range(world.dice.randint(1, 3)):
                    if new[source] < ROWS:
                        positions.producer.write(TOPIC, b"%d" % new[source], source)
                        new[source] += 1
                positions.write(source, b"%d" % new[source])
            positions.producer.commit()
            places = new
        except Aborted:
            _, found = positions.recover()
            if found is not None:
                places |= dict.fromkeys(positions.mine, 0) | {source: int(value) for source, value in found.items()}
    if clean:
        positions.close()


def former(world: World, source: bytes) -> Callable[[], None]:
    """Un producteur de la version d'avant, déjà en marche : un identifiant par source, une annonce par source.

    Elle regardait les annonces avant de rouvrir son producteur, et non après : si une de ses transactions échoue
    d'elle-même à l'instant où on la remplace, elle peut revenir. Cela ne se répare plus ; le modèle l'en dispense.
    """
    session, name = FORMER, f"{TOPIC}:{source.decode()}"
    client = Client(world, {"transactional.id": name})
    client.steady = True

    def start() -> int:
        exactly_once.patiently(lambda: client.init_transactions(1), NoStop())  # type: ignore[arg-type]
        values = [r.value() for r in world.read(f"{TOPIC}-positions", "read_committed") if r.key() == source]
        return int(values[-1] or 0) if values else 0

    world.log.append(Record(f"{TOPIC}-positions", Positions.CLAIM + source, session))
    start()

    def life() -> None:
        place = 0
        while place < ROWS:
            client.begin_transaction()
            client.produce(TOPIC, b"%d" % place, source)
            client.produce(f"{TOPIC}-positions", b"%d" % (place + 1), source)
            try:
                exactly_once.patiently(lambda: client.commit_transaction(1), NoStop())  # type: ignore[arg-type]
                place += 1
            except KafkaException:
                claims = {r.key(): r.value() for r in world.read(f"{TOPIC}-positions", "read_uncommitted")}
                if claims.get(Positions.CLAIM + source) != session:
                    return
                place = start()

    return life


def live(seed: int) -> str:
    """Une histoire ; ce qui n'y est pas allé, ou rien."""
    dice = random.Random(seed)
    world = World(dice)
    sources = [b"a", b"b", b"c"][: dice.randint(1, 3)]

    def read(_: object, topic: str, __: Iterable[int], ___: object = None, isolation: str = "read_committed") -> Any:
        world.turn()
        return list(world.read(topic, isolation))

    def mortal(life: Callable[[], None]) -> Callable[[], None]:
        limit = dice.randint(1, 120) if dice.random() < 0.5 else None

        def run() -> None:
            if limit is not None:
                deaths[world.here.number] = limit
            life()

        return run

    deaths: dict[int, int] = {}
    turn = world.turn

    def counted() -> None:
        me = getattr(world.here, "number", -1)
        deaths[me] = deaths.get(me, sys.maxsize) - 1
        if not deaths[me]:
            world.doomed.add(me)
        turn()

    world.turn = counted  # type: ignore[method-assign]
    lives: list[Callable[[], None]] = []
    if dice.random() < 0.3:
        lives.append(mortal(former(world, sources[0])))
    for _ in range(dice.randint(1, 4)):
        wanted = dice.sample(sources, dice.randint(1, len(sources)))
        lives.append(mortal(lambda wanted=wanted: process(world, wanted, clean=dice.random() < 0.5)))  # type: ignore[misc]
    patches: dict[str, Any] = {
        "connect": lambda _, config: Client(world, config),
        "read_topic": read,
        "admin_config": lambda config: {},
        "uuid": mock.Mock(uuid4=lambda: mock.Mock(hex=f"{dice.getrandbits(64):016x}")),
    }
    with mock.patch.multiple(exactly_once, **patches):
        try:
            world.run(lives)
            deaths.clear()
            world.doomed.clear()
            world.run([lambda: process(world, sources, clean=True)])  # un dernier, que personne ne tue
        except BaseException as error:
            return f"graine {seed} : {type(error).__name__} {error}"
    for source in sources:
        rows = [int(r.value() or b"") for r in world.read(TOPIC, "read_committed") if r.key() == source]
        if rows != list(range(ROWS)):
            return f"graine {seed} : la source {source!r} donne {rows}"
    return ""


if __name__ == "__main__":
    play(live, "histoires")
