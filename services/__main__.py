"""Les serveurs du projet en simples processus, sans Docker.

    python -m services up            démarre tout et attend que chaque service réponde
    python -m services down          arrête tout, les données restent
    python -m services status        qui tourne, sur quel port, depuis quand
    python -m services doctor        ce qui arrêterait les scripts, et le remède de chaque chose
    python -m services logs kafka2   fin du journal d'un service
    python -m services kill kafka2   tue un service (kill -9), pour voir
    python -m services pause kafka2  le gèle (SIGSTOP) ; « resume » le réveille
    python -m services stop kafka2   l'arrête proprement ; « restart » le redémarre
    python -m services flink         démarre aussi Apache Flink et les fenêtres de l'exercice 2
    python -m services reset         arrête tout et efface toutes les données

Garantit : « up » peut se relancer à tout moment, même après une coupure ; « down »
ne laisse aucun processus ; rien n'écoute ailleurs que sur 127.0.0.1.
Ports, noms et mots de passe : .env, à la racine. Données : le dossier .data.
"""

import sys

from commun.cli import Parser, run
from services.doctor.__main__ import main as doctor

# Avant les autres imports : « doctor » marche sans les paquets des serveurs, et sous Windows.
if __name__ == "__main__" and sys.argv[1:2] == ["doctor"]:
    run(lambda: doctor(sys.argv[2:]))

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from commun.errors import PipelineError
from commun.settings import ROOT
from services import health, install
from services.flink import Flink
from services.stack import FLINK_NAMES, JOBMANAGER, NAMES, TASKMANAGERS, Service, Stack
from services.supervise import RUNNING, Supervisor

READY_SECONDS = 90
LOG_LINES = 40


def say(sentence: str) -> None:
    """Une ligne d'avancement, sur la sortie d'erreur."""
    print(sentence, file=sys.stderr, flush=True)


def up(stack: Stack) -> None:
    """Installe, démarre et attend tous les services, sauf Flink ; sans effet sur ceux qui tournent."""
    start = time.monotonic()
    supervisor = Supervisor(stack)
    if not supervisor.alive():
        supervisor.end_orphans()
    refuse_taken_ports(stack, supervisor, NAMES)
    install.install(stack, say)
    say(f"Démarrage de {', '.join(NAMES)}…")
    supervisor.start(every_service(stack), NAMES)
    await_services(stack, supervisor, NAMES)
    if created := health.create_topics(stack):
        say(f"Topics créés : {', '.join(created)}.")
    engine = "mongod" if stack.mongod else "SecantusDB (protocole de MongoDB ; mongod n'est pas installé)"
    say(f"Tout répond, en {time.monotonic() - start:.0f} s. MongoDB est ici : {engine}.")


def start_flink(stack: Stack) -> None:
    """Installe, démarre et attend Flink : le JobManager et un TaskManager, puis le job."""
    supervisor = Supervisor(stack)
    names = (JOBMANAGER, TASKMANAGERS[0])
    refuse_taken_ports(stack, supervisor, names)
    prepare_flink(stack, supervisor)
    say(f"Démarrage de {', '.join(names)}…")
    supervisor.start(every_service(stack), names)
    for name in names:  # l'un après l'autre : sans JobManager, un TaskManager ne répond jamais
        await_services(stack, supervisor, [name])
    port = stack.ports[JOBMANAGER]
    health.wait("Le job de Flink", lambda: "RUNNING" in health.flink_jobs(port).values(), READY_SECONDS,
                is_running(supervisor, JOBMANAGER), stack.logs / f"{JOBMANAGER}.log")  # fmt: skip
    (job,) = health.flink_jobs(port)
    say(f"Le job « {job} » tourne. Tableau de bord : http://localhost:{port}")


def prepare_flink(stack: Stack, supervisor: Supervisor) -> None:
    """Ce que Flink attend : ses jars et sa configuration ; et rien de ce qu'un mort a laissé."""
    install.jars(say, "flink")
    flink = Flink(stack)
    flink.write_config()
    for name in FLINK_NAMES:
        if not is_running(supervisor, name)():
            flink.clear(name)


def every_service(stack: Stack) -> list[Service]:
    """Tous les services de la pile, Flink compris, qu'il soit installé ou non."""
    kafka, flink = (install.classpath(install.jar_files(name)) for name in ("kafka", "flink"))
    return [*stack.services(kafka), *Flink(stack).services(flink)]


def refuse_taken_ports(stack: Stack, supervisor: Supervisor, names: Sequence[str]) -> None:
    """Lève PipelineError si un autre programme occupe le port d'un service de ``names`` qui ne tourne pas."""
    wanted = [service for service in every_service(stack) if service.name in names]
    health.refuse_taken_ports([service for service in wanted if not is_running(supervisor, service.name)()])


def is_running(supervisor: Supervisor, name: str) -> health.Check:
    """Une question : supervisord tient-il ``name`` en vie ?"""
    return lambda: supervisor.states().get(name, {}).get("statename") in (*RUNNING, "BACKOFF")


