"""Kafka : variables d'environnement, attente du cluster, création et suppression de topics, lettres mortes."""

import argparse
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from commun import START_HINT, PipelineError, UsageError
from commun.cli import Parser, Stop, Stopped
from commun.contracts import LETTER
from commun.metrics import count_letter
from commun.settings import bootstrap_servers
from commun.systems import reason

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

# Variables KAFKA_… d'autres outils (scripts de Kafka, images, Kubernetes) : elles ne règlent pas le client.
_FOREIGN = ("HOME", "OPTS", "HEAP_OPTS", "LOG4J_OPTS", "JVM_PERFORMANCE_OPTS", "JMX_OPTS", "GC_LOG_OPTS", "VERSION")
_KUBERNETES = ("PORT", "SERVICE_")

ADMIN_SECONDS = 10.0
PATIENCE_SECONDS = 3 * ADMIN_SECONDS  # d'un cluster qui a répondu, puis tarde : il est lent, pas absent
_SILENCES = (KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT, KafkaError._TRANSPORT, KafkaError.NOT_CONTROLLER)
# Une lettre morte pèse ses en-têtes de plus que le message d'origine : sa file accepte le double du défaut (1 Mo).
DEAD_LETTER_BYTES = 2_097_152
DEAD_LETTER_TOPIC = {"retention.ms": "-1", "min.insync.replicas": "2", "max.message.bytes": str(DEAD_LETTER_BYTES)}

# Autres noms que librdkafka donne à une même propriété.
ALIASES = {
    "request.required.acks": "acks", "delivery.timeout.ms": "message.timeout.ms", "queue.buffering.max.ms": "linger.ms",
    "message.send.max.retries": "retries", "compression.codec": "compression.type",
    "max.in.flight": "max.in.flight.requests.per.connection", "metadata.broker.list": "bootstrap.servers",
}  # fmt: skip
IDENTITY = ("group.id", "group.instance.id", "transactional.id", "group.protocol")

Config = dict[str, Any]
Headers = list[tuple[str, str | bytes | None]]


class Setting(NamedTuple):
    """Une propriété de librdkafka, et qui la demande : une variable, ou une ligne d'un fichier."""

    origin: str
    key: str
    value: str


def kafka_options(parser: Parser) -> None:
    """Les options de qui se connecte à Kafka."""
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option("--config", type=properties, default=[], metavar="FICHIER",
                  help="réglages de librdkafka, un « clé=valeur » par ligne (client.properties) ; une variable KAFKA_… "
                  "l'emporte sur le fichier, --bootstrap-servers sur les deux")  # fmt: skip


