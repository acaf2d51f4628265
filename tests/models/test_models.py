"""Des histoires au hasard, devant un oracle ; « make lives » vit vingt mille vies de fichiers."""

import os
import subprocess
import sys

import pytest

from commun.settings import ROOT

COUNTS = {
    "lives": ("LIVES", "400", "vies"),
    "claims": ("CLAIMS", "500", "histoires"),
    "groups": ("GROUPS", "400", "histoires"),
}


@pytest.mark.parametrize("model", COUNTS)
def test_any_history(model: str) -> None:
    """Chaque ligne une fois, quoi qu'il arrive aux fichiers, au lecteur, aux sources disputées, aux groupes."""
    variable, usual, word = COUNTS[model]
    count = os.environ.get(variable, usual)
    command = [sys.executable, "-m", f"tests.models.{model}", count]  # un processus neuf : celui-ci a des fils de Kafka
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} {word}, 0 fautes." in done.stdout


def test_faults_put_back_are_found() -> None:
    """Chaque faute d'autrefois, remise dans le membre d'un groupe, est trouvée par le modèle."""
    command = [sys.executable, "-m", "tests.models.mutants"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
