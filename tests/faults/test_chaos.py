"""Pendant que tout casse : le chaos, court, avec une graine ; et deux brokers morts sous l'exercice 2."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from commun.settings import ROOT
from tests.conftest import services
from tests.lab import BankLab, generated, wait_until

import pytest

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "2809").split(",")]
SECONDS = os.environ.get("CHAOS_SECONDS", "60")


@pytest.mark.long
def test_two_brokers_down(bank_lab: BankLab) -> None:
    """Deux brokers morts : le producteur le dit une fois ; arrêté là, il dit ce qui manque ; relancé, il l'envoie."""
    options = ("--generate", "--seed", "1", "--rate", "100")
    producer = bank_lab.start("producer_resilient", *options)
    wait_until(
        lambda: "Envoi de" in producer.text and len(bank_lab.ids(bank_lab.topic)) > 50, 60, lambda: producer.text
    )
    for name in ("kafka2", "kafka3"):
        assert services("kill", name).returncode == 0
    try:
        producer.wait_for("Kafka ne confirme plus rien")
        assert producer.stop(signal.SIGTERM) == 1
        assert "ne sont pas confirmées : relancez la même commande" in producer.text
        assert producer.text.count("ne confirme plus rien") == 1
    finally:
        assert services("up").returncode == 0
    before = len(bank_lab.ids(bank_lab.topic))
    again = bank_lab.start("producer_resilient", *options)
    wait_until(lambda: len(bank_lab.ids(bank_lab.topic)) > before, 60, lambda: again.text)
    assert again.stop(signal.SIGINT) == 0
    found = Counter(bank_lab.ids(bank_lab.topic))
    assert found == generated(len(found))


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_lost_nothing_twice(stack: None, tmp_path: Path, seed: int) -> None:
    """Les trois exercices, leurs serveurs et leurs scripts tués, gelés : chaque compte est juste."""
    command = [sys.executable, "-m", "chaos", "--seconds", SECONDS, "--seed", str(seed), "--logs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Rien de perdu, rien de doublé : chaque compte est juste." in done.stdout
    assert "(pannes qui n'ont pas eu lieu)" not in done.stdout or SEEDS != [2809], "la graine d'usage n'en a pas"
