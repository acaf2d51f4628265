"""Lit des transactions dans Kafka, les valide, les enrichit, et écrit les bonnes dans transactions-validees.

    python consumer_resilient.py                 au moins une fois, sans fin ; Ctrl-C pour arrêter
    python consumer_resilient.py --exactly-once  les sorties et la place dans une même transaction Kafka
    python consumer_resilient.py --work exercice2.work:flaky   un travail qui échoue parfois

Garantit : aucune transaction n'est perdue, quoi qu'il arrive à ce script, aux autres membres du groupe ou
aux brokers : la place d'un message n'est validée qu'une fois son travail fait et confirmé. Avec
--exactly-once, chaque transaction valide est une fois dans transactions-validees pour qui lit en
read_committed. Ce qui n'est pas une transaction va dans transactions-topic-dlq, octets compris, avec la
raison et l'origine ; dead_letters.py les montre et les renvoie.
Ne garantit pas : sans --exactly-once, qu'une transaction n'est écrite qu'une fois après un arrêt net ; la
redite est identique, octet pour octet, et ses en-têtes source.partition et source.offset la désignent.
Ensuite : kafka_monitor.py compte ces transactions par fenêtres. Les places sont tenues dans offsets.py, les
deux façons de valider dans sinks.py, les règles d'une transaction dans transactions.py.
"""

import argparse
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.cimpl import NewTopic

from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.exactly_once import Aborted
from commun.kafka import (
    DEAD_LETTER_BYTES,
    DEAD_LETTER_TOPIC,
    client_config,
    connect,
    dead_letter_of,
    ensure_topics,
    place,
    readable,
)
from exercice2.offsets import Offsets, Owned
from exercice2.producer_resilient import PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG
from exercice2.sinks import AtLeastOnce, ExactlyOnce, Sink
from exercice2.starting_offsets import StartingOffsets, offsets_option, reset_option
from exercice2.work import Outcome, do_work, load_work

log = logging.getLogger("pipeline")

VALID_TOPIC = "transactions-validees"
GROUP = "transactions-consumer-group"
BATCH_SIZE, BATCH_SECONDS = 500, 0.1
COMMIT_MESSAGES, COMMIT_SECONDS = 100, 1.0  # au moins une fois : la place est validée tous les 100 messages, ou 1 s
TRANSACTION_SECONDS = 0.5  # exactement une fois : au temps seulement, car une transaction coûte 30 ms
TURN_SECONDS = 1.0  # un tour de travail ne commence plus de message après ce temps
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)  # attentes avant chaque nouvel essai d'un travail ; la dernière se répète
REPORT_SECONDS = 5.0

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la place n'est validée qu'après le travail
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",  # jamais une ligne d'une transaction annulée
    # Le protocole classique : celui de Kafka 4 (KIP-848) laisse au broker le délai d'éviction, 45 s par défaut.
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 6_000,  # un membre tué est remplacé au bout de 6 s
    "heartbeat.interval.ms": 2_000,
    "auto.offset.reset": "earliest",  # une place effacée de Kafka : on reprend au plus ancien, rien n'est sauté
    "fetch.queue.backoff.ms": 10,  # 1 s par défaut, qui plafonne le débit
}
PRODUCER_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": 0,  # jamais abandonné : Kafka absent, la sortie attend son retour
    "message.max.bytes": DEAD_LETTER_BYTES,
    "partitioner": "murmur2_random",
    "linger.ms": 20,
    "compression.type": "lz4",
}
# Tué net, un membre laisse sa transaction ouverte : elle bloque sa partition jusqu'à ce délai.
TRANSACTION_CONFIG = {"message.timeout.ms": 10_000, "transaction.timeout.ms": 10_000}
GUARANTEED = (
    "enable.auto.commit", "enable.auto.offset.store", "isolation.level", "auto.offset.reset", "acks",
    "enable.idempotence", "message.timeout.ms", "transaction.timeout.ms", "transactional.id",
)  # fmt: skip


