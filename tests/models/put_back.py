"""Les fautes d'autrefois, remises une à une dans le vrai code : un modèle qui ne les trouve pas ne prouve rien.

``python -m tests.models.put_back`` les remet toutes et dit, pour chacune, combien d'histoires il a fallu.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from commun.exactly_once import Positions, TransactionalProducer, patiently
from commun.group_member import GroupMember
from commun.group_positions import GroupPositions
from commun.settings import ROOT
from exercice1 import changes, files, follow, former, reading, rotation
from exercice2.fenetres.merging import Merging
from exercice2.fenetres.partials import Merger, Position
from tests.models import claims, groups, lives, monitors

from confluent_kafka import TopicPartition

MOST = 3_000  # histoires ; une faute que tant ne montrent pas n'est pas vue
# Un compte faux ; et non une erreur de ce que l'on vient de remettre.
TOLD = ("AssertionError", "donne", "perdus", "doublés", "pas relus", "en désordre", "fenêtres")


class Change(NamedTuple):
    """Ce qui remet une faute : cet attribut de cet objet prend cette valeur."""

    owner: object
    attribute: str
    value: object


# --- Un producteur et ses fichiers ---


def _hasty(take: Callable[..., dict[bytes, bytes]]) -> Callable[..., dict[bytes, bytes]]:
    """Les positions sont lues avant que les autres ne soient barrés, et non après."""

    def taken(self: Positions, sources: list[bytes]) -> dict[bytes, bytes]:
        early = self.all()
        return {source: early[source] for source in take(self, sources) if source in early}

    return taken


def _header_always(self: Any, header: Any, *_: object) -> Any:
    """La première ligne est un en-tête, quoi qu'il y ait avant."""
    return header


MISSED, PAST, IN_ORDER = former.Search.missed, follow.Follower._all_past, rotation.in_order


def _one_copy(self: Any, new: Any, *, since: int | None = None, most: int | None = None) -> list[Any]:
    """Copié et vidé plusieurs fois : une seule copie est lue."""
    return [] if since else MISSED(self, new, most=most)


def _only_begun(self: Any) -> Any:
    """Les fichiers quittés dont rien n'est encore lu ne sont pas retenus."""
    return tuple(past for past in PAST(self) if past.mark != former.UNREAD)


# --- Le membre d'un groupe ---


def _latest_each_time(self: Any, consumer: Any, numbers: Any) -> None:
    """Sans position, la fin ; et ce départ n'est pas validé."""
    starts = []
    for number, (offset, _, metadata) in self.positions.committed(numbers).items():
        start = offset if offset >= 0 else self.positions.bounds(number)[1]
        self._own(number, start, metadata, self.positions.topic_id())
        starts.append(TopicPartition(self.topic, number, start))
    consumer.incremental_assign(starts)


START_FROM, ASSIGN, OWNED = GroupPositions.start_from, GroupMember._assign, dict[Any, dict[int, int]]()


def _nothing_set(self: Any, reset: Any, offsets: Any, written: Any = ()) -> None:
    """Le départ n'est pas validé."""
    START_FROM(self, None, {}, written)


def _remember(self: Any, reset: Any, offsets: Any, written: Any = ()) -> None:
    """--from-offsets est retenu…"""
    OWNED[self] = dict(offsets)
    START_FROM(self, reset, offsets, written)


def _again(self: Any, consumer: Any, numbers: Any) -> None:
    """… pour chaque attribution."""
    ASSIGN(self, consumer, numbers)
    for number, offset in OWNED.get(self.positions, {}).items():
        if number in numbers:
            self._own(number, offset, "", self.owned[number].topic_id)
            self._move(number, offset)


def _keep_partitions(self: Any, consumer: Any, partitions: Any) -> None:
    """Perdues, elles sont gardées, et ce qui était en vol est validé."""
    self._rebalanced()
    for one in partitions:
        self.owned.pop(one.partition, None)


def _same_client(self: Any) -> None:
    """Le topic recréé est relu par le client qui a connu celui d'avant."""
    self._outdated, self.topic_id = False, self._identity()
    for number in list(self.owned):
        self._own(number, 0, "", self.topic_id)
        self._move(number, 0)


def _trust_itself(self: Any) -> None:
    """Après une annulation, les positions retenues ici, sans les relire dans Kafka."""
    self._raise_fault()
    if not self.must_abort:
        return
    self.outputs.abort()
    self.must_abort = False
    self.waiting.clear()
    for owned in list(self.owned.values()):
        self._own(owned.partition, owned.committed, owned.metadata, owned.topic_id)
        self._move(owned.partition, owned.committed)


def _sure_of_itself(self: Any, end: Callable[[float], None]) -> None:
    """Une fin de transaction redemandée ne fait douter de rien."""
    patiently(lambda: end(1.0), self.stop)
    self.open = False


# --- Les fenêtres ---


