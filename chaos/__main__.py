"""Casse tout pendant que les lignes et les ventes passent, puis compte : rien de perdu, rien de doublé, au centime.

    python -m chaos                        huit minutes de pannes sur les serveurs locaux
    python -m chaos --seconds 60 --seed 7  toujours les mêmes pannes, dans le même ordre
    python -m chaos --only 2               un seul exercice

Exercice 1 : un fichier CSV grandit et tourne sous producer.py. Exercice 2 : un producteur, trois consommateurs
exactement-une-fois, deux moniteurs. Exercice 3 : deux exemplaires de chaque étape, des corrections, un lecteur des
tableaux de bord, un programme étranger. Au hasard : un serveur ou un script tué, ou gelé plus longtemps que sa
session, deux brokers à la fois, tous les serveurs à la fois, les chefs de partition déplacés, le réseau d'un
producteur ralenti ou coupé, une fin de transaction reçue en retard ; dans un topic à part, une partition ajoutée, des
messages effacés, le topic recréé.
Garantit : le code de sortie est 0 si chaque ligne écrite est dans Kafka une fois, dans l'ordre ; chaque transaction
confirmée sortie une fois, dans l'ordre de son compte, et chaque fenêtre une fois, juste ; chaque vente confirmée dans
PostgreSQL une fois, au centime. 1 sinon, ou si un script s'est arrêté de lui-même.
Ne garantit pas : de laisser vos serveurs tranquilles. Il tue ceux de « python -m services ».
"""

import argparse
import logging
import random
import secrets
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from chaos.bank import Bank
from chaos.network import Network
from chaos.rows import Rows
from chaos.sales import Sales
from chaos.script import NotDoneError, Script, Trial, services
from chaos.servers import Servers
from commun import PipelineError
from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.settings import bootstrap_servers, refuse_elsewhere
from exercice3.verification.aside import aside

log = logging.getLogger("pipeline")

LOGS = Path(tempfile.gettempdir()) / "chaos"
SETTLE_SECONDS = 5.0
RECOVERY_SECONDS = 120.0
LONG_RUN = 300.0  # un essai plus court n'a pas le temps de la plus longue panne
NOT_DONE = "(pannes qui n'ont pas eu lieu)"


class Pipeline(Protocol):
    """Ce qui tourne pendant les pannes."""

    @property
    def scripts(self) -> list[Script]:
        """Tout ce qui tourne."""

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom."""

    def progress(self) -> int:
        """Un nombre qui monte tant que le travail avance ; -1 s'il ne se sait pas."""

    def settle(self) -> None:
        """La fin : plus rien n'entre, et tout doit arriver."""

    def judge(self) -> tuple[list[tuple[str, int]], int]:
        """Ce qui a été compté, et le nombre de fautes."""

    def close(self) -> None:
        """Termine ce qui reste."""


