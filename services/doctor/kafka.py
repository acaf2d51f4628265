"""Kafka : brokers, adresses annoncées, topics, groupes, horloge ; et Kafka Connect."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from commun.errors import START_HINT, PipelineError
from commun.kafka import admin_config, client_config, connect
from services.doctor.machine import ROOT
from services.doctor.report import OK, PROBLEM, UNKNOWN, WARNING, Check, Finding
from services.doctor.settings import value

TOPICS = ROOT / "services" / "config" / "topics.conf"
METADATA_SECONDS = 2.5
ADMIN_SECONDS = 1.5
CONNECT_SECONDS = 1.0
REPLICAS, IN_SYNC = 3, 2  # ce que promettent les scripts : trois copies, dont deux écrites avant confirmation
AHEAD_SECONDS = 30.0  # au-delà, ce n'est plus le hasard de deux horloges
DAY_MINUTES = 24 * 60
INTERNAL = ("__consumer_offsets", "__transaction_state")  # les brokers eux-mêmes datent ce qu'ils y écrivent
RENAMED = {
    "csv-topic": "CSV_TOPIC",
    "transactions-topic": "TRANSACTIONS_TOPIC",
    "transactions-validees": "TRANSACTIONS_VALIDEES",
    "transactions-fenetres": "TRANSACTIONS_FENETRES",
    "transactions-fenetres-flink": "TRANSACTIONS_FENETRES_FLINK",
    "transactions-alertes": "TRANSACTIONS_ALERTES",
    "ventes-stream": "VENTES_TOPIC",
}
SUFFIXES = ("-dlq", "-positions")
GROUPS = {
    "CSV_GROUP": "csv-consumer-group",
    "TRANSACTIONS_GROUP": "transactions-consumer-group",
    "VENTES_GROUP": "ventes-consumer-group",
    "TRANSACTIONS_MONITOR_GROUP": "",
}
MONITOR_PREFIX = "fenetres-"


@dataclass(frozen=True)
class Topic:
    """Un topic tel qu'il est, ou tel que topics.conf le veut."""

    partitions: int
    replicas: int
    config: Mapping[str, str]
    in_sync: int = REPLICAS  # copies à jour de la partition qui en a le moins
    inherited: frozenset[str] = frozenset()  # réglages que le topic tient du broker


@dataclass
class Cluster:
    """Ce qu'on sait du cluster ; ``brokers`` vide : il n'a pas répondu."""

    bootstrap: dict[str, str]  # adresse → pourquoi on ne s'y connecte pas, vide si on s'y connecte
    brokers: dict[int, str] = field(default_factory=dict)  # nœud → adresse qu'il annonce
    unreachable: dict[int, str] = field(default_factory=dict)  # nœud → pourquoi cette adresse ne répond pas
    topics: dict[str, Topic] = field(default_factory=dict)
    leaderless: list[str] = field(default_factory=list)
    errors: list[KafkaError] = field(default_factory=list)
    refused: str = ""  # réglage que le client refuse


