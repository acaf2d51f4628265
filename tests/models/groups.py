"""Des membres d'un groupe devant un cluster simulé, dans un ordre quelconque : rien de perdu, rien de doublé, en ordre.

Le code essayé est le vrai : commun.group_member, group_positions, outputs, exactly_once. À chaque appel à Kafka, le
hasard peut : donner un tour à un autre membre, en tuer ou en exclure un, recréer le topic (plus court ou plus long),
l'effacer, y élire d'autres chefs, y ajouter une partition, y effacer de vieux messages, perdre une réponse. L'oracle :
chaque message du dernier topic est sorti, une fois (au moins une fois sans transaction), dans l'ordre de sa partition ;
un message d'un topic effacé, ou effacé avant d'être lu, une fois au plus. « python -m tests.models.groups 5000 ».
"""

import random
from collections import Counter
from typing import Any

from commun import Aborted, PipelineError
from commun.group_member import GroupMember
from commun.group_positions import SOURCE
from commun.outputs import AtLeastOnce, ExactlyOnce
from tests.models.cluster import Log, Record, Transaction
from tests.models.histories import play
from tests.models.world import NoStop, World, tell

INPUT, OUTPUT, GROUP = "in", "out", "g"


class Life:
    """Un membre : il lit, copie, valide, au hasard."""

    def __init__(self, world: "Copies", reset: str | None, offsets: dict[int, int]) -> None:
        self.world, stop = world, NoStop(world.cluster)
        config = {"transactional.id": f"{GROUP}-{world.dice.getrandbits(64)}"} if world.atomic else {}
        self.outputs: Any = (ExactlyOnce if world.atomic else AtLeastOnce)(config, stop)  # type: ignore[arg-type]
        self.member = GroupMember(INPUT, {"group.id": GROUP}, self.outputs, stop)  # type: ignore[arg-type]
        self.settle, self.close = self.member.checkpoint, self.member.close
        self.member.positions.start_from(reset, offsets, [OUTPUT] if world.atomic else [])
        self.member.join()

    @property
    def consumers(self) -> list[Any]:
        """Son client."""
        return [self.member.consumer]

    def step(self) -> None:
        """Un tour."""
        dice = self.world.dice
        for owned, messages in self.member.read(dice.randint(1, 6), 0).items():
            for message in messages:
                if not self.member.holds(owned):
                    break
                if dice.random() < 0.03 and not self.world.cluster.calm:
                    self.member.again(owned, message.offset() or 0, dice.choice((0.0, 1e-6)))
                    break
                try:
                    self.outputs.write(OUTPUT, message.value(), None, [(SOURCE, owned.topic_id)])
                except Aborted as error:
                    self.member.undo(error)
                    break
                owned.next = (message.offset() or 0) + 1
        if dice.random() < 0.3:
            self.member.checkpoint()


