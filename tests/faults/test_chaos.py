"""L'exercice 2 pendant que tout casse : chaos.py, court, avec une graine."""

import os
from pathlib import Path

import pytest

from tests.lab import Scripts

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "1").split(",")]
SECONDS = os.environ.get("CHAOS_SECONDS", "45")


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_lost_nothing_twice(stack: None, tmp_path: Path, seed: int) -> None:
    """Brokers, consommateurs et producteur tués, gelés, déplacés : tout est sorti une fois, dans l'ordre."""
    scripts = Scripts("exercice2", {"LOG_LEVEL": "info"})
    said = scripts.run("chaos", "--seconds", SECONDS, "--seed", str(seed), "--logs", str(tmp_path), timeout=500)
    assert "Chaque transaction confirmée est sortie une fois, dans l'ordre." in said
    assert "deux brokers" in said.lower()
