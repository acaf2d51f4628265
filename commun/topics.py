"""Lire un topic jusqu'à sa fin ; ses bornes ; son identité."""

import logging
import socket
import time
from collections.abc import Iterable, Iterator, Mapping

from commun import PipelineError
from commun.cli import Stop, Stopped
from commun.kafka import Config, admin_config, connect, refusal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

log = logging.getLogger("pipeline")

CALL_SECONDS = 1.0  # attente d'une réponse de Kafka avant de regarder si l'arrêt est demandé
IDENTITY_SECONDS = 5.0  # même sans rien à valider, le topic est-il toujours le même ?
MISSED_SECONDS = 15.0  # l'identité du topic n'a pas eu de réponse : la redemander sans savoir si Kafka est revenu
NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # seize octets nuls
_READER = {
    "group.id": "read-topic",  # exigé par le client ; rien n'y est validé
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,  # la fin de la partition se sait tout de suite
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16_384,  # borne la mémoire : ce qui est lu d'avance, par partition
}


def read_topic(
    config: Config, topic: str, partitions: Iterable[int], stop: Stop | None = None, isolation: str = "read_committed"
) -> Iterator[Message]:
    """Les messages de ``topic``, jusqu'à la fin qu'il a maintenant ; dans l'ordre de chaque partition.

    Attend la fin des transactions en cours : Kafka répond à une validation avant que ses lecteurs ne
    la voient. Kafka absent, attend son retour ; lève Stopped si l'arrêt vient avant.
    """
    return read_from(config, topic, dict.fromkeys(partitions, 0), stop, isolation)


def read_from(
    config: Config, topic: str, starts: Mapping[int, int], stop: Stop | None = None, isolation: str = "read_committed"
) -> Iterator[Message]:
    """De même, à partir d'un offset par partition, ou du plus ancien que Kafka ait encore."""
    reader = admin_config(config) | _READER | {"isolation.level": isolation}
    limits = {partition: bounds(reader, TopicPartition(topic, partition), stop) for partition in starts}
    lows = {partition: max(low, starts[partition]) for partition, (low, _) in limits.items()}
    ends = {partition: high for partition, (_, high) in limits.items() if lows[partition] < high}
    consumer = connect(Consumer, reader)
    try:
        consumer.assign([TopicPartition(topic, partition, lows[partition]) for partition in ends])
        while ends:
            for message in consumer.consume(1000, 0.05):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF and message.offset() >= ends.get(message.partition(), 0):
                    ends.pop(message.partition(), None)  # les marques de fin de transaction, invisibles, sont passées
            if stop:
                raise Stopped
    finally:
        consumer.close()


def bounds(config: Config, partition: TopicPartition, stop: Stop | None) -> tuple[int, int]:
    """Début et fin de la partition, transactions encore ouvertes comprises."""
    consumer = connect(Consumer, admin_config(config) | _READER | {"isolation.level": "read_uncommitted"})
    try:
        while True:
            try:
                low, high = consumer.get_watermark_offsets(partition, timeout=CALL_SECONDS)
                return int(low), int(high)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise PipelineError(
                        f"Kafka refuse de lire {partition.topic} : {refusal(error.args[0])}."
                    ) from error
                if stop:
                    raise Stopped from None
    finally:
        consumer.close()


# --- L'identité d'un topic : Kafka en donne une autre à celui qui est effacé, puis recréé sous le même nom ---


def identity(admin: AdminClient, topic: str) -> str | None:
    """None s'il n'existe pas ; vide si le cluster, trop ancien, n'en donne pas. Lève KafkaException."""
    try:
        (future,) = admin.describe_topics(TopicCollection([topic]), request_timeout=CALL_SECONDS).values()
        found = str(future.result().topic_id or "")
        return "" if found == NO_ID else found
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def brokers_answer(admin: AdminClient, topic: str) -> bool:
    """Vrai si tous les brokers que Kafka croit vivants acceptent une connexion."""
    try:
        for broker in admin.list_topics(topic, CALL_SECONDS).brokers.values():
            socket.create_connection((broker.host, broker.port), CALL_SECONDS).close()
    except (KafkaException, OSError):
        return False
    return True


class Identity:
    """L'identité d'un topic, demandée souvent.

    Contrôleur mort, ``describe_topics`` le cherche sans reprendre son souffle (vu dans librdkafka 2.16 : trois mille
    connexions par seconde, un cœur entier). Une réponse a manqué : n'y retourner qu'une fois les brokers joignables, et
    sinon rarement.
    """

    def __init__(self, config: Config, topic: str) -> None:
        self.admin: AdminClient = connect(AdminClient, admin_config(config))
        self._topic = topic
        self._missed_at: float | None = None  # depuis, pas de réponse

    def __call__(self) -> str | None:
        """Voir ``identity``."""
        now = time.monotonic()
        if self._missed_at and now - self._missed_at < MISSED_SECONDS and not brokers_answer(self.admin, self._topic):
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        self._missed_at = now
        found = identity(self.admin, self._topic)
        self._missed_at = None
        return found


class Recreated(Exception):
    """Le topic n'est plus celui que ce client a connu : il en faut un neuf, qui lit depuis le début."""


class SameTopic:
    """Veille à ce que le topic lu soit toujours le même ; à garder d'un client à l'autre.

    Une position dans le topic d'avant sauterait le début du nouveau. Et le client d'avant croirait périmé ce que Kafka
    dit des nouveaux chefs de partition (librdkafka, anomalie 4898, ouverte) : il ne lirait plus rien.
    """

    def __init__(self, config: Config, topic: str) -> None:
        self._identity = Identity(config, topic)
        self._topic, self._known, self._asked_at = topic, set[str](), 0.0
        self.check()

    def check(self, every: float = 0.0) -> None:
        """Lève Recreated si ce n'est plus lui ; le demande toutes les ``every`` secondes. Kafka muet : rien.

        Avant de valider une position : ce qui est déjà lu vient alors sûrement du topic d'avant.
        """
        if time.monotonic() - self._asked_at < every:
            return
        try:
            current = self._identity()
        except KafkaException as error:
            log.debug("Kafka ne dit pas si %s est toujours le même : %s", self._topic, error)
            return
        finally:
            self._asked_at = time.monotonic()
        if current and current not in self._known:  # un broker en retard peut décrire encore celui d'avant
            self._known.add(current)
            if len(self._known) > 1:
                log.warning("Le topic %s a été recréé : je le lis depuis son début.", self._topic)
                raise Recreated
