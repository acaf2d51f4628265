"""Le journal, que lit une machine ou que montre un terminal."""

import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging
from commun.cli import Parser, run
from commun import PipelineError

def main():
    Parser("Essai.").parse(None)
    logging.getLogger("pipeline").info("Reçu : %d « %s ».", 3, "é\\n\\x1b[31m")
    raise PipelineError("Kafka ne répond\\npas\\x07.")

run(main)
"""


def lines_of(folder: Path, *options: str) -> list[str]:
    """Ce que ce script dit, ligne par ligne."""
    command = [sys.executable, "-c", SCRIPT, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_every_line_is_an_object(tmp_path: Path) -> None:
    """--log-format json : chaque ligne, la dernière phrase comprise, est un objet JSON."""
    lines = [json.loads(line) for line in lines_of(tmp_path, "--log-format", "json")]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "Reçu : 3 « é\n\x1b[31m »."), ("error", "Kafka ne répond\npas\x07."),
    ]  # fmt: skip
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_a_terminal_runs_nothing(tmp_path: Path) -> None:
    """Une ligne par phrase du journal, quoi que contienne un nom ; la dernière phrase peut en avoir plusieurs."""
    said, *last = lines_of(tmp_path)
    assert re.fullmatch(r"\d\d:\d\d:\d\d Reçu : 3 « é\\n\\x1b\[31m »\.", said)
    assert last == ["Kafka ne répond", "pas\\x07."]
