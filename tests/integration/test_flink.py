"""Les fenêtres par Apache Flink, sur de vrais serveurs : égales à celles du moniteur, quoi qu'il arrive à Flink."""

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from commun.kafka import client_config, ensure_topics
from commun.settings import bootstrap_servers, setting
from exercice2.topic import PARTITIONS
from exercice2.verification.compare_windows import push_watermark
from exercice2.verification.flink_beside import Case, Rows, flink_reads_to_end, rows
from services.stack import FLINK_NAMES
from tests.conftest import listening_addresses, services
from tests.lab import BankLab, wait_until

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic


def ask(path: str) -> Any:
    """Ce que l'API du JobManager répond."""
    with urllib.request.urlopen(f"http://127.0.0.1:{setting('PORT_FLINK')}{path}", timeout=60) as answer:
        return json.load(answer)


def parallelism() -> set[int]:
    """Parallélisme des tâches du job qui tourne ; vide s'il ne tourne pas."""
    running = [job["jid"] for job in ask("/jobs/overview")["jobs"] if job["state"] == "RUNNING"]
    return {vertex["parallelism"] for job in running for vertex in ask(f"/jobs/{job}")["vertices"]}


@pytest.fixture
def flink(bank_lab: BankLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Flink sur les topics de ``bank_lab``, par compte ; rend le topic de sortie."""
    output = f"{bank_lab.windows}-flink"
    for name, value in (("TOPIC", bank_lab.topic), ("FENETRES_FLINK", output)):
        monkeypatch.setenv(f"TRANSACTIONS_{name}", value)
    monkeypatch.setenv("FLINK_BY", "compte")
    ensure_topics(client_config({}), *(NewTopic(name, PARTITIONS, 3) for name in (bank_lab.topic, output)))
    started = services("flink", timeout=600)
    assert started.returncode == 0, started.stderr
    assert f"http://localhost:{setting('PORT_FLINK')}" in started.stderr
    yield output
    for name in FLINK_NAMES:
        assert services("stop", name).returncode == 0


@pytest.mark.long
def test_each_row_once_whatever_dies(bank_lab: BankLab, flink: str) -> None:
    """TaskManager, puis JobManager tués net, un second TaskManager : les lignes du moniteur, une fois chacune."""
    bank_lab.send_raw(b"pas du JSON", b"{}", b'{"timestamp":"hier","montant":1}', b'{"compte":null}')
    options = ("--generate", "--seed", "1", "--rate", "300", "--disorder", "4")
    producer = bank_lab.start("producer_resilient", *options)
    wait_until(lambda: len(bank_lab.messages(flink)) > 100, 60, lambda: services("logs", "jobmanager").stdout)
    assert listening_addresses() <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert services("status").stdout.count("répond") == 8

    def dies_and_comes_back(name: str) -> None:
        before = len(bank_lab.messages(flink))  # avant : la transaction d'un Flink mort retient les lecteurs
        assert services("kill", name).returncode == 0
        restarted = services("restart", name)
        assert restarted.returncode == 0, restarted.stderr
        wait_until(lambda: len(bank_lab.messages(flink)) > before + 100, 90, lambda: services("logs", name).stdout)

    dies_and_comes_back("taskmanager1")
    dies_and_comes_back("jobmanager")
    assert services("restart", "taskmanager2").returncode == 0
    wait_until(lambda: parallelism() == {4}, 60, parallelism)
    assert producer.stop() == 0
    push_watermark(
        Producer({"bootstrap.servers": bootstrap_servers()}), bank_lab.topic, PARTITIONS,
        datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=30),
    )  # fmt: skip
    ended = flink_reads_to_end(client_config({}), Case(bank_lab.topic, PARTITIONS, "compte"))
    wait_until(ended, 90, lambda: services("logs", "jobmanager").stdout)
    assert rows(bank_lab.messages(flink)) == {"HOP": by_monitor(bank_lab), "OVER": by_monitor(bank_lab, "event")}


def by_monitor(lab: BankLab, slide: str = "10") -> Rows:
    """Les lignes de kafka_monitor.py, une fois chacune."""
    output = f"{lab.windows}-{slide}"
    lab.run("kafka_monitor", "--once", "--by", "compte", "--slide", slide, "--output", output, "--group", output)
    found = rows(lab.messages(output))["OVER" if slide == "event" else "HOP"]
    assert found.total() == len(found) > 1_000
    return found


def test_compare_windows(bank_lab: BankLab) -> None:
    """compare_windows.py : les deux moteurs sont d'accord, retards compris ; il ne laisse ni Flink, ni topic."""
    bank_lab.folder /= "verification"
    said = bank_lab.run("compare_windows", "--partitions", "1", "--by", "region", "--count", "3000", timeout=240)
    table = [line.split(None, 6) for line in said.splitlines() if line.startswith("1 ")]
    assert [(line[2], line[6]) for line in table] == [("HOP", "égales"), ("OVER", "égales")]
    assert "Les deux moteurs sont d'accord." in said
    assert not [name for name in client_topics() if name.startswith("comparaison-")]


def client_topics() -> set[str]:
    """Noms des topics du cluster."""
    return set(AdminClient({"bootstrap.servers": bootstrap_servers()}).list_topics(timeout=20).topics)
