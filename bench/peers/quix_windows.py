"""Les fenêtres de kafka_monitor.py, écrites avec Quix Streams : un concurrent de bench/windows.py.

Lancé par bench/windows.py dans l'environnement .venv-peers. Mêmes garanties et même rythme que les nôtres :
exactement une fois, une validation par seconde.
"""

import sys
import tempfile
from datetime import datetime
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Max, Min, Sum

SIZE_MS, DELAY_MS = 60_000, 5_000


def main(brokers: str, topic: str, output: str, slide: str) -> None:
    """Lit, fenêtre par compte (la clé du message), écrit."""
    app = Application(
        broker_address=brokers, consumer_group=output, auto_offset_reset="earliest", commit_interval=1.0,
        processing_guarantee="exactly-once", state_dir=tempfile.mkdtemp(), loglevel="WARNING",
        consumer_extra_config={"fetch.queue.backoff.ms": 10, "broker.address.family": "v4"},
        producer_extra_config={"linger.ms": 50, "broker.address.family": "v4"},
    )  # fmt: skip

    def event_time(value: Any, *_: Any) -> int:
        return int(datetime.fromisoformat(value["timestamp"]).timestamp() * 1000)

    events = app.dataframe(app.topic(topic, value_deserializer="json", timestamp_extractor=event_time))
    events = events.apply(lambda value: {"cents": round(value["montant"] * 100)})
    if slide == "event":
        windows = events.sliding_window(SIZE_MS, DELAY_MS)
    else:
        windows = events.hopping_window(SIZE_MS, int(float(slide) * 1000), DELAY_MS)
    stats = windows.agg(count=Count(), sum=Sum("cents"), min=Min("cents"), max=Max("cents"))
    results = stats.final() if slide == "event" else stats.final(closing_strategy="partition")

    def row(value: dict[str, Any], key: Any, *_: Any) -> dict[str, Any]:
        return {
            "cle": key.decode() if isinstance(key, bytes) else key, "fin_ms": value["end"], "nombre": value["count"],
            "montant_total": value["sum"] / 100, "montant_min": value["min"] / 100, "montant_max": value["max"] / 100,
        }  # fmt: skip

    results.apply(row, metadata=True).to_topic(app.topic(output, value_serializer="json"))
    app.run()


if __name__ == "__main__":
    brokers, topic, output, slide = sys.argv[1:]
    main(brokers, topic, output, slide)
