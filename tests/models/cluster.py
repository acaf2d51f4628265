"""Un cluster Kafka en mémoire : topics, partitions, transactions, groupes, et ce qui peut leur arriver.

Il ne connaît que les appels du client Kafka dont se servent le membre d'un groupe et le producteur transactionnel.
Un seul fil : à chaque appel, le hasard choisit ce qui arrive pendant qu'il a lieu (un autre membre fait un tour entier,
le topic est recréé…), s'il échoue, et si son processus est tué. L'histoire elle-même est dans groups.py.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

TIMEOUT_TURNS = 60  # une transaction abandonnée est annulée au bout de ce nombre de tours
MOST_TURNS = 30_000
RETRY_TURNS = 5  # une demi-seconde, à l'horloge des histoires
LOST_ANSWERS: tuple[dict[str, bool], ...] = ({"retriable": True}, {"abort": True}, {"fatal": True})


class KilledError(BaseException):
    """Ce processus est tué net, à cet instant."""


def refused(code: int, *, fatal: bool = False, retriable: bool = False, abort: bool = False) -> KafkaException:
    """Un refus du client Kafka."""
    return KafkaException(KafkaError(code, "simulé", fatal, retriable, abort))


@dataclass
class Transaction:
    """Une transaction : ouverte, validée ou annulée ; les positions qu'elle porte."""

    turn: int
    state: str = "open"
    places: list[tuple["Group", TopicPartition]] = field(default_factory=list)


@dataclass
class Record:
    """Un message, ou la marque qui finit une transaction (sans valeur)."""

    value: bytes | None
    transaction: Transaction | None = None
    marker: bool = False
    sent: list[tuple[str, Any]] | None = None

    def headers(self) -> list[tuple[str, Any]] | None:
        """Comme Message."""
        return [(name, content.encode()) for name, content in self.sent or []]


@dataclass
class Log:
    """Une partition : ses messages, et le plus ancien qu'elle garde."""

    records: list[Record] = field(default_factory=list)
    low: int = 0

    def stable(self) -> int:
        """Fin de ce que voit un lecteur read_committed."""
        opened = (n for n, r in enumerate(self.records) if r.transaction and r.transaction.state == "open")
        return next(opened, len(self.records))

    def visible(self, start: int = 0) -> list[tuple[int, bytes]]:
        """Offset et valeur de ce qu'il voit à partir de ``start``."""
        found = []
        for offset in range(max(start, self.low), self.stable()):
            record = self.records[offset]
            aborted = record.transaction and record.transaction.state == "aborted"
            if not record.marker and not aborted:
                found.append((offset, record.value or b""))
        return found


@dataclass
class Topic:
    """Un topic ; recréé sous le même nom, c'en est un autre."""

    id: str
    logs: list[Log]
    epoch: int = 0  # des chefs de ses partitions


class Group:
    """Un groupe : ses membres, à qui est chaque partition, les positions validées."""

    def __init__(self) -> None:
        self.members: list[Consumer] = []
        self.owners: dict[int, Consumer] = {}
        self.places: dict[int, tuple[int, str]] = {}

    def leave(self, member: "Consumer") -> None:
        """Parti, exclu ou mort."""
        if member in self.members:
            self.members.remove(member)
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner is not member}


