"""« status » dit où en sont les données, étape par étape, et sert de sonde."""

import json
import signal
import subprocess
import sys
from typing import Any

from commun.settings import ROOT
from tests.lab import CsvLab, Lab


def status(lab: Lab | CsvLab, *options: str) -> tuple[int, dict[str, Any]]:
    """Le code et l'état, en JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "status", "--json", *options],
        cwd=ROOT, env=lab.env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)["donnees"]


def test_the_data_at_each_step(lab: Lab) -> None:
    """30 ventes et un message invalide, suivis de Kafka à PostgreSQL ; en retard, --max-waiting 0 échoue."""
    group = lab.env["VENTES_GROUP"]
    lab.produce(30)
    lab.consume(10)
    code, state = status(lab, "--max-waiting", "0")
    assert code == 1
    assert (state["kafka"]["messages"][lab.topic], state["kafka"]["retard"][group]) == (30, 20)
    assert (state["mongodb"]["ventes"], state["mongodb"]["a_exporter"]) == (10, 10)
    lab.send_raw(b"{")
    lab.consume(21)
    lab.run("schedule_export", "--once")
    _, state = status(lab)
    assert state["kafka"]["retard"][group] == 0
    assert state["kafka"]["lettres_mortes"][f"{lab.topic}-dlq"] == 1
    assert (state["mongodb"]["a_exporter"], state["fichiers"]["a_charger"]) == (0, 1)
    assert state["mongodb"]["dernier_export"] >= 0
    assert (state["postgresql"]["ventes"], state["postgresql"]["dernier_chargement"]) == (0, None)
    lab.run("pg")
    _, state = status(lab)
    assert (state["postgresql"]["ventes"], state["fichiers"]["a_charger"]) == (30, 0)
    assert state["postgresql"]["dernier_chargement"] >= 0
    other = {name for name, lag in state["kafka"]["retard"].items() if lag}
    assert group not in other


def test_a_look_and_marks_are_not_late(csv_lab: CsvLab) -> None:
    """Tout lu, il ne reste que la marque d'une transaction ; un regard à part ne laisse pas de groupe en retard."""
    csv_lab.write("id\n1\n2\n")
    csv_lab.run("producer", "--once")
    csv_lab.run("consumer", "--max-messages", "2")
    known = status(csv_lab)[1]["kafka"]["retard"]
    csv_lab.run("consumer", "--from-beginning", "--max-messages", "1", env={"CSV_GROUP": ""})
    late = status(csv_lab)[1]["kafka"]["retard"]
    assert (late[csv_lab.env["CSV_GROUP"]], late.keys()) == (0, known.keys())
    csv_lab.write("3\n")
    csv_lab.run("producer", "--once")
    assert status(csv_lab, "--max-waiting", "0")[0] == 1
    assert status(csv_lab)[1]["kafka"]["retard"][csv_lab.env["CSV_GROUP"]] > 0


def test_watch_goes_on_until_stopped(lab: Lab) -> None:
    """--watch redit l'état, jusqu'à ce qu'on l'arrête : Ctrl-C n'est pas un échec."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services", "status", "--watch", "0.1"],
        cwd=ROOT, env=lab.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        told = 0
        while told < 2 and process.stdout and (line := process.stdout.readline()):
            told += line.startswith("à charger")
        assert told == 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate(timeout=60)
