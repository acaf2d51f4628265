"""--metrics-port : ce qui est servi, et rien sans l'option."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple
from urllib.request import urlopen

from commun import PipelineError, metrics
from commun.cli import Parser
from commun.kafka import Lag, dead_letter_headers
from commun.metrics import MOST_REASONS, OTHERS, Durations, Measures, count_letter, metrics_option, serve_metrics
from commun.settings import ROOT

import pytest
from confluent_kafka import TopicPartition


@pytest.fixture(autouse=True)
def _no_letters() -> Iterator[None]:
    metrics.letters.clear()
    yield
    metrics.letters.clear()


def free_port() -> int:
    """Un port que personne n'a."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scrape(port: int) -> str:
    """Ce que répond le script."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_what_is_served() -> None:
    """Les nombres du moment, sous les noms du README ; ce qu'un script n'a pas n'y est pas."""
    number, batches = free_port(), Durations()
    measures = Measures(3, {0: 7, 4: 0}, 2, 1, 1.5, batches)
    serve_metrics(number, lambda: measures)
    measures.add(4, 0.2)
    measures.add(0, 60.0)
    dead_letter_headers("montant : 12,345 n'est pas entre 0,01 et 50 000 euros")
    found = scrape(number).splitlines()
    for line in (
        "pipeline_messages_total 7.0", 'pipeline_lag_messages{partition="0"} 7.0',
        'pipeline_lag_messages{partition="4"} 0.0', "pipeline_commits_total 2.0", "pipeline_aborts_total 1.0",
        "pipeline_watermark_delay_seconds 1.5", 'pipeline_dead_letters_total{reason="montant"} 1.0',
        'pipeline_batch_seconds_bucket{le="0.1"} 0.0', 'pipeline_batch_seconds_bucket{le="0.25"} 1.0',
        'pipeline_batch_seconds_bucket{le="+Inf"} 2.0', "pipeline_batch_seconds_count 2.0",
        "pipeline_batch_seconds_sum 60.2",
    ):  # fmt: skip
        assert line in found, "\n".join(found)
    measures.lag = measures.commits = measures.aborts = measures.watermark_delay = measures.batches = None
    names = {line.split()[2] for line in scrape(number).splitlines() if line.startswith("# TYPE pipeline_")}
    assert names == {"pipeline_messages_total", "pipeline_dead_letters_total"}


def test_a_script_that_ends_is_silent() -> None:
    """Ses clients Kafka fermés, une lecture répond encore, sans nombres."""

    def closed() -> Measures:
        raise RuntimeError("Consumer closed")

    number = free_port()
    serve_metrics(number, closed)
    assert "pipeline_" not in scrape(number)


def test_only_this_machine() -> None:
    """Rien n'écoute ailleurs que sur cette machine."""
    number = free_port()
    serve_metrics(number, lambda: Measures(0))
    with pytest.raises(OSError, match=r"."), socket.create_connection(("127.0.0.2", number), timeout=5):
        pass


def test_a_port_taken() -> None:
    """Une phrase."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with pytest.raises(PipelineError, match=rf"^Le port {number} de --metrics-port n'est pas libre \(un autre"):
            serve_metrics(number, lambda: Measures(0))


def test_nothing_without_the_option() -> None:
    """Sans l'option, ou 0 : le paquet n'est même pas importé."""
    for argv in ([], ["--metrics-port", "0"]):
        parser = Parser("Essai.")
        metrics_option(parser)
        assert parser.parse(argv).metrics_port == 0
    code = (
        "import sys, exercice2.kafka_monitor as one, commun.metrics as m; m.serve_metrics(0, one.main); "
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_reasons_are_few() -> None:
    """Une raison perd ses nombres et ses détails ; leur nombre est borné, quoi qu'écrive un travail."""
    for number in range(200):
        count_letter(f"{number} champs au lieu de 7")
        count_letter(f"montant : {number},123")
    assert metrics.letters == {"N champs au lieu de N": 200, "montant": 200}
    for number in range(26 * 26):
        count_letter(chr(97 + number // 26) + chr(97 + number % 26))
    assert len(metrics.letters) == MOST_REASONS + 1
    assert metrics.letters[OTHERS] == 26 * 26 - (MOST_REASONS - 2)


class Reader:
    """Un consommateur qui ne sait que les bornes : douze messages dans une partition, rien d'une autre."""

    def get_watermark_offsets(self, there: TopicPartition, cached: bool) -> tuple[int, int]:
        """Bornes connues ; une question à Kafka, ou aux fils du client, ferait attendre."""
        assert cached
        return (0, {0: 12, 1: 3}.get(there.partition, -1001))


class Message(NamedTuple):
    """Un message, ce qu'il en faut."""

    where: int
    rank: int

    def topic(self) -> str:
        """Comme Message."""
        return "t"

    def partition(self) -> int:
        """Comme Message."""
        return self.where

    def offset(self) -> int:
        """Comme Message."""
        return self.rank


def test_the_lag_is_what_the_client_knows() -> None:
    """D'après les derniers messages lus, sans rien demander ; une partition rendue n'y est plus."""
    lag, reader = Lag(), Reader()
    lag.after(reader, [Message(0, 3), Message(1, 2), Message(0, 4), Message(2, 9)])  # type: ignore[arg-type, list-item]
    assert lag.left == {0: 7, 1: 0}
    lag.forget(reader, [TopicPartition("t", 0)])  # type: ignore[arg-type]
    lag.after(reader, [])  # type: ignore[arg-type]
    assert lag.left == {1: 0}