def reachable(address: str) -> str:
    """Pourquoi on ne se connecte pas à « machine:port » ; vide si on s'y connecte."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return ""
    except socket.gaierror:
        return f"la machine « {host} » est inconnue d'ici"
    except ConnectionRefusedError:
        return "rien n'y écoute"
    except TimeoutError:
        return "aucune réponse : pare-feu, ou autre réseau"
    except (OSError, ValueError) as error:
        return str(error)


def reach_all(addresses: Iterable[str]) -> dict[str, str]:
    """``reachable`` de chaque adresse, toutes à la fois."""
    wanted = list(addresses)
    with ThreadPoolExecutor(len(wanted) or 1) as pool:
        return dict(zip(wanted, pool.map(reachable, wanted), strict=True))


@cache
def admin() -> AdminClient:
    """Le client d'administration, réglé comme les scripts ; ce qu'il reproche va dans ``complaints``."""
    config = admin_config(client_config({})) | {"error_cb": complaints.append, "socket.timeout.ms": 3000}
    return connect(AdminClient, config)  # type: ignore[no-any-return]


complaints: list[KafkaError] = []


def local() -> bool:
    """Les scripts parlent-ils à la pile de .env ?"""
    return not os.environ.get("KAFKA_BOOTSTRAP_SERVERS")


def bootstrap() -> list[str]:
    """Adresses que les scripts essaient en premier."""
    ports = [value(f"PORT_KAFKA{node}") for node in (1, 2, 3)]
    text = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or ",".join(f"localhost:{port}" for port in ports)
    return [address.strip() for address in text.split(",") if address.strip()]


def cluster_facts() -> Cluster:
    """Interroge le cluster comme le ferait un script."""
    cluster = Cluster(reach_all(bootstrap()))
    try:
        connect(Consumer, client_config({"group.id": "doctor"})).close()  # une propriété inconnue se voit ici
        if all(cluster.bootstrap.values()):
            return cluster
        found = admin().list_topics(timeout=METADATA_SECONDS)
    except PipelineError as error:
        cluster.refused = str(error)
        return cluster
    except KafkaException as error:
        admin().poll(0)  # les reproches de librdkafka n'arrivent que si on les demande
        cluster.errors = [*complaints, error.args[0]]
        return cluster
    cluster.brokers = {node: f"{broker.host}:{broker.port}" for node, broker in sorted(found.brokers.items())}
    reached = reach_all(cluster.brokers.values())
    cluster.unreachable = {node: reached[address] for node, address in cluster.brokers.items() if reached[address]}
    for name, topic in found.topics.items():
        parts = topic.partitions.values()
        cluster.leaderless += [f"{name}/{part.id}" for part in parts if part.leader < 0]
        cluster.topics[name] = Topic(
            len(parts),
            min((len(part.replicas) for part in parts), default=0),
            {},
            min((len(part.isrs) for part in parts), default=0),
        )
    return cluster


def judge_brokers(cluster: Cluster, *, local: bool) -> list[Finding]:
    """Le cluster répond-il, par des adresses que cette machine sait joindre ?"""
    if cluster.refused:
        return [
            Finding(
                "Kafka",
                PROBLEM,
                cluster.refused.split(". ")[0].rstrip("."),
                "Corrigez ou retirez cette variable KAFKA_….",
            )
        ]
    if not cluster.brokers:
        return [_silence(cluster, local=local)]
    findings = []
    if local and (down := {address: reason for address, reason in cluster.bootstrap.items() if reason}):
        names = ", ".join(f"kafka{list(cluster.bootstrap).index(address) + 1} ({address})" for address in down)
        if len(down) > 1:
            findings.append(
                Finding(
                    "Kafka",
                    PROBLEM,
                    f"ne répondent pas : {names} ; avec un seul broker sur trois, plus rien ne s'écrit",
                    "« make services » ou « docker-compose up -d » les redémarre.",
                )
            )
        else:
            name = names.split(" ", maxsplit=1)[0]
            findings.append(
                Finding(
                    "Kafka",
                    WARNING,
                    f"{names} ne répond pas ; les deux autres suffisent, une panne de plus arrêterait tout",
                    f"« python -m services restart {name} » ou « docker-compose up -d ».",
                )
            )
    for node, reason in cluster.unreachable.items():
        address = cluster.brokers[node]
        if not (local and address in cluster.bootstrap):
            findings.append(
                Finding(
                    "adresses annoncées",
                    PROBLEM,
                    f"le broker {node} s'annonce à {address} : {reason} ; on l'a trouvé par "
                    f"{', '.join(a for a, r in cluster.bootstrap.items() if not r)}, mais les messages passent par "
                    "l'adresse annoncée",
                    "Donnez à advertised.listeners de ce broker une adresse que cette machine connaît (de la machine "
                    "localhost:9092, "
                    "d'un conteneur kafka1:29092).",
                )
            )
    if not any(finding.check == "Kafka" for finding in findings):
        findings.insert(
            0, Finding("Kafka", OK, f"{len(cluster.brokers)} brokers, trouvés par {', '.join(cluster.bootstrap)}")
        )
    if not cluster.unreachable:
        text = ", ".join(f"{node} → {address}" for node, address in cluster.brokers.items())
        findings.append(Finding("adresses annoncées", OK, text))
    return findings


def _silence(cluster: Cluster, *, local: bool) -> Finding:
    """Pourquoi aucun broker ne répond."""
    where = ", ".join(cluster.bootstrap)
    codes = {error.code() for error in cluster.errors}
    said = next(
        (error.str() for error in cluster.errors if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)), ""
    )
    if KafkaError._AUTHENTICATION in codes or KafkaError.SASL_AUTHENTICATION_FAILED in codes:
        return Finding(
            "Kafka",
            PROBLEM,
            f"{where} refuse ce compte : {said}",
            "Vérifiez KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME et KAFKA_SASL_PASSWORD.",
        )
    if KafkaError._SSL in codes:
        return Finding(
            "Kafka",
            PROBLEM,
            f"{where} : le chiffrement TLS échoue : {said}",
            "Vérifiez KAFKA_SECURITY_PROTOCOL et KAFKA_SSL_CA_LOCATION (le certificat de l'autorité).",
        )
    if all(cluster.bootstrap.values()):
        reasons = " ; ".join(f"{address} : {reason}" for address, reason in cluster.bootstrap.items())
        cure = (
            f"{START_HINT[0].upper()}{START_HINT[1:]}." if local else "Vérifiez KAFKA_BOOTSTRAP_SERVERS et le réseau."
        )
        if len(set(cluster.bootstrap.values())) == 1:
            reasons = f"{where} : {next(iter(cluster.bootstrap.values()))}"
        return Finding("Kafka", PROBLEM, f"ne répond pas sur {reasons}", cure)
    cure = (
        "« python -m services status » dit lequel est gelé ou arrêté ; « make services » ou « docker-compose up -d » "
        "les redémarre."
        if local
        else "Vérifiez que ce port est celui de Kafka, et que KAFKA_SECURITY_PROTOCOL est ce qu'il attend (SSL, "
        "SASL_SSL)."
    )
    seconds = f"{METADATA_SECONDS:g}".replace(".", ",")
    return Finding(
        "Kafka",
        PROBLEM,
        f"la connexion s'ouvre sur {where}, mais personne n'y répond comme un broker en {seconds} s : gelé, "
        "sans majorité, ou d'un autre protocole",
        cure,
    )


# --- Topics ---


def wanted_topics(environ: Mapping[str, str]) -> dict[str, Topic]:
    """Les topics de topics.conf, aux noms que l'environnement leur donne."""
    found = {}
    for line in TOPICS.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, partitions, *rest = line.split()
            suffix = next((mark for mark in SUFFIXES if name.endswith(mark)), "")
            base = name.removesuffix(suffix)
            config = dict(pair.split("=", 1) for pair in ",".join(rest).split(",") if pair)
            found[(environ.get(RENAMED.get(base, "")) or base) + suffix] = Topic(int(partitions), REPLICAS, config)
    return found


