"""L'exercice 2 pendant que tout casse : chaos.py, court, avec une graine."""

import os
import signal
from collections import Counter
from pathlib import Path

from tests.conftest import services
from tests.lab import BankLab, Scripts, generated, wait_until

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
    """Brokers, consommateurs et producteur tués, gelés, déplacés : tout est sorti une fois, dans l'ordre."""
    scripts = Scripts("exercice2/verification", "chaos-", {"LOG_LEVEL": "info"})
    said = scripts.run("chaos", "--seconds", SECONDS, "--seed", str(seed), "--logs", str(tmp_path), timeout=500)
    assert "Chaque transaction confirmée est sortie une fois, dans l'ordre ; chaque fenêtre une fois, juste." in said
    assert "Deux brokers tués" in said or SEEDS != [2809], "la graine d'usage commence par ces pannes"
    assert "Le producteur tué" in said or SEEDS != [2809]
    assert "Le topic à part effacé, puis recréé" in said or SEEDS != [2809]