def await_services(stack: Stack, supervisor: Supervisor, names: Sequence[str]) -> None:
    """Attend ensemble tous les services ``names`` et dit chacun dès qu'il répond ; un échec arrête tout."""
    questions = health.checks(stack)
    talking = threading.Lock()
    failures: list[PipelineError] = []

    def one(name: str) -> None:
        alive = is_running(supervisor, name)
        try:
            seconds = health.wait(
                name, questions[name], READY_SECONDS, lambda: not failures and alive(), stack.logs / f"{name}.log"
            )
        except PipelineError as error:
            failures.append(error)
            return
        with talking:
            say(f"  {name:<12} répond sur le port {stack.ports[name]} ({seconds:.1f} s)")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(one, names))
    if failures:
        raise failures[0]


def down(stack: Stack) -> None:
    """Arrête tout."""
    supervisor = Supervisor(stack)
    if not supervisor.alive() and not supervisor.orphans():
        say("Rien ne tourne.")
        return
    say("Arrêt des services…")
    supervisor.shutdown()
    say("Tout est arrêté ; les données restent dans " + str(stack.data))


def status(stack: Stack) -> int:
    """Affiche l'état de chaque service, Flink s'il a été demandé ; 0 si tous tournent et répondent, 1 sinon."""
    states = Supervisor(stack).states()
    questions = health.checks(stack)
    healthy = True
    asked = [name for name in FLINK_NAMES if states.get(name, {}).get("statename", "STOPPED") != "STOPPED"]
    for name in (*NAMES, *asked):
        info = states.get(name, {})
        alive = info.get("statename") in RUNNING
        answers = alive and questions[name]()
        healthy &= answers
        word = "répond" if answers else "tourne mais ne répond pas" if alive else "arrêté"
        since = f"pid {info['pid']}, depuis {info['now'] - info['start']} s" if alive else ""
        print(f"{name:<12} {stack.ports[name]:>5}  {word:<12} {since}".rstrip())
    print(f"Données : {stack.data}")
    if stack.postgres_home != stack.data:
        print(
            f"Données de PostgreSQL : {stack.postgres_data} (root travaille dans un dossier fermé aux autres comptes)"
        )
    return 0 if healthy else 1


def logs(stack: Stack, name: str) -> None:
    """Affiche la fin du journal d'un service."""
    path = stack.logs / f"{name}.log"
    if not path.exists():
        raise PipelineError(f"{name} n'a pas encore de journal : démarrez les services avec « make services ».")
    print("\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]))


def restart(stack: Stack, name: str) -> None:
    """Arrête un service s'il tourne, puis le démarre, avec les réglages présents, et attend qu'il réponde."""
    supervisor = Supervisor(stack)
    if not supervisor.alive():
        raise PipelineError("Rien ne tourne : démarrez les services avec « make services ».")
    if name in TASKMANAGERS and not is_running(supervisor, JOBMANAGER)():
        raise PipelineError("Flink ne tourne pas : démarrez-le avec « make flink ».")
    supervisor.stop(name)
    refuse_taken_ports(stack, supervisor, [name])
    if name in FLINK_NAMES:
        prepare_flink(stack, supervisor)
    supervisor.start(every_service(stack), [name])
    await_services(stack, supervisor, [name])


def reset(stack: Stack) -> None:
    """Arrête tout et efface les données des serveurs et les fichiers exportés."""
    down(stack)
    exports = os.environ.get("EXPORT_DIR") or ROOT / "exercice3" / "exports"
    for folder in (stack.data, stack.runtime, stack.postgres_home, exports):
        shutil.rmtree(folder, ignore_errors=True)
    say(f"Données effacées : {stack.data} et {exports}")


@contextlib.contextmanager
def alone(stack: Stack) -> Iterator[None]:
    """Une seule commande à la fois par pile : deux « up » simultanés se suivent."""
    with stack.runtime.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options de la ligne de commande."""
    parser = Parser(__doc__, prog="python -m services")
    commands = ("up", "flink", "down", "status", "logs", "kill", "pause", "resume", "stop", "restart", "reset", "lock",
                "doctor")  # fmt: skip
    names = (*NAMES, *FLINK_NAMES)
    parser.add_argument("command", metavar="commande", choices=commands, help=", ".join(commands))
    parser.add_argument("name", metavar="service", nargs="?", choices=names, help=", ".join(names))
    args = parser.parse(argv)
    if (args.command in ("logs", "kill", "pause", "resume", "stop", "restart")) != (args.name is not None):
        parser.error(f"« {args.command} » {'attend un nom de service' if args.name is None else 'ne prend pas de nom'}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    if args.command in ("doctor", "status"):
        return doctor([]) if args.command == "doctor" else status(Stack())
    stack = Stack()
    if args.command == "logs":
        logs(stack, args.name)
        return 0
    with alone(stack):
        match args.command:
            case "up":
                up(stack)
            case "flink":
                up(stack)
                start_flink(stack)
            case "down":
                down(stack)
            case "kill":
                say(f"{args.name} (pid {Supervisor(stack).kill(args.name)}) est tué.")
            case "pause":
                say(f"{args.name} (pid {Supervisor(stack).signal(args.name, signal.SIGSTOP)}) est gelé.")
            case "resume":
                say(f"{args.name} (pid {Supervisor(stack).signal(args.name, signal.SIGCONT)}) est réveillé.")
            case "stop":
                Supervisor(stack).stop(args.name)
                say(f"{args.name} est arrêté.")
            case "restart":
                restart(stack, args.name)
            case "reset":
                reset(stack)
            case "lock":
                install.lock()
    return 0


if __name__ == "__main__":
    run(main)