def judge_topics(wanted: Mapping[str, Topic], found: Mapping[str, Topic], leaderless: Sequence[str]) -> list[Finding]:
    """Les topics ont-ils ce que promettent les scripts ?"""
    findings = []
    if missing := [name for name in wanted if name not in found]:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"pas encore créés : {', '.join(missing)}",
                "« make services » ou « docker-compose up -d » les crée ; chaque script crée aussi les siens.",
            )
        )
    if leaderless:
        findings.append(
            Finding(
                "topics",
                PROBLEM,
                f"partitions sans chef, donc fermées : {', '.join(leaderless[:5])}",
                "Redémarrez les brokers qui manquent.",
            )
        )
    for name, topic in wanted.items():
        if name in found:
            findings += _judge_topic(name, topic, found[name])
    for name in INTERNAL:
        if name in found and found[name].replicas < REPLICAS:
            findings.append(
                Finding(
                    "topics",
                    WARNING,
                    f"{name} n'a que {found[name].replicas} copie(s) : si son broker tombe, les groupes ne "
                    "valident plus rien",
                    "Sur ce cluster : offsets.topic.replication.factor et "
                    "transaction.state.log.replication.factor à 3, avant sa création.",
                )
            )
    return findings or [
        Finding("topics", OK, f"les {len(wanted)} topics ont leurs partitions, leurs copies et leurs réglages")
    ]


