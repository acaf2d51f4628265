"""Tout l'exercice 3 d'un coup : lance les quatre scripts, attend la dernière vente, vérifie tout.

    python demo.py                  10 000 ventes, un export toutes les 3 secondes
    python demo.py --count 50000

C'est ce que fait « make demo » une fois les serveurs démarrés. Les quatre scripts sont
ceux que vous lancez à la main ; chaque ligne affichée porte le nom de celui qui parle.
Termine avec le code 0 si toutes les ventes sont arrivées une fois, au centime ; 1 sinon.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, Stop, french_number, positive, run
from commun.settings import postgres_dsn, refuse_elsewhere, setting
from commun.systems import ACTIVATE, STOPPED_EARLY, ask_to_stop, own_group

import psycopg2

FOLDER = Path(__file__).parent
COUNT = 10_000
RATE = 1000.0
EVERY_SECONDS = 3
TIMEOUT_SECONDS = 300
PROGRESS_SECONDS = 2.0
RECONCILE_SECONDS = 0.2
INTERRUPTED = (
    "Démonstration interrompue : les ventes déjà parties sont dans Kafka, MongoDB ou les fichiers exportés, rien n'est "
    "perdu. Le prochain « make demo » les mènera au bout, avec les siennes."
)


class Script:
    """Un script de l'exercice, lancé comme à la main ; ses lignes sont affichées avec son nom."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        command = [sys.executable, f"{name}.py", *options]
        print(f"$ cd exercice3 && python {name}.py {' '.join(options)}".rstrip(), flush=True)
        self.process = subprocess.Popen(
            command, cwd=FOLDER, stderr=subprocess.PIPE, text=True, encoding="utf-8", **own_group()
        )
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        for line in self.process.stderr or ():
            print(f"  {self.name:<15} | {line.rstrip()}", flush=True)

    def check_running(self) -> None:
        """Lève PipelineError si le script s'est arrêté tout seul."""
        if self.process.poll() is not None:
            raise PipelineError(
                f"{self.name}.py s'est arrêté (code {self.process.returncode}) : lisez ses lignes ci-dessus."
            )


def finish(scripts: Sequence[Script]) -> list[int]:
    """Demande l'arrêt à tous, comme Ctrl-C, puis les attend ; renvoie les codes de sortie.

    Tous d'abord : un second Ctrl-C n'attend plus, et n'en laisse aucun en marche.
    """
    asked = [ask_to_stop(script.process) for script in scripts]
    codes = [script.process.wait(60) for script in scripts]
    # Tué, faute de pouvoir demander ou parce qu'il ouvrait à peine les yeux : son code ne dit rien.
    return [code if polite and code != STOPPED_EARLY else 0 for code, polite in zip(codes, asked, strict=True)]


def ventes_in_postgres() -> int:
    """Nombre de ventes dans PostgreSQL, 0 si la table n'existe pas encore."""
    connection = psycopg2.connect(**postgres_dsn(), connect_timeout=5)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM ventes")
            return int((cursor.fetchone() or (0,))[0])
    except psycopg2.errors.UndefinedTable:
        return 0
    finally:
        connection.close()


def follow(producer: Script, others: Sequence[Script], goal: int, stop: Stop) -> None:
    """Affiche l'avancement jusqu'à ce que PostgreSQL ait ``goal`` ventes."""
    start, arrived = time.monotonic(), 0
    while not stop:
        try:
            arrived = ventes_in_postgres()
        except psycopg2.OperationalError:
            print("— PostgreSQL ne répond pas : j'attends son retour", flush=True)
        if arrived >= goal:
            break
        for script in others:
            script.check_running()
        if producer.process.poll():
            producer.check_running()
        if time.monotonic() - start > TIMEOUT_SECONDS:
            raise PipelineError(f"{goal - arrived} ventes ne sont pas arrivées au bout de {TIMEOUT_SECONDS} s.")
        missing = french_number(goal - arrived)
        print(
            f"— {time.monotonic() - start:3.0f} s : encore {missing} ventes à voir arriver dans PostgreSQL", flush=True
        )
        stop.wait(PROGRESS_SECONDS)


def reconcile(stop: Stop) -> tuple[int, str] | None:
    """Compare les ventes à chaque étape : le code de reconcile.py et sa table ; None si l'arrêt est demandé."""
    command = [sys.executable, "reconcile.py", "--wait", "60"]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, encoding="utf-8", **own_group()) as process:
        while not stop and process.poll() is None:
            stop.wait(RECONCILE_SECONDS)
        if stop:
            ask_to_stop(process)
        table, _ = process.communicate()
    return None if stop else (process.returncode, table)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--count", type=positive(), default=COUNT, help="nombre de ventes")
    parser.option("--rate", type=positive(float, zero=True), default=RATE, help="ventes par seconde, 0 : au plus vite")
    parser.option("--every", type=positive(float), default=EVERY_SECONDS, help="secondes entre deux exports")
    parser.option("--any-server", action="store_true", help="aussi sur d'autres serveurs que ceux de la pile locale")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    refuse_elsewhere(any_server=args.any_server)
    try:
        goal = ventes_in_postgres() + args.count
    except psycopg2.OperationalError as error:
        raise PipelineError("PostgreSQL ne répond pas : démarrez les services avec « make services ».") from error
    producer = Script("producer", "--count", str(args.count), "--rate", f"{args.rate:g}")
    others = [
        Script("consumer"),
        Script("schedule_export", "--every", f"{args.every:g}"),
        Script("pg", "--watch", "--every", "1"),
    ]
    verdict = None
    try:
        follow(producer, others, goal, stop)
        verdict = None if stop else reconcile(stop)
    finally:
        codes = finish((producer, *others))
    code, table = verdict or (0, "")
    if verdict:
        print(f"\n$ cd exercice3 && python reconcile.py\n{table}", end="")
    if any(codes):
        raise PipelineError("Un script s'est mal terminé : lisez ses lignes ci-dessus.")
    if verdict is None:
        print(INTERRUPTED)
    elif code == 0:
        print(how_to_go_on())
    return code


def how_to_go_on() -> str:
    """Ce que l'on peut faire maintenant."""
    host, port, base = (setting(name) for name in ("PGHOST", "PGPORT", "PGDATABASE"))
    password = setting("TABLEAU_PASSWORD")
    return f"""
Les serveurs restent en marche. Et maintenant :
  voir      : make apercu, puis http://localhost:{os.environ.get("PORT_APERCU") or 8501}
  Tableau   : tableau/ventes.twb, mot de passe {password} (serveur {host}:{port}, base {base}, rôle tableau)
  SQL       : make psql, ou votre programme : postgresql://tableau:{password}@{host}:{port}/{base}
  à la main : {ACTIVATE}, cd exercice3, puis python producer.py (et les autres, chacun dans son terminal)
  pannes    : .venv/bin/python -m services kill kafka2
  vérifier  : make reconcile
  arrêter   : make stop"""


if __name__ == "__main__":
    run(main)
