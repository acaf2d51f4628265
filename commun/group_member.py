"""Un membre d'un groupe de consommateurs : ses partitions arrivent et repartent, ses positions avancent.

    outputs = ExactlyOnce(producer_config, stop)  # ou AtLeastOnce
    with GroupMember(topic, consumer_config, outputs, stop) as member:
        member.positions.start_from(None, {}, [output])
        member.join()
        while not stop:
            for owned, messages in member.read(500, 0.1).items():
                outputs.write(…)
                owned.next = messages[-1].offset() + 1
            member.checkpoint()  # ce qui est fait est validé

Une position (offset) est celle du prochain message à traiter. Elle n'est validée qu'une fois durable ce que l'on a
tiré des messages qui la précèdent ; ce qui ne peut pas l'être est défait, et relu depuis la dernière validée.

Rien n'est sauté en silence : un message effacé avant d'être lu, une position au-delà de la fin, un topic recréé sous
le même nom se disent. Chaque appel à Kafka est borné, et l'arrêt demandé s'entend entre deux.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Self, TypeVar

from commun import Aborted, PipelineError
from commun.cli import Stop, Stopped
from commun.group_positions import SHORT_SECONDS, GroupPositions, joined
from commun.kafka import Config, connect, place, readable
from commun.outputs import Outputs, answer_with
from commun.topics import IDENTITY_SECONDS

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

log = logging.getLogger("pipeline")
T = TypeVar("T")

Place = tuple[int, str]  # offset du prochain message à traiter, métadonnées du script
CREATED_SECONDS = 5.0  # un topic à peine créé n'est pas encore connu de tous les brokers


@dataclass(eq=False)  # deux attributions de la même partition ne sont pas la même
class Owned:
    """Une partition, pendant qu'elle est à nous ; réattribuée, c'en est une autre."""

    partition: int
    committed: int  # la position validée dans Kafka…
    metadata: str  # … et ce que le script y a joint
    topic_id: str
    next: int  # suit le dernier message traité
    read: int  # suit le dernier message rendu par ``read``
    attempts: int = 0  # essais ratés du message qui est à ``next``


class Listener:
    """Ce que le script apprend de ses partitions, et ce qu'il en dit ; rien n'est obligatoire."""

    def on_assigned(self, partition: int, offset: int, metadata: str) -> None:
        """La partition est à nous, ou tout est à refaire ; elle va être lue à partir de ``offset``."""

    def on_forgotten(self, partition: int) -> None:
        """La partition n'est plus à nous."""

    def places(self) -> Mapping[int, Place] | None:
        """Où en est chaque partition, si ce n'est à ``Owned.next``."""

    def on_committed(self) -> None:
        """Tout ce qui était écrit est validé."""


