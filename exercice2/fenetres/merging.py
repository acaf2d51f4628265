"""Étage 2 de kafka_monitor.py : réunit les comptes, tient les fenêtres, publie les résultats."""

import argparse
import logging
import time
from collections.abc import Iterable

from commun.cli import Stop, Stopped
from commun.contracts import WINDOW, header
from commun.group_member import Listener, Place
from commun.group_positions import GroupPositions, source_of
from commun.kafka import Config, admin_config, connect, dead_letter, place
from commun.outputs import Outputs
from exercice2.fenetres.counting import now_ms
from exercice2.fenetres.partials import Late, LateSlices, Merger, Partial, Position, Reader, Windows
from exercice2.fenetres.published import instant_text, key_of, to_json
from exercice2.fenetres.screen import Numbers, Published
from exercice2.fenetres.windows import HopWindows, Result, Slicing, TrailingWindows

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

log = logging.getLogger("pipeline")

CONTRACT = [header(WINDOW)]  # commun/contrats/fenetre.json
PURGE_SECONDS = 60.0  # le topic intermédiaire est purgé de ce qui ne sert plus à aucune fenêtre


class Merging(Listener):
    """Les fenêtres ; publie chaque résultat et retrouve les transactions refusées."""

    def __init__(
        self, args: argparse.Namespace, config: Config, outputs: Outputs, numbers: Numbers, stop: Stop
    ) -> None:
        self.args, self.outputs, self.numbers, self.stop = args, outputs, numbers, stop
        self.merger: Merger | None = None
        self.rows: list[Published] = []  # écrites, pas encore validées
        self.ready: list[Published] = []  # validées, à afficher
        self._config = config | {"group.id": f"{args.group}-retards"}
        self._side: Consumer = connect(Consumer, self._config)
        self._source: str | None = None  # le topic que ce client connaît
        self._admin = AdminClient(admin_config(config))
        self._purge_at = time.monotonic() + PURGE_SECONDS

    def on_assigned(self, partition: int, offset: int, metadata: str) -> None:
        """Voir Listener."""
        position = msgspec.json.decode(metadata, type=Position) if metadata else None
        self.merger = Merger(new_windows(self.args), range(self.args.partitions), offset, position)
        self.rows.clear()

    def on_forgotten(self, partition: int) -> None:
        """Voir Listener."""
        self.merger = None
        self.rows.clear()

    def process(self, partition: int, messages: list[Message]) -> None:
        """Des comptes consécutifs."""
        assert self.merger is not None  # noqa: S101 - la partition est à nous
        for message in messages:
            partial = msgspec.json.decode(message.value() or b"", type=Partial)
            self._publish(self.merger.apply(message.offset() or 0, partial))
            if self.merger.late or self.merger.late_slices:
                self._know(source_of(message))
                self._bury(self.merger)
        self.numbers.watermark = self.merger.marks.overall

    def preview(self, keys: Iterable[str | None], limit: int) -> list[Result]:
        """La minute qui se remplit ; rien si c'est un autre moniteur qui la tient."""
        return self.merger.windows.preview(keys, limit) if self.merger else []

    def _publish(self, results: list[Result]) -> None:
        for result in results:
            value, key = to_json(result), key_of(result)
            self.outputs.write(self.args.output, value, key, CONTRACT)
            self.rows.append((result, value))
            for alert in self.args.alert:
                if alert.holds(result):
                    told = msgspec.json.encode({"alerte": alert.text, "fenetre": msgspec.Raw(value)})
                    self.outputs.write(self.args.alerts, told, key, [])
                    self.numbers.alerts.append((alert.text, result))

    def places(self) -> dict[int, Place]:
        """Voir Listener."""
        if self.merger is None:
            return {}
        return {0: (self.merger.low, msgspec.json.encode(self.merger.position).decode())}

    def on_committed(self) -> None:
        """Voir Listener."""
        self.ready += self.rows
        self.rows.clear()
        if self.merger and time.monotonic() > self._purge_at:
            self._admin.delete_records([TopicPartition(self.args.partials, 0, self.merger.low)])
            self._purge_at = time.monotonic() + PURGE_SECONDS

    # --- Les transactions refusées : relues dans leur partition, octets compris ---

    def _know(self, source: bytes | str | None) -> None:
        """D'où viennent les transactions à relire ; de ce topic-là recréé, un client d'avant ne lirait rien."""
        topic_id = source.decode() if isinstance(source, bytes) else source
        if self._source is None or topic_id not in (None, self._source):
            self._side.close()
            self._side = connect(Consumer, self._config)
            self._positions = GroupPositions(self.args.topic, self._config, self._side, self.stop)
            self._source = self._positions.topic_id() if topic_id is None else topic_id

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
                    self.outputs.write(self.args.dead_letters, *dead_letter(message, reason))

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
        """Les messages ``first`` à ``last`` d'une partition du topic d'origine ; sans ceux qui n'y sont plus."""
        self._side.assign([TopicPartition(self.args.topic, partition, first)])
        found: list[Message] = []
        while not found or place(found[-1]).offset < last:
            if self.stop:
                raise Stopped
            messages = self._side.consume(10_000, 0.05)
            news = [error.code() for message in messages if (error := message.error())]
            found += [message for message in messages if message.error() is None]
            if (news or not messages) and self._positions.topic_id() != self._source:
                break
            if KafkaError._AUTO_OFFSET_RESET in news:
                low, _ = self._positions.bounds(partition)
                if low > last:
                    break
                self._side.assign([TopicPartition(self.args.topic, partition, max(first, low))])
        self._side.unassign()
        if self._positions.topic_id() != self._source:
            found.clear()  # lus, peut-être, dans un autre topic du même nom
        if not found or place(found[0]).offset > first:
            log.warning(
                "Partition %d de %s : des transactions en retard ont été effacées avant d'être rangées.",
                partition, self.args.topic,
            )  # fmt: skip
        return [message for message in found if place(message).offset <= last]

    def close(self) -> None:
        """Ferme ce que l'étage n'a pas fermé."""
        self._side.close()


def new_windows(args: argparse.Namespace) -> Windows:
    """Les fenêtres que demandent les options, vides."""
    if args.slide_ms is None:
        return TrailingWindows(args.size_ms, max_late=0)  # en retard, donc : le watermark l'a dépassée
    return HopWindows(args.size_ms, args.slide_ms, args.grace_ms)
