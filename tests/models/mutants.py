"""Les fautes d'autrefois, remises une à une dans le membre d'un groupe : le modèle doit les trouver.

« python -m tests.models.mutants » dit, pour chacune, combien d'histoires il a fallu.
"""

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from confluent_kafka import TopicPartition

from commun.group_member import GroupMember
from commun.group_positions import GroupPositions
from tests.models.groups import live

MOST = 400  # histoires, au plus


def latest_each_time(self: Any, consumer: Any, numbers: Any) -> None:
    """Sans position, la fin ; et ce départ n'est pas validé."""
    starts = []
    for number, (offset, _, metadata) in self.positions.committed(numbers).items():
        start = offset if offset >= 0 else self.positions.bounds(number)[1]
        self._own(number, start, metadata, self.positions.topic_id())
        starts.append(TopicPartition(self.topic, number, start))
    consumer.incremental_assign(starts)


START_FROM = GroupPositions.start_from


def nothing_set(self: Any, reset: Any, offsets: Any, written: Any = ()) -> None:
    """Le départ n'est pas validé."""
    START_FROM(self, None, {}, written)


def offsets_each_time() -> tuple[Any, Any]:
    """--from-offsets à chaque attribution."""
    wanted: dict[Any, dict[int, int]] = {}
    start_from, assign = GroupPositions.start_from, GroupMember._assign

    def remember(self: Any, reset: Any, offsets: Any, written: Any = ()) -> None:
        wanted[self] = dict(offsets)
        start_from(self, reset, offsets, written)

    def again(self: Any, consumer: Any, numbers: Any) -> None:
        assign(self, consumer, numbers)
        for number, offset in wanted.get(self.positions, {}).items():
            if number in numbers:
                self._own(number, offset, "", self.owned[number].topic_id)
                self._move(number, offset)

    return remember, again


def keep_partitions(self: Any, consumer: Any, partitions: Any) -> None:
    """Perdues, elles sont gardées, et ce qui était en vol est validé."""
    self._rebalanced()
    for one in partitions:
        self.owned.pop(one.partition, None)


def no_mistrust(self: Any, topic: str, topic_id: str) -> bool:
    """Ce qui est déjà publié ne compte pas."""
    return False


REMEMBER, AGAIN = offsets_each_time()
MUTANTS: dict[str, dict[tuple[Any, str], Callable[..., Any]]] = {
    "2 : le topic recréé n'est pas vu": {(GroupPositions, "topic_id"): lambda self, seconds=0.0: ""},
    "3 : --reset latest n'est pas validé": {
        (GroupPositions, "start_from"): nothing_set, (GroupMember, "_assign"): latest_each_time,
    },
    "4 : --from-offsets à chaque attribution": {
        (GroupPositions, "start_from"): REMEMBER, (GroupMember, "_assign"): AGAIN,
    },
    "5 : une partition ajoutée est lue depuis sa fin": {(GroupMember, "_assign"): latest_each_time},
    "7 : positions effacées, tout recommence": {(GroupPositions, "_has_messages"): no_mistrust},
    "perdues, rien n'est annulé": {(GroupMember, "_on_lost"): keep_partitions},
    "rendues sans valider": {(GroupMember, "_on_revoke"): lambda self, _, partitions: self._forget(partitions)},
}  # fmt: skip


def found_after(name: str) -> int:
    """Nombre d'histoires avant que cette faute se voie ; 0 si elle ne se voit pas."""
    patches = [mock.patch.object(owner, method, change) for (owner, method), change in MUTANTS[name].items()]
    for patch in patches:
        patch.start()
    try:
        return next((seed + 1 for seed in range(MOST) if live(seed)), 0)
    finally:
        for patch in patches:
            patch.stop()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # l'ordre des ensembles fait partie de la graine
        os.execve(sys.executable, [sys.executable, "-m", "tests.models.mutants"], os.environ | {"PYTHONHASHSEED": "0"})
    counts = {name: found_after(name) for name in MUTANTS}
    for name, count in counts.items():
        print(f"{name:<50} {count or 'jamais vue'}")
    sys.exit(not all(counts.values()))
