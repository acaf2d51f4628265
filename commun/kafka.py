"""Kafka : variables d'environnement, attente du cluster, création et suppression de topics, lettres mortes."""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from commun.cli import Stop, Stopped
from commun.errors import START_HINT, PipelineError
from commun.settings import bootstrap_servers

log = logging.getLogger("pipeline")

# Variables KAFKA_… d'autres outils (scripts de Kafka, images, Kubernetes) : elles ne règlent pas le client.
_FOREIGN = ("HOME", "OPTS", "HEAP_OPTS", "LOG4J_OPTS", "JVM_PERFORMANCE_OPTS", "JMX_OPTS", "GC_LOG_OPTS", "VERSION")
_KUBERNETES = ("PORT", "SERVICE_")

ADMIN_SECONDS = 10.0
# Une lettre morte pèse ses en-têtes de plus que le message d'origine : sa file accepte le double du défaut (1 Mo).
DEAD_LETTER_BYTES = 2_097_152
DEAD_LETTER_TOPIC = {"retention.ms": "-1", "min.insync.replicas": "2", "max.message.bytes": str(DEAD_LETTER_BYTES)}

Config = dict[str, Any]
Headers = list[tuple[str, str | bytes | None]]


def client_config(config: Mapping[str, Any], guaranteed: Iterable[str] = (), bootstrap: str | None = None) -> Config:
    """Complète le dictionnaire d'un script par l'environnement.

    ``KAFKA_SECURITY_PROTOCOL=SASL_SSL`` règle ``security.protocol``, et de même toute
    propriété de librdkafka : un cluster protégé ne demande aucun code. Les propriétés
    ``guaranteed``, sur lesquelles repose la garantie du script, ne se changent pas.
    Lève PipelineError si une variable y touche.
    """
    result: Config = {"bootstrap.servers": bootstrap or bootstrap_servers(), "broker.address.family": "v4", **config}
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix("KAFKA_")
        if name == variable or name in _FOREIGN or name.startswith(_KUBERNETES) or name == "BOOTSTRAP_SERVERS":
            continue
        key = name.lower().replace("__", "\0").replace("_", ".").replace("\0", "_")
        if key == "metadata.broker.list":
            raise PipelineError(f"{variable} est un autre nom de KAFKA_BOOTSTRAP_SERVERS : posez celle-ci.")
        if key in guaranteed:
            raise PipelineError(
                f"{variable} changerait « {key} », sur quoi repose la garantie de ce script : retirez-la."
            )
        result[key] = value
    result["logger"] = logging.getLogger("librdkafka")
    result["error_cb"] = Outage(result["bootstrap.servers"]).on_error
    logging.getLogger("librdkafka").setLevel(logging.DEBUG if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL + 1)
    return result


def connect(factory: Any, config: Config) -> Any:
    """``factory(config)``, où une propriété inconnue devient une phrase (PipelineError)."""
    try:
        return factory(config)
    except KafkaException as error:
        raise PipelineError(
            f"Réglage refusé par le client Kafka : {error.args[0].str()}. Vérifiez vos variables KAFKA_…."
        ) from error


