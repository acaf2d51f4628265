"""Des membres de groupes devant un cluster simulé : ce qui peut leur arriver pendant n'importe quel appel à Kafka.

À chaque appel, le hasard peut donner un tour à un autre membre (celui qui attend est gelé), en tuer ou en exclure un.
Ce qui arrive aux topics, ce que font les membres et ce que l'on en juge est à chaque modèle : groups.py, monitors.py.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol
from unittest import mock

from commun import exactly_once, group_member, group_positions, outputs, topics
from commun.cli import Stopped
from tests.models.cluster import Admin, Cluster, Consumer, KilledError, Message, Producer

from confluent_kafka import Consumer as RealConsumer


class Life(Protocol):
    """Un membre en marche."""

    consumers: list[Any]

    def step(self) -> None:
        """Un tour de sa boucle."""

    def settle(self) -> None:
        """Valide ce qui est fait."""

    def close(self) -> None:
        """S'en va proprement."""


class World:
    """Une histoire ; à chaque modèle de dire ce qui suit."""

    final_turns = 400  # assez pour que tout soit lu et validé, une fois calme

    def __init__(self, dice: random.Random) -> None:
        logging.getLogger("pipeline").setLevel(logging.CRITICAL)
        self.dice, self.cluster = dice, Cluster(dice)
        self.cluster.happen = self.happen
        self.lives: list[Any] = []
        self.busy: list[Any] = []  # ceux qui sont au milieu d'un appel

    def new_life(self, *start: Any) -> Any:
        """Un membre neuf, entré dans ses groupes."""
        raise NotImplementedError

    def write(self) -> None:
        """Des messages de plus."""
        raise NotImplementedError

    def events(self) -> tuple[Callable[[], None], ...]:
        """Ce qui peut arriver ; répété, plus souvent."""
        return (self.write,) * 6 + (self.other,) * 8 + (self.evict, self.kill)

    def begin(self) -> None:
        """D'où l'on part."""
        self.born()

    def rested(self) -> None:
        """Plus personne n'est en marche."""

    def last_words(self) -> None:
        """Le calme est revenu : ce qui s'écrit encore."""
        self.write()

    def judge(self) -> str:
        """Ce qui n'y est pas allé, ou rien."""
        raise NotImplementedError

    # --- Ce qui peut arriver pendant un appel ---

    def happen(self) -> None:
        """Peut-être rien."""
        if self.dice.random() < 0.25:
            self.dice.choice(self.events())()

    def other(self) -> None:
        """Un autre membre fait un tour entier pendant cet appel ; qui attend est gelé."""
        ready = [life for life in self.lives if life not in self.busy]
        if ready and len(self.busy) < 3:
            self.turn(self.dice.choice(ready))

    def evict(self) -> None:
        """Un membre est resté sans voix plus longtemps que sa session."""
        if self.lives:
            consumer = self.dice.choice(self.dice.choice(self.lives).consumers)
            if consumer in consumer.group.members:
                consumer.group.leave(consumer)
                consumer.evicted = True

    def kill(self) -> None:
        """Un membre sera tué à l'un de ses prochains appels."""
        if self.lives and self.dice.random() < 0.5:
            self.dice.choice(self.dice.choice(self.lives).consumers).doomed = self.dice.randint(1, 20)

    # --- Vivre ---

    def turn(self, life: Life) -> None:
        """Un tour d'un membre ; tué, il disparaît, et sa session finit d'elle-même."""
        self.busy.append(life)
        try:
            life.step()
        except KilledError:
            self.bury(life)
        finally:
            self.busy.remove(life)

    def bury(self, life: Life) -> None:
        """Mort, ou parti."""
        if life in self.lives:
            self.lives.remove(life)
        for consumer in life.consumers:
            consumer.group.leave(consumer)

    def born(self, *start: Any) -> None:
        """Un membre de plus."""
        with suppress(KilledError):
            self.lives.append(self.new_life(*start))

    def rest(self) -> None:
        """Tous s'en vont."""
        while self.lives:
            life = self.lives[-1]
            self.busy.append(life)
            with suppress(KilledError):
                life.close()
            self.busy.remove(life)
            self.bury(life)
        for name in list(self.cluster.current):
            self.cluster.end(name, "aborted")
        self.rested()

    def live(self) -> None:
        """Du début à la fin."""
        self.begin()
        for _ in range(self.dice.randint(20, 120)):
            if not self.lives or (len(self.lives) < 3 and self.dice.random() < 0.05):
                self.born()
            elif self.dice.random() < 0.02:
                self.rest()
            if self.lives:
                self.turn(self.dice.choice(self.lives))
            self.happen()
        self.finish()

    def finish(self) -> None:
        """Tout s'apaise ; ceux qui restent, et un dernier, finissent."""
        self.cluster.calm = True
        self.last_words()
        for life in self.lives:
            for consumer in life.consumers:
                consumer.doomed = 0
        self.born()
        for _ in range(self.final_turns):
            for life in list(self.lives):
                self.turn(life)
                life.settle()
        for life in list(self.lives):
            life.close()


