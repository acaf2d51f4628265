"""Pannes : services tués, scripts tués au hasard. À la fin, chaque vente est là une fois."""

import random
import signal
import time

from tests.conftest import services
from tests.lab import Lab, Running, expected, ids, wait_until

import pytest


def ok(*arguments: str) -> str:
    """« python -m services … », qui doit réussir."""
    done = services(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_mongodb_killed_while_consuming(lab: Lab) -> None:
    """MongoDB tué : le consommateur attend, le dit une fois, garde sa place dans le groupe et ne perd rien."""
    consumer = lab.start("consumer", env={"KAFKA_MAX_POLL_INTERVAL_MS": "6000", "KAFKA_SESSION_TIMEOUT_MS": "6000"})
    lab.produce(300)
    wait_until(lambda: len(lab.in_mongo()) == 300, 60, lambda: consumer.text)
    ok("kill", "mongodb")
    try:
        producer = lab.start("producer", "--count", "3000", "--seed", "1", "--rate", "1000")
        consumer.wait_for("MongoDB ne répond plus")
        time.sleep(7)  # plus long que max.poll.interval.ms : sans « poll », le groupe l'exclurait
    finally:
        ok("restart", "mongodb")
    consumer.wait_for("MongoDB répond de nouveau")
    wait_until(lambda: len(lab.in_mongo()) == 3000, 60, lambda: consumer.text)
    assert producer.process.wait(60) == 0
    assert consumer.stop() == 0
    assert lab.in_mongo() == ids(expected(3000))
    assert consumer.text.count("ne répond plus") == 1
    assert "Position non validée" not in consumer.text, "il a gardé ses partitions"


def test_consumer_stopped_while_mongodb_is_down(lab: Lab) -> None:
    """Ctrl-C pendant la panne : sortie propre, et les messages non écrits sont relus ensuite."""
    lab.produce(400)
    consumer = lab.start("consumer", env={"LOG_LEVEL": "info"})
    wait_until(lambda: len(lab.in_mongo()) == 400, 60, lambda: consumer.text)
    ok("kill", "mongodb")
    try:
        lab.produce(500)
        consumer.wait_for("MongoDB ne répond plus")
        assert consumer.stop(signal.SIGINT) == 0
        assert "seront relus" in consumer.text
    finally:
        ok("restart", "mongodb")
    lab.consume(500)
    assert lab.in_mongo() == ids(expected(500))


def test_postgres_killed_while_watching(lab: Lab) -> None:
    """PostgreSQL tué : pg.py --watch attend, le dit une fois, puis charge tout, une fois."""
    watcher = lab.start("pg", "--watch", "--every", "0.5")
    lab.produce(200)
    lab.consume(200)
    lab.run("schedule_export", "--once")
    wait_until(lambda: "200 nouvelles" in watcher.text, 60, lambda: watcher.text)
    ok("kill", "postgres")
    lab.produce(100, seed=2)
    lab.consume(100)
    lab.run("schedule_export", "--once")
    watcher.wait_for("PostgreSQL ne répond plus")
    time.sleep(1)  # deux passages de plus : il ne le redit pas
    ok("restart", "postgres")
    watcher.wait_for("100 nouvelles")
    assert watcher.stop() == 0
    assert lab.in_postgres() == (300, sum(v.montant for v in expected(200) + expected(100, seed=2)))
    assert watcher.text.count("ne répond plus") == 1


@pytest.mark.long
def test_a_broker_dies_and_nobody_notices(lab: Lab) -> None:
    """Un broker sur trois tué pendant l'envoi et la lecture : tout est confirmé, tout arrive."""
    producer = lab.start("producer", "--count", "3000", "--seed", "1", "--rate", "300")
    consumer = lab.start("consumer")
    wait_until(lambda: len(lab.in_mongo()) > 200, 60, lambda: consumer.text)
    ok("kill", "kafka2")
    assert producer.process.wait(120) == 0, producer.text
    producer.wait_for("3000 confirmées")
    wait_until(lambda: len(lab.in_mongo()) == 3000, 120, lambda: consumer.text)
    ok("restart", "kafka2")
    assert consumer.stop() == 0
    assert lab.in_mongo() == ids(expected(3000))


@pytest.mark.long
def test_two_brokers_die_and_come_back(lab: Lab) -> None:
    """Deux brokers sur trois tués : le producteur attend et finit après leur retour, sans rien perdre."""
    producer = lab.start("producer", "--count", "2000", "--seed", "1", "--rate", "300")
    producer.wait_for("confirmées")
    ok("kill", "kafka1")
    ok("kill", "kafka3")
    time.sleep(8)
    ok("up")
    assert producer.process.wait(120) == 0, producer.text
    lab.consume(2000)
    assert lab.in_mongo() == ids(expected(2000))


@pytest.mark.long
def test_kill_anything_then_reconcile(lab: Lab) -> None:
    """Pendant que tout tourne, services et scripts sont tués au hasard (graine fixe), puis relancés : tout est égal."""
    draw = random.Random(20261124)
    commands = {
        "producer": ("--count", "4000", "--seed", "1", "--rate", "200"),
        "consumer": (),
        "schedule_export": ("--every", "1"),
        "pg": ("--watch", "--every", "0.5"),
    }
    scripts: dict[str, Running] = {name: lab.start(name, *options) for name, options in commands.items()}
    for service in draw.sample(["kafka1", "kafka2", "kafka3", "mongodb", "postgres"], 5):
        time.sleep(draw.uniform(0.5, 2))
        ok("kill", service)
        victim = draw.choice(list(commands))
        scripts[victim].stop(signal.SIGKILL)
        time.sleep(draw.uniform(0.5, 3))
        scripts[victim] = lab.start(victim, *commands[victim])
        ok("restart", service)
        if scripts[victim].process.poll():  # démarré pendant la panne, il a renoncé en le disant
            scripts[victim] = lab.start(victim, *commands[victim])
    assert scripts["producer"].process.wait(120) == 0, scripts["producer"].text
    wait_until(lambda: lab.in_postgres()[0] == 4000, 120, lambda: [script.text[-500:] for script in scripts.values()])
    for name in ("consumer", "schedule_export", "pg"):
        assert scripts[name].stop() == 0, scripts[name].text
    assert "Tout est égal" in lab.reconcile(4000)
