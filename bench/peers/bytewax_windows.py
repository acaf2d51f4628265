"""Les fenêtres de kafka_monitor.py, écrites avec Bytewax : un concurrent de bench/windows.py.

Lancé par bench/windows.py dans l'environnement .venv-peers. Réglages qui l'aident : lots de 10 000, msgspec,
fenêtres non triées (``ordered=False``), qui sont la voie rapide de Bytewax. Il n'a ni transactions Kafka, ni
fenêtres à chaque événement.
"""

import sys
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import msgspec
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, SlidingWindower, fold_window
from bytewax.testing import run_main

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SIZE, DELAY = timedelta(seconds=60), timedelta(seconds=5)


class Event(msgspec.Struct, gc=False):
    """Ce qu'on lit d'une transaction."""

    timestamp: datetime
    montant: float
    compte: str


def fold(stats: list[int], event: Event) -> list[int]:
    """Ajoute un événement : nombre, somme, minimum, maximum, en centimes."""
    cents = round(event.montant * 100)
    if not stats:
        return [1, cents, cents, cents]
    stats[0] += 1
    stats[1] += cents
    stats[2] = min(stats[2], cents)
    stats[3] = max(stats[3], cents)
    return stats


def merge(one: list[int], other: list[int]) -> list[int]:
    """Réunit deux contenus."""
    return [one[0] + other[0], one[1] + other[1], min(one[2], other[2]), max(one[3], other[3])]


def flow(brokers: str, topic: str, output: str, slide: float) -> Dataflow:
    """Le graphe : lire, fenêtrer par compte, écrire."""
    graph = Dataflow("windows")
    step = timedelta(seconds=slide)
    client = {"fetch.queue.backoff.ms": "10", "broker.address.family": "v4"}
    source = kop.input("in", graph, brokers=brokers.split(","), topics=[topic], batch_size=10_000, add_config=client)
    decode = msgspec.json.Decoder(Event).decode
    events = op.map("decode", source.oks, lambda message: decode(message.value))
    keyed = op.key_on("key", events, lambda event: event.compte)
    windowed = fold_window(
        "windows", keyed, EventClock(lambda event: event.timestamp, wait_for_system_duration=DELAY),
        SlidingWindower(length=SIZE, offset=step, align_to=EPOCH), list, fold, merge, ordered=False,
    )  # fmt: skip

    def result(item: tuple[str, tuple[int, list[int]]]) -> KafkaSinkMessage[bytes, bytes]:
        key, (number, (count, total, low, high)) = item
        end = EPOCH + number * step + SIZE
        row = {
            "cle": key, "fin": end, "nombre": count, "montant_total": total / 100,
            "montant_min": low / 100, "montant_max": high / 100,
        }  # fmt: skip
        return KafkaSinkMessage(key.encode(), msgspec.json.encode(row))

    results = op.map("result", windowed.down, result)
    kop.output("out", results, brokers=brokers.split(","), topic=output, add_config={"linger.ms": "50"})
    return graph


if __name__ == "__main__":
    brokers, topic, output, slide = sys.argv[1:]
    run_main(flow(brokers, topic, output, float(slide)))
