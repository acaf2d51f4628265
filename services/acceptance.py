"""Essaie le projet sur cette machine, et écrit ce qu'il faut renvoyer à ses auteurs : un fichier texte.

    python services/acceptance.py                    toutes les étapes, cinq minutes environ
    python services/acceptance.py --only exercice1   une seule
    python services/acceptance.py --output moi.txt

Les serveurs doivent répondre : « docker-compose up -d », « make services », ou les vôtres avec --any-server. Fait, par
les scripts eux-mêmes, ce que services/ACCEPTATION.md décrit : la machine et les versions, les serveurs tels qu'ils se
décrivent, les trois exercices, les tests unitaires si pytest est là. Écrit dans des topics à lui ; ajoute 2 000 ventes
à celles de la base.
Garantit : le code de sortie est 0 si toutes les étapes ont donné ce qui est attendu ; aucun mot de passe de .env ou de
l'environnement n'est dans le fichier ; un fichier qui n'est pas un de ses rapports n'est jamais remplacé.
Ne garantit pas : de trouver ce que seul un œil voit (Tableau, la page de l'aperçu).
Ensuite : relisez le fichier, puis envoyez-le.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commun import PipelineError
from commun.cli import Parser, Stop, run
from commun.settings import ROOT, bootstrap_servers, defaults, mongo_uri, postgres_dsn, refuse_elsewhere
from commun.systems import ask_to_stop, own_group

OUTPUT = Path("acceptation.txt")
HEADER = "=== Rapport de services/acceptance.py"  # à ce début se reconnaît un rapport, que le suivant peut remplacer
STEP_SECONDS = 600.0
TAIL = 40  # lignes gardées de la sortie d'un script
SALES = 2_000
ROWS = ["id,produit,montant", "1,Café moulu,4.20", '2,"Lampe, ""Été""",39.90', "3,Vélo,450.00"]


class Unexpected(Exception):
    """L'étape n'a pas donné ce qui est attendu ; le texte dit quoi."""


def expect(condition: object, sentence: str) -> None:
    """Lève Unexpected si ``condition`` est fausse."""
    if not condition:
        raise Unexpected(sentence)


def may_replace(path: Path) -> bool:
    """Vrai si écrire dans ``path`` ne fait rien perdre : rien n'y est, ou un rapport précédent."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        beginning = file.read(len(HEADER.encode()))
    return beginning in (b"", HEADER.encode())


class Report:
    """Le fichier à renvoyer, écrit au fur et à mesure ; les mots de passe y sont remplacés."""

    def __init__(self, path: Path) -> None:
        self.path, self.failures = path, list[str]()
        names = [name for name in {**os.environ, **defaults()} if name.endswith("PASSWORD")]
        values = {value for name in names for value in (os.environ.get(name), defaults().get(name)) if value}
        self._secrets = sorted(values, key=len, reverse=True)
        try:
            if not may_replace(path):
                raise PipelineError(
                    f"{path} existe déjà, et n'est pas un rapport de ce script : donnez un autre --output."
                )
            path.write_text(f"{HEADER}\n", encoding="utf-8")
        except OSError as error:
            raise PipelineError(f"Impossible d'écrire {path} ({error.strerror}) : donnez un autre --output.") from error

    def write(self, text: str) -> None:
        """Ajoute une ligne ou plusieurs."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"(mongodb(?:\+srv)?://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def script(self, folder: str, *command: str, environment: dict[str, str]) -> str:
        """Lance « python … » depuis un dossier, note tout, rend sa sortie ; lève Unexpected si le code n'est pas 0."""
        self.write(f"$ cd {folder} && python {' '.join(command)}")
        start = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT / folder, env=os.environ | environment, capture_output=True,
                text=True, encoding="utf-8", errors="replace", timeout=STEP_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Unexpected(f"{command[0]} n'a pas fini en {STEP_SECONDS:.0f} s") from error
        lines = (done.stdout + done.stderr).splitlines()
        self.write("\n".join(f"  {line}" for line in lines[-TAIL:]))
        self.write(f"  → code {done.returncode}, {time.monotonic() - start:.1f} s")
        expect(done.returncode == 0, f"{command[0]} a rendu le code {done.returncode}")
        expect("Traceback" not in done.stderr, f"{command[0]} a montré une trace")
        return done.stdout


# --- Les étapes ---


def machine(report: Report) -> None:
    """La machine, Python, les paquets"""
    report.write(f"système : {platform.platform()} ; machine : {platform.machine()} ; cœurs : {os.cpu_count()}")
    report.write(f"Python {sys.version}")
    report.write(f"console : {sys.stdout.encoding} ; langue : {os.environ.get('LANG', '')} ; dossier : {ROOT}")
    for command in (("git", "rev-parse", "HEAD"), ("docker", "version", "--format", "{{json .}}"),
                    ("docker", "compose", "version"), ("docker-compose", "version")):  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
            )
            report.write(f"$ {' '.join(command)} : {(done.stdout or done.stderr).strip()}")
        except (OSError, subprocess.TimeoutExpired) as error:
            report.write(f"$ {' '.join(command)} : {type(error).__name__}")
    names = sorted(f"{found.name}=={found.version}" for found in importlib.metadata.distributions())
    report.write("paquets : " + " ".join(names))


