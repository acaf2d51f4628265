"""Des vies de fichiers au hasard ; « make lives » en vit vingt mille."""

import os
import subprocess
import sys

import pytest

from commun.settings import ROOT

COUNTS = {
    "lives": ("LIVES", "400", "vies"), "claims": ("CLAIMS", "500", "histoires"), "lots": ("LOTS", "500", "histoires"),
}  # fmt: skip


@pytest.mark.parametrize("model", COUNTS)
def test_any_history(model: str) -> None:
    """Chaque ligne, chaque vente une fois, quoi qu'il arrive aux fichiers, aux programmes et aux serveurs."""
    variable, usual, word = COUNTS[model]
    count = os.environ.get(variable, usual)
    command = [sys.executable, "-m", f"tests.models.{model}", count]  # un processus neuf : celui-ci a des fils de Kafka
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} {word}, 0 fautes." in done.stdout
