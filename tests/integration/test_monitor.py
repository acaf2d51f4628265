"""kafka_monitor.py sur un vrai cluster : chaque fenêtre une fois, juste, quoi qu'il arrive aux moniteurs."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from argparse import Namespace
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from unittest import mock

from chaos.bank import transactions
from chaos.verdicts import SIZE, Window, expected_windows, judge_windows
from commun.cli import NeverStopped
from commun.kafka import admin_config, client_config, ensure_topics
from commun.topics import identity
from exercice2.fenetres.merging import Merging
from exercice2.fenetres.screen import Numbers
from exercice2.kafka_monitor import CONSUMER_CONFIG
from exercice2.topic import PARTITIONS
from exercice2.transactions import Transaction, generate, to_json
from tests.lab import BankLab, Running, headers, wait_until

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic


class TwentySeconds(NeverStopped):
    """Un arrêt demandé au bout de vingt secondes."""

    def __init__(self) -> None:
        super().__init__()
        threading.Timer(20, self.ask).start()


def test_late_transactions_no_longer_there(bank_lab: BankLab) -> None:
    """En retard, mais effacées avant d'être relues, ou d'un topic recréé depuis : ce qui reste, sans attendre."""
    config = client_config(CONSUMER_CONFIG)
    ensure_topics(config, NewTopic(bank_lab.topic, 1, 3))
    bank_lab.send_raw(*(b"%d" % number for number in range(6)))
    admin = AdminClient(admin_config(config))
    former = identity(admin, bank_lab.topic)
    admin.delete_records([TopicPartition(bank_lab.topic, 0, 3)])[TopicPartition(bank_lab.topic, 0)].result()
    args = Namespace(topic=bank_lab.topic, group=bank_lab.topic)
    merging = Merging(args, config, mock.Mock(), Numbers(), TwentySeconds())
    with contextlib.closing(merging):
        merging._know((former or "").encode())
        assert [message.value() for message in merging._read(0, 1, 4)] == [b"3", b"4"]
        assert merging._read(0, 0, 2) == []
        bank_lab.delete_topic()
        ensure_topics(config, NewTopic(bank_lab.topic, 1, 3))
        bank_lab.send_raw(*(b"neuf %d" % number for number in range(9)))
        assert merging._read(0, 3, 5) == []


def published(lab: BankLab) -> list[Window]:
    """Les fenêtres publiées."""
    rows = []
    for message in lab.messages(lab.windows):
        row = json.loads(message.value() or b"")
        assert (message.key() or b"").decode() == f"{row['cle']}|{row['fin']}"
        rows.append(msgspec.json.decode(message.value() or b"", type=Window))
    return rows


def check(lab: BankLab, by: str | None, slide: float) -> None:
    """Chaque fenêtre que le topic doit donner est publiée une fois, juste, et rien d'autre."""
    expected = expected_windows(transactions(lab.messages(lab.topic)), by, timedelta(seconds=slide))
    assert len(expected) > 5
    assert judge_windows(expected, published(lab)) == (0, 0, 0, 0)


def send(lab: BankLab, *items: tuple[str, float]) -> None:
    """Envoie des transactions : compte, et instant en secondes depuis le 1er janvier 2026."""
    base = datetime(2026, 1, 1, tzinfo=UTC)
    for number, (compte, seconds) in enumerate(items):
        one = next(generate(number, base, 1))
        moved = one._replace(compte=compte, timestamp=base + timedelta(seconds=seconds), id=f"{compte}-{seconds}")
        lab.send_raw(to_json(moved))


@pytest.mark.parametrize(("by", "slide"), [(None, 10), ("type", 1), ("compte", 60)])
def test_every_window_once(bank_lab: BankLab, by: str | None, slide: int) -> None:
    """Des transactions en désordre : les fenêtres de l'oracle, au centime ; relancé, rien de plus."""
    options = ["--once", "--slide", str(slide), *(["--by", by] if by else [])]
    for count in (8_000, 15_000):
        bank_lab.generate(count, "--disorder", "4")
        said = bank_lab.run("kafka_monitor", *options)
        assert "0 en retard, 0 refusées" in said
        check(bank_lab, by, slide)
    assert "0 fenêtres publiées" in bank_lab.run("kafka_monitor", *options)


