"""Un script se lit d'un trait : ce qu'il faut connaître pour cela est borné ; et rien ne s'importe avant nous."""

import os
import subprocess
import sys
from pathlib import Path

from commun.settings import ROOT
from tests import house

import pytest

PACKAGES = ("confluent_kafka", "pymongo", "psycopg2", "schedule", "pandas", "faker", "prometheus_client")


@pytest.mark.parametrize("script", house.BUDGET)
def test_a_script_names_few_modules(script: str) -> None:
    """Ses modules et leurs lignes tiennent dans le budget écrit dans tests/house.py."""
    named, _, lines = house.measure(script)
    modules, most = house.BUDGET[script]
    assert named <= modules
    assert lines <= most


@pytest.mark.parametrize("script", house.BUDGET)
def test_interrupted_while_it_loads(script: str, tmp_path: Path) -> None:
    """Un Ctrl-C pendant qu'un paquet se charge finit en une phrase, comme plus tard."""
    for package in PACKAGES:
        (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt\n")
    folder, name = os.path.split(ROOT / script)
    there = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, name], cwd=folder, env=there, capture_output=True, text=True, check=False)
    assert done.returncode
    assert done.stderr == "Interrompu avant la fin.\n"