class Outage:
    """Dit une fois que Kafka ne répond plus, sans répéter ce que librdkafka redit à chaque essai."""

    QUIET_SECONDS = 60.0

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.said_at = float("-inf")

    def on_error(self, error: KafkaError) -> None:
        """Rappel ``error_cb`` de librdkafka."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN and time.monotonic() - self.said_at > self.QUIET_SECONDS:
            self.said_at = time.monotonic()
            log.warning("Kafka ne répond plus sur %s : j'attends son retour, rien n'est perdu.", self.servers)
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            log.error("Kafka refuse la connexion : %s", error.str())


def ensure_topics(config: Config, *topics: NewTopic) -> None:
    """Crée ceux des ``topics`` qui manquent ; un topic existant reste tel qu'il est.

    Sert aussi de première poignée de main : lève PipelineError si Kafka ne répond pas
    au bout de ADMIN_SECONDS ou refuse une création.
    """
    admin = connect(AdminClient, admin_config(config))
    try:
        known = admin.list_topics(timeout=ADMIN_SECONDS).topics
    except KafkaException as error:
        raise PipelineError(f"Kafka ne répond pas sur {config['bootstrap.servers']} : {START_HINT}.") from error
    missing = [topic for topic in topics if topic.topic not in known]
    for name, outcome in admin.create_topics(missing, request_timeout=ADMIN_SECONDS).items() if missing else ():
        try:
            outcome.result()
            log.info("Topic %s créé.", name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise PipelineError(f"Kafka refuse de créer le topic {name} : {error.args[0].str()}.") from error


def delete_topics(config: Mapping[str, Any], prefix: str) -> None:
    """Efface les topics dont le nom commence par ``prefix``, et attend qu'ils le soient."""
    admin = connect(AdminClient, admin_config(config))
    if names := [name for name in admin.list_topics(timeout=ADMIN_SECONDS).topics if name.startswith(prefix)]:
        for outcome in admin.delete_topics(names).values():
            outcome.result()


def admin_config(config: Mapping[str, Any]) -> Config:
    """Ce qui, dans ``config``, sert à se connecter, sans ce qui est propre à un producteur ou un consommateur."""
    return {key: value for key, value in config.items() if key in _ADMIN or key.startswith(_SECURITY)}


_ADMIN = ("bootstrap.servers", "broker.address.family", "client.id", "error_cb", "logger")
_SECURITY = ("security.", "sasl.", "ssl.", "enable.ssl.", "socket.", "debug")


def send(producer: Producer, stop: Stop, topic: str, value: bytes | None, **message: Any) -> None:
    """Confie un message (``key``, ``headers``…) au client Kafka ; file pleine, attend qu'elle se vide.

    Lève Stopped si l'arrêt vient avant, KafkaException si le client refuse le message sur-le-champ.
    """
    while True:
        try:
            return producer.produce(topic, value, **message)
        except BufferError:
            if stop:
                raise Stopped from None
            producer.poll(0.05)


def place(message: Message, shift: int = 0) -> TopicPartition:
    """Place de ``message`` (topic, partition, offset), décalée de ``shift`` messages."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise ValueError("ce message n'a pas encore de place dans un topic")
    return TopicPartition(topic, partition, offset + shift)


_REFUSALS = (KafkaError._FATAL, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


def readable(message: Message) -> bool:
    """Vrai pour un message, faux pour une nouvelle du client Kafka ; lève PipelineError si elle est grave."""
    error = message.error()
    if error is None:
        return True
    if "group.instance.id" in error.str():
        raise PipelineError("Un autre consommateur a pris le même --instance-id : je m'arrête.")
    if error.fatal() or error.code() in _REFUSALS:
        raise PipelineError(f"Kafka refuse la lecture : {error.str()}.")
    log.debug("Kafka : %s", error.str())
    return False


class FromBeginning:
    """Rappel d'attribution de --from-beginning : une partition reçue pour la première fois repart de son début.

    Rendue puis reçue de nouveau (un membre est venu, puis parti), elle continue à la position du groupe.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """``partitions`` arrivent."""
        for partition in partitions:
            place = (partition.topic, partition.partition)
            if place not in self._seen:
                partition.offset = OFFSET_BEGINNING
            self._seen.add(place)
        consumer.incremental_assign(partitions)


def dead_letter_of(message: Message, reason: str) -> Headers:
    """En-têtes de la lettre morte d'un message Kafka : les siens, la raison, et la place d'où il vient."""
    origin = place(message)
    fields = {"topic": origin.topic, "partition": origin.partition, "offset": origin.offset}
    return [*(message.headers() or []), *dead_letter_headers(reason, **fields)]


def dead_letter_headers(reason: str, **origin: object) -> Headers:
    """En-têtes d'une lettre morte : ``dlq.reason``, ``dlq.time`` et l'origine (``dlq.topic``, ``dlq.file``…)."""
    fields = {"reason": reason, **origin, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return [
        (f"dlq.{name}", value if isinstance(value, bytes) else str(value).encode()) for name, value in fields.items()
    ]
