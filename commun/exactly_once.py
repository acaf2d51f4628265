"""Exactement une fois : le producteur transactionnel d'un processus, et les positions écrites avec les lignes.

Une position écrite dans la transaction des lignes qu'elle suit est lisible avec elles, ou pas du
tout : la relire après une coupure dit exactement ce qui est parti.

Deux processus ne doivent jamais envoyer la même source. Chacun s'annonce, source par source, dans le
topic des positions ; le dernier annoncé la garde, et barre ceux qui le précèdent :

1. il a son identifiant de transaction à lui, ouvert avant de s'annoncer ;
2. il écrit son annonce : source, session, identifiant ;
3. il relit les annonces : quelqu'un s'est annoncé après lui ? la source est à cet autre ;
4. il ouvre puis abandonne un producteur sous l'identifiant de chaque annonce qui précède la sienne : Kafka
   annule ce qui était en vol, et refuse désormais ce que cet autre écrit ;
5. il relit les positions : plus personne ne les change.

Celui que Kafka refuse rouvre son producteur, *puis* relit les annonces : l'annonce de qui l'a barré y est déjà.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import NamedTuple, TypeVar

from commun import Aborted, PipelineError
from commun.cli import Stop, Stopped, french_number
from commun.kafka import Config, Headers, admin_config, connect, count_partitions, refusal, send
from commun.topics import CALL_SECONDS, read_topic

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

log = logging.getLogger("pipeline")
T = TypeVar("T")

MUTE_SECONDS = 15.0  # silence du coordinateur d'un groupe au-delà duquel la transaction est perdue de toute façon
RETRY_MS = 500  # retry.backoff.ms : le client ne redemande pas une fin de transaction avant ce temps…
EARLY = 0.8  # … à un cinquième près : c'est sa part de hasard
QUIET_SECONDS = 12.0  # silence dont on ne parle pas : un broker mort est remplacé en neuf secondes
FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
# Refus que le temps n'arrange pas.
HOPELESS = (
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError._UNKNOWN_TOPIC, KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_RECORD,
)  # fmt: skip

POSITIONS_CONFIG = {
    "cleanup.policy": "compact",  # Kafka garde la dernière position de chaque source
    "segment.bytes": "1048576",  # les anciennes sont effacées tôt : la relecture reste courte
    "min.cleanable.dirty.ratio": "0.1",
}


def refuse_several_partitions(config: Config, topic: str) -> None:
    """Lève PipelineError si le topic des positions de ``topic`` n'a pas une seule partition : leur ordre fait foi."""
    if (count := count_partitions(config, name := f"{topic}-positions")) > 1:
        raise PipelineError(
            f"Le topic {name} a {count} partitions, et il en faut une seule, où les positions se suivent : effacez-le "
            "s'il n'a jamais servi, ou prenez un autre --topic."
        )