class Copies(World):
    """Une histoire."""

    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed))
        self.atomic = self.dice.random() < 0.7
        self.count = 0
        self.excused: set[bytes] = set()  # d'un topic effacé, ou effacés : une fois au plus
        self.owed: Counter[bytes] = Counter()  # à relire encore, parce qu'on l'a demandé
        self.cluster.create(INPUT, self.dice.randint(1, 3))
        self.cluster.create(OUTPUT, 1)

    def new_life(self, reset: str | None = None, offsets: dict[int, int] | None = None) -> Life:
        """Un membre neuf."""
        return Life(self, reset, offsets or {})

    # --- Ce qui peut arriver pendant un appel ---

    def events(self) -> tuple[Any, ...]:
        """Voir World ; et ce qui arrive au topic."""
        return *super().events(), self.grow, self.erase, self.elect, self.recreate

    def write(self) -> None:
        """Des messages de plus, dans une transaction ou non, annulée parfois."""
        topic = self.cluster.topics.get(INPUT)
        if topic is None:
            self.cluster.create(INPUT, self.dice.randint(1, 3))
            return
        number = self.dice.randrange(len(topic.logs))
        transaction = self.dice.choice((None, Transaction(0, "committed"), Transaction(0, "aborted")))
        log = topic.logs[number]
        for _ in range(self.dice.randint(1, 4)):
            self.count += 1
            log.records.append(Record(f"{topic.id}:{number}:{self.count:06d}".encode(), transaction))
        if transaction:
            log.records.append(Record(None, marker=True))

    def grow(self) -> None:
        """Une partition de plus."""
        topic = self.cluster.topics.get(INPUT)
        if topic and len(topic.logs) < 4 and self.dice.random() < 0.3:
            topic.logs.append(Log())

    def erase(self) -> None:
        """De vieux messages sont effacés."""
        topic = self.cluster.topics.get(INPUT)
        if topic and self.dice.random() < 0.3:
            log = self.dice.choice(topic.logs)
            low = self.dice.randint(log.low, len(log.records))
            self.excused |= {value for offset, value in log.visible() if offset < low}
            log.low = low

    def elect(self) -> None:
        """D'autres brokers mènent les partitions."""
        if topic := self.cluster.topics.get(INPUT):
            topic.epoch += 1

    def recreate(self) -> None:
        """Le topic est effacé, et recréé aussitôt ou plus tard."""
        topic = self.cluster.topics.get(INPUT)
        if topic and self.dice.random() < 0.3:
            self.excused |= {value for log in topic.logs for _, value in log.visible()}
            self.cluster.delete(INPUT)
            if self.dice.random() < 0.7:
                self.cluster.create(INPUT, self.dice.randint(1, 3))
                for _ in range(self.dice.randint(0, 12)):
                    self.write()

    @property
    def group(self) -> Any:
        """Le groupe."""
        return self.cluster.groups[GROUP]

    # --- Les départs, et la fin ---

    def begin(self) -> None:
        """--reset latest, parfois : ce qui est déjà là n'est pas attendu."""
        reset = self.dice.choice((None, None, "latest"))
        for _ in range(self.dice.randint(0, 4)):
            self.write()
        if reset:
            self.cluster.calm = True
            self.excused |= {v for log in self.cluster.topics[INPUT].logs for _, v in log.visible()}
        self.born(reset)
        self.cluster.calm = False

    def rested(self) -> None:
        """Plus personne dans le groupe : Kafka peut oublier ses positions, on peut lui demander de relire."""
        topic = self.cluster.topics.get(INPUT)
        known = dict(self.group.places)
        choice = self.dice.random()
        if topic and self.atomic and known and choice < 0.3 and topic.id in self.sources():
            self.forget(known)
        elif topic and choice > 0.7 and all(p in known for p in range(len(topic.logs))):
            self.rewind(known)

    def last_words(self) -> None:
        """Un topic effacé revient."""
        if INPUT not in self.cluster.topics:
            self.cluster.create(INPUT, 2)
        self.write()

    def sources(self) -> set[str]:
        """Les topics d'où viennent les sorties."""
        log = self.cluster.topics[OUTPUT].logs[0]
        return {str(dict(log.records[offset].sent or []).get(SOURCE)) for offset, _ in log.visible()}

    def forget(self, known: dict[int, Any]) -> None:
        """Les positions expirent : recommencer se refuse."""
        self.group.places.clear()
        calm, self.cluster.calm = self.cluster.calm, True
        try:
            Life(self, None, {})
            raise AssertionError("tout recommence sans un mot")
        except PipelineError:
            self.group.places.update(known)
        self.cluster.calm = calm

    def rewind(self, known: dict[int, Any]) -> None:
        """--from-offsets : des messages déjà sortis sont à sortir une fois de plus, et une seule."""
        topic = self.cluster.topics[INPUT]
        number = self.dice.randrange(len(topic.logs))
        log, (place, metadata) = topic.logs[number], known[number]
        if metadata.split(" ")[0] != topic.id or place > len(log.records):
            return
        start = self.dice.randint(log.low, max(log.low, min(place, len(log.records))))
        calm, self.cluster.calm = self.cluster.calm, True
        self.owed.update(value for offset, value in log.visible(start) if offset < place)
        self.born(None, {number: start})
        self.cluster.calm = calm

    def judge(self) -> str:
        """Ce qui n'y est pas allé, ou rien."""
        topic = self.cluster.topics[INPUT]
        found = [value for _, value in self.cluster.topics[OUTPUT].logs[0].visible()]
        times = Counter(found)
        wanted = {value for log in topic.logs for _, value in log.visible()} - self.excused
        if lost := sorted(wanted - set(found)):
            return f"perdus : {lost[:3]} ({len(lost)})"
        if not self.atomic:
            return ""
        if twice := [value for value, count in times.items() if count > 1 + self.owed[value]]:
            return f"doublés : {sorted(twice)[:3]} ({len(twice)})"
        if short := [value for value in wanted if times[value] < 1 + self.owed[value]]:
            return f"pas relus : {sorted(short)[:3]}"
        last: dict[bytes, bytes] = {}
        for value in found:
            source = value.rpartition(b":")[0]
            if value < last.get(source, b"") and not self.owed:
                return f"en désordre : {value!r}"
            last[source] = value
        return ""


def live(seed: int) -> str:
    """Une histoire ; ce qui n'y est pas allé, ou rien."""
    return tell(Copies(seed), {}, seed)


if __name__ == "__main__":
    play(live, "histoires")