class Cluster:
    """Kafka, et ce qui arrive pendant un appel : ``happen`` est donné par l'histoire."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.turns, self.calm = dice, 0, False
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.epochs: dict[str, int] = {}
        self.current: dict[str, Transaction] = {}
        self.on_the_way: list[tuple[str, int, str]] = []  # fins de transaction que rien n'a encore reçues
        self.happen: Callable[[], None] = lambda: None
        self._ids = 0

    def create(self, name: str, partitions: int) -> Topic:
        """Crée un topic."""
        self._ids += 1
        self.topics[name] = Topic(f"id{self._ids}", [Log() for _ in range(partitions)])
        return self.topics[name]

    def delete(self, name: str) -> None:
        """Efface un topic ; Kafka oublie les positions qui en parlent."""
        del self.topics[name]
        for group in self.groups.values():
            group.places.clear()

    def turn(self) -> None:
        """Un appel : quelque chose peut arriver pendant ce temps."""
        self.turns += 1
        assert self.turns < MOST_TURNS, "l'histoire ne finit pas"
        for name, transaction in list(self.current.items()):
            if self.turns - transaction.turn > TIMEOUT_TURNS:
                self.epochs[name] += 1
                self.end(name, "aborted")
        if self.on_the_way and self.fails(0.2):
            name, epoch, state = self.on_the_way.pop()
            if self.epochs[name] == epoch:
                self.end(name, state)  # celle de cette transaction, ou de la suivante : rien ne les distingue
        if not self.calm:
            self.happen()

    def fails(self, share: float) -> bool:
        """Vrai si cet appel échoue."""
        return not self.calm and self.dice.random() < share

    def end(self, name: str, state: str) -> None:
        """Finit la transaction ouverte de cet identifiant : ses marques, ses positions."""
        transaction = self.current.pop(name, None)
        if transaction is None or transaction.state != "open":
            return
        transaction.state = state
        for topic in self.topics.values():
            for log in topic.logs:
                if any(record.transaction is transaction for record in log.records[-200:]):
                    log.records.append(Record(None, marker=True))
        for group, there in transaction.places if state == "committed" else ():
            if there.topic in self.topics:
                group.places[there.partition] = (there.offset, there.metadata or "")


# --- Les clients ---


@dataclass
class Message:
    """Un message lu, ou une nouvelle."""

    where: tuple[str, int, int]
    content: bytes | None = None
    fault: KafkaError | None = None

    def error(self) -> KafkaError | None:
        """Comme le vrai."""
        return self.fault

    def value(self) -> bytes | None:
        """Comme le vrai."""
        return self.content

    def topic(self) -> str:
        """Comme le vrai."""
        return self.where[0]

    def partition(self) -> int:
        """Comme le vrai."""
        return self.where[1]

    def offset(self) -> int:
        """Comme le vrai."""
        return self.where[2]


class Consumer:
    """Un Consumer, en protocole coopératif."""

    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        self.cluster, self.doomed = cluster, 0  # doomed : appels qui restent avant d'être tué
        self.group = cluster.groups.setdefault(config["group.id"], Group())
        self.positions: dict[int, int] = {}
        self.mine: set[int] = set()  # partitions attribuées par le groupe
        self.paused: set[int] = set()
        self.stopped: set[int] = set()  # position hors des bornes : le client ne lit plus
        self.ended: dict[int, int] = {}
        self.evicted = False
        self.name = ""
        self.epoch = 0  # la plus grande qu'il ait connue : comme librdkafka, il croit périmé ce qui en dit une moindre

    def call(self) -> None:
        """Chaque appel passe par ici."""
        self.cluster.turn()
        if self.doomed:
            self.doomed -= 1
            if not self.doomed:
                raise KilledError

    def subscribe(self, topics: Sequence[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        """Entre dans le groupe."""
        (self.name,) = topics
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost
        self.group.members.append(self)

    def _tps(self, partitions: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(self.name, partition) for partition in partitions]

    def _drop(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self.mine.discard(partition)
            for known in (self.positions, self.ended):
                known.pop(partition, None)
            for held in (self.paused, self.stopped):
                held.discard(partition)

    def _rebalance(self) -> None:
        if self.evicted:
            lost = sorted(self.mine)
            if lost:
                self.on_lost(self, self._tps(lost))
            self._drop(lost)
            self.evicted = False
            self.group.members.append(self)
        topic = self.cluster.topics.get(self.name)
        count = len(topic.logs) if topic else 0
        if not topic and self.cluster.dice.random() < 0.5:
            count = len(self.mine | set(self.group.owners))  # il ne le sait pas encore effacé
        members = self.group.members
        target = {p for p in range(count) if members[p % len(members)] is self}
        if gone := sorted(self.mine - target):
            self.on_revoke(self, self._tps(gone))
            self._drop(gone)
            self.group.owners = {p: m for p, m in self.group.owners.items() if not (p in gone and m is self)}
        if not self.evicted and (come := sorted(p for p in target - self.mine if p not in self.group.owners)):
            self.group.owners.update(dict.fromkeys(come, self))
            self.mine |= set(come)
            self.on_assign(self, self._tps(come))

    def consume(self, count: int, _: float) -> list[Message]:
        """Les rappels, puis des messages."""
        self.call()
        self._rebalance()
        found: list[Message] = []
        topic = self.cluster.topics.get(self.name)
        if topic and topic.epoch < self.epoch:
            return []
        self.epoch = topic.epoch if topic else self.epoch
        for partition in sorted(self.positions, key=lambda _: self.cluster.dice.random()):
            if topic and partition not in self.paused | self.stopped and partition < len(topic.logs):
                found += self._fetch(partition, topic.logs[partition], count - len(found))
        return found

    def _fetch(self, partition: int, log: Log, count: int) -> list[Message]:
        start = self.positions[partition]
        if not log.low <= start <= len(log.records):
            self.stopped.add(partition)
            return [Message((self.name, partition, start), fault=KafkaError(KafkaError._AUTO_OFFSET_RESET))]
        taken = [Message((self.name, partition, o), value) for o, value in log.visible(start)[:count]] if count else []
        if taken:
            self.positions[partition] = taken[-1].offset() + 1
        elif log.stable() == len(log.records) and self.ended.get(partition) != len(log.records) and count:
            self.ended[partition] = len(log.records)
            return [Message((self.name, partition, len(log.records)), fault=KafkaError(KafkaError._PARTITION_EOF))]
        return taken

    def poll(self, _: float) -> Message | None:
        """Un seul message."""
        return next(iter(self.consume(1, 0)), None)

    def assignment(self) -> list[TopicPartition]:
        """Les partitions lues."""
        return self._tps(sorted(self.positions))

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """Lit aussi celles-ci."""
        for one in partitions:
            self.positions[one.partition] = one.offset

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        """Ne lit plus celles-ci."""
        for one in partitions:
            for known in (self.positions, self.ended):
                known.pop(one.partition, None)
            self.stopped.discard(one.partition)

    def seek(self, there: TopicPartition) -> None:
        """Change de position."""
        if there.partition not in self.positions or there.partition in self.stopped:
            raise refused(KafkaError._STATE)
        self.positions[there.partition] = there.offset
        self.ended.pop(there.partition, None)

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Se tait."""
        self.paused |= {one.partition for one in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Reprend."""
        self.paused -= {one.partition for one in partitions}

    def get_watermark_offsets(self, there: TopicPartition, *_: float, cached: bool = False) -> tuple[int, int]:
        """Bornes d'une partition."""
        self.call()
        topic = self.cluster.topics.get(there.topic)
        if topic is None or there.partition >= len(topic.logs) or self.cluster.fails(0.1):
            raise refused(KafkaError._TIMED_OUT)
        log = topic.logs[there.partition]
        return log.low, log.stable()

    def committed(self, partitions: list[TopicPartition], _: float) -> list[TopicPartition]:
        """Positions du groupe ; refuse tant qu'une transaction en cours en porte."""
        self.call()
        pending = {there.partition for one in self.cluster.current.values() for _, there in one.places}
        if pending & {one.partition for one in partitions} or self.cluster.fails(0.1):
            raise refused(KafkaError._TIMED_OUT)
        return [
            TopicPartition(one.topic, one.partition, *self.group.places.get(one.partition, (-1001, "")))
            for one in partitions
        ]

    def check(self, offsets: list[TopicPartition]) -> None:
        """Le coordinateur refuse qui n'est plus du groupe, et un topic qui n'existe pas."""
        if self.evicted or self not in self.group.members:
            raise refused(KafkaError.UNKNOWN_MEMBER_ID, abort=True)
        if any(one.topic not in self.cluster.topics for one in offsets):
            raise refused(KafkaError.UNKNOWN_TOPIC_OR_PART, abort=True)

    def commit(self, offsets: list[TopicPartition], asynchronous: bool = True) -> None:
        """Valide des positions ; la réponse peut se perdre."""
        self.call()
        self.check(offsets)
        if self.cluster.fails(0.05):
            raise refused(KafkaError._TIMED_OUT)
        self.group.places |= {one.partition: (one.offset, one.metadata or "") for one in offsets}
        if self.cluster.fails(0.05):
            raise refused(KafkaError._TIMED_OUT)

    def consumer_group_metadata(self) -> "Consumer":
        """De quelle génération on est."""
        return self

    def close(self) -> None:
        """Rend ses partitions et s'en va."""
        if self.mine and not self.evicted:
            self.on_revoke(self, self._tps(sorted(self.mine)))
        self.group.leave(self)


class Producer:
    """Un Producer, transactionnel ou non."""

    def __init__(self, cluster: Cluster, config: dict[str, Any]) -> None:
        self.cluster, self.name, self.epoch = cluster, str(config.get("transactional.id", "")), -1
        self.transaction: Transaction | None = None

    def init_transactions(self, _: float) -> None:
        """Une époque de plus : la transaction d'avant est annulée."""
        self.cluster.turn()
        if self.cluster.fails(0.1):
            raise refused(KafkaError._TIMED_OUT, retriable=True)
        self.epoch = self.cluster.epochs[self.name] = self.cluster.epochs.get(self.name, 0) + 1
        self.cluster.end(self.name, "aborted")

    def begin_transaction(self) -> None:
        """Local, comme dans librdkafka."""
        self.transaction = Transaction(self.cluster.turns)

    def _alive(self) -> Transaction:
        if self.cluster.epochs[self.name] != self.epoch:
            raise refused(KafkaError._FENCED, fatal=True)
        assert self.transaction is not None
        return self.transaction

    def produce(self, topic: str, value: bytes | None, *_: Any, headers: Any = None, **__: Any) -> None:
        """Un message de plus."""
        self.cluster.turn()
        if self.name and self.cluster.epochs[self.name] != self.epoch:
            return  # n'arrive jamais ; rien ne le dit avant la validation
        if self.name and self.transaction:
            self.cluster.current[self.name] = self.transaction
        self.cluster.topics[topic].logs[0].records.append(
            Record(value, self.transaction if self.name else None, sent=headers)
        )

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], consumer: Consumer, _: float) -> None:
        """Des positions dans la transaction, si le groupe veut encore de nous."""
        self.cluster.turn()
        transaction = self._alive()
        consumer.check(offsets)
        if self.cluster.fails(0.05):
            raise refused(KafkaError._TIMED_OUT, retriable=True)
        self.cluster.current[self.name] = transaction
        transaction.places += [(consumer.group, one) for one in offsets]

    def commit_transaction(self, _: float) -> None:
        """Tout, ou rien ; la réponse peut se perdre, avant ou après."""
        self.cluster.turn()
        transaction = self._alive()
        if transaction.state == "committed":
            return
        if self.cluster.fails(0.05):
            raise refused(KafkaError._TIMED_OUT, abort=True)
        if self.cluster.fails(0.05):
            raise refused(KafkaError._TIMED_OUT, retriable=True)
        self.cluster.end(self.name, "committed")
        transaction.state = "committed"
        self._asked_twice("committed")
        if self.cluster.fails(0.1):  # elle a eu lieu, et ce client n'en saura rien : il réessaie, annule, ou s'en va
            raise refused(KafkaError._TIMED_OUT, **self.cluster.dice.choice(LOST_ANSWERS))

    def abort_transaction(self, _: float) -> None:
        """Rien."""
        self.cluster.turn()
        self._alive()
        self.cluster.end(self.name, "aborted")
        self._asked_twice("aborted")

    def _asked_twice(self, state: str) -> None:
        """La connexion est tombée : le client a redemandé cette fin, après un temps ; la première est en route."""
        if self.cluster.fails(0.1):
            self.cluster.on_the_way.append((self.name, self.epoch, state))
            for _ in range(RETRY_TURNS):
                self.cluster.turn()

    def flush(self, _: float) -> int:
        """Tout est parti."""
        self.cluster.turn()
        return 0

    def poll(self, _: float = 0) -> int:
        """Rien à servir."""
        return 0

    def purge(self) -> None:
        """Rien en vol."""


