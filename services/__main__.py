"""Les serveurs du projet en simples processus, sans Docker.

    python -m services up            démarre tout et attend que chaque service réponde
    python -m services down          arrête tout, les données restent
    python -m services status        qui tourne, depuis quand, et où en sont les données (--watch, --json)
    python -m services doctor        ce qui arrêterait les scripts, et le remède de chaque chose
    python -m services logs kafka2   fin du journal d'un service
    python -m services kill kafka2   tue un service (kill -9), pour voir
    python -m services pause kafka2  le gèle (SIGSTOP) ; « resume » le réveille
    python -m services stop kafka2   l'arrête proprement ; « restart » le redémarre
    python -m services flink         démarre aussi Apache Flink et les fenêtres de l'exercice 2
    python -m services reset         arrête tout et efface les données des serveurs et les ventes exportées

Garantit : « up » peut se relancer à tout moment, même après une coupure ; « down »
ne laisse aucun processus ; rien n'écoute ailleurs que sur 127.0.0.1 ; « reset » demande
d'abord (sans terminal, il lui faut --oui), et n'efface que ce que la pile a écrit, et les
dossiers de MongoDB et de PostgreSQL, entiers ; pendant que
« up » attend les réponses, toute autre commande passe.
Ports, noms et mots de passe : .env, à la racine. Données : le dossier .data.
"""

import sys

from commun.cli import Parser, duration, positive, run
from services.doctor.__main__ import main as doctor

# Avant les autres imports : « doctor » marche sans les paquets des serveurs, et sous Windows.
if __name__ == "__main__" and sys.argv[1:2] == ["doctor"]:
    run(lambda: doctor(sys.argv[2:]))

import argparse
import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from commun import PipelineError
from commun.settings import data_folder, export_dir, exported_files, setting
from commun.systems import locked
from services import data, health, install
from services.doctor.report import together
from services.flink import Flink
from services.health import Check
from services.stack import (
    ACCOUNTS,
    CLOSED,
    FLINK_NAMES,
    JOBMANAGER,
    NAMES,
    PORT_VARIABLES,
    TASKMANAGERS,
    Service,
    Stack,
    unwritable,
)
from services.supervise import STOPPED_WORD, UNATTENDED, State, Supervisor

import psutil

READY_SECONDS = 180  # une machine chargée ; un service qui meurt, lui, se dit aussitôt
MUTE_SECONDS = 60  # quand aucun n'a démarré depuis READY_SECONDS : se taire n'a plus d'excuse
ENDING_SECONDS = 5
ANSWERS, MUTE = "répond", "tourne mais ne répond pas"
INSIST_SECONDS = 8.0  # une machine chargée met plusieurs secondes à répondre
STOPPED = "{} vient d'être arrêté{} par une autre commande : « make services » redémarre ce qui ne tourne pas."
INTERRUPTED = (
    "Interrompu avant la fin : les serveurs déjà lancés continuent. « make status » dit où ils en sont, "
    "« make stop » les arrête."
)
LOG_LINES = 40


def say(sentence: str) -> None:
    """Une ligne d'avancement, sur la sortie d'erreur."""
    print(sentence, file=sys.stderr, flush=True)


def up(stack: Stack) -> None:
    """Installe, démarre et attend tous les services, sauf Flink ; réveille ceux qui sont gelés, laisse les autres."""
    start = time.monotonic()
    supervisor = Supervisor(stack)
    with alone(stack, create=True):
        if not launch(stack, supervisor):
            return
    await_services(stack, supervisor, NAMES)
    if created := health.create_topics(stack):
        say(f"Topics créés : {', '.join(created)}.")
    engine = "mongod" if stack.mongod else "SecantusDB (protocole de MongoDB ; mongod n'est pas installé)"
    say(f"Tout répond, en {time.monotonic() - start:.0f} s. MongoDB est ici : {engine}.")


def launch(stack: Stack, supervisor: Supervisor) -> bool:
    """Installe et démarre tous les services, sauf Flink ; faux s'il n'y a plus de réponse à attendre.

    S'ils tournent tous, rien n'est installé : un autre « up » attend peut-être leurs réponses, et il ne faut pas
    toucher à ce qu'ils sont en train de lire.
    """
    refuse_other_ports(stack, supervisor)
    install.move_old_exports(stack, say)
    if not supervisor.alive():
        supervisor.end_orphans()
    elif all(map(supervisor.is_alive, NAMES)):
        if all(health.checks(stack)[name]() for name in NAMES):
            health.create_topics(stack)
            say("Tout tourne déjà, et répond.")
            return False
        say("Tout tourne déjà : on attend que chaque service réponde.")
        supervisor.start(every_service(stack), NAMES)  # réveille ceux qui sont gelés
        return True
    refuse_taken_ports(stack, supervisor, NAMES)
    stack.refuse_incomplete()
    install.install(stack, say)
    say(f"Démarrage de {', '.join(NAMES)}…")
    supervisor.start(every_service(stack), NAMES)
    return True