def properties(path: str) -> list[Setting]:
    """Type d'option : les propriétés d'un fichier ; « # » commence un commentaire."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{path} n'est pas un texte en UTF-8") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} ne peut pas être lu ({reason(error)})") from None
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        key, equals, value = map(str.strip, line.partition("="))
        if line and not line.startswith("#"):
            if not (key and equals):
                raise argparse.ArgumentTypeError(f"{path}, ligne {number} : écrivez « clé=valeur »")
            found.append(Setting(f"La ligne {number} de {path}", ALIASES.get(key, key), value))
    _check_properties(path, found)
    return found


def _check_properties(path: str, settings: list[Setting]) -> None:
    """Un client qui ne se connecte à rien dit si ces propriétés existent, et si leurs valeurs sont possibles."""
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL + 1)
    wanted: Config = {one.key: one.value for one in settings if one.key != "bootstrap.servers"}
    try:
        AdminClient(wanted | {"logger": logging.getLogger("librdkafka")})
    except (KafkaException, TypeError, ValueError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        if unknown := re.search(r'No such configuration property: "(.*)"', why):
            why = f"« {unknown[1]} » n'est pas une propriété de librdkafka"
        raise argparse.ArgumentTypeError(f"{path} : {why}") from None


def client_config(
    config: Mapping[str, Any], guaranteed: Iterable[str] = (), options: argparse.Namespace | None = None
) -> Config:
    """Complète le dictionnaire d'un script par le fichier --config, puis par l'environnement, puis par l'option.

    ``KAFKA_SECURITY_PROTOCOL=SASL_SSL`` règle ``security.protocol``, et de même toute
    propriété de librdkafka : un cluster protégé ne demande aucun code. Les propriétés
    ``guaranteed``, sur lesquelles repose la garantie du script, ne se changent pas.
    ``options`` : celles de ``kafka_options``. Lève PipelineError si une variable touche à une garantie, UsageError
    si c'est le fichier.
    """
    result: Config = {"bootstrap.servers": bootstrap_servers(), "broker.address.family": "v4", **config}
    kept = {ALIASES.get(key, key) for key in guaranteed}
    for error, settings in ((UsageError, getattr(options, "config", [])), (PipelineError, _variables())):
        for origin, key, value in settings:
            if key in IDENTITY:
                raise error(f"{origin} changerait « {key} », que le script décide (--group…) : retirez-la.")
            if key in kept:
                raise error(f"{origin} changerait « {key} », sur quoi repose la garantie de ce script : retirez-la.")
            for other in (key, *(alias for alias, known in ALIASES.items() if known == key)):
                result.pop(other, None)
            result[key] = value
    if servers := getattr(options, "bootstrap_servers", None):
        result["bootstrap.servers"] = servers
    result["logger"] = logging.getLogger("librdkafka")
    result["error_cb"] = Outage(result["bootstrap.servers"]).on_error
    logging.getLogger("librdkafka").setLevel(logging.DEBUG if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL + 1)
    return result


def _variables() -> list[Setting]:
    """Ce que règlent les variables KAFKA_… ; KAFKA_BOOTSTRAP_SERVERS, elle, est une option."""
    found = []
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix("KAFKA_")
        if name == variable or name in _FOREIGN or name.startswith(_KUBERNETES) or name == "BOOTSTRAP_SERVERS":
            continue
        key = name.lower().replace("__", "\0").replace("_", ".").replace("\0", "_")
        if key == "metadata.broker.list":
            raise PipelineError(f"{variable} est un autre nom de KAFKA_BOOTSTRAP_SERVERS : posez celle-ci.")
        found.append(Setting(variable, ALIASES.get(key, key), value))
    return found


def connect(factory: Any, config: Config) -> Any:
    """``factory(config)``, où une propriété inconnue devient une phrase (PipelineError) qui nomme sa variable."""
    try:
        return factory(config)
    except KafkaException as error:
        text = error.args[0].str()
        names = [
            f"KAFKA_{name.upper().replace('_', '__').replace('.', '_')}" for name in re.findall(r'"([^"]+)"', text)
        ]
        variable = next((name for name in names if name in os.environ), "vos variables KAFKA_…")
        raise PipelineError(f"Réglage refusé par le client Kafka : {text}. Vérifiez {variable}.") from error


class Outage:
    """Dit une fois que Kafka ne répond plus, sans répéter ce que librdkafka redit à chaque essai."""

    QUIET_SECONDS = 60.0

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.said_at = float("-inf")
        self.cause = ""  # ce qui empêche de se connecter, si ce n'est pas que Kafka est arrêté

    def on_error(self, error: KafkaError) -> None:
        """Rappel ``error_cb`` de librdkafka."""
        if error.code() in CAUSES or "security.protocol" in error.str():
            self.cause = f"{CAUSES.get(error.code(), CAUSES[KafkaError._SSL])} ({error.str()})"
        if error.code() == KafkaError._ALL_BROKERS_DOWN and time.monotonic() - self.said_at > self.QUIET_SECONDS:
            self.said_at = time.monotonic()
            log.warning("Kafka ne répond plus sur %s : j'attends son retour, rien n'est perdu.", self.servers)
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            log.error("Kafka refuse la connexion : %s", error.str())


CAUSES = {
    KafkaError._AUTHENTICATION: "le compte est refusé : vérifiez KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD",
    KafkaError._SSL: "la connexion est refusée : chiffrée d'un côté seulement ? vérifiez KAFKA_SECURITY_PROTOCOL",
    KafkaError._RESOLVE: "aucune machine ne porte ce nom : vérifiez --bootstrap-servers",
}


# Ce que librdkafka et les brokers disent en anglais, et qu'un lecteur peut changer.
REFUSALS = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "ce topic n'existe pas, ou plus ; relancé, ce script le recrée",
    KafkaError._UNKNOWN_TOPIC: "ce topic n'existe pas, ou plus ; relancé, ce script le recrée",
    KafkaError._UNKNOWN_PARTITION: "cette partition n'existe pas, ou plus",
    KafkaError.TOPIC_EXCEPTION: "un nom de topic n'a que des lettres sans accent, des chiffres, « . », « _ » et « - »",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "ce compte n'a pas ce droit sur ce topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "ce compte n'a pas le droit d'être de ce groupe",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "ce compte n'a pas droit à cet identifiant de transaction",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "ce compte n'a pas ce droit sur ce cluster",
    KafkaError.MSG_SIZE_TOO_LARGE: "un message dépasse la taille que ce topic accepte (max.message.bytes)",
    KafkaError.INVALID_REPLICATION_FACTOR: "ce cluster n'a pas assez de brokers pour autant de copies",
    KafkaError.POLICY_VIOLATION: "une règle de ce cluster l'interdit",
}


def refusal(error: KafkaError) -> str:
    """Ce que Kafka reproche : en français si on sait le dire, puis le nom anglais, que l'on peut chercher."""
    known = REFUSALS.get(error.code())
    return f"{known} ({error.name()})" if known else error.str()