def _going_back(self: Any) -> Position:
    """Arrêté en plein rejeu silencieux, ce qui est publié recule."""
    marks = self.marks
    state = self._needed[0][2] if self._needed else Position(0, marks.overall, dict(marks.by_partition), [*marks.idle])
    return Position(self._next, state.overall, state.watermarks, state.idle)


PLACES = Merging.places


def _no_memory(self: Any) -> dict[int, Any]:
    """La place est celle du prochain compte à lire : ceux d'une fenêtre encore ouverte ne sont pas relus."""
    return {number: (self.merger._next, metadata) for number, (_, metadata) in PLACES(self).items()}


LIVES, CLAIMS, GROUPS, MONITORS = lives.live, claims.live, groups.live, monitors.live
LATEST = Change(GroupMember, "_assign", _latest_each_time)
# Chaque faute : le modèle qui doit la trouver, et ce qui la remet.
FAULTS: dict[str, tuple[Callable[[int], str], *tuple[Change, ...]]] = {
    "deux producteurs démarrent ensemble": (CLAIMS, Change(Positions, "take", _hasty(Positions.take))),
    "un fichier tourné est relu sous son nouveau nom": (
        LIVES, Change(files.Files, "known", lambda self, inode: iter(())),
    ),
    "vidé, il n'a plus d'en-tête": (LIVES, Change(reading.OpenCsv, "_compare", _header_always)),
    "vidé, il commence par un trou": (LIVES, Change(reading, "_hole", lambda file: 0)),
    "la copie d'avant le vidage est relue": (LIVES, Change(files.Files, "copied", lambda *_: ((), False))),
    "une ligne tardive dans le fichier renommé": (
        LIVES, Change(files.Files.__init__, "__kwdefaults__", {"rotate_wait": 0.0, "once": False}),
    ),
    "deux rotations entre deux regards": (LIVES, Change(former.Search, "missed", lambda *_, **__: [])),
    "une rotation derrière un lien": (LIVES, Change(former.Search, "_folders", lambda self: [Path(self.reader.path)])),
    "copié et vidé deux fois pendant un arrêt": (LIVES, Change(former.Search, "missed", _one_copy)),
    "rangé ailleurs, il est fermé aussitôt": (
        LIVES, Change(follow.Follower, "_gone_at", property(lambda self: 0.0, lambda self, at: None)),
    ),
    "tué avant d'avoir lu une rotation manquée": (LIVES, Change(follow.Follower, "_all_past", _only_begun)),
    "des rotations manquées, lues à l'envers": (
        LIVES, Change(rotation, "in_order", lambda *wanted: IN_ORDER(*wanted)[::-1]),
    ),
    "deux écritures à la même date": (LIVES, Change(changes, "TICK_SECONDS", -1e9)),
    "le topic recréé n'est pas vu": (GROUPS, Change(GroupPositions, "topic_id", lambda self, seconds=0.0: "")),
    "le topic recréé est lu par le même client": (GROUPS, Change(GroupMember, "_renew", _same_client)),
    "--reset latest n'est pas validé": (GROUPS, Change(GroupPositions, "start_from", _nothing_set), LATEST),
    "--from-offsets à chaque attribution": (
        GROUPS, Change(GroupPositions, "start_from", _remember), Change(GroupMember, "_assign", _again),
    ),
    "une partition ajoutée est lue depuis sa fin": (GROUPS, LATEST),
    "positions effacées, tout recommence": (GROUPS, Change(GroupPositions, "_has_messages", lambda *_: False)),
    "perdues, rien n'est annulé": (GROUPS, Change(GroupMember, "_on_lost", _keep_partitions)),
    "rendues sans valider": (
        GROUPS, Change(GroupMember, "_on_revoke", lambda self, _, partitions: self._forget(partitions)),
    ),
    "une validation sans réponse a eu lieu": (GROUPS, Change(GroupMember, "recover", _trust_itself)),
    "une fin de transaction arrive après la suivante": (GROUPS, Change(TransactionalProducer, "_end", _sure_of_itself)),
    "ce qui est publié recule en plein rejeu": (MONITORS, Change(Merger, "position", property(_going_back))),
    "les comptes encore utiles ne sont pas relus": (MONITORS, Change(Merging, "places", _no_memory)),
}  # fmt: skip

RARE = {"deux écritures à la même date": 645, "tué avant d'avoir lu une rotation manquée": 166}  # où chercher d'abord


def find(name: str) -> int:
    """La première histoire où se voit cette faute, remise pour de bon ; 0 si aucune ne la montre."""
    live, *wanted = FAULTS[name]
    for change in wanted:
        setattr(change.owner, change.attribute, change.value)
    first = RARE.get(name, 1)
    order = (*range(first, MOST + 1), *range(1, first))
    return next((n for n in order if any(word in said for said in [live(n)] for word in TOLD)), 0)


def search(name: str) -> int:
    """``find``, dans un processus à part."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.put_back", name],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},  # l'ordre des ensembles fait partie de la graine
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(find(sys.argv[1]))
    else:
        for fault in FAULTS:
            print(f"{search(fault) or 'jamais':>6}  {fault}", flush=True)