def start_flink(stack: Stack) -> None:
    """Installe, démarre et attend Flink : le JobManager et un TaskManager, puis le job."""
    supervisor = Supervisor(stack)
    names = (JOBMANAGER, TASKMANAGERS[0])
    with alone(stack, create=True):
        refuse_taken_ports(stack, supervisor, names)
        prepare_flink(stack, supervisor)
        say(f"Démarrage de {', '.join(names)}…")
        supervisor.start(every_service(stack), names)
    for name in names:  # l'un après l'autre : sans JobManager, un TaskManager ne répond jamais
        await_services(stack, supervisor, [name])
    port = stack.ports[JOBMANAGER]
    health.wait("Le job de Flink", lambda: "RUNNING" in health.flink_jobs(port).values(), READY_SECONDS,
                lambda: supervisor.is_alive(JOBMANAGER), stack.logs / f"{JOBMANAGER}.log")  # fmt: skip
    (job,) = health.flink_jobs(port)
    say(f"Le job « {job} » tourne. Tableau de bord : http://localhost:{port}")


def prepare_flink(stack: Stack, supervisor: Supervisor) -> None:
    """Ce que Flink attend : ses jars et sa configuration ; et rien de ce qu'un mort a laissé."""
    install.jars(say, "flink")
    flink = Flink(stack)
    flink.write_config()
    for name in FLINK_NAMES:
        if not supervisor.is_alive(name):
            flink.clear(name)


def every_service(stack: Stack) -> list[Service]:
    """Tous les services de la pile, Flink compris, qu'il soit installé ou non."""
    kafka, flink = (install.classpath(install.jar_files(name)) for name in ("kafka", "flink"))
    return [*stack.services(kafka), *Flink(stack).services(flink)]


def keep_ports(stack: Stack, supervisor: Supervisor) -> list[str]:
    """Donne à ``stack`` les ports de la pile qui tourne ; renvoie les services que l'on demande ailleurs."""
    known = stack.known_ports() if supervisor.alive() else {}
    moved = [name for name, port in known.items() if stack.ports[name] != port]
    stack.ports |= known
    return moved


def refuse_other_ports(stack: Stack, supervisor: Supervisor) -> None:
    """Lève PipelineError si la pile tourne sur d'autres ports que ceux demandés : il faut l'arrêter pour en changer."""
    for name in keep_ports(stack, supervisor):
        variable = PORT_VARIABLES.get(name, PORT_VARIABLES[JOBMANAGER])
        raise PipelineError(
            f"{variable}={setting(variable)}, mais cette pile tourne avec {name} sur le port {stack.ports[name]} : "
            f"arrêtez-la d'abord (« make stop »), ou posez {variable}={stack.ports[name]}."
        )


def refuse_taken_ports(stack: Stack, supervisor: Supervisor, names: Sequence[str]) -> None:
    """Lève PipelineError si un autre programme occupe le port d'un service de ``names`` qui ne tourne pas."""
    services = every_service(stack)
    health.refuse_shared_ports(services)  # de Flink aussi, que l'on demandera peut-être plus tard
    wanted = [service for service in services if service.name in names]
    health.refuse_taken_ports([service for service in wanted if not supervisor.is_alive(service.name)])


def await_services(stack: Stack, supervisor: Supervisor, names: Sequence[str]) -> None:
    """Attend ensemble tous les services ``names`` et dit chacun dès qu'il répond ; un échec arrête tout.

    Sans le verrou de la pile : une autre commande peut en arrêter, en geler ou en réveiller pendant ce temps. Ctrl-C
    n'attend pas la réponse en cours de chacun : leurs questions sont posées par des fils que Python abandonne.
    """
    questions = health.checks(stack)
    youngest = min((state.seconds for name, state in supervisor.states().items() if name in names), default=0)
    patience = max(MUTE_SECONDS, READY_SECONDS - youngest)
    talking, over = threading.Lock(), threading.Event()
    failures: list[Exception] = []

    def one(name: str) -> None:
        try:
            seconds = health.wait(
                name, questions[name], patience, lambda: not over.is_set() and supervisor.is_alive(name),
                stack.logs / f"{name}.log",
            )  # fmt: skip
        except Exception as error:
            with talking:
                if not over.is_set():
                    failures.append(error if supervisor.is_alive(name) else ended(supervisor, name, error))
                    over.set()
            return
        with talking:
            if not over.is_set():
                say(f"  {name:<12} répond sur le port {stack.ports[name]} ({seconds:.1f} s)")

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        over.set()
    if failures:
        raise failures[0]