def _judge_topic(name: str, wanted: Topic, found: Topic) -> list[Finding]:
    again = f"Recréez {name} (ses messages se perdent) : services/config/topics.conf dit comment."
    alter = "« kafka-configs.sh --alter --topic {} --add-config {} »."
    findings = []
    if found.partitions < wanted.partitions:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} a {found.partitions} partition(s) au lieu de {wanted.partitions} : autant de "
                "consommateurs au plus y travaillent à la fois",
                again,
            )
        )
    elif wanted.partitions == 1 < found.partitions:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} a {found.partitions} partitions au lieu d'une : l'ordre n'y est plus un seul",
                again,
            )
        )
    minimum = int(found.config.get("min.insync.replicas", IN_SYNC))
    source = "réglage du broker" if "min.insync.replicas" in found.inherited else "réglage du topic"
    if found.in_sync < minimum:
        findings.append(
            Finding(
                "topics",
                PROBLEM,
                f"{name} : {found.in_sync} copie(s) à jour pour min.insync.replicas={minimum}, "
                "toute écriture est refusée",
                "Redémarrez les brokers qui manquent ; s'il n'y en a pas plus, recréez le topic.",
            )
        )
    if minimum < IN_SYNC:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} : min.insync.replicas={minimum} ({source}), un message confirmé peut n'être que sur "
                "un broker et se perdre avec lui",
                alter.format(name, "min.insync.replicas=2"),
            )
        )
    if found.replicas < REPLICAS:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} n'a que {found.replicas} copie(s) au lieu de {REPLICAS} : une panne peut l'arrêter",
                again,
            )
        )
    compact = wanted.config.get("cleanup.policy") == "compact"
    if compact and "compact" not in found.config.get("cleanup.policy", "compact"):
        findings.append(
            Finding(
                "topics",
                PROBLEM,
                f"{name} efface ses messages avec l'âge (cleanup.policy={found.config['cleanup.policy']}) : les "
                "positions "
                "s'y perdraient et tout repartirait",
                alter.format(name, "cleanup.policy=compact"),
            )
        )
    kept = int(found.config.get("retention.ms", -1))
    if wanted.config.get("retention.ms") == "-1" and kept >= 0:
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} efface ses messages au bout de {kept / 86_400_000:.3g} jours : reconcile.py ne les "
                "retrouverait plus",
                alter.format(name, "retention.ms=-1"),
            )
        )
    size = int(wanted.config.get("max.message.bytes", 0))
    if size > int(found.config.get("max.message.bytes", size)):
        findings.append(
            Finding(
                "topics",
                WARNING,
                f"{name} refuse les messages de plus de {found.config['max.message.bytes']} octets au lieu de {size}",
                alter.format(name, f"max.message.bytes={size}"),
            )
        )
    return findings


def with_configs(topics: Mapping[str, Topic], names: Iterable[str]) -> dict[str, Topic]:
    """Les topics, avec leurs réglages tels qu'ils valent."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names if name in topics]
    found = dict(topics)
    for resource, answer in admin().describe_configs(asked, request_timeout=ADMIN_SECONDS).items() if asked else ():
        entries = answer.result()
        topic = topics[resource.name]
        found[resource.name] = Topic(
            topic.partitions,
            topic.replicas,
            {name: entry.value for name, entry in entries.items()},
            topic.in_sync,
            frozenset(name for name, entry in entries.items() if entry.source != 1),
        )
    return found


# --- Groupes ---


def judge_groups(idle: Sequence[str], minutes: int | None) -> list[Finding]:
    """Les positions des groupes sans membre s'oublient. ``minutes`` : offsets.retention.minutes, None si inconnu."""
    if not idle:
        return [Finding("groupes", OK, "aucun groupe du projet n'est sans membre")]
    names = ", ".join(idle)
    if minutes is None:
        return [
            Finding(
                "groupes", UNKNOWN, f"sans membre : {names} ; le broker ne dit pas quand il en oublie les positions"
            )
        ]
    delay = f"{minutes / DAY_MINUTES:.3g} jours" if minutes >= 2 * DAY_MINUTES else f"{minutes} minutes"
    if minutes >= 365 * DAY_MINUTES:
        return [Finding("groupes", OK, f"sans membre : {names} ; leurs positions restent {delay}")]
    return [
        Finding(
            "groupes",
            WARNING,
            f"sans membre : {names} ; Kafka oublie leurs positions {delay} après le départ du dernier, et les "
            "topics gardent tout : relancés ensuite, ils reliraient depuis le début",
            f"Relancez-les avant {delay}, ou donnez une plus grande valeur à offsets.retention.minutes (brokers).",
        )
    ]


