"""Le service répond-il vraiment ? On l'interroge comme le ferait un script."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from commun import PipelineError, kafka
from services.doctor import ports
from services.stack import CONFIG, CONTROLLER_OFFSET, JOBMANAGER, KAFKA_NODES, TASKMANAGERS, Service, Stack

import psutil
import psycopg2
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

Check = Callable[[], bool]
REPLICAS = 3
DYING_SECONDS = 5
MONGO_REFUSALS = (13, 18)  # non autorisé, authentification refusée
# Avant la connexion, libpq ne donne pas de code : ce sont les phrases de notre serveur, toujours en anglais.
POSTGRES_REFUSALS = ("password authentication failed", "does not exist")


def checks(stack: Stack) -> dict[str, Check]:
    """Une question par service : vrai quand il a bien répondu ; PipelineError s'il refuse le compte de .env."""
    return {
        **{name: _kafka_check(stack, node) for node, name in enumerate(KAFKA_NODES, start=1)},
        "connect": lambda: _get(stack.ports["connect"], "/health") is not None,
        "mongodb": lambda: _mongodb_answers(stack),
        "postgres": lambda: _postgres_answers(stack),
        JOBMANAGER: lambda: _get(stack.ports[JOBMANAGER], "/overview") is not None,
        **{name: partial(_taskmanager_answers, stack, name) for name in TASKMANAGERS},
    }


def create_topics(stack: Stack) -> list[str]:
    """Crée les topics de ``config/topics.conf`` qui manquent ; renvoie leurs noms.

    Un autre « up » les crée peut-être au même moment : un topic déjà là est ce que l'on voulait.
    """
    wanted = {topic.topic: topic for topic in read_topics(CONFIG / "topics.conf")}
    config: kafka.Config = {"bootstrap.servers": stack.brokers, "broker.address.family": "v4", "log_level": 0}
    admin = AdminClient(config)
    try:
        missing = wanted.keys() - admin.list_topics(timeout=15).topics.keys()
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond plus : {error.args[0].str()}.") from error
    kafka.create_topics(config, admin, (wanted[name] for name in missing))
    return sorted(missing)


def read_topics(path: Path) -> list[NewTopic]:
    """Topics d'un fichier « nom partitions réglage=valeur,… » ; les lignes « # » sont des commentaires."""
    topics = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, partitions, *rest = line.split()
            config = dict(pair.split("=", 1) for pair in ",".join(rest).split(",") if pair)
            topics.append(NewTopic(name, int(partitions), REPLICAS, config=config))
    return topics


def refuse_shared_ports(services: Sequence[Service]) -> None:
    """Lève PipelineError si deux services auraient le même port."""
    owners: dict[int, Service] = {}
    for service in services:
        for port in _ports(service):
            if (other := owners.setdefault(port, service)) is not service:
                raise PipelineError(
                    f"Le port {port} serait à la fois celui de {other.name} ({other.variable}) et de {service.name} "
                    f"({service.variable}) : changez l'un des deux. Kafka prend aussi chaque port + "
                    f"{CONTROLLER_OFFSET} ; Flink, son port + {CONTROLLER_OFFSET} à + "
                    f"{CONTROLLER_OFFSET + len(TASKMANAGERS)}."
                )


def refuse_taken_ports(services: Sequence[Service]) -> None:
    """Lève PipelineError si un port de ``services`` est pris : une phrase par port, qui nomme l'occupant.

    Un processus tué rend ses ports un peu après avoir disparu : un occupant sans nom a DYING_SECONDS pour partir.
    Un port que le système réserve à root ne se libérera pas.
    """
    if reserved := [(service, port) for service in services for port in _ports(service) if ports.is_reserved(port)]:
        raise PipelineError("\n".join(_reserved_sentence(*trouble) for trouble in reserved))
    deadline = time.monotonic() + DYING_SECONDS
    while taken := [(service, port, _holder(port)) for service in services for port in _ports(service) if _taken(port)]:
        if all(holder for *_, holder in taken) or time.monotonic() > deadline:
            raise PipelineError("\n".join(_taken_sentence(*trouble) for trouble in taken))
        time.sleep(0.1)


def _ports(service: Service) -> list[int]:
    inner = service.name in (*KAFKA_NODES, JOBMANAGER)
    return [service.port, service.port + CONTROLLER_OFFSET] if inner else [service.port]


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _holder(port: int) -> str | None:
    """Nom et pid du programme vivant qui écoute sur ``port`` ; None s'il est mourant ou d'un autre compte."""
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listening and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {process.pid})" if process.cmdline() else None
    except psutil.Error:
        pass
    return None