@dataclass
class Counts:
    """Ce que le script a fait depuis son démarrage."""

    read: int = 0
    written: int = 0
    dead_letters: int = 0
    retries: int = 0
    commits: int = 0
    aborts: int = 0
    rebalances: int = 0
    start: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        rate = self.read / max(time.monotonic() - self.start, 0.001)
        return (
            f"{french_number(self.read)} lues ({french_number(rate)}/s), {french_number(self.written)} validées, "
            f"{self.dead_letters} lettres mortes, {self.retries} nouveaux essais, {self.commits} validations, "
            f"{self.aborts} annulations, {self.rebalances} rééquilibrages"
        )


class Worker:
    """Un membre du groupe : ses partitions, leurs places, la boucle."""

    def __init__(self, args: argparse.Namespace, consumer: Consumer, sink: Sink, stop: Stop) -> None:
        self.args, self.consumer, self.sink, self.stop = args, consumer, sink, stop
        self.offsets, self.counts = Offsets(), Counts()
        self.start = StartingOffsets(args.reset, args.from_offsets)
        self.waiting: dict[Owned, float] = {}  # partitions en pause après un essai raté, et jusqu'à quand
        self.must_abort = False
        self.active_at = self.checkpoint_at = time.monotonic()
        self.executor = ThreadPoolExecutor(1)
        self.every = TRANSACTION_SECONDS if args.exactly_once else COMMIT_SECONDS

    # --- Les partitions arrivent et repartent (rappels, pendant consume et poll) ---

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Des partitions arrivent : elles sont lues à partir de la place validée du groupe."""
        self.counts.rebalances += 1
        self.active_at = time.monotonic()
        while partitions and not self.stop:
            try:
                starts = self.start.find(consumer, partitions)
            except KafkaException as error:
                log.debug("Places illisibles (%s), nouvel essai.", error.args[0].name())
                continue
            for start in starts:
                self.offsets.assign(start.partition, start.offset)
            consumer.incremental_assign(starts)
            log.info("Partitions reçues : %s.", ", ".join(str(start.partition) for start in starts))
            return

    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Des partitions nous sont retirées, encore à nous : ce qui est fait est validé avant de les rendre."""
        self.counts.rebalances += 1
        log.info("Partitions rendues : %s.", ", ".join(str(partition.partition) for partition in partitions))
        self.checkpoint()
        self._forget(partitions)

    def on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Des partitions sont déjà à un autre (nous étions sans voix trop longtemps) : ne plus rien valider."""
        self.counts.rebalances += 1
        log.warning("Partitions perdues : %s.", ", ".join(str(partition.partition) for partition in partitions))
        self.must_abort = True
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self.offsets.revoke(partition.partition)
        self.waiting = {owned: until for owned, until in self.waiting.items() if self.offsets.holds(owned)}

    # --- La boucle ---

    def run(self) -> None:
        """Lit, travaille, valide, jusqu'à l'arrêt, --max-messages ou --idle-timeout."""
        reported = time.monotonic()
        while not self.stop and (self.args.max_messages is None or self.counts.read < self.args.max_messages):
            self.recover()
            room = BATCH_SIZE if self.args.max_messages is None else self.args.max_messages - self.counts.read
            messages = [m for m in self.consumer.consume(min(room, BATCH_SIZE), BATCH_SECONDS) if readable(m)]
            now = time.monotonic()
            if messages:
                self.process(messages)
                self.active_at = now
            elif self.args.idle_timeout and now - self.active_at > self.args.idle_timeout and not self.waiting:
                break
            full = not self.args.exactly_once and self.offsets.count() >= COMMIT_MESSAGES
            if full or now - self.checkpoint_at >= self.every:
                self.checkpoint()
            self.wake(now)
            if now - reported > REPORT_SECONDS:
                log.info("%s ; %s", self.counts, self.lag())
                reported = now
        self.checkpoint()
        self.recover()

    def process(self, messages: list[Message]) -> None:
        """Le travail, partition par partition ; seules comptent celles qui sont encore à nous à la fin."""
        by_partition: dict[Owned, list[Message]] = {}
        for message in messages:
            owned = self.offsets.owned.get(message.partition() or 0)
            if owned and place(message).offset >= owned.done:
                by_partition.setdefault(owned, []).append(message)
        deadline, now = time.monotonic() + TURN_SECONDS, datetime.now(UTC)

        def go_on() -> bool:
            return not self.stop and time.monotonic() < deadline

        def task() -> list[list[Outcome]]:
            return [do_work(self.args.work, group, now, go_on) for group in by_partition.values()]

        found = self.without_leaving(task)
        for (owned, group), outcomes in zip(by_partition.items(), found, strict=True):
            for outcome in outcomes:
                if self.offsets.holds(owned) and not self.must_abort:
                    self.apply(owned, outcome)
            left = group[len(outcomes) :]
            if left and self.offsets.holds(owned) and not self.must_abort and owned not in self.waiting:
                self.consumer.seek(place(left[0]))  # le temps de ce tour est passé : à relire

    def without_leaving(self, task: Callable[[], list[list[Outcome]]]) -> list[list[Outcome]]:
        """Exécute un travail, même très lent, sans quitter le groupe : partitions en pause, ``poll`` continue."""
        future = self.executor.submit(task)
        if not wait([future], BATCH_SECONDS).done:
            self.checkpoint()  # aucune transaction Kafka ne reste ouverte pendant un travail lent
            paused = self.consumer.assignment()
            self.consumer.pause(paused)
            while not future.done():
                message = self.consumer.poll(0.1)
                if message is not None and not message.error():
                    self.consumer.seek(place(message))  # d'une partition arrivée à l'instant : on la relira
                    self.consumer.pause([place(message)])
            held = {owned.partition for owned in self.waiting}
            self.consumer.resume([p for p in self.consumer.assignment() if p.partition not in held])
        return future.result()

    def apply(self, owned: Owned, outcome: Outcome) -> None:
        """Écrit ce que le travail a donné, et avance ; un essai raté met la partition en pause."""
        origin = place(outcome.message)
        if outcome.retry and owned.attempts + 1 < self.args.max_attempts:
            self.counts.retries += 1
            delay = RETRY_SECONDS[min(owned.attempts, len(RETRY_SECONDS) - 1)]
            owned.attempts += 1
            owned.done = origin.offset
            log.warning("Essai raté (%d:%d) : %s ; nouvel essai dans %g s.", origin.partition, origin.offset,
                        outcome.retry, delay)  # fmt: skip
            self.waiting[owned] = time.monotonic() + delay
            self.consumer.pause([origin])
            self.consumer.seek(origin)
            return
        reason = outcome.reason or (f"{outcome.retry} ({self.args.max_attempts} essais)" if outcome.retry else None)
        try:
            self.write(outcome, origin, reason)
        except Aborted as error:
            self.abort_later(error)
            return
        owned.done, owned.attempts = origin.offset + 1, 0
        self.counts.read += 1
        self.counts.dead_letters += bool(reason)
        self.counts.written += not reason

    def write(self, outcome: Outcome, origin: TopicPartition, reason: str | None) -> None:
        """La sortie, ou la lettre morte, avec l'origine en en-têtes."""
        if reason:
            log.warning("Lettre morte (%d:%d) : %s", origin.partition, origin.offset, reason)
            headers = dead_letter_of(outcome.message, reason)
            self.sink.write(f"{self.args.topic}-dlq", outcome.message.value(), outcome.message.key(), headers)
        else:
            headers = [("source.partition", b"%d" % origin.partition), ("source.offset", b"%d" % origin.offset)]
            self.sink.write(self.args.output, outcome.output, outcome.key.encode(), headers)

    def wake(self, now: float) -> None:
        """Rend la parole aux partitions dont l'attente est finie."""
        for owned in [owned for owned, until in self.waiting.items() if now >= until]:
            del self.waiting[owned]
            self.consumer.resume([TopicPartition(self.args.topic, owned.partition)])

    # --- Valider, ou tout refaire depuis la place validée ---

    def checkpoint(self) -> None:
        """Valide ce qui est fait."""
        self.checkpoint_at = time.monotonic()
        places = self.offsets.pending()
        if not places or self.must_abort:
            return
        following = [TopicPartition(self.args.topic, partition, offset) for partition, offset in places.items()]
        try:
            self.sink.checkpoint(self.consumer, following)
        except Aborted as error:
            self.abort_later(error)
            return
        self.offsets.commit(places)
        self.counts.commits += 1

    def abort_later(self, error: Aborted) -> None:
        """À défaire au prochain tour : un rappel de rééquilibrage ne peut pas changer les places lui-même."""
        log.info("Validation refusée (%s) : je reprends à la dernière place validée.", error)
        self.must_abort = True

    def recover(self) -> None:
        """Défait ce qui n'est pas validé, et revient à la place validée de chaque partition."""
        if not self.must_abort:
            return
        self.sink.abort()
        self.counts.aborts += 1
        for partition, offset in self.offsets.rollback().items():
            self.consumer.seek(TopicPartition(self.args.topic, partition, offset))
            self.consumer.resume([TopicPartition(self.args.topic, partition)])
        self.waiting = {owned: until for owned, until in self.waiting.items() if self.offsets.holds(owned)}
        self.must_abort = False

    def lag(self) -> str:
        """Messages qui restent à lire, par partition."""
        parts = []
        for owned in sorted(self.offsets.owned.values(), key=lambda owned: owned.partition):
            _, high = self.consumer.get_watermark_offsets(TopicPartition(self.args.topic, owned.partition), cached=True)
            parts.append(f"p{owned.partition} {max(0, high - max(owned.done, 0))}")
        return "retard " + (", ".join(parts) or "inconnu : aucune partition")