def test_one_window_per_transaction(bank_lab: BankLab) -> None:
    """--slide event : pour chaque transaction, la minute qui la précède dans son compte, bornes comprises."""
    bank_lab.generate(9_000, "--disorder", "4")
    bank_lab.run("kafka_monitor", "--once", "--slide", "event", "--by", "compte")
    found = {row["id"]: row for row in (json.loads(m.value() or b"") for m in bank_lab.messages(bank_lab.windows))}
    assert len(found) == len(bank_lab.messages(bank_lab.windows)) > 7_000
    by_account: dict[str, list[Transaction]] = defaultdict(list)
    for _, transaction in transactions(bank_lab.messages(bank_lab.topic)):
        by_account[transaction.compte].append(transaction)
    for one in (transaction for known in by_account.values() for transaction in known if transaction.id in found):
        near = [t.montant for t in by_account[one.compte] if one.timestamp - SIZE <= t.timestamp <= one.timestamp]
        row = found[one.id]
        assert (row["nombre"], Decimal(str(row["montant_total"]))) == (len(near), sum(near))


def test_what_is_refused_is_kept(bank_lab: BankLab) -> None:
    """Trop en retard, trop en avance, illisible : dans la file des lettres mortes, octets compris ; le reste compte."""
    send(bank_lab, ("FR1", 10), ("FR1", 200))
    assert "6 fenêtres publiées" in bank_lab.run("kafka_monitor", "--once")
    send(bank_lab, ("FR1", 20), ("FR1", 150), ("FR1", 86400 * 365 * 50))
    bank_lab.send_raw(b"pas du JSON")
    said = bank_lab.run("kafka_monitor", "--once")
    assert "1 en retard, 2 refusées" in said
    assert {f"{window.fin:%H:%M:%S}": window.nombre for window in published(bank_lab)} == {
        "00:00:20": 1, "00:00:30": 1, "00:00:40": 1, "00:00:50": 1, "00:01:00": 1, "00:01:10": 1,
    }  # fmt: skip
    reasons = {raw: said["dlq.reason"] for raw, said in bank_lab.letters(f"{bank_lab.windows}-dlq")}
    assert len(reasons) == 3
    assert "futur" in next(reason for raw, reason in reasons.items() if b"2075" in (raw or b""))
    late = next(reason for raw, reason in reasons.items() if b"00:00:20.000Z" in (raw or b""))
    assert late == "en retard : toutes ses fenêtres étaient closes au watermark 2026-01-01T00:03:15.000Z"
    send(bank_lab, ("FR1", 300))
    bank_lab.run("kafka_monitor", "--once")
    ends = {f"{window.fin:%H:%M:%S}": window.nombre for window in published(bank_lab)}
    assert ends["00:03:30"] == 2, "150 comptait encore"


def test_corrections_and_alerts(bank_lab: BankLab) -> None:
    """--grace publie les fenêtres corrigées, marquées ; --alert signale celles qui passent le seuil."""
    options = ("--once", "--slide", "60", "--grace", "600", "--alert", "nombre >= 2")
    send(bank_lab, ("FR1", 10), ("FR1", 100))
    assert "1 fenêtres publiées, 0 corrections" in bank_lab.run("kafka_monitor", *options)
    send(bank_lab, ("FR1", 50))
    assert "0 fenêtres publiées, 1 corrections" in bank_lab.run("kafka_monitor", *options)
    rows = [json.loads(message.value() or b"") for message in bank_lab.messages(bank_lab.windows)]
    assert [(row["nombre"], row.get("correction", False)) for row in rows] == [(1, False), (2, True)]
    (alert,) = (json.loads(message.value() or b"") for message in bank_lab.messages(bank_lab.alerts))
    assert (alert["alerte"], alert["fenetre"]["nombre"]) == ("nombre >= 2", 2)