def _role(service: Service, port: int) -> str:
    return service.name + (f" (port interne : port + {CONTROLLER_OFFSET})" if port != service.port else "")


def _reserved_sentence(service: Service, port: int) -> str:
    return (
        f"Le port {port} de {_role(service, port)} est réservé à root par ce système : choisissez un port à partir de "
        f"{ports.UNRESERVED} avec la variable {service.variable} (dans .env ou l'environnement)."
    )


def _taken_sentence(service: Service, port: int, holder: str | None) -> str:
    holder = holder or "un programme d'un autre compte"
    return (
        f"Le port {port} de {_role(service, port)} est pris par {holder} : arrêtez ce programme, ou choisissez "
        f"un autre port avec la variable {service.variable} (dans .env ou l'environnement)."
    )


def _kafka_check(stack: Stack, node: int) -> Check:
    """Vrai quand le nœud ``node`` répond lui-même et se compte parmi les brokers du cluster."""
    address = f"localhost:{stack.ports[f'kafka{node}']}"
    admin: list[AdminClient] = []

    def answers() -> bool:
        if not admin:
            admin.append(AdminClient({"bootstrap.servers": address, "broker.address.family": "v4", "log_level": 0,
                                      "reconnect.backoff.ms": 100, "reconnect.backoff.max.ms": 300}))  # fmt: skip
        try:
            return node in admin[0].list_topics(timeout=1).brokers
        except KafkaException:
            return False

    return answers


def flink_jobs(port: int) -> dict[str, str]:
    """État de chaque job du JobManager de ce port, par nom."""
    jobs = json.loads(_get(port, "/jobs/overview") or b"{}").get("jobs", [])
    return {job["name"]: job["state"] for job in jobs}


def _taskmanager_answers(stack: Stack, name: str) -> bool:
    """Vrai quand ``name`` écoute, et que le JobManager le compte parmi les siens."""
    known = json.loads(_get(stack.ports[JOBMANAGER], "/taskmanagers") or b"{}").get("taskmanagers", [])
    with socket.socket() as probe:  # le JobManager n'oublie un mort qu'au bout de dix secondes
        listening = probe.connect_ex(("127.0.0.1", stack.ports[name])) == 0
    return listening and name in {taskmanager["id"] for taskmanager in known}


def _get(port: int, path: str) -> bytes | None:
    """Ce qu'un serveur HTTP de cette machine répond, ou None s'il ne répond pas « 200 »."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


REFUSED = (
    "{server} refuse le compte « {user} » de .env, dont le nom, la base ou le mot de passe a changé depuis le premier "
    "démarrage : remettez l'ancien, ou effacez les données avec « make reset »."
)


def _mongodb_answers(stack: Stack) -> bool:
    database, user = stack.account("MONGO_DATABASE"), stack.account("MONGO_USER")
    try:
        with MongoClient[dict[str, object]](
            "localhost", stack.ports["mongodb"], username=user, password=stack.account("MONGO_PASSWORD"),
            authSource=database, serverSelectionTimeoutMS=1000, directConnection=True,
        ) as client:  # fmt: skip
            client[database].list_collection_names()
        return True
    except OperationFailure as error:
        if error.code in MONGO_REFUSALS:
            raise PipelineError(REFUSED.format(server="MongoDB", user=user)) from error
        return False
    except PyMongoError:
        return False


def _postgres_answers(stack: Stack) -> bool:
    user = stack.account("PIPELINE_USER")
    try:
        psycopg2.connect(
            host="127.0.0.1", port=stack.ports["postgres"], dbname=stack.account("PIPELINE_DATABASE"), user=user,
            password=stack.account("PIPELINE_PASSWORD"), connect_timeout=2,
        ).close()  # fmt: skip
        return True
    except psycopg2.OperationalError as error:
        if any(refusal in str(error) for refusal in POSTGRES_REFUSALS):
            raise PipelineError(REFUSED.format(server="PostgreSQL", user=user)) from error
        return False


def wait(name: str, check: Check, seconds: float, running: Check, log: Path) -> float:
    """Attend que ``check`` réponde vrai ; renvoie le temps passé, en secondes.

    Lève PipelineError si le processus meurt, se tait plus de ``seconds`` secondes, ou refuse le compte de .env.
    """
    start = time.monotonic()
    while not check():
        if not running():
            raise PipelineError(f"{name} s'est arrêté en démarrant. Fin de son journal ({log}) :\n{_tail(log)}")
        if time.monotonic() - start > seconds:
            raise PipelineError(
                f"{name} ne répond pas au bout de {seconds:.0f} s : « python -m services restart {log.stem} » "
                f"le redémarre ; son journal : {log}."
            )
        time.sleep(0.1)
    return time.monotonic() - start


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(vide)"