def ensure_topics(config: Config, *topics: NewTopic) -> None:
    """Crée ceux des ``topics`` qui manquent ; un topic existant reste tel qu'il est, et ce qu'il ne tient pas se dit.

    Sert aussi de première poignée de main : lève PipelineError, avec la cause, si Kafka ne répond pas
    au bout de ADMIN_SECONDS, tarde ensuite plus de PATIENCE_SECONDS, ou refuse une création.
    """
    admin = connect(AdminClient, admin_config(config))
    known = _list_topics(config, admin)
    missing = [topic for topic in topics if topic.topic not in known]
    for name in create_topics(config, admin, missing):
        log.info("Topic %s créé.", name)
        if f"{name}-positions" in known:
            log.warning(
                "Le topic %s avait disparu : ce que %s-positions dit déjà envoyé n'y est plus, et ne repart pas. Pour "
                "tout renvoyer, effacez aussi ce topic-là.", name, name,
            )  # fmt: skip
    _check_copies(
        config, admin, {topic.topic for topic in topics if "min.insync.replicas" in (topic.config or {})}, missing
    )
    policies = {topic.topic: (topic.config or {}).get("cleanup.policy", "") for topic in topics}
    _check_policies(admin, {name: "compact" in policy for name, policy in policies.items()})


def _list_topics(config: Config, admin: AdminClient, topic: str | None = None) -> dict[str, Any]:
    """Les topics du cluster, ou celui-là seulement ; lève PipelineError si Kafka ne répond pas."""
    try:
        return dict(admin.list_topics(topic, ADMIN_SECONDS).topics)
    except KafkaException as error:
        raise _no_answer(config, admin) from error


def _no_answer(config: Config, admin: AdminClient) -> PipelineError:
    admin.poll(0)  # sert les rappels : la cause
    outage = getattr(config.get("error_cb"), "__self__", None)
    cause = outage.cause if isinstance(outage, Outage) and outage.cause else START_HINT
    return PipelineError(f"Kafka ne répond pas sur {config['bootstrap.servers']} : {cause}.")