def our_groups(environ: Mapping[str, str]) -> set[str]:
    """Noms des groupes des scripts."""
    return {environ.get(variable) or name for variable, name in GROUPS.items()} - {""}


def group_facts(node: int) -> tuple[list[str], int | None]:
    """Groupes du projet sans membre, et le délai d'oubli du broker ``node``."""
    listing = admin().list_consumer_groups(request_timeout=ADMIN_SECONDS)
    minutes = None
    with suppress(KafkaException):
        (answer,) = (
            admin()
            .describe_configs([ConfigResource(ResourceType.BROKER, str(node))], request_timeout=ADMIN_SECONDS)
            .values()
        )
        minutes = int(answer.result()["offsets.retention.minutes"].value)
    ours = our_groups(os.environ)
    groups = listing.result().valid
    return sorted(
        group.group_id
        for group in groups
        if group.state.name == "EMPTY" and (group.group_id in ours or group.group_id.startswith(MONITOR_PREFIX))
    ), minutes


# --- Horloge ---


def judge_clock(ahead: Mapping[str, float], *, local: bool) -> list[Finding]:
    """``ahead`` : topic → secondes dont son message le plus récent devance l'horloge d'ici (négatif : il est passé)."""
    findings = []
    late = {name: seconds for name, seconds in ahead.items() if seconds > AHEAD_SECONDS}
    if brokers := [seconds for name, seconds in late.items() if name in INTERNAL]:
        findings.append(
            Finding(
                "horloge",
                WARNING,
                f"les brokers datent leurs écritures {duration(max(brokers))} après l'heure d'ici : l'horloge de "
                "cette machine retarde, ou la leur avance",
                "Remettez les deux à l'heure (NTP).",
            )
        )
    if records := {name: seconds for name, seconds in late.items() if name not in INTERNAL}:
        text = ", ".join(f"{name} (de {duration(seconds)})" for name, seconds in records.items())
        findings.append(
            Finding(
                "horloge",
                WARNING,
                f"messages datés du futur dans {text} : l'horloge de qui les a écrits avançait, ou celle d'ici retarde",
                "Mettez les machines à l'heure (NTP) ; --reset DATE et retention.ms suivent ces dates.",
            )
        )
    if findings:
        return findings
    if not ahead:
        return [Finding("horloge", UNKNOWN, "aucun message à comparer : Kafka ne donne pas l'heure de ses brokers")]
    return [
        Finding(
            "horloge",
            OK,
            "celle des brokers, c'est la même machine ; aucun message du futur"
            if local
            else "aucun message du futur (un broker en retard ne se voit pas ainsi)",
        )
    ]


