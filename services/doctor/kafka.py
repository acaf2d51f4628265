"""Kafka : brokers, adresses annoncées, topics, groupes, horloge ; et Kafka Connect."""

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from commun import START_HINT, PipelineError
from commun.kafka import admin_config, client_config, connect
from services.doctor.env_file import value
from services.doctor.ports import reach_all
from services.doctor.report import UNKNOWN, Check, Finding, Notes, problem, refusal

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

METADATA_SECONDS = 8.0  # un contrôle en a dix
ADMIN_SECONDS = 6.0


@dataclass(frozen=True)
class Topic:
    """Un topic tel qu'il est, ou tel que topics.conf le veut."""

    partitions: int
    replicas: int
    config: Mapping[str, str]
    in_sync: int = 3  # copies à jour de la partition qui en a le moins
    inherited: frozenset[str] = frozenset()  # réglages que le topic tient du broker


@dataclass
class Cluster:
    """Ce qu'on sait du cluster ; ``brokers`` vide : il n'a pas répondu."""

    bootstrap: dict[str, str]  # adresse → pourquoi on ne s'y connecte pas, vide si on s'y connecte
    brokers: dict[int, str] = field(default_factory=dict)  # nœud → adresse qu'il annonce
    unreachable: dict[int, str] = field(default_factory=dict)  # nœud → pourquoi cette adresse ne répond pas
    topics: dict[str, Topic] = field(default_factory=dict)
    leaderless: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # ce que librdkafka en a dit
    secured: list[str] = field(default_factory=list)  # variables de sécurité exportées
    refused: str = ""  # la phrase qui arrêterait un script avant qu'il ne parle à Kafka


@cache
def admin() -> AdminClient:
    """Le client d'administration, réglé comme les scripts ; ce qu'il reproche va dans ``complaints``."""
    config = admin_config(client_config({})) | {"error_cb": complaints.append, "socket.timeout.ms": 6000}
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
        connect(
            Consumer, client_config({"group.id": "doctor"}) | {"error_cb": complaints.append}
        ).close()  # une propriété inconnue se voit ici
        if all(cluster.bootstrap.values()):
            return cluster
        found = admin().list_topics(timeout=METADATA_SECONDS)
    except PipelineError as error:
        cluster.refused = str(error)
        return cluster
    except KafkaException as error:
        admin().poll(0)  # les reproches de librdkafka n'arrivent que si on les demande
        cluster.errors = list(dict.fromkeys(complaint(said) for said in (*complaints, error.args[0])))
        cluster.secured = [
            name for name in os.environ if name.startswith(("KAFKA_SECURITY", "KAFKA_SASL", "KAFKA_SSL"))
        ]
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
        return [refusal("Kafka", cluster.refused)]
    if not cluster.brokers:
        return [_silence(cluster, local=local)]
    notes = Notes("Kafka")
    if local and (down := {address: reason for address, reason in cluster.bootstrap.items() if reason}):
        names = ", ".join(f"kafka{list(cluster.bootstrap).index(address) + 1} ({address})" for address in down)
        if len(down) > 1:
            notes.problem(
                f"ne répondent pas : {names} ; avec un seul broker sur trois, plus rien ne s'écrit",
                "« make services » ou « docker-compose up -d » les redémarre.",
            )
        else:
            name = names.split(" ", maxsplit=1)[0]
            notes.warning(
                f"{names} ne répond pas ; les deux autres suffisent, une panne de plus arrêterait tout",
                f"« python -m services restart {name} » ou « docker-compose up -d ».",
            )
    found = notes.or_ok(f"{len(cluster.brokers)} brokers, trouvés par {', '.join(cluster.bootstrap)}")
    return found + judge_advertised(cluster, local=local)


def judge_advertised(cluster: Cluster, *, local: bool) -> list[Finding]:
    """L'adresse que chaque broker annonce, par où passent les messages, se joint-elle d'ici ?"""
    notes = Notes("adresses annoncées")
    found_by = ", ".join(address for address, reason in cluster.bootstrap.items() if not reason)
    for node, reason in cluster.unreachable.items():
        address = cluster.brokers[node]
        if not (local and address in cluster.bootstrap):  # un broker à nous qui est arrêté : déjà dit
            notes.problem(
                f"le broker {node} s'annonce à {address} : {reason} ; trouvé par {found_by}, mais c'est là qu'il "
                "attend "
                "les messages",
                "Donnez à son advertised.listeners une adresse connue d'ici (localhost:9092 pour cette machine, "
                "kafka1:29092 pour un conteneur).",
            )
    return notes.or_ok(", ".join(f"{node} → {address}" for node, address in cluster.brokers.items()))


def _silence(cluster: Cluster, *, local: bool) -> Finding:
    """Pourquoi aucun broker ne répond : personne n'écoute, TLS, compte refusé, ou rien de tout cela."""
    where = ", ".join(cluster.bootstrap)
    if all(cluster.bootstrap.values()):
        reasons = " ; ".join(f"{address} : {reason}" for address, reason in cluster.bootstrap.items())
        if len(set(cluster.bootstrap.values())) == 1:
            reasons = f"{where} : {next(iter(cluster.bootstrap.values()))}"
        cure = (
            f"{START_HINT[0].upper()}{START_HINT[1:]}." if local else "Vérifiez KAFKA_BOOTSTRAP_SERVERS et le réseau."
        )
        return problem("Kafka", f"ne répond pas sur {reasons}", cure)
    own = f"« unset {' '.join(cluster.secured)} » : la pile de .env n'a ni TLS ni compte."
    for words, sort, cure in (
        ("SASL|uthenti", "refuse ce compte", "Vérifiez les variables KAFKA_SASL_MECHANISM, _USERNAME et _PASSWORD."),
        ("SSL", "TLS ne s'établit pas", "Vérifiez KAFKA_SECURITY_PROTOCOL et KAFKA_SSL_CA_LOCATION (le certificat de "
         "l'autorité)."),
    ):  # fmt: skip
        if said := max((text for text in cluster.errors if re.search(words, text)), key=len, default=""):
            return problem("Kafka", f"{where}, {sort} : « {said} »", own if local and cluster.secured else cure)
    if local:
        cure = "« python -m services status » dit lequel est gelé ou arrêté ; « restart » ou « docker-compose up -d »."
    else:
        cure = "Vérifiez que ce port est celui de Kafka, et que KAFKA_SECURITY_PROTOCOL est ce qu'il attend."
    seconds = f"{METADATA_SECONDS:g}".replace(".", ",")
    message = f"la connexion s'ouvre sur {where}, mais personne n'y répond comme un broker en {seconds} s : gelé, sans "
    return problem("Kafka", message + "majorité, ou d'un autre protocole", cure)


def complaint(error: KafkaError) -> str:
    """Ce que librdkafka reproche, sans l'adresse ni la durée."""
    return re.sub(r"^\S+?/\w+: |: \(after .*| \(after .*", "", error.str())


# --- Le cluster est interrogé une fois pour tous les contrôles ---


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


CHECKS: dict[str, Check] = {"Kafka": lambda: judge_brokers(cluster(), local=local())}
