"""Ce que lisent et écrivent les deux étages de kafka_monitor.py ; leur boucle est dans stages.py.

Reading   étage 1 : les transactions d'une partition, comptées ; ce qui n'en est pas une est rangé à part
Merging   étage 2 : les fenêtres ; publie les résultats, et retrouve les transactions trop en retard
"""

import argparse
import logging
import time
from collections.abc import Iterable

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from commun.cli import Stopped
from commun.kafka import Config, admin_config, connect, dead_letter_of, place
from exercice2.partials import Combiner, Late, LateSlices, Merger, Partial, Position, Reader, Windows, to_hold
from exercice2.results import instant_text, key_text, to_json
from exercice2.screen import Numbers, Published
from exercice2.stages import Place, Stage
from exercice2.windows import NEVER, HopWindows, Result, Slicing, TrailingWindows

log = logging.getLogger("pipeline")

PURGE_SECONDS = 60.0  # le topic intermédiaire est purgé de ce qui ne sert plus à aucune fenêtre


class Activity(msgspec.Struct):
    """Métadonnées d'une place de l'étage 1 : l'instant le plus avancé de la partition, et si elle est dite inactive."""

    instant: int = NEVER
    idle: bool = False


class Reading:
    """Étage 1 : compte les transactions de chaque partition, et envoie les comptes à l'étage 2."""

    def __init__(self, args: argparse.Namespace, stage: Stage, numbers: Numbers) -> None:
        self.args, self.stage, self.numbers = args, stage, numbers
        self.reader = Reader(args.by, args.max_future_ms)
        self.slicing = None if args.slide_ms is None else Slicing(args.size_ms, args.slide_ms)
        self.combiners: dict[int, Combiner] = {}
        self._next: dict[int, int] = {}
        self._idle: set[int] = set()
        self._held: set[int] = set()  # partitions que l'on ne lit plus, le temps que les autres les rattrapent
        self._active_at: dict[int, float] = {}

    def restore(self, partition: int, offset: int, metadata: str) -> None:
        """Voir Handler."""
        activity = msgspec.json.decode(metadata, type=Activity) if metadata else Activity()
        self.combiners[partition] = Combiner(self.reader, self.slicing, self.args.max_delay_ms, activity.instant)
        self._next[partition] = offset
        self._active_at[partition] = time.monotonic()
        (self._idle.add if activity.idle else self._idle.discard)(partition)

    def forget(self, partition: int) -> None:
        """Voir Handler."""
        for known in (self.combiners, self._next, self._active_at):
            known.pop(partition, None)
        self._idle.discard(partition)

    def process(self, partition: int, messages: list[Message]) -> None:
        """Voir Handler."""
        partial, rejected = self.combiners[partition].combine(partition, messages, now_ms())
        for rank, reason in rejected:
            message = messages[rank]
            log.warning("Lettre morte (%d:%d) : %s", partition, message.offset(), reason)
            self.stage.write(self.args.dead_letters, message.value(), message.key(), dead_letter_of(message, reason))
        self.stage.write(self.args.partials, msgspec.json.encode(partial))
        self._next[partition] = (messages[-1].offset() or 0) + 1
        self._active_at[partition] = time.monotonic()
        self._idle.discard(partition)
        self.numbers.read += len(messages)
        self.numbers.rejected += len(rejected)

    def places(self) -> dict[int, Place]:
        """Voir Handler."""
        return {
            partition: (offset, msgspec.json.encode(self._activity(partition)).decode())
            for partition, offset in self._next.items()
        }

    def _activity(self, partition: int) -> Activity:
        return Activity(self.combiners[partition].highest, partition in self._idle)

    def published(self) -> None:
        """Voir Handler."""

    def lag(self) -> int:
        """Messages de nos partitions qui restent à lire, d'après ce que le client sait de leur fin."""
        total = 0
        for partition, offset in self._next.items():
            if partition not in self.stage.ended:  # au bout, il ne reste que des marques de transactions
                _, high = self.stage.consumer.get_watermark_offsets(
                    TopicPartition(self.args.topic, partition), cached=True
                )
                total += max(high - offset, 0)
        return total

    def tick(self, idle_seconds: float) -> None:
        """Les partitions lues jusqu'au bout depuis ``idle_seconds`` ne retiennent plus les autres."""
        for partition in set(self.combiners) - self._idle:
            silent = time.monotonic() - self._active_at[partition]
            if partition in self.stage.ended and silent >= idle_seconds:
                watermark = self.combiners[partition].watermark
                self.stage.write(self.args.partials, msgspec.json.encode(Partial(partition, watermark, idle=True)))
                self._idle.add(partition)

    def align(self) -> None:
        """--slide event : attend les partitions en retard, dont l'étage 2 garde tout ce qui les sépare des autres."""
        if self.slicing is not None:
            return  # il n'en garde que des comptes
        reading = {p: combiner.highest for p, combiner in self.combiners.items() if p not in self.stage.ended}
        wanted, ours = to_hold(reading, self._held), self._held & self.combiners.keys()
        if wanted != ours:
            self.stage.consumer.pause([TopicPartition(self.args.topic, partition) for partition in wanted - ours])
            self.stage.consumer.resume([TopicPartition(self.args.topic, partition) for partition in ours - wanted])
            self._held = self._held - ours | wanted  # une partition qui s'en va peut revenir encore à l'arrêt

    def empty(self) -> None:
        """--once : les partitions qui n'ont jamais rien eu ne retiennent pas les autres."""
        for partition, combiner in self.combiners.items():
            if combiner.highest == NEVER and partition not in self._idle:
                self.stage.write(self.args.partials, msgspec.json.encode(Partial(partition, NEVER, idle=True)))
                self._idle.add(partition)