def ended(supervisor: Supervisor, name: str, error: Exception) -> Exception:
    """Pourquoi un service que l'on attendait ne tourne plus : il est mort (``error`` le dit), ou on l'a arrêté."""
    states = supervisor.states()
    if not states:  # sans superviseur, on ne sait plus qui tourne : ce n'est pas un service qui s'est arrêté
        _, left = psutil.wait_procs(supervisor.orphans(), ENDING_SECONDS)  # les derniers que « down » arrête
        return PipelineError(UNATTENDED if left else STOPPED.format("La pile", "e"))
    stopped = name in states and states[name].word == STOPPED_WORD
    return PipelineError(STOPPED.format(name, "")) if stopped else error


def down(stack: Stack) -> bool:
    """Arrête tout ; faux si rien ne tournait."""
    supervisor = Supervisor(stack)
    if not supervisor.alive() and not supervisor.orphans():
        return False
    say("Arrêt des services…")
    supervisor.shutdown()
    return True


def status(stack: Stack, args: argparse.Namespace) -> int:
    """Affiche l'état des services et des données, une fois, et renvoie le code ; --watch, jusqu'à ce qu'on l'arrête."""
    show = status_json if args.json else status_text
    if not args.watch:
        return show(stack, args)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            show(stack, args)
            sys.stdout.flush()
            time.sleep(args.watch)
            print()
    return 0


def status_text(stack: Stack, args: argparse.Namespace) -> int:
    """0 si tous les services tournent et répondent, et si les retards ne passent pas --max-waiting ; 1 sinon."""
    healthy = services_status(stack)
    state = data.read_state()
    print("\nDonnées", *data.lines(state), sep="\n")
    return 0 if healthy and not overdue(state, args.max_waiting) else 1


def status_json(stack: Stack, args: argparse.Namespace) -> int:
    """De même, en un objet JSON sur une ligne."""
    supervisor = Supervisor(stack)
    keep_ports(stack, supervisor)
    states, questions = supervisor.states(), health.checks(stack)
    words = described(NAMES, states, questions)
    state = data.read_state()
    print(json.dumps({"services": words, "donnees": state}, ensure_ascii=False))
    return 0 if set(words.values()) == {ANSWERS} and not overdue(state, args.max_waiting) else 1


def overdue(state: data.State, limit: int | None) -> bool:
    """Vrai si plus de ``limit`` messages, ventes ou lots attendent ; ou si, cette borne demandée, on n'en sait rien."""
    return limit is not None and (data.waiting(state) > limit or bool(data.silent(state)))


def services_status(stack: Stack) -> bool:
    """Affiche l'état de chaque service, Flink s'il a été demandé ; vrai si tous tournent et répondent."""
    supervisor = Supervisor(stack)
    keep_ports(stack, supervisor)
    states = supervisor.states()
    questions = health.checks(stack)
    healthy = True
    orphans = [] if states else supervisor.orphans()
    asked = [name for name in FLINK_NAMES if name in states and states[name].word != STOPPED_WORD]
    words = described((*NAMES, *asked), states, questions)
    for name, found in words.items():
        state = states.get(name)
        left = orphans and describe(State(name, "", os.getpid()), questions[name], patience=0) == ANSWERS
        word = "répond, sans superviseur" if left else found
        healthy &= word == ANSWERS
        since = f"pid {state.pid}, depuis {duration(state.seconds)}" if state and state.alive else ""
        print(f"{name:<12} {stack.ports[name]:>5}  {word:<12} {since}".rstrip())
    if orphans:
        pids = ", ".join(str(process.pid) for process in orphans)
        print(f"Des processus de cette pile tournent sans superviseur (pid {pids}) : « make services » les remplace.")
    print(f"Données : {stack.data}")
    if stack.postgres_home != stack.data:
        print(
            f"Données de PostgreSQL : {stack.postgres_data} (root travaille dans un dossier fermé aux autres comptes)"
        )
    return healthy


def described(names: Sequence[str], states: Mapping[str, State], questions: Mapping[str, Check]) -> dict[str, str]:
    """L'état de chacun de ces services, demandé à tous à la fois."""
    found: dict[str, str] = {}

    def one(name: str, answers: Check) -> None:
        found[name] = describe(states.get(name), answers)

    together(one, {name: questions[name] for name in names}, 2 * INSIST_SECONDS)
    return {name: found.get(name, MUTE) for name in names}


