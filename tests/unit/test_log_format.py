"""Le journal que lit une machine."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging
from commun.cli import Parser, run
from commun.errors import PipelineError

def main():
    Parser("Essai.").parse(["--log-format", "json"])
    logging.getLogger("pipeline").info("Reçu : %d « é ».", 3)
    raise PipelineError("Kafka ne répond pas.")

run(main)
"""


def test_every_line_is_an_object(tmp_path: Path) -> None:
    """--log-format json : chaque ligne, la dernière phrase comprise, est un objet JSON."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "Reçu : 3 « é »."), ("error", "Kafka ne répond pas."),
    ]  # fmt: skip
    assert all(line["time"].endswith("+00:00") for line in lines)
