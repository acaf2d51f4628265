"""Ce qui se fait une fois : jars, formatage de Kafka, initdb, comptes de MongoDB.

Chaque étape s'achève par un fichier témoin ou un renommage : interrompue (Ctrl-C,
coupure), elle recommence proprement au démarrage suivant.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from commun import PipelineError
from commun.settings import ROOT, exported_files
from commun.systems import locked
from services.doctor.machine import closed_part, reopen
from services.stack import CONFIG, KAFKA_NODES, Stack, server_environment

import psutil
from pymongo import MongoClient
from pymongo.errors import PyMongoError

with warnings.catch_warnings():
    # Une dépendance de jgo s'inquiète d'une variable XDG absente, dont elle ne se sert pas ici.
    warnings.simplefilter("ignore")
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import Artifact, MavenContext

JARS = Path(__file__).parent / "jars"
JARS_LOCK = ".verrou"
MEGABYTES = {"kafka": 60, "flink": 145}
PROGRESS_SECONDS = 3.0
TOGETHER = 8  # téléchargements à la fois
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
Say = Callable[[str], None]
T = TypeVar("T")
U = TypeVar("U")


def jar_files(name: str = "kafka") -> list[Path]:
    """Chemins des jars de ``name``.lock, dans le cache de Maven (``~/.m2/repository``), téléchargés ou non."""
    return [path for _, _, artifact in _locked(name) if (path := artifact.cached_path)]


def _locked(name: str) -> list[tuple[str, str, Artifact]]:
    """Somme SHA-256, coordonnées et jar de chaque ligne de ``name``.lock.

    La liste est figée et complète, car jgo 3.2 résout autrement que Maven : il
    choisissait ``kafka-clients`` 3.9.1 pour des brokers 4.3.1.
    """
    context = MavenContext(repo_cache=GlobalSettings.load().repo_cache, remote_repos={"central": MAVEN_CENTRAL_URL})
    found = []
    for line in (JARS / f"{name}.lock").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            digest, coordinates = line.split()
            group, artifact, version = coordinates.split(":")
            found.append((digest, coordinates, context.project(group, artifact).at_version(version).artifact()))
    return found


def jars(say: Say, name: str = "kafka") -> list[Path]:
    """Télécharge ceux des jars de ``name`` qui manquent, et vérifie tous les autres par leur SHA-256.

    Deux piles qui démarrent ensemble ne téléchargent pas dans le même fichier : la seconde attend.
    """

    def fetch(line: tuple[str, str, Artifact]) -> Path:
        digest, coordinates, artifact = line
        path: Path = artifact.resolve()
        if _sha256(path) != digest:  # téléchargement interrompu : une seconde fois
            path.unlink()
            path = artifact.resolve()
        if _sha256(path) != digest:
            path.unlink()
            raise PipelineError(f"Le fichier téléchargé pour {coordinates} n'est pas celui attendu : recommencez.")
        return path

    wanted = _locked(name)
    say(f"Jars de {name.capitalize()} : {len(wanted)} fichiers ({MEGABYTES[name]} Mo, téléchargés la première fois)…")
    found: list[Path] = []
    cache = Path(GlobalSettings.load().repo_cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / JARS_LOCK, "Un autre démarrage installe les jars", say):
            said = time.monotonic()
            for path in _together(fetch, wanted):
                found.append(path)
                if time.monotonic() - said > PROGRESS_SECONDS:
                    said = time.monotonic()
                    say(f"  {len(found)} sur {len(wanted)}")
        return found
    except (OSError, RuntimeError) as error:
        raise PipelineError(_jars_failure(cache, error)) from error


def _together(call: Callable[[T], U], items: Iterable[T]) -> Generator[U, None, None]:
    """``call`` de chacun, huit à la fois, dans l'ordre. Ctrl-C n'attend pas ceux qui sont en cours.

    Un ThreadPoolExecutor les attendrait : un fichier qui n'arrive pas retiendrait le terminal.
    """
    waiting = deque((item, Future[U]()) for item in items)
    answers = [answer for _, answer in waiting]

    def work() -> None:
        with suppress(IndexError):  # il n'y en a plus
            while True:
                item, answer = waiting.popleft()
                try:
                    answer.set_result(call(item))
                except BaseException as error:
                    answer.set_exception(error)

    for _ in range(TOGETHER):
        threading.Thread(target=work, daemon=True).start()
    try:
        for answer in answers:
            yield answer.result()
    finally:
        waiting.clear()


def _jars_failure(cache: Path, error: OSError | RuntimeError) -> str:
    """Pourquoi les jars manquent : le disque d'ici, ou le réseau."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"Plus de place sur le disque de {cache}, où vont les jars : libérez-en, puis recommencez."
    if isinstance(error, OSError) and error.errno in CLOSED:
        owner = closed_part(Path(error.filename or cache)).stat().st_uid
        return (
            f"Ce compte ne peut pas écrire {error.filename or cache}, et les jars vont dans {cache} : rendez-lui ce "
            f"dossier ({reopen(cache, owner)}), puis recommencez."
        )
    return (
        "Téléchargement des jars impossible : vérifiez l'accès à Maven Central ; derrière un proxy, la ligne « jars » "
        f"de « make doctor » dit ce qu'il faut poser. ({str(error)[:200]})"
    )