def test_idle_partition(bank_lab: BankLab) -> None:
    """Une partition muette ne retient pas les autres ; son passé, venu ensuite, est gardé, octets compris."""
    monitor = bank_lab.start("kafka_monitor", "--idle-timeout", "2", "--slide", "60")
    monitor.wait_for("Fenêtres de")
    send(bank_lab, ("FR1", 10), ("FR1", 500))
    wait_until(lambda: len(bank_lab.messages(bank_lab.windows)) == 1, 60, lambda: monitor.text)
    producer = [next(generate(9, datetime(2026, 1, 1, tzinfo=UTC), 1))._replace(compte="autre")]
    other = to_json(producer[0])
    bank_lab.send_raw(other, key=b"ailleurs")
    wait_until(lambda: len(bank_lab.letters(f"{bank_lab.windows}-dlq")) == 1, 60, lambda: monitor.text)
    assert monitor.stop(signal.SIGINT) == 0
    ((raw, said),) = bank_lab.letters(f"{bank_lab.windows}-dlq")
    assert raw == other
    assert said["dlq.reason"].startswith("en retard")
    assert len(published(bank_lab)) == 1


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ([], r"FR1 +00:01:00 +1 .*FR2 .*en cours, 00:02:00.* 0 à lire"),
        (["--format", "json"], r'^\{"cle":"FR1","debut":"2026-01-01T00:00:00\.000Z".*\}'),
    ],
)
def test_in_a_terminal(bank_lab: BankLab, options: list[str], pattern: str) -> None:
    """Un tableau : la minute close de chaque clé, celle qui se remplit, ce qui reste à lire ; ou des lignes JSON."""
    send(bank_lab, ("FR1", 10), ("FR1", 62), ("FR2", 70))
    command = [sys.executable, "kafka_monitor.py", "--by", "compte", "--idle-timeout", "1", "--slide", "60", *options]
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        command, cwd=bank_lab.folder, env=bank_lab.env | {"TERM": "xterm"}, stdout=follower, stderr=subprocess.PIPE
    )
    os.close(follower)
    seen = ""
    try:
        deadline = time.monotonic() + 60
        while not re.search(pattern, seen, re.DOTALL):
            assert time.monotonic() < deadline, seen
            seen += os.read(leader, 65536).decode(errors="replace")
    finally:
        process.send_signal(signal.SIGINT)
        reader = threading.Thread(target=_drain, args=(leader,), daemon=True)  # sans quoi l'écran plein le bloque
        reader.start()
        assert process.wait(60) == 0
        process.communicate()


def _drain(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 65536):
            pass


def test_once_waits_for_what_another_holds(bank_lab: BankLab) -> None:
    """--once : un membre du groupe tient la moitié des partitions, n'en fait rien, et s'en va ; tout est publié."""
    bank_lab.generate(8_000)
    group = f"{bank_lab.topic}-moniteurs"
    strategy = {"partition.assignment.strategy": "cooperative-sticky", "enable.auto.commit": False}
    idler = Consumer(client_config({"group.id": group} | strategy))
    idler.subscribe([bank_lab.topic])

    def holds(count: int) -> bool:
        idler.poll(0.1)
        return len(idler.assignment()) == count

    wait_until(lambda: holds(PARTITIONS))
    once = bank_lab.start("kafka_monitor", "--once", "--group", group)
    wait_until(lambda: holds(PARTITIONS // 2), 60, lambda: once.text)
    leave_at = time.monotonic() + 3  # de quoi lire vingt fois l'autre moitié
    wait_until(lambda: holds(0) or time.monotonic() > leave_at)
    assert once.process.poll() is None, once.text
    idler.close()
    assert once.process.wait(60) == 0
    check(bank_lab, None, 10)


@pytest.mark.long
def test_monitors_come_die_and_go(bank_lab: BankLab) -> None:
    """De un à trois moniteurs, puis un, tués net au passage : chaque fenêtre une fois, juste."""
    options = ("--slide", "1", "--idle-timeout", "600")  # l'oracle ne connaît pas l'horloge
    producer = bank_lab.start("producer_resilient", "--generate", "--seed", "1", "--rate", "2000")
    producer.wait_for("Envoi de")
    monitors: list[Running] = [bank_lab.start("kafka_monitor", *options)]

    def more(count: int) -> None:
        before = len(bank_lab.messages(bank_lab.windows))
        texts = lambda: "\n".join(monitor.text for monitor in monitors)  # noqa: E731
        wait_until(lambda: len(bank_lab.messages(bank_lab.windows)) >= before + count, 90, texts)

    more(3)
    monitors += [bank_lab.start("kafka_monitor", *options) for _ in range(2)]
    more(5)
    monitors.pop(0).stop(signal.SIGKILL)
    more(5)
    assert monitors.pop().stop(signal.SIGTERM) == 0
    more(3)
    monitors.pop().stop(signal.SIGKILL)
    assert producer.stop() == 0
    bank_lab.run("kafka_monitor", "--once", *options)
    check(bank_lab, None, 1)
    assert Counter(bank_lab.ids(bank_lab.topic)).most_common(1)[0][1] == 1
    assert not bank_lab.letters(f"{bank_lab.windows}-dlq")
    assert {"dlq"} & headers(bank_lab.messages(bank_lab.topic)[0]).keys() == set()