@dataclass
class Answer:
    """Une réponse d'administration."""

    content: Any = None
    fault: KafkaException | None = None

    def result(self) -> Any:
        """La réponse, ou le refus."""
        if self.fault:
            raise self.fault
        return self.content


@dataclass
class Named:
    """Un objet à quelques champs, comme en rend le client."""

    topic_id: str = ""
    topic_partitions: list[TopicPartition] = field(default_factory=list)
    partitions: dict[int, None] = field(default_factory=dict)
    topics: dict[str, Any] = field(default_factory=dict)
    error: KafkaError | None = None


class Admin:
    """Un AdminClient."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Answer]:
        """L'identité d'un topic."""
        self.cluster.turn()
        (name,) = topics.topic_names
        if self.cluster.fails(0.05):
            return {name: Answer(fault=refused(KafkaError._TIMED_OUT))}
        if name not in self.cluster.topics:
            return {name: Answer(fault=refused(KafkaError.UNKNOWN_TOPIC_OR_PART))}
        return {name: Answer(Named(self.cluster.topics[name].id))}

    def list_topics(self, name: str, _: float) -> Named:
        """Les partitions d'un topic."""
        self.cluster.turn()
        topic = self.cluster.topics.get(name)
        return Named(topics={name: Named(partitions=dict.fromkeys(range(len(topic.logs) if topic else 0)))})

    def delete_records(self, wanted: list[TopicPartition]) -> None:
        """Efface ce qui précède."""
        for one in wanted:
            log = self.cluster.topics[one.topic].logs[one.partition]
            log.low = max(log.low, min(one.offset, log.stable()))

    def alter_consumer_group_offsets(self, wanted: list[Any], request_timeout: float) -> dict[str, Answer]:
        """Change les positions d'un groupe sans membre."""
        self.cluster.turn()
        (one,) = wanted
        group = self.cluster.groups.setdefault(one.group_id, Group())
        if group.members:
            return {"": Answer(fault=refused(KafkaError.UNKNOWN_MEMBER_ID))}
        group.places |= {there.partition: (there.offset, there.metadata or "") for there in one.topic_partitions}
        return {"": Answer(Named(topic_partitions=[]))}
