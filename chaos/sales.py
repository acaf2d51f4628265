"""L'exercice 3 sous les pannes : des ventes, jusqu'à PostgreSQL, et ceux qui regardent les tableaux de bord."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from chaos.script import NotDoneError, Script, Trial, messages
from commun import PipelineError
from commun.kafka import admin_config, client_config
from commun.settings import ROOT, postgres_dsn

import psycopg2
from confluent_kafka import Producer

FREEZE_SECONDS = 12.0  # plus que la session d'un consommateur (10 s)
LOOK_SECONDS = 0.5
ARRIVAL_SECONDS = 300.0  # patience, à la fin
STRANGE = (b"", b"\xff\xfe", b"{}", b'{"id": "x", "montant": -1}', b"[" * 5000)
# Vrai à tout instant : les sommes et la table ne s'écartent jamais.
AGREE = """
    SELECT (table_.nombre, table_.montant) = (sommes.nombre, sommes.montant)
    FROM (SELECT count(*)::numeric AS nombre, coalesce(sum(montant), 0) AS montant
          FROM ventes WHERE NOT annulee) AS table_,
         (SELECT coalesce(sum(nombre_ventes), 0)::numeric AS nombre, coalesce(sum(chiffre_affaires), 0) AS montant
          FROM ventes_par_jour) AS sommes
"""


class Sales:
    """Deux exemplaires de chaque étape, un lecteur des tableaux de bord, et un programme étranger."""

    def __init__(self, topic: str, folder: Path, trial: Trial) -> None:
        self.topic, self.folder, self.dice, self.stop = topic, folder, trial.dice, trial.stop
        self.env = {"VENTES_TOPIC": topic, "VENTES_GROUP": topic, "EXPORT_DIR": str(folder)}
        self.strange, self.suites, self.looks, self.disagreements = 0, 0, 0, 0

        def two(step: str, *options: str) -> list[Script]:
            return [
                Script(trial.logs / f"{step}-{n}.log", f"exercice3/{step}.py", *options, env=self.env) for n in (1, 2)
            ]  # fmt: skip

        self.producers = two("producer", "--rate", str(trial.rate / 2), "--corrections", "2", "--seed", "0")
        for producer in self.producers:
            producer.kill()
            self._new_suite(producer)
        self.steps = {
            "un consommateur": two("consumer"),
            "un export": two("schedule_export", "--every", "2"),
            "un chargement": two("pg", "--watch", "--every", "1"),
        }
        self._over = threading.Event()
        self._viewer = threading.Thread(target=self._look, daemon=True)
        self._viewer.start()

    def _new_suite(self, producer: Script) -> None:
        """Relance un producteur sur une suite neuve : celle d'avant s'arrête là où Kafka l'a confirmée."""
        self.suites += 1
        producer.options[-1] = str(self.suites)
        producer.restart()

    @property
    def scripts(self) -> list[Script]:
        """Tout ce qui tourne."""
        return self.producers + [script for step in self.steps.values() for script in step]

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom."""
        faults: dict[str, Callable[[], None]] = {
            "un producteur de ventes tué": self.kill_producer, "des messages et des fichiers étrangers": self.disturb,
        }  # fmt: skip
        for name, scripts in self.steps.items():
            faults[f"{name} tué"] = partial(self._kill, scripts)
            faults[f"{name} gelé"] = partial(self._freeze, scripts)
        return faults

    def kill_producer(self) -> None:
        """Tué, il ne reprend pas sa suite."""
        producer = self.dice.choice(self.producers)
        producer.kill()
        self._new_suite(producer)

    def _kill(self, scripts: list[Script]) -> None:
        self.dice.choice(scripts).kill_then_restart(self.stop, self.dice.uniform(0, 3))

    def _freeze(self, scripts: list[Script]) -> None:
        self.dice.choice(scripts).freeze_then_wake(self.stop, FREEZE_SECONDS)

    def disturb(self) -> None:
        """Ce qu'un autre programme écrirait dans le topic et dans le dossier."""
        for name in ("ventes.csv", "lisez-moi.txt", f"ventes_999{self.strange:03}_x.csv"):
            (self.folder / name).write_bytes(self.dice.choice(STRANGE))
        refused: list[object] = []
        producer = Producer(admin_config(client_config({})) | {"acks": "all", "message.timeout.ms": 30_000})
        for value in STRANGE:
            producer.produce(self.topic, value, on_delivery=lambda error, _: refused.append(error) if error else None)
        if producer.flush(60) or refused:
            raise NotDoneError("Kafka n'a pas pris les messages étrangers")
        self.strange += len(STRANGE)

    def _look(self) -> None:
        """Regarde les sommes sans cesse ; une base qui ne répond pas n'est pas une faute."""
        while not self._over.wait(LOOK_SECONDS):
            try:
                with closing(psycopg2.connect(**postgres_dsn())) as connection, connection.cursor() as cursor:
                    cursor.execute(AGREE)
                    self.looks += 1
                    self.disagreements += cursor.fetchone() != (True,)
            except psycopg2.OperationalError:
                continue

    def progress(self) -> int:
        """Un nombre qui monte tant que des ventes arrivent au bout."""
        try:
            with closing(psycopg2.connect(**postgres_dsn())) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM ventes_chargements")
                (count,) = cursor.fetchone() or (0,)
                return int(count)
        except psycopg2.OperationalError:
            return -1

    def settle(self) -> None:
        """Les producteurs finissent ; tout ce qu'ils ont confirmé arrive, ou PipelineError."""
        for producer in self.producers:
            producer.end()
        words = [sys.executable, "reconcile.py", "--full", "--wait", str(ARRIVAL_SECONDS)]
        done = subprocess.run(
            words, cwd=ROOT / "exercice3", env=self.producers[0].env, capture_output=True, text=True, check=False
        )
        self._over.set()
        self._viewer.join()
        for script in self.scripts:
            if script not in self.producers:
                script.end()
        if done.returncode:
            raise PipelineError(f"L'exercice 3 n'est pas juste :\n{done.stdout}{done.stderr}")

    def judge(self) -> tuple[list[tuple[str, int]], int]:
        """Ce qui a été compté, et le nombre de fautes."""
        with closing(psycopg2.connect(**postgres_dsn())) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(*) FILTER (WHERE version > 1) FROM ventes")
            sales, corrected = cursor.fetchone() or (0, 0)
        letters = len(self._letters())
        lost = self.strange - letters
        counts = [
            ("ventes, égales au centime d'un bout à l'autre", sales), ("dont corrigées ou annulées", corrected),
            ("messages étrangers, tous en lettres mortes", letters), ("regards sur les tableaux de bord", self.looks),
            ("sommes en désaccord avec la table", self.disagreements), ("messages étrangers perdus", lost),
        ]  # fmt: skip
        return counts, self.disagreements + abs(lost) + (not sales) + (not self.looks)

    def _letters(self) -> set[tuple[bytes | str | None, ...]]:
        """Les places d'origine des lettres mortes."""
        headers = [dict(message.headers() or ()) for message in messages(f"{self.topic}-dlq")]
        return {(one.get("dlq.partition"), one.get("dlq.offset")) for one in headers}

    def close(self) -> None:
        """Termine ce qui reste."""
        self._over.set()
        for script in self.scripts:
            script.kill()