# --- Options ---


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--output", env="TRANSACTIONS_VALIDEES", default=VALID_TOPIC, help="topic où écrire")
    parser.option("--group", env="TRANSACTIONS_GROUP", default=GROUP, help="groupe de consommateurs")
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option("--exactly-once", action="store_true", help="sorties et place dans une même transaction Kafka")
    parser.option("--instance-id", metavar="NOM",
                  help="membre permanent : relancé avant 6 s, il retrouve ses partitions")  # fmt: skip
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages traités")
    parser.option("--idle-timeout", type=positive(float), help="s'arrête après S secondes sans message")
    parser.option("--reset", type=reset_option, default="earliest", metavar="earliest|latest|DATE",
                  help="d'où lit un groupe qui n'a pas encore de place")  # fmt: skip
    parser.option("--from-offsets", type=offsets_option, default={}, metavar="PARTITION:OFFSET,…",
                  help="relit à partir de ces places, quelle que soit celle du groupe")  # fmt: skip
    parser.option("--work", type=load_work, default="exercice2.work:enrich", metavar="MODULE:FONCTION",
                  help="le travail à faire sur chaque transaction")  # fmt: skip
    parser.option("--max-attempts", type=positive(), default=5, help="essais d'un travail avant la lettre morte")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    identity = {"group.id": args.group} | ({"group.instance.id": args.instance_id} if args.instance_id else {})
    config = client_config(CONSUMER_CONFIG | identity, GUARANTEED, args.bootstrap_servers)
    producer_config = client_config(PRODUCER_CONFIG, GUARANTEED, args.bootstrap_servers)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(args.output, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-dlq", 1, REPLICATION_FACTOR, config=DEAD_LETTER_TOPIC),
    )
    consumer = connect(Consumer, config)
    worker = None
    try:
        if args.exactly_once:
            transactional_id = f"{args.group}-{args.instance_id or uuid.uuid4().hex}"
            transactional = producer_config | TRANSACTION_CONFIG | {"transactional.id": transactional_id}
            sink: Sink = ExactlyOnce(transactional, stop)
        else:
            sink = AtLeastOnce(producer_config, stop)
        worker = Worker(args, consumer, sink, stop)
        consumer.subscribe([args.topic], on_assign=worker.on_assign, on_revoke=worker.on_revoke, on_lost=worker.on_lost)
        log.info("Lecture de %s (groupe %s), écriture dans %s.", args.topic, args.group, args.output)
        worker.run()
    except Stopped:
        log.warning("Arrêt sans réponse de Kafka : ce qui n'est pas validé sera refait au prochain démarrage.")
    finally:
        consumer.close()  # quitte le groupe tout de suite : un autre membre prend la suite
    if worker:
        log.info("Terminé : %s.", worker.counts)
    return 0


if __name__ == "__main__":
    run(main)
