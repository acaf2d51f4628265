"""demo.py : ce que fait Ctrl-C, à chaque moment, avec des scripts de théâtre et sans serveur."""

import signal
import subprocess
import sys
from pathlib import Path

from commun.settings import ROOT
from tests.lab import wait_until

import pytest

SCRIPTS = ("producer", "consumer", "schedule_export", "pg")
# Un script qui durerait deux minutes ; avec --rate 1, producer.py ne finit pas ce qui est en vol avant qu'on le dise.
SCRIPT = """
import pathlib, signal, sys, time
name = pathlib.Path(sys.argv[0]).stem

def stop(*_):
    pathlib.Path(name + ".stopped").touch()
    while name == "producer" and sys.argv[-1] == "1" and not pathlib.Path("over").exists():
        time.sleep(0.05)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(name + ".ready").touch()
time.sleep(120)
"""
# demo.py, avec ces scripts-là et le nombre de ventes que PostgreSQL aurait, question après question.
DEMO = """
import pathlib, sys
from commun.cli import run
from exercice3 import demo
folder, later, finishing = sys.argv[1:]
counts = iter((0,))
demo.FOLDER, demo.PROGRESS_SECONDS = pathlib.Path(folder), 0.05
demo.ventes_in_postgres = lambda: next(counts, int(later))
run(lambda: demo.main(["--rate", finishing]))
"""


class Demo:
    """demo.py en marche, dans un dossier de scripts de théâtre."""

    def __init__(self, folder: Path, *, arrived: int, finishing: bool = False) -> None:
        self.folder = folder
        for name in (*SCRIPTS, "reconcile"):
            (folder / f"{name}.py").write_text(SCRIPT)
        command = [sys.executable, "-c", DEMO, str(folder), str(arrived), str(int(finishing))]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def reached(self, state: str) -> set[str]:
        """Les scripts prêts (« ready »), ou à qui l'arrêt a été demandé (« stopped »)."""
        return {path.stem for path in self.folder.glob(f"*.{state}")}

    def interrupt_when(self, state: str, names: set[str]) -> None:
        """Ctrl-C dès que ces scripts en sont là."""
        wait_until(lambda: self.reached(state) >= names, 60)
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Code de sortie, sortie et sortie d'erreur ; bien avant la fin des scripts."""
        code = self.process.wait(60)
        (self.folder / "over").touch()
        output, errors = self.process.communicate()  # un script qui finit encore tient la même sortie
        return code, output, errors


def test_interrupted_while_sales_flow(tmp_path: Path) -> None:
    """Ctrl-C pendant l'envoi : chaque script s'arrête, et rien n'est comparé."""
    demo = Demo(tmp_path, arrived=0)
    demo.interrupt_when("ready", set(SCRIPTS))
    code, output, errors = demo.end()
    assert (code, errors, "Démonstration interrompue" in output) == (0, "", True)
    assert (demo.reached("stopped"), demo.reached("ready")) == (set(SCRIPTS), set(SCRIPTS))


def test_interrupted_while_comparing(tmp_path: Path) -> None:
    """Ctrl-C pendant la comparaison : elle s'arrête aussi, sans attendre sa fin."""
    demo = Demo(tmp_path, arrived=1_000_000)
    demo.interrupt_when("ready", {*SCRIPTS, "reconcile"})
    code, output, errors = demo.end()
    assert (code, errors, "Démonstration interrompue" in output) == (0, "", True)
    assert demo.reached("stopped") == {*SCRIPTS, "reconcile"}


@pytest.mark.parametrize("arrived", [0, 1_000_000])
def test_interrupted_at_once(tmp_path: Path, arrived: int) -> None:
    """Ctrl-C quand les scripts ouvrent à peine les yeux : ils n'avaient rien en vol, et ce n'est pas une erreur."""
    demo = Demo(tmp_path, arrived=arrived)
    assert demo.process.stdout
    assert "python producer.py" in demo.process.stdout.readline()
    demo.process.send_signal(signal.SIGINT)
    code, output, errors = demo.end()
    assert (code, errors, "Démonstration interrompue" in output) == (0, "", True)


def test_interrupted_twice(tmp_path: Path) -> None:
    """Un second Ctrl-C, pendant que producer.py finit : on n'attend plus, et aucun autre n'est resté en marche."""
    demo = Demo(tmp_path, arrived=0, finishing=True)
    demo.interrupt_when("ready", set(SCRIPTS))
    wait_until(lambda: "producer" in demo.reached("stopped"), 60)
    demo.process.send_signal(signal.SIGINT)
    assert demo.end()[::2] == (1, "Interrompu avant la fin.\n")
    wait_until(lambda: demo.reached("stopped") == set(SCRIPTS), 60, lambda: demo.reached("stopped"))