def duration(seconds: float) -> str:
    """« 45 s », « 12 min » ou « 3 h »."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def newest(topics: Mapping[str, Topic]) -> dict[str, float]:
    """Topic → secondes dont son message le plus récent devance l'horloge d'ici."""
    asked = {
        TopicPartition(name, part): OffsetSpec.max_timestamp()
        for name, topic in topics.items()
        for part in range(topic.partitions)
    }
    if not asked:
        return {}
    answers: Mapping[TopicPartition, Future[Any]] = admin().list_offsets(asked, request_timeout=ADMIN_SECONDS)
    now, found = time.time(), dict[str, float]()
    for place, answer in answers.items():
        with suppress(KafkaException):
            stamp = answer.result().timestamp
            if stamp > 0:
                found[place.topic] = max(found.get(place.topic, float("-inf")), stamp / 1000 - now)
    return found


# --- Kafka Connect ---


def judge_connect(status: int | None, plugins: Sequence[str], failed: Mapping[str, str], port: str) -> list[Finding]:
    """Connect répond-il, sait-il lire un fichier, ses connecteurs marchent-ils ? ``status`` : None s'il se tait."""
    if status is None:
        return [
            Finding(
                "Connect",
                WARNING,
                f"Kafka Connect ne répond pas sur localhost:{port} ; exercice1/producer.py s'en passe",
                "« make services » ou « docker-compose up -d », si vous en avez besoin.",
            )
        ]
    if status != 200:
        return [
            Finding(
                "Connect",
                WARNING,
                f"le port {port} répond {status} : Connect démarre encore, ou un autre programme y écoute",
                "Attendez dix secondes, puis recommencez.",
            )
        ]
    findings = []
    if not any(name.endswith("FileStreamSourceConnector") for name in plugins):
        findings.append(
            Finding(
                "Connect",
                WARNING,
                "n'a pas le greffon FileStreamSource, que connector.json demande : l'inscription serait refusée (400)",
                "Mettez connect-file-*.jar dans un dossier de plugin.path, et redémarrez Connect.",
            )
        )
    for name, reason in failed.items():
        findings.append(
            Finding(
                "Connect",
                WARNING,
                f"le connecteur {name} s'est arrêté : {reason}",
                "Corrigez la cause, puis « curl -X POST "
                f"localhost:{port}/connectors/{name}/restart?includeTasks=true ».",
            )
        )
    return findings or [Finding("Connect", OK, f"répond sur localhost:{port}, avec le greffon FileStreamSource")]


def failures(connectors: Mapping[str, Any]) -> dict[str, str]:
    """Connecteur → première ligne de sa panne, de GET /connectors?expand=status."""
    found = {}
    for name, about in connectors.items():
        for part in (about["status"]["connector"], *about["status"]["tasks"]):
            if part.get("state") == "FAILED":
                found[name] = (part.get("trace") or "sans explication").splitlines()[0]
    return found


def get(port: str, path: str) -> tuple[int | None, Any]:
    """Code et contenu de la réponse de Connect ; (None, None) s'il se tait."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null") if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None, None
    finally:
        connection.close()


def connect_worker() -> list[Finding]:
    """Kafka Connect, sur cette machine."""
    port = value("PORT_CONNECT")
    status, plugins = get(port, "/connector-plugins")
    _, connectors = get(port, "/connectors?expand=status") if status == 200 else (None, None)
    return judge_connect(
        status, [plugin.get("class", "") for plugin in plugins or ()], failures(connectors or {}), port
    )


# --- Les contrôles : le cluster est interrogé une fois pour tous ---


@cache
def _cluster() -> Cluster:
    return cluster_facts()


def cluster() -> Cluster:
    """Ce qu'on sait du cluster, cherché une seule fois : le premier contrôle venu cherche, les autres attendent."""
    with _searching:
        return _cluster()


_searching = threading.Lock()


def asking(name: str, question: Callable[[Cluster], list[Finding]]) -> Check:
    """Un contrôle qui n'a de sens que si Kafka répond, et que Kafka peut refuser."""

    def check() -> list[Finding]:
        known = cluster()
        try:
            return question(known) if known.brokers else []
        except KafkaException as error:
            return [Finding(name, UNKNOWN, f"Kafka ne répond pas à cette question : {error.args[0].str()}")]

    return check


def topics(known: Cluster) -> list[Finding]:
    """Les topics des scripts."""
    wanted = wanted_topics(os.environ)
    return judge_topics(wanted, with_configs(known.topics, wanted), known.leaderless)


def groups(known: Cluster) -> list[Finding]:
    """Les groupes des scripts."""
    return judge_groups(
        *group_facts(next(iter(known.brokers.keys() - known.unreachable.keys()), next(iter(known.brokers))))
    )


def clock(known: Cluster) -> list[Finding]:
    """L'heure d'ici et celle des messages."""
    names = {*wanted_topics(os.environ), *INTERNAL}
    return judge_clock(newest({name: topic for name, topic in known.topics.items() if name in names}), local=local())


CHECKS: dict[str, Check] = {
    "Kafka": lambda: judge_brokers(cluster(), local=local()),
    "topics": asking("topics", topics),
    "groupes": asking("groupes", groups),
    "horloge": asking("horloge", clock),
    "Connect": connect_worker,
}