def read_position(value: bytes, kind: type[T]) -> T:
    """La position que dit un message ; une version plus ancienne en disait moins. Lève PipelineError."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PipelineError(
            f"Une position retenue dans Kafka ne se lit pas ({error}) : un autre programme a écrit dans le topic des "
            "positions. Rien n'est envoyé : repartir du début doublerait tout."
        ) from error


def patiently(call: Callable[[], T], stop: Stop) -> T:
    """``call()``, répété jusqu'à ce que Kafka réponde ; le dit une fois s'il tarde.

    Lève Stopped si l'arrêt vient avant, KafkaException si répéter n'y changera rien.
    """
    since, said = time.monotonic(), False
    while True:
        try:
            result = call()
            if said:
                log.info("Kafka confirme de nouveau.")
            return result
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            if stop:
                raise Stopped from None
            if not said and time.monotonic() - since > QUIET_SECONDS:
                said = True
                log.warning("Kafka ne confirme plus rien : j'attends son retour, rien n'est perdu.")


class TransactionalProducer:
    """Un producteur dont les écritures ne sont lisibles qu'une fois validées, toutes ensemble.

    ``write`` ouvre la transaction au besoin ; ``commit`` la valide. L'un comme l'autre lève Aborted s'il faut
    la refaire : ``abort`` l'annule alors, et l'on continue. Un second producteur du même ``transactional.id``
    prend la place du premier, dont Kafka refuse désormais les écritures. ``contested`` : d'autres le prennent aussi.

    Une fin de transaction dont la réponse tarde, le client la redemande de lui-même. La première demande, restée en
    route, finirait alors la transaction *suivante* quand elle arrive : Kafka ne les distingue pas, sous ce protocole
    (EndTxn v1). Après une fin si lente, un client neuf prend donc la suite : Kafka refuse ce qui vient de l'ancien.

    Lèvent aussi PipelineError (Kafka refuse pour de bon) et Stopped (arrêt demandé, Kafka muet).
    """

    def __init__(self, config: Config, stop: Stop, *, contested: bool = False) -> None:
        self.stop, self.contested = stop, contested
        self.open = False  # une transaction est ouverte
        self.fenced = False  # le dernier refus : un autre a pris notre identifiant
        self.commits = self.aborts = 0
        self.name: str = config["transactional.id"]
        self._told: Callable[[KafkaError | None, Message], None] | None = config.get("on_delivery")
        self._config: Config = {"retry.backoff.ms": RETRY_MS} | config | {"on_delivery": self._on_delivery}
        self._retry_seconds = EARLY * float(self._config["retry.backoff.ms"]) / 1000
        self._doubtful = False  # la dernière fin a pu être demandée deux fois
        self._refused: Message | None = None  # le plus gros message refusé pour de bon
        self._broken = False  # Kafka ne veut plus de ce client : il est à remplacer
        self._producer = self._new_client()

    def write(
        self, topic: str, value: bytes | None, key: bytes | str | None = None, headers: Headers | None = None
    ) -> None:
        """Confie un message à la transaction ; file pleine, attend qu'elle se vide."""
        try:
            self.begin()
            send(self._producer, self.stop, topic, value, key=key, headers=headers)
        except KafkaException as error:
            raise self._aborted(error) from error

    def write_all(self, topic: str, messages: Iterable[tuple[bytes, bytes | None, Headers]]) -> None:
        """De même, de nombreux messages (valeur, clé, en-têtes), au plus vite."""
        try:
            self.begin()
            produce = self._producer.produce
            for value, key, headers in messages:
                try:
                    produce(topic, value, key, headers=headers)
                except BufferError:
                    send(self._producer, self.stop, topic, value, key=key, headers=headers)
        except KafkaException as error:
            raise self._aborted(error) from error

    def begin(self) -> None:
        """Ouvre la transaction, si elle ne l'est pas déjà. Lève KafkaException, Aborted."""
        if self.open:
            return
        if self._doubtful and self.contested:  # remplacer ce client barrerait qui a pris la source entre-temps
            self._broken = True
            raise Aborted("la fin précédente a tardé, un client neuf prend la suite")
        if self._doubtful:
            self._replace()
        self._producer.begin_transaction()
        self.open = True

    def poll(self, seconds: float = 0.0) -> None:
        """Sert les rappels de livraison, et attend au plus ``seconds`` secondes."""
        try:
            self._producer.poll(seconds)
        except KafkaException as error:
            raise self._aborted(error) from error

    def send_offsets(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        """Les positions d'un groupe de consommateurs, dans la transaction ; le groupe dit de quelle génération.

        Quand le coordinateur du groupe meurt, cet appel peut ne jamais rendre la main, malgré son délai
        (librdkafka, anomalie 5456) : il est fait dans un fil à part, que l'on abandonne avec son producteur.
        """
        group, answer = consumer.consumer_group_metadata(), Future[None]()
        try:
            self.begin()
            call = partial(self._producer.send_offsets_to_transaction, offsets, group, CALL_SECONDS)
            Thread(target=_answer, args=(answer, call, self.stop), daemon=True).start()
            answer.result(MUTE_SECONDS)
        except TimeoutError:
            self._broken = True
            raise Aborted("le coordinateur du groupe ne répond pas") from None
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:  # le topic lu vient d'être effacé
                raise Aborted(error.args[0].name()) from error
            raise self._aborted(error) from error

    def commit(self) -> None:
        """Valide la transaction, en attendant Kafka s'il le faut."""
        try:
            # La fin ne durera alors que le temps de sa demande. Une faute grave arrive ici pendant un rappel, et le
            # client s'y embrouille (SystemError) : la demande la redira.
            with suppress(KafkaException, SystemError):
                self._producer.flush(CALL_SECONDS)
            self._end(self._producer.commit_transaction)
            self.commits += 1
        except KafkaException as error:
            raise self._aborted(error) from error

    def abort(self) -> bool:
        """Annule la transaction ; vrai si le client a dû être remplacé : un autre a pu prendre notre place."""
        self.aborts += 1
        self._refused = None
        if not self._broken:
            try:
                if self.open:
                    self._end(self._producer.abort_transaction)
                if not self._doubtful:
                    return False
            except KafkaException as error:
                log.debug("Annulation refusée (%s) : le client est remplacé.", error)
        self._replace()
        return True

    def _end(self, end: Callable[[float], None]) -> None:
        start = time.monotonic()
        try:
            patiently(lambda: end(CALL_SECONDS), self.stop)
            self.open = False
        finally:  # refusée aussi, elle a pu être demandée deux fois
            self._doubtful |= time.monotonic() - start >= self._retry_seconds

    def _replace(self) -> None:
        """Un client neuf : ce que l'ancien avait en vol, ou en route, est refusé."""
        self._producer.purge()
        self._producer = self._new_client()
        self.open = self._broken = self._doubtful = False

    def close(self) -> None:
        """Annule ce qui serait encore en vol, pour ne pas faire attendre les lecteurs."""
        if self.open:
            with suppress(KafkaException):
                self._producer.abort_transaction(CALL_SECONDS)

    def _new_client(self) -> Producer:
        return open_producer(self._config, self.stop)

    def _aborted(self, error: KafkaException) -> Aborted:
        code: KafkaError = error.args[0]
        which = "" if self._refused is None else _described(self._refused)
        if why := code if code.code() in HOPELESS else self._refused and self._refused.error():
            said = f"Kafka refuse une transaction : {refusal(why)}{which}. La position n'avance pas."
            raise PipelineError(said) from error
        self.fenced = code.code() in FENCED
        self._broken = self._broken or code.fatal() or self.fenced
        return Aborted(code.name())

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in HOPELESS:
            self._refused = max((self._refused, message), key=lambda one: -1 if one is None else len(one))
        if self._told:
            self._told(error, message)


def _described(message: Message) -> str:
    """Sa destination, sa clé (dans l'exercice 1, le fichier) et sa taille : de quoi le retrouver."""
    key = message.key()
    named = f", clé « {os.fsdecode(key)} »" if isinstance(key, bytes) else ""
    return f" ({message.topic()}{named}, {french_number(len(message))} octets)"


def _answer(answer: Future[None], call: Callable[[], None], stop: Stop) -> None:
    try:
        answer.set_result(patiently(call, stop))
    except (KafkaException, Stopped) as error:
        answer.set_exception(error)


def open_producer(config: Config, stop: Stop) -> Producer:
    """Un producteur qui prend la place du précédent (même ``transactional.id``), et annule sa transaction en cours."""
    while True:
        producer: Producer = connect(Producer, config)
        try:
            patiently(partial(producer.init_transactions, CALL_SECONDS), stop)
            return producer
        except KafkaException as error:
            if error.args[0].code() not in FENCED:  # un autre, au même instant, sous le même identifiant
                raise PipelineError(f"Kafka refuse une transaction : {refusal(error.args[0])}.") from error
            if stop:
                raise Stopped from None


class Recovered(NamedTuple):
    """Après une annulation : les sources perdues (à un autre), et la position confirmée de chacune des nôtres.

    ``positions`` : None si rien n'a pu changer depuis notre dernière validation.
    """

    lost: set[bytes]
    positions: dict[bytes, bytes] | None


class Positions:
    """Le topic des positions (une partition) : où en est chaque source, et qui l'envoie. Voir en tête de ce fichier.

    ``topic`` : celui des lignes ; les positions sont dans ``<topic>-positions``. Un processus ne reprend pas une
    source qu'il a perdue.
    """

    CLAIM = b"producteur:"  # préfixe des clés d'annonce ; les autres clés sont des positions

    def __init__(self, config: Config, topic: str, stop: Stop) -> None:
        self.topic, self._prefix, self._config, self._stop = f"{topic}-positions", topic, config, stop
        self.session = uuid.uuid4().hex
        self.mine: set[bytes] = set()
        self.producer = TransactionalProducer(
            config | {"transactional.id": f"{topic}:{self.session}"}, stop, contested=True
        )

    def take(self, sources: Collection[bytes]) -> dict[bytes, bytes]:
        """Prend ces sources, et rend la position confirmée de chaque source du topic qui en a une.

        Celles qu'un autre a prises entre-temps ne sont pas dans ``mine``.
        """
        if self.producer.open:
            raise ValueError("une transaction est ouverte : les positions ne se liraient pas avant sa fin")
        self._announce({self._key(source, self.session): self.producer.name.encode() for source in sources})
        claims = self.claims()
        taken = {source for source in sources if self._is_last(claims, source)}
        previous = [(source, session) for source in taken for session in claims[source] if session != self.session]
        # Une version plus ancienne du script, encore en marche, ne regarde que sa clé : elle s'en ira. Ce qu'il faut
        # barrer est d'abord écrit ailleurs, pour qui viendrait après nous si nous mourions ici.
        older = [source for source, session in previous if session == self._LEGACY]
        self._announce({self._key(source, self._FORMER): claims[source][self._LEGACY].encode() for source in older})
        self._announce({self._key(source, self._LEGACY): self._NEWER for source in older})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._bar, {claims[source][session] for source, session in previous}))
        done = [*previous, *((source, self._FORMER) for source in older)]
        self._announce({self._key(source, session): None for source, session in done})
        self.mine |= taken
        return self.all()

    def write(self, source: bytes, value: bytes) -> None:
        """La position de ``source``, dans la transaction en cours."""
        self.producer.write(self.topic, value, source)

    def recover(self) -> Recovered:
        """Annule la transaction, et dit d'où repartir."""
        if not self.producer.abort():
            return Recovered(set(), None)
        claims = self.claims()
        lost = {source for source in self.mine if not self._is_last(claims, source)}
        self.mine -= lost
        return Recovered(lost, self._load(self.mine))

    def close(self) -> None:
        """Annule ce qui est en vol ; nos annonces s'effacent : le suivant n'aura personne à barrer."""
        self.producer.close()
        with suppress(Stopped):
            self._announce({self._key(source, self.session): None for source in self.mine})

    # --- Les annonces ---

    _LEGACY = ""  # annonce d'une version plus ancienne : une par source, dont la valeur est la session
    _NEWER = b"2"  # … et ce que cette version-ci y écrit, qui n'est pas une annonce
    _FORMER = "ancien"  # session de l'annonce qui la remplace, le temps de la barrer

    def _key(self, source: bytes, session: str) -> bytes:
        return self.CLAIM + source + (b"\0" + session.encode() if session != self._LEGACY else b"")

    def _is_last(self, claims: dict[bytes, dict[str, str]], source: bytes) -> bool:
        ours = (session for session in reversed(claims.get(source, {})) if session not in (self._LEGACY, self._FORMER))
        return next(ours, None) == self.session

    def _announce(self, records: dict[bytes, bytes | None]) -> None:
        """Écrit hors transaction : lisible aussitôt, sans attendre la fin d'aucune."""
        if not records:
            return
        producer = connect(
            Producer, admin_config(self._config) | {"enable.idempotence": True, "delivery.timeout.ms": 0}
        )
        for key, value in records.items():
            send(producer, self._stop, self.topic, value, key=key, on_delivery=_refuse)
        while producer.flush(CALL_SECONDS):
            if self._stop:
                raise Stopped

    def claims(self) -> dict[bytes, dict[str, str]]:
        """Par source : session et identifiant de transaction de chaque annonce, de la plus ancienne à la dernière."""
        claims: dict[bytes, dict[str, str]] = {}
        for message in read_topic(self._config, self.topic, [0], self._stop, "read_uncommitted"):
            key, value = message.key() or b"", message.value()
            if not key.startswith(self.CLAIM) or value == self._NEWER:
                continue
            source, _, session = key.removeprefix(self.CLAIM).partition(b"\0")
            known = claims.setdefault(source, {})
            known.pop(session.decode(), None)  # réécrite, elle passe en dernier
            if value is not None:
                legacy = f"{self._prefix}:{source.decode('utf-8', 'surrogateescape')}"
                known[session.decode()] = value.decode() if session else legacy
        return claims

    def _bar(self, name: str) -> None:
        """Kafka annule ce qu'un autre a en vol sous cet identifiant, et refuse désormais ce qu'il écrit."""
        open_producer(self._config | {"transactional.id": name}, self._stop)

    def _load(self, sources: Collection[bytes]) -> dict[bytes, bytes]:
        """Dernière position confirmée de chacune de ces sources."""
        return {source: value for source, value in self.all().items() if source in sources}

    def all(self) -> dict[bytes, bytes]:
        """Dernière position confirmée de chaque source connue de ce topic."""
        found: dict[bytes, bytes] = {}
        for message in read_topic(self._config, self.topic, [0], self._stop):
            key, value = message.key() or b"", message.value()
            if value is None:
                found.pop(key, None)
            elif not key.startswith(self.CLAIM):
                found[key] = value
        return found


def _refuse(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        raise PipelineError(f"Kafka refuse d'écrire dans {message.topic()} : {refusal(error)}.")