def create_topics(config: Config, admin: AdminClient, topics: Iterable[NewTopic]) -> list[str]:
    """Crée ces topics, et rend les noms de ceux qu'un autre n'a pas créés entre-temps.

    Un silence n'est pas un refus : la création est redemandée. Lève PipelineError si Kafka la refuse, ou se tait plus
    de PATIENCE_SECONDS.
    """
    left, created = {topic.topic: topic for topic in topics}, list[str]()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left:
        for name, outcome in admin.create_topics(list(left.values()), request_timeout=ADMIN_SECONDS).items():
            try:
                outcome.result()
                created.append(name)
            except KafkaException as error:
                if (code := error.args[0].code()) in _SILENCES:
                    if time.monotonic() > deadline:
                        raise _no_answer(config, admin) from error
                    time.sleep(0.1)
                    continue
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    why = refusal(error.args[0])
                    raise PipelineError(f"Kafka refuse de créer le topic « {name} » : {why}.") from error
            del left[name]
    return created


def _settings(admin: AdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Réglages de ces topics ; rien si ce compte n'a pas le droit de les lire."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in sorted(names)]
    try:
        answers = admin.describe_configs(asked, request_timeout=ADMIN_SECONDS) if asked else {}
        found = [(topic.name, answer.result()) for topic, answer in answers.items()]
        return {name: {key: entry.value or "" for key, entry in settings.items()} for name, settings in found}
    except KafkaException as error:
        log.debug("Réglages des topics illisibles : %s", error)
        return {}


def _check_copies(config: Config, admin: AdminClient, names: set[str], created: list[NewTopic]) -> None:
    """Dit quels topics ne gardent pas deux copies ; PipelineError si rien ne peut y être écrit."""
    new = {topic.topic for topic in created}
    deadline = time.monotonic() + ADMIN_SECONDS  # un topic à peine créé n'est pas encore connu de tous les brokers
    while names - (known := _list_topics(config, admin)).keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    for name, settings in _settings(admin, names).items():
        partitions = known[name].partitions.values() if name in known else ()
        copies, wanted = (
            min((len(p.replicas) for p in partitions), default=3),
            int(settings["min.insync.replicas"]),
        )
        if wanted > copies and name in new:  # ce cluster, ou --replication-factor, ne donne qu'une copie
            wanted = copies
            entry = ConfigEntry("min.insync.replicas", str(copies), incremental_operation=AlterConfigOpType.SET)
            lowered = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
            for outcome in admin.incremental_alter_configs([lowered]).values():
                outcome.result()
        if wanted > copies:
            raise PipelineError(f"Rien ne peut s'écrire dans {name} : min.insync.replicas={wanted}, copies : {copies}.")
        if min(wanted, copies) < 2:
            log.warning(
                "Le topic %s n'a que %d copie(s), dont %d écrite(s) avant de confirmer : ce qui est confirmé peut "
                "disparaître avec un broker.", name, copies, wanted,
            )  # fmt: skip


def _check_policies(admin: AdminClient, compacted: Mapping[str, bool]) -> None:
    """Dit quels topics effacent ce que ce script y garde ; ``compacted`` : seule la dernière valeur y compte."""
    for name, settings in _settings(admin, compacted).items():
        policy = settings["cleanup.policy"]
        if "compact" in policy and not compacted[name]:
            log.warning("Le topic %s est compacté : Kafka n'y garde qu'un message par clé, et perdra les autres.", name)
        elif "delete" in policy and compacted[name]:
            log.warning("Le topic %s n'est pas seulement compacté : Kafka en effacera les positions anciennes.", name)


def count_partitions(config: Config, topic: str) -> int:
    """Nombre de partitions de ``topic`` ; attend qu'un topic à peine créé soit connu de tous les brokers."""
    admin = connect(AdminClient, admin_config(config))
    while True:
        if count := len(_list_topics(config, admin, topic)[topic].partitions):
            return count
        time.sleep(0.1)


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
        raise PipelineError(f"Kafka refuse la lecture : {refusal(error)}.")
    log.debug("Kafka : %s", error.str())
    return False


class Lag:
    """Messages qui restent à lire, par partition : ``left``.

    Tenu à jour par le fil qui lit, pour qu'un autre (--metrics-port) le lise : ce client n'admet qu'un appel à la fois,
    et cet autre attendrait, parfois toujours, que ``consume`` lui laisse la place.
    """

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self._next: dict[int, TopicPartition] = {}

    def after(self, consumer: Consumer, messages: Iterable[Message]) -> None:
        """Ces messages viennent d'être lus, ou rien ; ne demande rien à Kafka."""
        last = {message.partition() or 0: message for message in messages}
        self._next |= {partition: place(message, 1) for partition, message in last.items()}
        ends = ((there, consumer.get_watermark_offsets(there, cached=True)[1]) for there in self._next.values())
        self.left = {there.partition: max(0, int(end) - int(there.offset)) for there, end in ends if end >= 0}

    def forget(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Rappel de rééquilibrage : elles sont à un autre."""
        for one in partitions:
            self._next.pop(one.partition, None)


class FromBeginning:
    """Rappel d'attribution de --from-beginning : une partition reçue pour la première fois repart de son début.

    Rendue puis reçue de nouveau (un membre est venu, puis parti), elle continue à la position du groupe, ou, s'il n'en
    valide pas, à celle que dit ``after``.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[str, int], int] = {}

    def __call__(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """``partitions`` arrivent."""
        for one in partitions:
            one.offset = self._next.get((one.topic, one.partition), OFFSET_BEGINNING)
            self._next.setdefault((one.topic, one.partition), OFFSET_INVALID)  # OFFSET_INVALID : celle du groupe
        consumer.incremental_assign(partitions)

    def after(self, messages: Iterable[Message]) -> None:
        """Ces messages sont traités, et ce groupe ne le retient pas."""
        places = (place(message, 1) for message in messages)
        self._next |= {(there.topic, there.partition): there.offset for there in places}


def dead_letter_of(message: Message, why: str) -> Headers:
    """En-têtes de la lettre morte d'un message Kafka : les siens, la raison, et la place d'où il vient."""
    origin = place(message)
    fields = {"topic": origin.topic, "partition": origin.partition, "offset": origin.offset}
    return [*(message.headers() or []), *dead_letter_headers(why, **fields)]


def dead_letter(message: Message, why: str) -> tuple[bytes | None, bytes | None, Headers]:
    """La lettre morte d'un message Kafka : valeur, clé, en-têtes.

    Trop grosse pour sa file (un topic admet plus gros, comprimé), elle n'en a que le début ; ``dlq.truncated`` dit
    alors combien d'octets le message avait, et ``dlq.topic``, ``dlq.partition``, ``dlq.offset`` où il est en entier.
    """
    value, key = _bytes(message.value()), _bytes(message.key())
    headers = dead_letter_of(message, why[:REASON_CHARS])
    weight = sum(len(name) + len(_bytes(content) or b"") for name, content in headers)
    room = DEAD_LETTER_BYTES - LETTER_MARGIN
    if len(value or b"") + len(key or b"") + weight <= room:
        return value, key, headers
    if weight > room // 4:
        headers = [(name, content) for name, content in headers if name.startswith("dlq.")]
    headers.append(("dlq.truncated", b"%d" % len(value or b"")))
    return (value or b"")[: room // 2], key and key[: room // 4], headers


REASON_CHARS = 1000
LETTER_MARGIN = 10_000  # place des en-têtes « dlq. » et de l'enveloppe


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def dead_letter_headers(why: str, **origin: object) -> Headers:
    """En-têtes d'une lettre morte : ``dlq.reason``, ``dlq.time`` et l'origine (``dlq.topic``, ``dlq.file``…)."""
    count_letter(why)
    fields = {"reason": why, **origin, "contrat": LETTER, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return [
        (f"dlq.{name}", value if isinstance(value, bytes) else str(value).encode()) for name, value in fields.items()
    ]
