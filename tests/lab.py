"""Le banc d'essai : scripts lancés comme par un étudiant, serveurs interrogés directement."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from commun.cli import NeverStopped
from commun.exactly_once import Positions, open_producer
from commun.kafka import admin_config, client_config, ensure_topics
from commun.settings import ROOT, bootstrap_servers, mongo_uri, postgres_dsn
from commun.topics import read_topic
from exercice2.topic import PARTITIONS
from exercice3.producer import REPLAY_END
from exercice3.ventes import Vente, generate, to_json

import psycopg2
import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pymongo import MongoClient
from pymongo.database import Database

Rows = list[tuple[Any, ...]]


class Running:
    """Un script en marche ; ``lines`` est ce qu'il a écrit sur sa sortie d'erreur, ``out`` sur sa sortie."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self.lines: list[str] = []
        self.out: list[str] = []
        self.process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stderr, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line)

    @property
    def text(self) -> str:
        """Toute la sortie d'erreur jusqu'ici."""
        return "".join(self.lines)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Attend que le script ait écrit ``text``."""
        wait_until(lambda: text in self.text or self.process.poll() is not None, timeout, lambda: self.text)
        assert text in self.text, self.text

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Envoie un signal et attend la fin ; renvoie le code de sortie."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()  # il ne doit pas gêner les essais suivants
            self.process.wait()
            raise AssertionError(f"sourd au signal {number} pendant {timeout} s : {self.text}") from None
        for thread in self._threads:
            thread.join(10)
        return code


def wait_until(condition: Callable[[], bool], timeout: float = 60, explain: Callable[[], object] = lambda: "") -> None:
    """Attend que ``condition`` soit vraie ; échoue avec ``explain()`` au bout de ``timeout`` secondes.

    Une condition longue à juger (un topic entier à lire) est regardée moins souvent.
    """
    deadline = time.monotonic() + timeout
    asked = time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, f"attente de {timeout} s dépassée : {explain()}"
        time.sleep(max(0.1, time.monotonic() - asked))
        asked = time.monotonic()


class Scripts:
    """Les scripts d'un exercice, lancés depuis leur dossier, sur un topic tout neuf."""

    def __init__(self, exercise: str, topic: str, env: dict[str, str]) -> None:
        self.folder = ROOT / exercise
        self.topic = topic  # ses autres topics portent ce nom, et une suite
        # Un script qui oublie de fermer quelque chose le dit, et le test échoue.
        self.env = os.environ | {"PYTHONWARNINGS": "default"} | env
        self.running: list[Running] = []

    def start(self, script: str, *options: str, env: dict[str, str] | None = None) -> Running:
        """Lance « python SCRIPT.py OPTIONS » depuis son dossier, sans attendre."""
        command = [sys.executable, f"{script}.py", *options]
        self.running.append(Running(command, self.env | (env or {}), self.folder))
        return self.running[-1]

    def committed(self) -> int:
        """Nombre de messages dont le groupe a validé la position, toutes partitions ensemble."""
        consumer = Consumer({"bootstrap.servers": bootstrap_servers(), "group.id": f"{self.topic}-group"})
        try:
            partitions = consumer.list_topics(self.topic, timeout=20).topics[self.topic].partitions
            places = consumer.committed([TopicPartition(self.topic, number) for number in partitions], timeout=20)
        finally:
            consumer.close()
        return sum(max(place.offset, 0) for place in places)

    def run(
        self, script: str, *options: str, code: int = 0, timeout: float = 120, env: dict[str, str] | None = None
    ) -> str:
        """Lance un script et attend sa fin ; renvoie ses deux sorties. Échoue si le code n'est pas ``code``."""
        done = subprocess.run(
            [sys.executable, f"{script}.py", *options],
            cwd=self.folder, env=self.env | (env or {}), capture_output=True, text=True, encoding="utf-8",
            timeout=timeout, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output, output
        assert "Warning: " not in output, output
        return output

    def close(self) -> None:
        """Termine les scripts encore en marche, et efface leurs topics : chacun coûte aux brokers jusqu'à la fin."""
        for script in self.running:
            script.stop(signal.SIGKILL)
        admin = AdminClient(admin_config(client_config({})))
        with suppress(KafkaException):  # l'essai a laissé Kafka arrêté
            names = [name for name in admin.list_topics(timeout=20).topics if self.topic in name]
            for done in (admin.delete_topics(names) if names else {}).values():
                done.result(20)

    def delete_topic(self) -> None:
        """Efface le topic, et attend qu'il le soit : le prochain producteur le recrée."""
        admin = AdminClient(admin_config(client_config({})))
        for done in admin.delete_topics([self.topic]).values():
            done.result(60)
        wait_until(lambda: self.topic not in admin.list_topics(timeout=20).topics)

    @staticmethod
    def messages(topic: str, isolation: str = "read_committed") -> list[Message]:
        """Tous les messages d'un topic, dans l'ordre de chaque partition."""
        config = client_config({})
        partitions = AdminClient(admin_config(config)).list_topics(topic, timeout=20).topics[topic].partitions
        return list(read_topic(config, topic, partitions, isolation=isolation))

    def letters(self, topic: str) -> list[tuple[bytes | None, dict[str, str]]]:
        """Valeur et en-têtes de chaque message d'un topic de lettres mortes."""
        return [(message.value(), headers(message)) for message in self.messages(topic)]


class CsvLab(Scripts):
    """Un exercice 1 tout neuf : un topic, un groupe, un dossier et un fichier ``path`` à lui."""

    def __init__(self, folder: Path) -> None:
        topic = f"csv-test-{uuid.uuid4().hex[:8]}"
        self.path = folder / "ventes.csv"
        files = {"CSV_TOPIC": topic, "CSV_GROUP": f"{topic}-group", "CSV_FILES": str(self.path)}
        super().__init__("exercice1", topic, files)

    def write(self, text: str, path: Path | None = None) -> None:
        """Ajoute du texte à la fin du fichier."""
        with (path or self.path).open("a", encoding="utf-8", newline="") as file:
            file.write(text)

    def objects(self) -> list[dict[str, Any]]:
        """Les objets JSON du topic que voit un lecteur read_committed, dans l'ordre de chaque partition."""
        return [json.loads(message.value() or b"") for message in self.messages(self.topic)]

    def column(self, name: str = "id") -> list[str]:
        """Une colonne de ces objets."""
        return [row[name] for row in self.objects()]

    def wait_for(self, count: int, timeout: float = 60) -> None:
        """Attend que ``count`` objets soient lisibles."""
        wait_until(lambda: len(self.messages(self.topic)) >= count, timeout, lambda: len(self.messages(self.topic)))

    def rejected(self) -> list[tuple[bytes | None, dict[str, str]]]:
        """Valeur et en-têtes de chaque lettre morte."""
        return self.letters(f"{self.topic}-dlq")


class BankLab(Scripts):
    """Un exercice 2 tout neuf : ses topics et son groupe à lui."""

    def __init__(self) -> None:
        topic = f"transactions-test-{uuid.uuid4().hex[:8]}"
        self.output = f"{topic}-validees"
        self.windows, self.alerts = f"{topic}-fenetres", f"{topic}-alertes"
        names = {
            "TOPIC": topic, "VALIDEES": self.output, "GROUP": f"{topic}-group",
            "FENETRES": self.windows, "ALERTES": self.alerts,
        }  # fmt: skip
        super().__init__("exercice2", topic, {f"TRANSACTIONS_{name}": value for name, value in names.items()})

    def generate(self, count: int, *options: str) -> str:
        """producer_resilient.py au plus vite."""
        wanted = ("--generate", "--seed", "1", "--rate", "0", "--count", str(count))
        return self.run("producer_resilient", *wanted, *options)

    def consume(self, *options: str) -> str:
        """consumer_resilient.py jusqu'au silence."""
        return self.run("consumer_resilient", "--idle-timeout", "2", *options)

    def ids(self, topic: str) -> list[str]:
        """Identifiants lisibles d'un topic."""
        return [json.loads(message.value() or b"")["id"] for message in self.messages(topic)]

    def send_raw(self, *values: bytes, key: bytes = b"cle") -> None:
        """Écrit des messages tels quels."""
        ensure_topics(client_config({}), NewTopic(self.topic, PARTITIONS, 3))
        producer = Producer({"bootstrap.servers": bootstrap_servers()})
        for value in values:
            producer.produce(self.topic, value, key)
        assert producer.flush(30) == 0


def bar(topic: str, source: str) -> None:
    """Kafka annule la transaction en cours de qui envoie ``source``, sans que personne ne prenne sa place."""
    positions = Positions(client_config({}), topic, NeverStopped())
    for name in positions.claims()[source.encode()].values():
        open_producer(client_config({"transactional.id": name}), NeverStopped())


def take_place(topic: str, source: str) -> Positions:
    """Un second producteur de ``source`` prend la place du premier, et n'écrit rien."""
    positions = Positions(client_config({}), topic, NeverStopped())
    positions.take([source.encode()])
    return positions


def headers(message: Message) -> dict[str, str]:
    """En-têtes d'un message, en texte."""
    return {name: value.decode() for name, value in dict(message.headers() or {}).items() if isinstance(value, bytes)}


class Lab(Scripts):
    """Un exercice 3 tout neuf : topic, groupe et dossier à lui, bases vides."""

    def __init__(self, folder: Path) -> None:
        topic = f"ventes-test-{uuid.uuid4().hex[:8]}"
        self.exports = folder / "exports"
        names = {"VENTES_TOPIC": topic, "VENTES_GROUP": f"{topic}-group", "EXPORT_DIR": str(self.exports)}
        super().__init__("exercice3", topic, names)
        self.client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri(), serverSelectionTimeoutMS=20_000)
        self.client.admin.command("ping")
        refuse_foreign("PORT_MONGO", (self.client.address or ("", 0))[1])
        self.mongo: Database[dict[str, Any]] = self.client["ventes_db"]
        for name in ("ventes", "lots_export", "arrivages"):
            # Vidée d'abord : SecantusDB efface une collection pleine 35 fois moins vite qu'une requête ne la vide.
            self.mongo[name].delete_many({})
            self.mongo.drop_collection(name)
        tables = "ventes, ventes_chargements, ventes_rejets, ventes_suivi, ventes_par_heure, ventes_par_jour"
        self.sql(f"DROP TABLE IF EXISTS {tables} CASCADE; DROP FUNCTION IF EXISTS ventes_compter, ventes_oublier")

    def produce(self, count: int, seed: int = 1, **kwargs: Any) -> str:
        """producer.py au plus vite."""
        return self.run("producer", "--count", str(count), "--seed", str(seed), "--rate", "0", **kwargs)

    def consume(self, count: int, *options: str) -> str:
        """consumer.py jusqu'au ``count``-ième message."""
        return self.run("consumer", "--max-messages", str(count), *options)

    def reconcile(self, expect: int, code: int = 0) -> str:
        """reconcile.py."""
        return self.run("reconcile", "--expect", str(expect), code=code)

    def close(self) -> None:
        """Termine les scripts encore en marche."""
        super().close()
        self.client.close()

    # --- Kafka ---

    def send_raw(self, *values: bytes, topic: str | None = None) -> None:
        """Écrit des messages tels quels."""
        producer = Producer({"bootstrap.servers": bootstrap_servers(), "acks": "all"})
        for value in values:
            producer.produce(topic or self.topic, value=value)
        assert producer.flush(30) == 0

    def dead_letters(self) -> list[tuple[bytes | None, dict[str, str]]]:
        """Valeur et en-têtes de chaque lettre morte."""
        return self.letters(f"{self.topic}-dlq")

    # --- MongoDB, fichiers, PostgreSQL ---

    def in_mongo(self) -> Counter[str]:
        """Identifiants présents dans MongoDB."""
        return Counter(vente["_id"] for vente in self.mongo.ventes.find({}, {"_id": 1}))

    def in_files(self) -> Counter[str]:
        """Identifiants présents dans les fichiers terminés, avec leur nombre d'apparitions."""
        found: Counter[str] = Counter()
        for manifest in self.exports.glob("ventes_[0-9]*.json"):
            path = self.exports / json.loads(manifest.read_text())["fichier"]
            with path.open(encoding="utf-8", newline="") as file:
                found.update(row["id"] for row in csv.DictReader(file))
        return found

    def sql(self, query: str, *parameters: object, reader: bool = False) -> Rows:
        """Exécute une requête et renvoie ses lignes ; ``reader`` : avec le rôle tableau."""
        connection = psycopg2.connect(**postgres_dsn(reader=reader), connect_timeout=20)
        try:
            refuse_foreign("PORT_POSTGRES", connection.info.port)
            with connection, connection.cursor() as cursor:
                cursor.execute(query, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def in_postgres(self) -> tuple[int, Decimal]:
        """Nombre de ventes et somme des montants dans PostgreSQL."""
        ((count, amount),) = self.sql("SELECT count(*), coalesce(sum(montant), 0) FROM ventes")
        return count, amount


@cache  # lâché, il emporterait les réponses qu'on attend de lui
def admin() -> AdminClient:
    """Le cluster des essais."""
    return AdminClient(admin_config(client_config({})))


def settled(futures: dict[Any, Any]) -> None:
    """Attend que Kafka ait répondu."""
    for future in futures.values():
        future.result()


def create(topic: str, partitions: int = 1) -> None:
    """Crée un topic, dès que l'ancien du même nom est tout à fait effacé."""

    def created() -> bool:
        try:
            settled(admin().create_topics([NewTopic(topic, partitions, 3)]))
        except KafkaException:
            return False
        return True

    wait_until(created)


def refuse_foreign(variable: str, port: int) -> None:
    """Les essais effacent des tables : ils refusent tout serveur qui n'est pas sur le port de leur pile."""
    assert port == int(os.environ[variable]), f"{variable} : le port {port} n'est pas celui de la pile des essais"


def generated(count: int) -> Counter[str]:
    """Identifiants des ``count`` premières transactions de la graine 1, une fois chacun."""
    return Counter(f"00000001-{number:08d}" for number in range(1, count + 1))


def expected(count: int, seed: int = 1) -> list[Vente]:
    """Les ventes que ``producer.py --seed … --count …`` envoie."""
    ventes = generate(seed, lambda: REPLAY_END, 90)
    return [next(ventes) for _ in range(count)]


def ids(ventes: list[Vente]) -> Counter[str]:
    """Chaque identifiant, une fois."""
    return Counter(vente.id for vente in ventes)


def as_json(vente: Vente, **changes: object) -> bytes:
    """Message d'une vente, avec des champs changés."""
    return json.dumps(json.loads(to_json(vente)) | changes).encode()


@pytest.fixture
def lab(stack: None, tmp_path: Path) -> Iterator[Lab]:
    """Un exercice 3 tout neuf sur les serveurs des tests."""
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def csv_lab(stack: None, tmp_path: Path) -> Iterator[CsvLab]:
    """Un exercice 1 tout neuf sur les serveurs des tests."""
    lab = CsvLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def bank_lab(stack: None) -> Iterator[BankLab]:
    """Un exercice 2 tout neuf sur les serveurs des tests."""
    lab = BankLab()
    yield lab
    lab.close()
