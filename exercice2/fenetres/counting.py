"""Étage 1 de kafka_monitor.py : compte les transactions de chaque partition, et envoie les comptes à l'étage 2."""

import argparse
import logging
import time

from commun import Aborted
from commun.group_member import GroupMember, Listener, Place
from commun.group_positions import SOURCE
from commun.kafka import dead_letter
from commun.outputs import Outputs
from exercice2.fenetres.partials import Combiner, Partial, Reader, to_hold
from exercice2.fenetres.screen import Numbers
from exercice2.fenetres.windows import NEVER, Slicing

import msgspec
from confluent_kafka import Message, TopicPartition

log = logging.getLogger("pipeline")


class Activity(msgspec.Struct):
    """Métadonnées d'une place de l'étage 1 : l'instant le plus avancé de la partition, et si elle est dite inactive."""

    instant: int = NEVER
    idle: bool = False


class Reading(Listener):
    """Compte les transactions de nos partitions ; ce qui n'en est pas une est rangé à part."""

    member: GroupMember

    def __init__(self, args: argparse.Namespace, outputs: Outputs, numbers: Numbers) -> None:
        self.args, self.outputs, self.numbers = args, outputs, numbers
        self.reader = Reader(args.by, args.max_future_ms)
        self.slicing = None if args.slide_ms is None else Slicing(args.size_ms, args.slide_ms)
        self.combiners: dict[int, Combiner] = {}
        self._next: dict[int, int] = {}
        self._idle: set[int] = set()
        self._new: set[int] = set()  # partitions dont l'étage 2 ne sait encore rien
        self._held: set[int] = set()  # partitions que l'on ne lit plus, le temps que les autres les rattrapent
        self._active_at: dict[int, float] = {}

    def on_assigned(self, partition: int, offset: int, metadata: str) -> None:
        """Voir Listener."""
        activity = msgspec.json.decode(metadata, type=Activity) if metadata else Activity()
        self.combiners[partition] = Combiner(self.reader, self.slicing, self.args.max_delay_ms, activity.instant)
        self._next[partition] = offset
        self._active_at[partition] = time.monotonic()
        (self._idle.add if activity.idle else self._idle.discard)(partition)
        (self._new.discard if metadata else self._new.add)(partition)

    def on_forgotten(self, partition: int) -> None:
        """Voir Listener."""
        for known in (self.combiners, self._next, self._active_at):
            known.pop(partition, None)
        self._idle.discard(partition)
        self._new.discard(partition)

    def process(self, partition: int, messages: list[Message]) -> None:
        """Des messages consécutifs d'une partition."""
        with self.numbers.batches:
            self._process(partition, messages)

    def _process(self, partition: int, messages: list[Message]) -> None:
        partial, rejected = self.combiners[partition].combine(partition, messages, now_ms())
        for rank, reason in rejected:
            message = messages[rank]
            log.warning("Lettre morte (%d:%d) : %s", partition, message.offset(), reason)
            self.outputs.write(self.args.dead_letters, *dead_letter(message, reason))
        self._send(partial)
        self._next[partition] = (messages[-1].offset() or 0) + 1
        self._active_at[partition] = time.monotonic()
        self._idle.discard(partition)
        self.numbers.read += len(messages)
        self.numbers.rejected += len(rejected)

    def _send(self, partial: Partial) -> None:
        source = self.member.owned[partial.partition].topic_id
        self.outputs.write(self.args.partials, msgspec.json.encode(partial), None, [(SOURCE, source)])

    def places(self) -> dict[int, Place]:
        """Voir Listener."""
        return {
            partition: (offset, msgspec.json.encode(self._activity(partition)).decode())
            for partition, offset in self._next.items()
        }

    def _activity(self, partition: int) -> Activity:
        return Activity(self.combiners[partition].highest, partition in self._idle)

    def tick(self, idle_seconds: float, *, once: bool = False) -> None:
        """Une partition qui apparaît retient les autres ; lue jusqu'au bout depuis ``idle_seconds``, plus.

        Ce que l'étage 2 sait des partitions lui vient ainsi de ce qu'il lit : rejoué, il en sait autant.
        ``once`` : celles qui n'ont jamais rien eu ne retiennent pas les autres.
        """
        try:
            for partition in self._new & self.combiners.keys():
                self._send(Partial(partition, NEVER))
            self._new.clear()
            for partition in set(self.combiners) - self._idle:
                silent = time.monotonic() - self._active_at[partition] >= idle_seconds
                empty = once and self.combiners[partition].highest == NEVER
                if partition in self.member.ended and (silent or empty):
                    self._send(Partial(partition, self.combiners[partition].watermark, idle=True))
                    self._idle.add(partition)
        except Aborted as error:
            self.member.undo(error)

    def align(self) -> None:
        """--slide event : attend les partitions en retard, dont l'étage 2 garde tout ce qui les sépare des autres."""
        if self.slicing is not None:
            return  # il n'en garde que des comptes
        reading = {p: combiner.highest for p, combiner in self.combiners.items() if p not in self.member.ended}
        wanted, ours = to_hold(reading, self._held), self._held & self.combiners.keys()
        if wanted != ours:
            self.member.consumer.pause([TopicPartition(self.args.topic, partition) for partition in wanted - ours])
            self.member.consumer.resume([TopicPartition(self.args.topic, partition) for partition in ours - wanted])
            self._held = self._held - ours | wanted  # une partition qui s'en va peut revenir encore à l'arrêt


def now_ms() -> int:
    """L'heure présente, en millisecondes."""
    return time.time_ns() // 1_000_000