class GroupMember:
    """Un membre du groupe : ses partitions (``owned``), leurs positions."""

    def __init__(
        self, topic: str, config: Config, outputs: Outputs, stop: Stop, listener: Listener | None = None
    ) -> None:
        self.topic, self.outputs, self.stop, self.listener = topic, outputs, stop, listener or Listener()
        self._config = config
        self.consumer: Consumer = connect(Consumer, config)
        self.positions = GroupPositions(topic, config, self.consumer, stop)
        self.owned: dict[int, Owned] = {}
        self.ended: dict[int, int] = {}  # partitions lues jusqu'au bout, et ce bout
        self.waiting: dict[Owned, float] = {}  # partitions en pause, et jusqu'à quand
        self.commits = self.aborts = self.rebalances = 0
        self.rebalanced_at: float | None = None  # jamais encore
        self.active_at: float | None = None  # dernier message ; d'abord, la première attribution
        self.checkpoint_at = self._identity_at = time.monotonic()
        self.must_abort = False
        self._fault: Exception | None = None  # levée au tour suivant : un rappel de Kafka ne lève rien
        self._closing = False
        self._former: set[str] = set()  # topics effacés : un broker en retard peut encore les décrire
        self._said = ""  # le dernier topic dont on a dit qu'il est recréé
        self._outdated = False  # le client a connu un autre topic : il en faut un neuf
        self.topic_id = self._identity()  # le topic que le client connaît

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:  # un second Ctrl-C n'attend plus rien
            self.close()

    def join(self) -> None:
        """Entre dans le groupe."""
        self.consumer.subscribe(
            [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def holds(self, owned: Owned) -> bool:
        """Vrai si cette attribution est toujours la nôtre, et que rien n'est à défaire."""
        return not self.must_abort and self.owned.get(owned.partition) is owned

    # --- Lire ---

    def read(self, count: int, seconds: float) -> dict[Owned, list[Message]]:
        """De nouveaux messages de nos partitions, dans l'ordre de chacune ; attend ``seconds`` au plus."""
        self.recover()
        self._wake()
        messages = self.consumer.consume(count, seconds)
        self._raise_fault()
        news = [message for message in messages if message.error()] if any(map(Message.error, messages)) else []
        found: dict[Owned, list[Message]] = {}
        for partition, run in groupby(messages, Message.partition):
            if owned := self.owned.get(partition or 0):
                found.setdefault(owned, []).extend(run if not news else (m for m in run if not m.error()))
        found = {owned: taken for owned, taken in found.items() if taken}
        for owned, taken in found.items():
            owned.read = place(taken[-1]).offset + 1
            self.ended.pop(owned.partition, None)
        for message in news:
            self._hear(message)
        if found:
            self.active_at = time.monotonic()
        return found if not self.must_abort else {}

    def idle(self, seconds: float) -> bool:
        """Vrai si rien n'est arrivé depuis ``seconds`` ; le temps d'entrer dans le groupe ne compte pas."""
        return self.active_at is not None and not self.waiting and time.monotonic() - self.active_at > seconds

    def pending(self) -> int:
        """Messages traités dont la position n'est pas validée."""
        return sum(owned.next - owned.committed for owned in self.owned.values())

    def lag(self) -> dict[int, int]:
        """Messages qui restent à traiter, par partition : au bout, il ne reste que des marques de transactions."""
        return {
            partition: 0 if partition in self.ended and owned.next == owned.read else self._left(owned)
            for partition, owned in sorted(self.owned.items())
        }

    def _left(self, owned: Owned) -> int:
        _, high = self.consumer.get_watermark_offsets(TopicPartition(self.topic, owned.partition), cached=True)
        return max(0, int(high) - owned.next)

    def _hear(self, news: Message) -> None:
        """Une nouvelle du client Kafka : fin d'une partition, position perdue… ; lève PipelineError si c'est grave."""
        error, owned = news.error(), self.owned.get(news.partition() or 0)
        if owned and error is not None and error.code() == KafkaError._PARTITION_EOF:
            if (end := news.offset() or 0) >= owned.read:
                self.ended[owned.partition] = end
        elif owned and error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._find_again(owned)
        else:
            readable(news)

    def _find_again(self, owned: Owned) -> None:
        """Le prochain message n'est plus là : il a été effacé, ou ce topic n'est plus le même."""
        low, high = self.positions.bounds(owned.partition)  # avant : ces bornes sont alors sûrement celles de ce topic
        if self._look_at_topic() == owned.topic_id and not self.must_abort:
            if owned.read > high:
                raise PipelineError(
                    f"La partition {owned.partition} de {self.topic} s'arrête à l'offset {high}, avant la position "
                    f"{owned.read} du groupe {self.positions.group} : des messages en ont disparu. Dites d'où repartir "
                    "(--from-offsets), ou prenez un autre groupe."
                )
            if owned.read < low:
                log.warning(
                    "Partition %d de %s : les messages %d à %d ont été effacés avant d'être lus (durée de conservation "
                    "du topic ?) ; je continue après eux.", owned.partition, self.topic, owned.read, low - 1,
                )  # fmt: skip
                owned.next = owned.read = low
            self._move(owned.partition, owned.read)

    def _move(self, partition: int, offset: int) -> None:
        """Lit ``partition`` à partir de ``offset`` ; vaut aussi pour une partition dont la lecture s'est arrêtée."""
        there = [TopicPartition(self.topic, partition, offset)]
        self.consumer.incremental_unassign(there)
        self.consumer.incremental_assign(there)
        self.consumer.resume(there)
        self.ended.pop(partition, None)

    # --- Travailler, attendre ---

    def work(self, task: Callable[[], T]) -> T:
        """``task()``, même très long, sans quitter le groupe : partitions en pause, le membre bat toujours.

        Dans un fil que personne n'attend à la fin : un second Ctrl-C interrompt même un travail bloqué.
        """
        future = Future[T]()
        threading.Thread(target=answer_with, args=(future, task), daemon=True).start()
        if not wait([future], SHORT_SECONDS).done:
            self.checkpoint()  # aucune transaction Kafka ne reste ouverte pendant un travail lent
            self.consumer.pause(self.consumer.assignment())
            while not future.done():
                message = self.consumer.poll(SHORT_SECONDS)
                self._raise_fault()
                if message is not None and message.error():
                    self._hear(message)
                elif message is not None:
                    self.consumer.seek(place(message))  # d'une partition arrivée à l'instant : on la relira
                    self.consumer.pause([place(message)])
            held = {owned.partition for owned in self.waiting}
            self.consumer.resume([p for p in self.consumer.assignment() if p.partition not in held])
        return future.result()

    def again(self, owned: Owned, offset: int, seconds: float = 0.0) -> None:
        """Relit ``owned`` à partir de ``offset``, dans ``seconds`` ; les autres partitions n'attendent pas."""
        there = TopicPartition(self.topic, owned.partition, offset)
        owned.next = owned.read = offset
        self.consumer.seek(there)
        if seconds:
            self.consumer.pause([there])
            self.waiting[owned] = time.monotonic() + seconds

    def _wake(self) -> None:
        """Rend la parole aux partitions dont l'attente est finie."""
        now = time.monotonic()
        for owned in [owned for owned, until in self.waiting.items() if now >= until]:
            del self.waiting[owned]
            self.consumer.resume([TopicPartition(self.topic, owned.partition)])

    # --- Valider, ou tout refaire depuis la position validée ---

    def checkpoint(self) -> None:
        """Valide ce qui est fait."""
        self.checkpoint_at = time.monotonic()
        places = self.listener.places()
        if places is None:
            places = {owned.partition: (owned.next, "") for owned in self.owned.values()}
        changed = {
            owned: there
            for partition, there in places.items()
            if (owned := self.owned.get(partition)) and there != (owned.committed, owned.metadata)
        }
        idle = not (changed or self.outputs.open)
        if self.must_abort or (idle and self.checkpoint_at - self._identity_at < IDENTITY_SECONDS):
            return
        self._look_at_topic()
        if self.must_abort or idle:
            return
        try:
            self.outputs.commit(self.consumer, [self._place(owned, *there) for owned, there in changed.items()])
        except Aborted as error:
            self.undo(error)
            return
        for owned, there in changed.items():
            owned.committed, owned.metadata = there
        self.commits += bool(changed)
        self.listener.on_committed()

    def _place(self, owned: Owned, offset: int, metadata: str) -> TopicPartition:
        return TopicPartition(self.topic, owned.partition, offset, joined(owned.topic_id, metadata))

    def undo(self, why: Aborted) -> None:
        """À défaire au prochain tour : un rappel de Kafka ne peut pas changer les positions lui-même."""
        log.info("Validation refusée (%s) : je reprends à la dernière position validée.", why)
        self.must_abort = True

    def recover(self) -> None:
        """Défait ce qui n'est pas validé, et revient à la position validée de chaque partition."""
        self._raise_fault()
        if not self.must_abort:
            return
        self.outputs.abort()
        self.aborts += 1
        self.must_abort = False
        self.waiting.clear()
        if self._outdated:
            self._renew()
            return
        # Une validation dont la réponse s'est perdue a pu avoir lieu : c'est Kafka qui dit où l'on en est.
        found = self.positions.committed(list(self.owned)) if self.owned else {}
        for owned in list(self.owned.values()):
            offset, topic_id, metadata = found.get(owned.partition, (-1, "", ""))
            if offset < 0 or topic_id != owned.topic_id:
                offset, metadata = owned.committed, owned.metadata
            self._own(owned.partition, offset, metadata, owned.topic_id)
            self._move(owned.partition, offset)

    def _renew(self) -> None:
        """Le topic est recréé : un client neuf rejoint le groupe.

        L'ancien se souvient de l'époque des chefs de partition du topic effacé. Celui qui porte son nom repart à 0 : le
        client croirait périmé tout ce que Kafka lui en dit, et ne lirait rien (librdkafka, anomalie 4898, ouverte).
        """
        self._closing = True
        self.consumer.close()
        self._forget([TopicPartition(self.topic, partition) for partition in list(self.owned)])
        self.must_abort = self._closing = self._outdated = False
        self.topic_id = self._identity()
        self.consumer = self.positions.consumer = connect(Consumer, self._config)
        self.join()

    def close(self) -> None:
        """Valide ce qui est fait et quitte le groupe."""
        try:
            self.checkpoint()
            self._raise_fault()
        except Stopped as stopped:
            log.warning("%s", stopped)
        finally:
            self._closing = True
            self.outputs.close()
            if not self.outputs.stuck:
                self.consumer.close()

    def _look_at_topic(self) -> str:
        """L'identité du topic, vide s'il n'existe plus ; tout est à refaire si ce n'est plus celui de ce client.

        À demander après avoir lu, et avant de valider : ce qui est lu vient alors sûrement du topic d'avant.
        """
        self._identity_at = time.monotonic()
        current = self._identity()
        if current and any(owned.topic_id != current for owned in self.owned.values()):
            self._replaced(current)
        return current

    def _identity(self, seconds: float = 0.0) -> str:
        """Ce qu'en dit Kafka ; vide si c'est un topic que l'on sait effacé."""
        current = self.positions.topic_id(seconds)
        return "" if current in self._former else current

    def _replaced(self, current: str) -> None:
        """Ce client, ou l'une de ses partitions, vient d'un autre topic que ``current``."""
        self._say_recreated(current)
        self._former |= {self.topic_id, *(owned.topic_id for owned in self.owned.values())} - {"", current}
        self.must_abort = self._outdated = True

    def _say_recreated(self, current: str) -> None:
        if self._said != current:
            log.warning("Le topic %s a été recréé : je le lis depuis son début.", self.topic)
            self._said = current

    # --- Les partitions arrivent et repartent (rappels, pendant consume, poll et close) ---

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalanced()
        if not self._closing and partitions:
            self._safely(lambda: self._assign(consumer, [one.partition for one in partitions]))

    def _assign(self, consumer: Consumer, numbers: Sequence[int]) -> None:
        """Elles sont lues à partir de la position validée du groupe ; sans position, ou d'un autre topic : du début."""
        current = self._identity(CREATED_SECONDS)
        if current and self.topic_id not in ("", current):
            self._replaced(current)
        self.topic_id = self.topic_id or current
        found, starts = self.positions.committed(numbers), []
        other = {number for number, (_, topic_id, _) in found.items() if current and topic_id not in ("", current)}
        if other:
            self._say_recreated(current)
        for number, (offset, topic_id, metadata) in found.items():
            known = offset >= 0 and number not in other
            start = offset if known else self.positions.bounds(number)[0] if current else 0
            self._own(number, start, metadata if known else "", current or topic_id)
            starts.append(TopicPartition(self.topic, number, start))
        consumer.incremental_assign(starts)
        log.info("Partitions reçues : %s.", _numbers(starts))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Encore à nous : ce qui est fait est validé avant de les rendre."""
        self._rebalanced()
        log.info("Partitions rendues : %s.", _numbers(partitions))
        if not self._closing:  # à la fermeture, c'est déjà fait
            self._safely(self.checkpoint)
        self._forget(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Déjà à un autre (nous étions sans voix trop longtemps) : ne plus rien valider."""
        self._rebalanced()
        log.warning("Partitions perdues : %s.", _numbers(partitions))
        self.must_abort = True
        self._forget(partitions)

    def _rebalanced(self) -> None:
        self.rebalances += 1
        self.rebalanced_at = time.monotonic()
        self.active_at = max(self.active_at or 0.0, self.rebalanced_at)

    def _safely(self, call: Callable[[], None]) -> None:
        """Dans un rappel : ce qui ne peut pas se faire est défait, et la faute se lève au tour suivant."""
        try:
            call()
        except (Aborted, KafkaException, PipelineError, Stopped) as error:
            self._fault, self.must_abort = error, True

    def _raise_fault(self) -> None:
        if fault := self._fault:
            self._fault = None
            raise fault

    def _own(self, partition: int, offset: int, metadata: str, topic_id: str) -> None:
        self.owned[partition] = Owned(partition, offset, metadata, topic_id, offset, offset)
        self.listener.on_assigned(partition, offset, metadata)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            self.ended.pop(one.partition, None)
            if owned := self.owned.pop(one.partition, None):
                self.waiting.pop(owned, None)
                self.listener.on_forgotten(one.partition)


def _numbers(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(str(one.partition) for one in partitions)