def servers(report: Report) -> None:
    """Les serveurs, tels qu'ils se décrivent"""
    import psycopg2  # noqa: PLC0415 - leur absence est à dire dans le rapport, pas avant
    from confluent_kafka import libversion  # noqa: PLC0415
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415
    from pymongo import MongoClient  # noqa: PLC0415

    kafka = AdminClient({"bootstrap.servers": bootstrap_servers(), "broker.address.family": "v4"}).list_topics(
        timeout=20
    )
    report.write(f"Kafka : {sorted(map(str, kafka.brokers.values()))}, librdkafka {libversion()[0]}")
    with MongoClient[dict[str, Any]](mongo_uri(), serverSelectionTimeoutMS=20_000) as client:
        hello, build = client.admin.command("hello"), client.server_info()
        keys = ("setName", "hosts", "primary", "isWritablePrimary", "msg", "maxWireVersion")
        report.write(f"MongoDB {build.get('version')} : {json.dumps({k: hello[k] for k in keys if k in hello})}")
        report.write(f"  {json.dumps({k: build[k] for k in ('gitVersion', 'modules', 'allocator') if k in build})}")
    connection = psycopg2.connect(**postgres_dsn(), connect_timeout=20)
    with connection.cursor() as cursor:
        for name in ("version()", "current_setting('data_checksums')", "current_setting('fsync')"):
            cursor.execute(f"SELECT {name}")
            report.write(f"PostgreSQL, {name} : {cursor.fetchone()}")
    connection.close()