def lock() -> None:
    """Récrit chaque ``.lock`` depuis son ``.xml`` avec Maven, seul juge des versions."""
    for pom in JARS.glob("*.xml"):
        _lock(pom)


def _lock(pom: Path) -> None:
    listing = JARS / "list.txt"
    maven = ["mvn", "-q", "-B", "-f", str(pom), "dependency:resolve", f"-DoutputFile={listing}"]
    subprocess.run([*maven, "-DincludeScope=runtime"], check=True)
    repository = Path.home() / ".m2" / "repository"
    rows = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        parts = line.strip().split(" ")[0].split(":")
        if len(parts) == 5:
            group, name, _, version, _ = parts
            jar = repository / group.replace(".", "/") / name / version / f"{name}-{version}.jar"
            rows.append((f"{group}:{name}:{version}", _sha256(jar)))
    listing.unlink()
    header = "# SHA-256 et coordonnées Maven de chaque jar. Écrit par « python -m services lock », ne pas modifier.\n"
    text = header + "".join(f"{digest} {coordinates}\n" for coordinates, digest in sorted(rows))
    pom.with_suffix(".lock").write_text(text, encoding="utf-8")


def install(stack: Stack, say: Say) -> None:
    """Prépare tout ce que les services attendent, dans le dossier que ``Stack.adopt`` a pris."""
    for folder, mode in ((stack.runtime, 0o700), (stack.postgres_home, 0o711)):
        if folder != stack.data:
            stack.take(folder, mode)
    files = jars(say)
    _prepare_connect(stack, files)
    with ThreadPoolExecutor() as pool:
        steps = [pool.submit(step, stack, say) for step in (_init_postgres, _init_mongodb)]
        steps += [pool.submit(_format_kafka, stack, name, classpath(files)) for name in KAFKA_NODES]
        for step in steps:
            step.result()


def _prepare_connect(stack: Stack, files: list[Path]) -> None:
    """Le greffon de Kafka Connect, et le dossier que connector.json nomme, là où Connect travaille."""
    stack.take(stack.plugins)
    for old in stack.plugin_links:
        old.unlink()
    for jar in files:
        # Depuis Kafka 3.2, connect-file n'est plus sur le chemin par défaut : il lui faut un dossier de greffons.
        if jar.name.startswith("connect-file-") and not (stack.plugins / jar.name).exists():
            (stack.plugins / jar.name).symlink_to(jar)
    if stack.exercise.is_symlink():
        stack.exercise.unlink()
    if not stack.exercise.exists():
        stack.exercise.symlink_to(ROOT / "exercice1", target_is_directory=True)
    stack.write_properties(stack.plugins.name)


def move_old_exports(stack: Stack, say: Say) -> None:
    """Les fichiers exportés étaient dans exercice3/exports : ils suivent la pile, dont ils dépendent."""
    former = ROOT / "exercice3" / "exports"
    files = [path for path in exported_files(former) if not os.path.lexists(stack.exports / path.name)]
    if stack.data != (ROOT / ".data").resolve() or not files:
        return
    try:
        stack.take(stack.exports)
        for path in files:
            shutil.move(path, stack.exports / path.name)
    except (OSError, PipelineError) as error:
        return say(f"Des fichiers exportés restent dans {former} : déplacez-les vous-même. {error}")
    with suppress(OSError):  # il reste autre chose
        former.rmdir()
    say(f"Fichiers exportés qui ont suivi leur pile, de {former} à {stack.exports} : {len(files)}.")


def classpath(files: list[Path]) -> str:
    """Chemin de classes Java ; connect-file en est exclu, Connect le charge comme greffon."""
    return os.pathsep.join(str(jar) for jar in files if not jar.name.startswith("connect-file-"))


def _format_kafka(stack: Stack, name: str, classes: str) -> None:
    if (stack.kafka_data[name] / "meta.properties").exists():
        return
    _run(
        stack.java(classes, "kafka.tools.StorageTool", "format", "--ignore-formatted",
                   "--cluster-id", stack.account("CLUSTER_ID"), "--config", f"{name}.properties"),
        f"Kafka refuse de formater {stack.kafka_data[name]}", cwd=stack.data,
    )  # fmt: skip