def describe(state: State | None, answers: Check, patience: float = INSIST_SECONDS) -> str:
    """L'état d'un service, en quelques mots. Muet, il est redemandé ``patience`` secondes : il est peut-être lent."""
    if state is None or not state.alive:
        return state.word if state else STOPPED_WORD
    if state.frozen:
        return "gelé"
    deadline = time.monotonic() + patience
    try:
        while not (answered := answers()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return ANSWERS if answered else MUTE
    except PipelineError as error:
        return f"tourne mais refuse : {error}"


def logs(stack: Stack, name: str) -> None:
    """Affiche la fin du journal d'un service."""
    path = stack.logs / f"{name}.log"
    if not path.exists():
        raise PipelineError(f"{name} n'a pas encore de journal : démarrez les services avec « make services ».")
    print("\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]))


def restart(stack: Stack, name: str) -> None:
    """Arrête un service s'il tourne, puis le démarre, et attend qu'il réponde."""
    supervisor = Supervisor(stack)
    if not supervisor.alive():
        raise PipelineError(UNATTENDED)
    keep_ports(stack, supervisor)
    if name in TASKMANAGERS and not supervisor.is_alive(JOBMANAGER):
        raise PipelineError("Flink ne tourne pas : démarrez-le avec « make flink ».")
    with alone(stack, create=False):
        if not supervisor.alive():  # « down » est passé pendant que l'on attendait son tour
            raise ended(supervisor, name, PipelineError(UNATTENDED))
        supervisor.stop(name)
        refuse_taken_ports(stack, supervisor, [name])
        if name in FLINK_NAMES:
            prepare_flink(stack, supervisor)
        supervisor.start(every_service(stack), [name])
    await_services(stack, supervisor, [name])


def act(supervisor: Supervisor, command: str, name: str) -> None:
    """Ce que l'on fait à un seul service, pour voir."""
    if command == "stop":
        supervisor.stop(name)
        return say(f"{name} est arrêté.")
    action, outcome = {
        "kill": (supervisor.kill, "tué"),
        "pause": (supervisor.pause, "gelé"),
        "resume": (supervisor.resume, "réveillé"),
    }[command]
    say(f"{name} (pid {action(name)}) est {outcome}.")


def reset(stack: Stack, *, sure: bool) -> None:
    """Arrête tout et efface ce que la pile a écrit, et cela seul. Lève PipelineError si personne n'a dit oui."""
    if not stack.data.exists():
        say(f"Rien à effacer : {stack.data} n'existe pas.")
        return
    exported = exported_files(stack.exports)
    if not stack.is_ours():
        raise PipelineError(f"{stack.data} n'est pas le dossier d'une pile : rien n'est effacé.")
    if not sure and not (sys.stdin and sys.stdin.isatty()):
        raise PipelineError("Sans terminal, « reset » demande --oui, car il efface des données. Rien n'est effacé.")
    count = len(exported)
    files = f", et {count} fichier{'s' if count > 1 else ''} de ventes exportées" if exported else ""
    question = f"Effacer les données des serveurs dans {stack.data}{files} ? [o/N] "
    if not sure and not agreed(question):
        say("Rien n'est effacé.")
        return
    down(stack)
    stack.witness.touch()  # interrompu, ou s'il reste autre chose, la pile pourra revenir dans ce dossier
    for path in (*stack.own_paths, *exported):
        erase(stack, path)
    for folder in stack.own_folders:
        with contextlib.suppress(OSError):  # il n'existe pas, ou il y reste autre chose, qui n'est pas à nous
            folder.rmdir()
    say(f"Effacé : les données des serveurs de {stack.data}{files}.")
    if left := sorted(path.name for path in stack.data.iterdir() if path != stack.witness):
        say(f"Laissé dans {stack.data}, car ce n'est pas à la pile : {', '.join(left)}.")
    elif not data_folder().is_symlink():  # un lien que l'on a fait ne doit pas mener nulle part
        stack.witness.unlink()
        with contextlib.suppress(OSError):  # une autre commande l'a déjà repris
            stack.data.rmdir()
    if export_dir().resolve() != stack.exports:
        say(f"Laissés : les fichiers de EXPORT_DIR={export_dir()} ; videz ce dossier avant de recommencer.")


def erase(stack: Stack, path: Path) -> None:
    """Efface un fichier, ou un dossier : celui-ci change d'abord de nom, car à moitié effacé il tromperait « up ».

    Ce que quelqu'un d'autre a mis dans le dossier y reste, ou y revient.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)  # « .postgres.efface », déjà parti avec « postgres »
        return
    doomed = path if path.name.endswith(".efface") else path.with_name(f".{path.name}.efface")
    if doomed != path:
        if doomed.exists():
            erase(stack, doomed)
        path.rename(doomed)
    home = doomed.with_name(doomed.name.removeprefix(".").removesuffix(".efface"))
    for stranger in stack.strangers(doomed, home.name):
        home.mkdir(exist_ok=True)
        stranger.rename(home / stranger.name)
    shutil.rmtree(doomed)


def agreed(question: str) -> bool:
    """Vrai si l'on répond oui ; une fin de saisie (Ctrl-D) est un non."""
    try:
        return input(question).strip().lower() in ("o", "oui")
    except EOFError:
        print()
        return False


@contextlib.contextmanager
def alone(stack: Stack, *, create: bool) -> Iterator[None]:
    """Une seule commande à la fois par pile : deux « up » simultanés se suivent. Le témoin est leur verrou.

    ``create`` : le dossier de la pile est créé au besoin. Sans lui, pas de pile, et rien à protéger.
    """
    while True:
        if create:
            stack.adopt()
        else:
            stack.refuse_foreign()
        if not stack.is_ours():
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                file = held.enter_context(locked(stack.witness, "Une autre commande travaille sur cette pile", say))
                current = os.path.samestat(os.fstat(file.fileno()), stack.witness.stat())
            except FileNotFoundError:  # un « reset » vient d'effacer ce dossier
                continue
            if current:
                yield
                return


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options de la ligne de commande."""
    parser = Parser(__doc__, prog="python -m services")
    commands = ("up", "flink", "down", "status", "logs", "kill", "pause", "resume", "stop", "restart", "reset", "lock",
                "doctor")  # fmt: skip
    names = (*NAMES, *FLINK_NAMES)
    parser.add_argument("command", metavar="commande", choices=commands, help=", ".join(commands))
    parser.add_argument("name", metavar="service", nargs="?", choices=names, help=", ".join(names))
    parser.option("--oui", action="store_true", help="« reset » efface sans demander")
    parser.option("--json", action="store_true", help="« status » en un objet JSON")
    parser.option("--watch", type=positive(float), metavar="S", help="« status » toutes les S secondes, sans fin")
    parser.option("--max-waiting", type=positive(zero=True), metavar="N", help="« status » sort avec 1 si plus de N "
                  "messages, ventes ou lots attendent")  # fmt: skip
    args = parser.parse(argv, any_level=True)
    if (args.json or args.watch or args.max_waiting is not None) and args.command != "status":
        parser.error("--json, --watch et --max-waiting vont avec « status »")
    if args.oui and args.command != "reset":
        parser.error("--oui va avec « reset »")
    if (args.command in ("logs", "kill", "pause", "resume", "stop", "restart")) != (args.name is not None):
        parser.error(f"« {args.command} » {'attend un nom de service' if args.name is None else 'ne prend pas de nom'}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    if args.command == "doctor":
        return doctor([])
    for name in [name for name in os.environ if name.startswith(("PG", "MONGO_", "KAFKA_")) or name in ACCOUNTS]:
        del os.environ[name]  # les comptes de la pile sont dans .env ; libpq lirait de lui-même PGSERVICE, PGOPTIONS…
    stack = Stack()
    if args.command == "status":
        return status(stack, args)
    if args.command == "logs":
        logs(stack, args.name)
        return 0
    try:
        command(stack, args)
    except KeyboardInterrupt:
        if Supervisor(stack).process() is None:
            raise
        raise PipelineError(INTERRUPTED) from None
    except OSError as error:
        if error.errno not in CLOSED or error.filename is None:
            raise
        raise unwritable(error, stack.data) from error
    return 0


def command(stack: Stack, args: argparse.Namespace) -> None:
    """Les commandes qui changent quelque chose : seules tant qu'elles le font, pas tant qu'elles attendent."""
    match args.command:
        case "up":
            up(stack)
        case "flink":
            up(stack)
            start_flink(stack)
        case "restart":
            restart(stack, args.name)
        case _:
            with alone(stack, create=False):
                run_alone(stack, args)


def run_alone(stack: Stack, args: argparse.Namespace) -> None:
    """Celles qui n'attendent aucune réponse."""
    match args.command:
        case "down":
            say(f"Tout est arrêté ; les données restent dans {stack.data}." if down(stack) else "Rien ne tourne.")
        case "reset":
            reset(stack, sure=args.oui)
        case "lock":
            install.lock()
        case _:
            act(Supervisor(stack), args.command, args.name)


if __name__ == "__main__":
    run(main)
