"""Des producteurs qui se disputent des sources, au hasard ."""

import os
import subprocess
import sys

from commun.settings import ROOT

CLAIMS = os.environ.get("CLAIMS", "500")


def test_any_fight() -> None:
    """Chaque ligne une fois, dans l'ordre, quels que soient les démarrages, les morts et les réponses perdues."""
    command = [sys.executable, "-m", "tests.models.claims", CLAIMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CLAIMS} histoires, 0 fautes." in done.stdout
