"""--metrics-port : ce qu'un script sait de lui-même, au format de Prometheus, que « curl » montre aussi.

    metrics_option(parser)
    serve_metrics(args.metrics_port, lambda: Measures(counts.read, lag=member.lag()))

Rien n'est compté exprès : les nombres que le script tient déjà sont lus, dans un fil à part, quand on les demande.
Sans l'option, rien n'est importé, ni ouvert.
"""

import errno
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from commun import PipelineError
from commun.cli import Parser, port
from commun.systems import reason

if TYPE_CHECKING:
    from prometheus_client import Metric

HOST = "127.0.0.1"  # cette machine seule : rien n'y est chiffré, ni protégé
MOST_REASONS = 50
OTHERS = "autres raisons"

letters: Counter[str] = Counter()  # lettres mortes de ce processus, par raison


class Durations:
    """Des durées, en secondes, comptées par tranches : ``with durations:`` en mesure une."""

    BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # bornes supérieures, comprises

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.total = self._start = 0.0

    def add(self, seconds: float) -> None:
        """Une de plus."""
        self.counts[bisect_left(self.BOUNDS, seconds)] += 1
        self.total += seconds

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.add(time.monotonic() - self._start)


@dataclass
class Measures:
    """Ce qu'un script a fait depuis son démarrage, et où il en est ; None : il n'a rien de tel."""

    messages: int  # ce que le script traite : messages, lignes, transactions, ventes ; pour pg.py, fichiers
    lag: Mapping[int, int] | None = None  # par partition, messages qui restent à lire
    commits: int | None = None  # validations
    aborts: int | None = None  # annulations : tout a été repris à la dernière validation
    watermark_delay: float | None = None  # retard du watermark sur l'horloge, en secondes
    batches: Durations | None = None  # un lot, de sa lecture à sa fin

    def add(self, messages: int, seconds: float) -> None:
        """Un lot de plus, pour un script qui ne tient pas d'autres comptes."""
        self.messages += messages
        if self.batches:
            self.batches.add(seconds)


def count_letter(why: str) -> None:
    """Une lettre morte de plus. Sa raison y perd ce qui la distingue des autres de sa sorte : nombres, détails."""
    kind = re.sub(r"\d+", "N", why.partition(" : ")[0])[:80]
    letters[kind if kind in letters or len(letters) < MOST_REASONS else OTHERS] += 1


def metrics_option(parser: Parser) -> None:
    """L'option."""
    parser.option("--metrics-port", type=_port_or_none, default=0, metavar="PORT",
                  help="les mesures de ce script, pour Prometheus, sur http://localhost:PORT/metrics ; 0 : aucune",
                  )  # fmt: skip


def _port_or_none(text: str) -> int:
    return 0 if text == "0" else port(text)


def serve_metrics(number: int, read: Callable[[], Measures]) -> None:
    """Sert les mesures sur le port ``number`` de cette machine, jusqu'à la fin du processus ; 0 : rien.

    Lève PipelineError si le port n'est pas libre.
    """
    if not number:
        return
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Reader(Collector):
        def collect(self) -> "Iterator[Metric]":
            try:
                found = list(families(read()))
            except RuntimeError:  # le script finit : ses clients Kafka sont fermés
                return
            yield from found

    registry = CollectorRegistry()
    registry.register(Reader())
    ProcessCollector(registry=registry)
    try:
        start_http_server(number, HOST, registry)
    except OSError as error:
        why = "un autre programme y écoute" if error.errno == errno.EADDRINUSE else reason(error)
        raise PipelineError(
            f"Le port {number} de --metrics-port n'est pas libre ({why}) : donnez-en un autre."
        ) from error


def families(measures: Measures) -> "Iterator[Metric]":
    """Les mesures, sous les noms qu'a Prometheus."""
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    yield CounterMetricFamily("pipeline_messages", "Messages traités", measures.messages)
    if measures.commits is not None:
        yield CounterMetricFamily("pipeline_commits", "Validations", measures.commits)
    if measures.aborts is not None:
        yield CounterMetricFamily("pipeline_aborts", "Annulations", measures.aborts)
    dead = CounterMetricFamily("pipeline_dead_letters", "Lettres mortes", labels=["reason"])
    for why, count in letters.copy().items():
        dead.add_metric([why], count)
    yield dead
    if measures.lag is not None:
        lag = GaugeMetricFamily("pipeline_lag_messages", "Messages qui restent à lire", labels=["partition"])
        for partition, left in measures.lag.items():
            lag.add_metric([str(partition)], left)
        yield lag
    if measures.watermark_delay is not None:
        delay = measures.watermark_delay
        yield GaugeMetricFamily("pipeline_watermark_delay_seconds", "Retard du watermark sur l'horloge", delay)
    if measures.batches is not None:
        bounds = [*map(str, Durations.BOUNDS), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(measures.batches.counts)), strict=True))
        yield HistogramMetricFamily("pipeline_batch_seconds", "Durée d'un lot", buckets, measures.batches.total)