def _init_postgres(stack: Stack, say: Say) -> None:
    user = stack.postgres_user
    if not stack.postgres_bin.exists():
        _copy_postgres(stack)
    if (stack.postgres_data / "PG_VERSION").exists():
        _forget_dead_postmaster(stack.postgres_data / "postmaster.pid")
        return
    say("PostgreSQL : création du serveur (initdb)…")
    # Tout se fait dans un dossier provisoire, renommé à la fin : interrompu, cela recommence.
    draft = stack.postgres_data.with_name("postgres.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    # Le serveur n'écoute encore que sur une socket de ce dossier, que lui seul ouvre.
    private = stack.postgres_private
    stack.take(private.parent, 0o711)
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir(mode=0o700)
    try:
        password = private / "password"
        password.write_text(stack.account("POSTGRES_PASSWORD"), encoding="utf-8")
        draft.mkdir(mode=0o700)
        if user:
            for path in (private, password, draft):
                shutil.chown(path, user)
        _create_postgres(stack, draft, private, password)
    finally:
        shutil.rmtree(private.parent, ignore_errors=True)
    draft.rename(stack.postgres_data)


def _forget_dead_postmaster(lock: Path) -> None:
    """Efface le verrou d'un PostgreSQL tué net, si son numéro de processus n'est pas repris, ou l'est par un autre.

    PostgreSQL croirait ce mort vivant. Aucun de ses processus ne reste : « up » les a tous terminés avant.
    """
    with suppress(OSError, ValueError):
        number = int(lock.read_text(encoding="utf-8").split("\n", 1)[0])
        try:
            process = psutil.Process(number)
            alive = process.name() == "postgres" and process.cwd() == str(lock.parent)
        except psutil.Error:  # parti, ou mort que le système n'a pas encore repris
            alive = False
        if not alive:
            lock.unlink()


def _copy_postgres(stack: Stack) -> None:
    """Copie PostgreSQL là où son compte peut entrer, avec les bibliothèques que le paquet range à côté de lui."""
    target = stack.postgres_home / "packages"
    draft = target.with_name("packages.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    package = stack.postgres_package
    for folder in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, draft / folder.relative_to(package.parent), symlinks=True)
    for path in (draft, *draft.rglob("*")):  # lisible par le compte de PostgreSQL, même installé sous umask 077
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    draft.rename(target)


def _create_postgres(stack: Stack, draft: Path, private: Path, password: Path) -> None:
    """Crée le serveur dans ``draft``, puis ses rôles et sa base (``roles.sql``)."""
    user, superuser, programs = stack.postgres_user, stack.account("POSTGRES_USER"), stack.postgres_bin
    _run(
        [str(programs / "initdb"), "-D", str(draft), "-U", superuser, f"--pwfile={password}", "--auth-local=trust",
         *stack.account("POSTGRES_INITDB_ARGS").split()],
        "initdb a échoué", user=user,
    )  # fmt: skip
    control = [str(programs / "pg_ctl"), "-D", str(draft), "-w", "-l", str(draft / "initdb.log")]
    _run([*control, "-o", f"-c listen_addresses= -k {private}", "start"], "PostgreSQL ne démarre pas", user=user)
    try:
        _run(
            [str(programs / "psql"), "-X", "-q", "-h", str(private), "-U", superuser, "-d", "postgres",
             "-f", str(CONFIG / "roles.sql")],
            "La création des rôles PostgreSQL a échoué",
            environment={
                name: stack.account(name)
                for name in ("PIPELINE_USER", "PIPELINE_PASSWORD", "PIPELINE_DATABASE", "TABLEAU_PASSWORD")
            },
        )  # fmt: skip
    finally:
        _run([*control, "-m", "fast", "stop"], "PostgreSQL ne s'arrête pas", user=user)


def _init_mongodb(stack: Stack, say: Say) -> None:
    done = stack.data / f"{stack.mongo_data.name}.ready"
    if done.exists():
        return
    say("MongoDB : création des comptes…")
    shutil.rmtree(stack.mongo_data, ignore_errors=True)
    stack.mongo_data.mkdir(parents=True)
    with (stack.logs / "mongodb-init.log").open("wb") as output:
        server = subprocess.Popen(
            stack.mongo_command(auth=False), stdout=output, stderr=output, cwd=stack.data, env=server_environment()
        )
        try:
            _create_mongo_users(stack, server)
        finally:
            server.terminate()
            server.wait(30)
    done.touch()


def _create_mongo_users(stack: Stack, server: subprocess.Popen[bytes], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    with MongoClient[dict[str, object]](
        "localhost", stack.ports["mongodb"], serverSelectionTimeoutMS=500, directConnection=True
    ) as client:
        while True:
            try:
                client.admin.command("ping")
                break
            except PyMongoError as error:
                if server.poll() is not None or time.monotonic() > deadline:  # Ctrl-C l'a arrêté, lui aussi
                    raise PipelineError("MongoDB ne démarre pas : lisez logs/mongodb-init.log.") from error
        accounts = (
            ("admin", stack.account("MONGO_ADMIN_USER"), stack.account("MONGO_ADMIN_PASSWORD"), ["root"]),
            (
                stack.account("MONGO_DATABASE"),
                stack.account("MONGO_USER"),
                stack.account("MONGO_PASSWORD"),
                stack.account("MONGO_ROLES").split(","),
            ),
        )
        for database, user, password, roles in accounts:
            client[database].command("createUser", user, pwd=password, roles=roles)


def _run(
    command: list[str], failure: str, *, user: str | None = None, environment: dict[str, str] | None = None,
    cwd: Path = Path("/"),
) -> None:  # fmt: skip
    """Exécute ``command`` ; PipelineError avec la fin de sa sortie si elle échoue."""
    done = subprocess.run(
        command,
        env=server_environment() | (environment or {}),
        user=user,
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise PipelineError(f"{failure} :\n" + "\n".join(lines))


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
