"""Le tueur : exécute un script comme le fait un étudiant, et le tue (SIGKILL) à l'étape nommée.

Un processus serveur importe une fois ce dont le script a besoin, puis chaque vie du script est un
fork : il part de zéro, dans son dossier, avec sa ligne de commande. Les étapes sont les appels qui
changent quelque chose hors du processus ; chacune se note avant et après, au fur et à mesure. La
note survit au kill -9 : on sait donc à quelle étape le script est mort, et ce qu'il avait en main.

Un test s'en sert par « Killer » ; « python tests/killer.py » est l'autre bout du tube.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEFORE, AFTER = "avant", "après"
# Les étapes d'un script, et l'appel qui les fait : c'est ici, et ici seulement, que l'on en ajoute.
STEPS = {
    "mongo.insert_one": "pymongo.collection:Collection.insert_one",
    "mongo.insert_many": "pymongo.collection:Collection.insert_many",
    "mongo.update_one": "pymongo.collection:Collection.update_one",
    "mongo.update_many": "pymongo.collection:Collection.update_many",
    "mongo.delete_one": "pymongo.collection:Collection.delete_one",
    "mongo.bulk_write": "pymongo.collection:Collection.bulk_write",
    "fichier.fsync": "os:fsync",
    "fichier.replace": "os:replace",
    "kafka.consume": "confluent_kafka:Consumer.consume",
    "kafka.commit": "confluent_kafka:Consumer.commit",
    "kafka.produce": "confluent_kafka:Producer.produce",
    "kafka.flush": "confluent_kafka:Producer.flush",
    "postgres.execute": "psycopg2.extensions:cursor.execute",
    "postgres.copy": "psycopg2.extensions:cursor.copy_expert",
    "postgres.commit": "psycopg2.extensions:connection.commit",
}


@dataclass(frozen=True)
class Point:
    """Un bord d'une étape, et le nombre de choses (ventes, messages, octets) qu'elle a en main."""

    moment: str
    step: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.moment} {self.step}"


@dataclass
class Life:
    """Une vie du script : son code de sortie (-9 : tué), les points passés, ce qu'il a écrit."""

    code: int
    points: list[Point]
    text: str

    @property
    def killed(self) -> bool:
        """Vrai si le script a été tué ; faux s'il a fini de lui-même, sans faute."""
        assert self.code in (0, -signal.SIGKILL), self.text
        return self.code != 0

    @property
    def last(self) -> Point:
        """Le point où il est mort."""
        return self.points[-1]


class Killer:
    """Les vies d'un script d'un exercice, l'une après l'autre ; se ferme avec « with »."""

    def __init__(self, folder: Path, script: str, env: Mapping[str, str]) -> None:
        # OPENBLAS_NUM_THREADS : un fork ne copie pas les fils d'exécution, le serveur n'en a donc aucun.
        quiet = {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, folder.name, f"{script}.py"],
            cwd=folder, env=dict(env) | quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> "Killer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def live(self, *options: str, at: int = 0, point: str = "", nth: int = 1) -> Life:
        """Une vie, finie par kill -9 au ``at``-ième point, ou au ``nth``-ième ``point`` (« avant kafka.commit »).

        Ni l'un ni l'autre, ou le script finit avant : personne ne le tue.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"options": options, "point": point, "countdown": nth if point else at}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        points = [Point(moment, step, int(size)) for moment, step, size in map(str.split, answer["points"])]
        life = Life(answer["code"], points, answer["text"])
        assert "Traceback" not in life.text, life.text
        assert "Warning: " not in life.text, life.text
        return life


# --- Ce qui suit vit dans le processus serveur ---


class Trace:
    """Note chaque point dans un fichier, et tue le processus quand vient le sien."""

    def __init__(self) -> None:
        self.file, self.point, self.countdown = -1, "", 0

    def pass_by(self, point: Point) -> None:
        """Le script passe par ``point``."""
        if self.file < 0:
            return
        os.write(self.file, f"{point} {point.size}\n".encode())
        if self.point in ("", str(point)):
            self.countdown -= 1
            if self.countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def watched(step: str, original: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """``original``, dont chaque appel se note avant et après."""

    def call(*args: Any, **kwargs: Any) -> Any:
        sizes = [len(value) for value in (*args, *kwargs.values()) if isinstance(value, list | bytes)]
        trace.pass_by(Point(BEFORE, step, max(sizes, default=0)))
        result = None
        try:
            result = original(*args, **kwargs)
            return result
        finally:  # une écriture refusée en partie (des doublons) est passée, elle aussi
            trace.pass_by(Point(AFTER, step, len(result) if isinstance(result, list) else max(sizes, default=0)))

    return call


def watch(trace: Trace) -> None:
    """Met le guet sur toutes les étapes. Un type écrit en C ne se modifie pas : le script en reçoit un héritier."""
    heirs: dict[tuple[str, str], dict[str, Any]] = {}
    for step, target in STEPS.items():
        module_name, _, path = target.partition(":")
        owner: Any = importlib.import_module(module_name)
        *types, name = path.split(".")
        for type_name in types:
            owner = getattr(owner, type_name)
        call = watched(step, getattr(owner, name), trace)
        try:
            setattr(owner, name, call)
        except TypeError:
            heirs.setdefault((module_name, types[0]), {})[name] = call
    for (module_name, type_name), calls in heirs.items():
        module = importlib.import_module(module_name)
        setattr(module, type_name, type(type_name, (getattr(module, type_name),), calls))
    psycopg2: Any = importlib.import_module("psycopg2")
    extensions, connect = psycopg2.extensions, psycopg2.connect
    factories = {"connection_factory": extensions.connection, "cursor_factory": extensions.cursor}
    psycopg2.connect = lambda *args, **kwargs: connect(*args, **factories | kwargs)


def live(script: str, options: list[str], trace: Trace, output: int) -> None:
    """La vie du script, dans le processus du fork : sa sortie va dans ``output``."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")


def serve(exercise: str, script: str) -> None:
    """Une vie par ligne reçue, un compte rendu par ligne envoyée."""
    sys.path[0] = os.getcwd()  # ce que fait « python script.py », au lieu du dossier de ce fichier
    trace = Trace()
    watch(trace)
    importlib.import_module(f"{exercise}.{script.removesuffix('.py')}")  # ce qu'il importe est prêt pour chaque vie
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as points, tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                trace.file, trace.point, trace.countdown = points.fileno(), request["point"], request["countdown"]
                sys.stdin.close()
                live(script, request["options"], trace, output.fileno())
                sys.exit("le script devait finir par « run(main) »")
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            points.seek(0)
            output.seek(0)
            report = {"points": points.read().decode().splitlines(), "text": output.read().decode(), "code": code}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