def tell(world: World, more: Mapping[Any, Mapping[str, Any]], seed: int) -> str:
    """Une histoire ; ce qui n'y est pas allé, ou rien. ``more`` : ce qu'il faut encore remplacer, module par module."""
    with simulated(world.cluster, more):
        try:
            world.live()
        except (Exception, Stopped, KilledError) as error:
            return f"graine {seed} : {type(error).__name__} {error}"
    fault = world.judge()
    return f"graine {seed} : {fault}" if fault else ""


# --- Les modules du projet, devant le cluster simulé ---


class NoStop:
    """Personne ne demande l'arrêt ; attendre, c'est laisser passer un tour."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __bool__(self) -> bool:
        return False

    def wait(self, _: float) -> bool:
        """Un tour passe."""
        self.cluster.turn()
        return False


class Now:
    """L'horloge : un tour est un instant."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def monotonic(self) -> float:
        """Avance avec les tours."""
        return self.cluster.turns / 10

    def time_ns(self) -> int:
        """Après toutes les transactions."""
        return 4 * 10**18


class OneThread:
    """Un fil, vécu sur-le-champ."""

    def __init__(self, target: Any, args: Any, daemon: bool) -> None:
        self.target, self.args = target, args

    def start(self) -> None:
        """Tout de suite."""
        self.target(*self.args)


def connector(cluster: Cluster) -> Callable[[Any, dict[str, Any]], Any]:
    """``commun.kafka.connect``, vers ce cluster."""

    def connect(kind: Any, config: dict[str, Any]) -> Any:
        if kind.__name__ == "AdminClient":
            return Admin(cluster)
        return Consumer(cluster, config) if kind is RealConsumer else Producer(cluster, config)

    return connect


@contextmanager
def simulated(cluster: Cluster, more: Mapping[Any, Mapping[str, Any]]) -> Iterator[None]:
    """Le membre d'un groupe et le producteur transactionnel, devant ce cluster."""
    now = Now(cluster)
    logging.getLogger("pipeline").setLevel(logging.CRITICAL)  # ici : les essais qui importent ce module ont un journal

    def read(_: Any, topic: str, *__: Any) -> Any:
        return [log.records[offset] for log in cluster.topics[topic].logs for offset, _ in log.visible()]

    common: dict[str, Any] = {"connect": connector(cluster)}
    with ExitStack() as patched:
        for module, changes in (
            (group_member, common | {"Message": Message, "time": now}),
            (group_positions, {"time": now, "read_topic": read, "bounds": lambda *_: (0, 0)}),
            (topics, common | {"brokers_answer": lambda *_: True}),
            (outputs, common | {"Thread": OneThread}),
            (exactly_once, common | {"Thread": OneThread, "time": now}),
            *more.items(),
        ):
            patched.enter_context(mock.patch.multiple(module, **changes))
        yield