class Chaos:
    """Les pannes, l'une après l'autre."""

    def __init__(self, pipelines: Sequence[Pipeline], trial: Trial, seconds: float) -> None:
        self.pipelines, self.dice, self.stop, self.seconds = pipelines, trial.dice, trial.stop, seconds
        databases = ("mongodb", "postgres") if any(isinstance(one, Sales) for one in pipelines) else ()
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self.faults = Servers(trial, databases, long=seconds >= LONG_RUN).faults
        for pipeline in pipelines:
            self.faults |= pipeline.faults

    def play(self) -> None:
        """Un premier tour passe par toutes, dans un ordre tiré au sort ; ensuite, au hasard."""
        names = list(self.faults)
        self.dice.shuffle(names)
        deadline, number = time.monotonic() + self.seconds, 0
        while time.monotonic() < deadline and not self.stop.wait(self.dice.uniform(1, 4)):
            name = names[number] if number < len(names) else self.dice.choice(names)
            number += 1
            log.info("Panne : %s.", name)
            try:
                self.faults[name]()
            except NotDoneError as error:
                name = NOT_DONE
                log.warning("Cette panne n'a pas eu lieu : %s", error)
            for pipeline in self.pipelines:
                for script in pipeline.scripts:
                    script.refuse_dead()
            self.recoveries[name].append(self._recover(name))

    def _recover(self, name: str) -> float:
        """Secondes, une fois la panne réparée, avant que chaque travail avance de nouveau."""
        start = time.monotonic()
        for pipeline in self.pipelines:
            before = pipeline.progress()
            while not 0 <= before < pipeline.progress() and not self.stop.wait(0.2):
                if time.monotonic() - start > RECOVERY_SECONDS:
                    raise PipelineError(f"« {name} » : rien n'avance plus depuis {RECOVERY_SECONDS:.0f} s.")
                before = max(before, 0) if before >= 0 else pipeline.progress()
        return time.monotonic() - start

    def report(self) -> int:
        """Les comptes, sur la sortie ; rend le nombre de fautes."""
        print(f"\n{'panne':<60}{'fois':>6}{'médiane':>10}{'au pire':>10}")
        for name, times in sorted(self.recoveries.items()):
            half, most = french_number(statistics.median(times), 1), french_number(max(times), 1)
            print(f"{name:<60}{len(times):>6}{half + ' s':>10}{most + ' s':>10}")
        print("\nÀ droite : le temps, la panne réparée, avant que tout avance de nouveau.\n")
        faults = 0
        for pipeline in self.pipelines:
            counts, found = pipeline.judge()
            faults += found
            for name, count in counts:
                print(f"{name:<60}{french_number(count):>10}")
        return faults


def play(args: argparse.Namespace, trial: Trial) -> int:
    """Les pannes, puis les comptes."""
    topic = f"chaos-{uuid.uuid4().hex[:8]}"
    log.info("Graine %d, topics %s…, journaux dans %s.", args.seed, topic, trial.logs)
    with (
        aside(topic) as exports,
        tempfile.TemporaryDirectory() as folder,
        Network(bootstrap_servers()) as network,
    ):
        every: dict[str, Callable[[], Pipeline]] = {
            "1": lambda: Rows(f"{topic}-lignes", Path(folder), trial),
            "2": lambda: Bank(f"{topic}-banque", network, args.seed, trial),
            "3": lambda: Sales(f"{topic}-ventes", exports, trial),
        }
        pipelines: list[Pipeline] = []
        try:
            for number, start in every.items():
                if args.only in (None, number):
                    pipelines.append(start())
            time.sleep(SETTLE_SECONDS)
            chaos = Chaos(pipelines, trial, args.seconds)
            chaos.play()
            log.info("Fin des pannes : tout doit arriver, puis être compté.")
            services("up")
            for pipeline in pipelines:
                pipeline.settle()
            faults = chaos.report()
        except Stopped:
            raise PipelineError("Arrêté avant les comptes.") from None
        finally:
            for pipeline in pipelines:
                pipeline.close()
    if faults:
        raise PipelineError(f"La garantie n'est pas tenue (graine {args.seed}) : les journaux sont dans {trial.logs}.")
    print("\nRien de perdu, rien de doublé : chaque compte est juste.")
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--seconds", type=positive(float), default=480.0, help="durée des pannes")
    parser.option("--rate", type=positive(float), default=1000.0,
                  help="ventes par seconde ; cinq fois moins de transactions, dix fois moins de lignes")  # fmt: skip
    parser.option("--only", choices=("1", "2", "3"), help="un seul exercice")
    parser.option("--seed", type=positive(zero=True), help="graine des pannes")
    parser.option("--logs", type=Path, default=LOGS, help="dossier des journaux")
    args = parser.parse(argv)
    args.seed = secrets.randbits(16) if args.seed is None else args.seed
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    refuse_elsewhere(any_server=False)
    services("up")
    logs: Path = args.logs / f"{time.strftime('%H%M%S')}-{args.seed}"
    logs.mkdir(parents=True)
    return play(args, Trial(random.Random(args.seed), stop, logs, args.rate))  # noqa: S311 - des pannes rejouables


if __name__ == "__main__":
    run(main)
