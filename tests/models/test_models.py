"""Des histoires au hasard, et les fautes d'autrefois que les modèles doivent voir ; « make lives » en vit davantage."""

import os
import subprocess
import sys

from commun.settings import ROOT
from tests.models.put_back import FAULTS, search

import pytest

COUNTS = {
    "lives": ("LIVES", "150", "vies"),
    "claims": ("CLAIMS", "500", "histoires"),
    "groups": ("GROUPS", "300", "histoires"),
    "monitors": ("MONITORS", "100", "histoires"),
    "lots": ("LOTS", "500", "histoires"),
}


@pytest.mark.parametrize("model", COUNTS)
def test_any_history(model: str) -> None:
    """Chaque ligne, chaque vente une fois, quoi qu'il arrive aux fichiers, aux programmes et aux serveurs."""
    variable, usual, word = COUNTS[model]
    count = os.environ.get(variable, usual)
    command = [sys.executable, "-m", f"tests.models.{model}", count]  # un processus neuf : celui-ci a des fils de Kafka
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} {word}, 0 fautes." in done.stdout


def test_a_spoiled_input_is_answered() -> None:
    """À chaque porte, une entrée abîmée a une réponse ou une erreur prévue."""
    command = [sys.executable, "-m", "tests.models.fuzz", os.environ.get("FUZZ", "24000")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "entrées, 0 fautes." in done.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_put_back_is_found(fault: str) -> None:
    """Le modèle voit chaque faute d'autrefois, remise dans le vrai code."""
    assert search(fault)