class Merging:
    """Étage 2 : les fenêtres ; publie chaque résultat et retrouve les transactions refusées."""

    def __init__(self, args: argparse.Namespace, config: Config, stage: Stage, numbers: Numbers) -> None:
        self.args, self.stage, self.numbers = args, stage, numbers
        self.merger: Merger | None = None
        self.rows: list[Published] = []  # écrites, pas encore validées
        self.ready: list[Published] = []  # validées, à afficher
        self._side: Consumer = connect(Consumer, config | {"group.id": f"{args.group}-retards"})
        self._admin = AdminClient(admin_config(config))
        self._purge_at = time.monotonic() + PURGE_SECONDS

    def restore(self, partition: int, offset: int, metadata: str) -> None:
        """Voir Handler."""
        position = msgspec.json.decode(metadata, type=Position) if metadata else None
        self.merger = Merger(new_windows(self.args), range(self.args.partitions), offset, position)
        self.rows.clear()

    def forget(self, partition: int) -> None:
        """Voir Handler."""
        self.merger = None
        self.rows.clear()

    def process(self, partition: int, messages: list[Message]) -> None:
        """Voir Handler."""
        assert self.merger is not None  # noqa: S101 - la partition est à nous
        for message in messages:
            partial = msgspec.json.decode(message.value() or b"", type=Partial)
            self._publish(self.merger.apply(message.offset() or 0, partial))
            if self.merger.late or self.merger.late_slices:
                self._bury(self.merger)
        self.numbers.watermark = self.merger.marks.overall

    def preview(self, keys: Iterable[str | None], limit: int) -> list[Result]:
        """La minute qui se remplit ; rien si c'est un autre moniteur qui la tient."""
        return self.merger.windows.preview(keys, limit) if self.merger else []

    def _publish(self, results: list[Result]) -> None:
        for result in results:
            value, key = to_json(result), f"{key_text(result.key)}|{instant_text(result.end)}".encode()
            self.stage.write(self.args.output, value, key)
            self.rows.append((result, value))
            for alert in self.args.alert:
                if alert.holds(result):
                    told = msgspec.json.encode({"alerte": alert.text, "fenetre": msgspec.Raw(value)})
                    self.stage.write(self.args.alerts, told, key)
                    self.numbers.alerts.append((alert.text, result))

    def places(self) -> dict[int, Place]:
        """Voir Handler."""
        if self.merger is None:
            return {}
        return {0: (self.merger.low, msgspec.json.encode(self.merger.position).decode())}

    def published(self) -> None:
        """Voir Handler."""
        self.ready += self.rows
        self.rows.clear()
        if self.merger and time.monotonic() > self._purge_at:
            self._admin.delete_records([TopicPartition(self.args.partials, 0, self.merger.low)])
            self._purge_at = time.monotonic() + PURGE_SECONDS

    # --- Les transactions refusées : relues dans leur partition, octets compris ---

    def _bury(self, merger: Merger) -> None:
        late = [*merger.late, *(found for slices in merger.late_slices for found in self._find(slices))]
        merger.late.clear()
        merger.late_slices.clear()
        self.numbers.late += len(late)
        for partition in {item.partition for item in late}:
            marks = {item.offset: item.watermark for item in late if item.partition == partition}
            for message in self._read(partition, min(marks), max(marks)):
                if (message.offset() or 0) in marks:
                    watermark = instant_text(marks[message.offset() or 0])
                    reason = f"en retard : toutes ses fenêtres étaient closes au watermark {watermark}"
                    headers = dead_letter_of(message, reason)
                    self.stage.write(self.args.dead_letters, message.value(), message.key(), headers)

    def _find(self, late: LateSlices) -> list[Late]:
        """Les transactions de ces tranches, parmi celles que le Partial comptait."""
        partial, found = late.partial, list[Late]()
        slicing = Slicing(self.args.size_ms, self.args.slide_ms)
        reader = Reader(self.args.by, self.args.max_future_ms)
        alone = {event.offset for event in partial.events}
        entries, _ = reader.read(self._read(partial.partition, partial.first, partial.last), now_ms())
        for _, _, instant, message, _ in entries:
            if slicing.slice_of(instant) in late.numbers and message.offset() not in alone:
                found.append(Late(partial.partition, message.offset() or 0, late.watermark))
        return found

    def _read(self, partition: int, first: int, last: int) -> list[Message]:
        """Les messages ``first`` à ``last`` d'une partition du topic d'origine."""
        self._side.assign([TopicPartition(self.args.topic, partition, first)])
        found: list[Message] = []
        ended = False
        while not ended:
            if self.stage.stop:
                raise Stopped
            for message in self._side.consume(10_000, 0.05):
                if message.error() is None:
                    found.append(message)
                ended = ended or (message.offset() or 0) >= last
        self._side.unassign()
        return [message for message in found if first <= place(message).offset <= last]

    def close(self) -> None:
        """Ferme ce que l'étage n'a pas fermé."""
        self._side.close()


def now_ms() -> int:
    """L'heure présente, en millisecondes."""
    return time.time_ns() // 1_000_000


def new_windows(args: argparse.Namespace) -> Windows:
    """Les fenêtres que demandent les options, vides."""
    if args.slide_ms is None:
        return TrailingWindows(args.size_ms, max_late=0)  # en retard, donc : le watermark l'a dépassée
    return HopWindows(args.size_ms, args.slide_ms, args.grace_ms)