def exercice1(report: Report) -> None:
    """Exercice 1 : une fois, puis au fil de l'eau, remplacé comme le fait un éditeur, arrêté proprement"""
    topic = f"acceptation-csv-{uuid.uuid4().hex[:8]}"
    names = {"CSV_TOPIC": topic, "CSV_GROUP": f"{topic}-groupe"}
    with tempfile.TemporaryDirectory(prefix="été à l'eau ", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "ventes d'été.csv"
        path.write_bytes("\n".join(ROWS).encode() + b"\n")
        report.script("exercice1", "producer.py", str(path), "--once", environment=names)
        log = Path(folder) / "journal.txt"
        with log.open("wb") as file:
            producer = subprocess.Popen(
                [sys.executable, "producer.py", str(path)], cwd=ROOT / "exercice1", env=os.environ | names,
                stdout=file, stderr=file, **own_group(),
            )  # fmt: skip
        time.sleep(8)
        with path.open("ab") as more:
            more.write("4,Thé vert,6.50\n".encode())
        time.sleep(4)
        new = path.with_name("nouveau.csv")
        new.write_bytes(path.read_bytes() + b"5,Chaise,80.00\n")
        try:
            new.replace(path)
        except PermissionError as error:  # un Windows qui ne remplace pas un fichier ouvert, même partagé
            report.write(f"  remplacer le fichier suivi : {error} ; l'écarter, puis prendre son nom :")
            path.rename(path.with_name("ancien.csv"))
            new.rename(path)
        time.sleep(6)
        asked = ask_to_stop(producer)
        code = producer.wait(60)
        report.write(log.read_text(encoding="utf-8", errors="replace") + f"  → code {code}")
    expect(asked, "pas de console pour porter Ctrl-Pause : producer.py a été tué net")
    expect(code == 0, f"producer.py, arrêté, a rendu le code {code}")
    options = ("--from-beginning", "--idle-timeout", "10", "--format", "json")
    shown = report.script("exercice1", "consumer.py", *options, environment=names)
    ids = sorted(json.loads(line)["id"] for line in shown.splitlines())
    expect(ids == ["1", "2", "3", "4", "5"], f"lignes dans Kafka : {ids}, au lieu de 1 à 5, une fois chacune")


def exercice2(report: Report) -> None:
    """Exercice 2 : mille transactions, exactement une fois, et leurs fenêtres"""
    topic = f"acceptation-transactions-{uuid.uuid4().hex[:8]}"
    names = {
        "TRANSACTIONS_TOPIC": topic, "TRANSACTIONS_VALIDEES": f"{topic}-validees", "TRANSACTIONS_GROUP": topic,
        "TRANSACTIONS_FENETRES": f"{topic}-fenetres", "TRANSACTIONS_ALERTES": f"{topic}-alertes",
    }  # fmt: skip
    wanted = ("--generate", "--count", "1000", "--rate", "0", "--seed", "1")
    report.script("exercice2", "producer_resilient.py", *wanted, environment=names)
    report.script("exercice2", "consumer_resilient.py", "--exactly-once", "--idle-timeout", "10", environment=names)
    shown = report.script("exercice2", "kafka_monitor.py", "--once", "--format", "json", environment=names)
    expect(len(shown.splitlines()) > 0, "aucune fenêtre n'est publiée")
    options = ("--topic", f"{topic}-validees", "--group", f"{topic}-voir")
    seen = report.script(
        "exercice1", "consumer.py", *options, "--from-beginning", "--idle-timeout", "10", "--format", "json",
        environment={},
    )  # fmt: skip
    ids = [json.loads(line)["id"] for line in seen.splitlines()]
    expect(len(ids) == len(set(ids)) == 1000, f"{len(ids)} transactions validées, {len(set(ids))} distinctes")


def exercice3(report: Report) -> None:
    """Exercice 3 : demo.py, égal au centime à chaque étape"""
    # main a refusé les autres serveurs, ou on les a voulus.
    report.script("exercice3", "demo.py", "--count", str(SALES), "--rate", "500", "--any-server", environment={})


def unit(report: Report) -> None:
    """Les tests unitaires"""
    if importlib.util.find_spec("pytest") is None:
        report.write("pytest n'est pas installé : étape passée.")
        return
    report.script(".", "-m", "pytest", "tests/unit", "-q", "-p", "no:cacheprovider", environment={})


STEPS: dict[str, Callable[[Report], None]] = {
    "machine": machine, "servers": servers, "exercice1": exercice1, "exercice2": exercice2, "exercice3": exercice3,
    "unit": unit,
}  # fmt: skip


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--output", type=Path, default=OUTPUT, help="fichier à renvoyer")
    parser.option("--any-server", action="store_true", help="aussi sur d'autres serveurs que ceux de la pile locale")
    parser.option("--only", choices=tuple(STEPS), help="une seule étape, après la description de la machine")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    refuse_elsewhere(any_server=args.any_server)
    report, stop = Report(args.output), Stop()
    for name, step in STEPS.items():
        if stop or (args.only not in (None, name) and name != "machine"):
            continue
        title = step.__doc__ or name
        print(f"{title}…", file=sys.stderr, flush=True)
        report.write(f"\n=== {title}")
        try:
            step(report)
            report.write("=== comme attendu")
        except Exception as error:  # une étape ratée n'empêche pas les suivantes : le rapport dit tout
            sentence = f"{title} : {error or type(error).__name__}"
            report.failures.append(sentence)
            report.write(f"=== INATTENDU ({type(error).__name__}) : {error}")
    print(f"Rapport : {args.output.resolve()}. Relisez-le, puis envoyez-le.")
    if report.failures:
        raise PipelineError("Ce n'est pas ce qui est attendu :\n  " + "\n  ".join(report.failures))
    return 0


if __name__ == "__main__":
    run(main)
