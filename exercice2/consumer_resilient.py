"""Lit des transactions dans Kafka, les valide, les enrichit, et écrit les bonnes dans transactions-validees.

    python consumer_resilient.py                 au moins une fois, sans fin ; Ctrl-C pour arrêter
    python consumer_resilient.py --exactly-once  les sorties et la position dans une même transaction Kafka
    python consumer_resilient.py --work exercice2.work:flaky   un travail qui échoue parfois

Garantit : aucune transaction n'est perdue, quoi qu'il arrive à ce script, aux autres membres du groupe, aux brokers
ou au topic : la position d'un message n'est validée qu'une fois son travail fait et confirmé. Avec --exactly-once,
chaque transaction valide est une fois dans transactions-validees pour qui lit en read_committed. Ce qui n'est pas
une transaction va dans transactions-topic-dlq, octets compris, avec la raison et l'origine ; dead_letters.py les
montre et les renvoie. Un travail qui se trompe arrête le script (--on-error) : rien n'est rangé à sa place.
Ne garantit pas : sans --exactly-once, qu'une transaction n'est écrite qu'une fois après un arrêt net ; la
redite est identique, octet pour octet, et ses en-têtes source.partition et source.offset la désignent.
Ensuite : kafka_monitor.py compte ces transactions par fenêtres. Le membre du groupe est dans
commun/group_member.py, les deux façons de valider dans commun/outputs.py, le travail dans work.py.
"""

import argparse
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from commun import Aborted, PipelineError
from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.contracts import TRANSACTION, header
from commun.group_member import GroupMember, Owned
from commun.group_positions import SOURCE, offsets_option, reset_option
from commun.kafka import (
    DEAD_LETTER_BYTES,
    Config,
    Headers,
    client_config,
    dead_letter,
    ensure_topics,
    kafka_options,
    place,
)
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from commun.outputs import AtLeastOnce, ExactlyOnce, Outputs
from exercice2.topic import TOPIC, VALID_TOPIC, letters, stream, topic_options
from exercice2.work import ON_ERROR, Done, do_work, load_work

from confluent_kafka import Message

log = logging.getLogger("pipeline")

GROUP = "transactions-consumer-group"
BATCH_SIZE, BATCH_SECONDS = 500, 0.1
COMMIT_MESSAGES, COMMIT_SECONDS = 100, 1.0  # au moins une fois : la position est validée tous les 100 messages, ou 1 s
TRANSACTION_SECONDS = 0.5  # exactement une fois : au temps seulement, car une transaction coûte 30 ms
TURN_SECONDS = 1.0  # un tour de travail ne commence plus de message après ce temps
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)  # attentes avant chaque nouvel essai d'un travail ; la dernière se répète
REPORT_SECONDS = 5.0

CONSUMER_CONFIG = {
    "enable.auto.commit": False,  # la position n'est validée qu'après le travail
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",  # jamais une ligne d'une transaction annulée
    # Le protocole classique : celui de Kafka 4 (KIP-848) laisse au broker le délai d'éviction, 45 s par défaut.
    "partition.assignment.strategy": "cooperative-sticky",  # un membre arrive sans arrêter les autres
    "session.timeout.ms": 6_000,  # un membre tué est remplacé au bout de 6 s
    "heartbeat.interval.ms": 2_000,
    "auto.offset.reset": "error",  # une position perdue se dit, et se décide ici : le client n'en choisit pas une autre
    "enable.partition.eof": True,  # pour savoir qu'une partition n'a plus rien
    "topic.metadata.refresh.interval.ms": 5_000,  # partitions ajoutées, topic recréé : vus sans attendre cinq minutes
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
    "enable.auto.commit", "enable.auto.offset.store", "isolation.level", "auto.offset.reset", "enable.partition.eof",
    "acks", "enable.idempotence", "message.timeout.ms", "transaction.timeout.ms", "transactional.id",
    "partition.assignment.strategy", "partitioner",
)  # fmt: skip


@dataclass
class Counts:
    """Ce que le script a fait depuis son démarrage."""

    read: int = 0
    written: int = 0
    dead_letters: int = 0
    retries: int = 0
    start: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        rate = self.read / max(time.monotonic() - self.start, 0.001)
        return (
            f"{french_number(self.read)} lues ({french_number(rate)}/s), {french_number(self.written)} validées, "
            f"{self.dead_letters} lettres mortes, {self.retries} nouveaux essais"
        )


class Worker:
    """La boucle : lire, travailler, écrire, valider."""

    def __init__(self, args: argparse.Namespace, member: GroupMember, outputs: Outputs, stop: Stop) -> None:
        self.args, self.member, self.outputs, self.stop = args, member, outputs, stop
        self.counts = Counts()
        self.batches = Durations()
        self.lag: dict[int, int] = {}  # messages qui restent à traiter, par partition

    def run(self) -> None:
        """Jusqu'à l'arrêt, --max-messages ou --idle-timeout."""
        reported = time.monotonic()
        while not self.stop and (room := self._room()):
            found = self.member.read(room, BATCH_SECONDS)
            if found:
                with self.batches:
                    self._process(found)
            elif self.args.idle_timeout and self.member.idle(self.args.idle_timeout):
                break
            self._commit_in_time()
            self.lag = self.member.lag()
            if time.monotonic() - reported > REPORT_SECONDS:
                log.info("%s ; %s", self, self._lag())
                reported = time.monotonic()

    def _room(self) -> int:
        left = BATCH_SIZE if self.args.max_messages is None else self.args.max_messages - self.counts.read
        return min(left, BATCH_SIZE)

    def _process(self, found: dict[Owned, list[Message]]) -> None:
        """Le travail, partition par partition ; seules comptent celles qui sont encore à nous à la fin."""
        deadline, now = time.monotonic() + TURN_SECONDS, datetime.now(UTC)

        def go_on() -> bool:
            return not self.stop and time.monotonic() < deadline

        def task() -> list[list[Done]]:
            return [do_work(self.args.work, messages, now, go_on) for messages in found.values()]

        for (owned, messages), done in zip(found.items(), self.member.work(task), strict=True):
            if all(self._apply(owned, one) for one in done) and len(done) < len(messages) and self.member.holds(owned):
                self.member.again(owned, place(messages[len(done)]).offset)  # le temps de ce tour est passé

    def _apply(self, owned: Owned, done: Done) -> bool:
        """Écrit ce que le travail a donné, et avance ; faux si la suite de cette partition est à relire."""
        if not self.member.holds(owned):
            return False
        origin, last = place(done.message), owned.attempts + 1 >= self.args.max_attempts
        where = f"{origin.partition}:{origin.offset}"
        if done.mistake and (self.args.on_error == "stop" or (self.args.on_error == "retry" and last)):
            raise PipelineError(
                f"Le travail s'est trompé sur la transaction {where} : {done.mistake}. Corrigez-le, puis relancez : sa "
                "position n'est pas validée, rien n'est perdu (« --on-error dead-letter » range de tels messages)."
            )
        if (done.retry or (done.mistake and self.args.on_error == "retry")) and not last:
            delay = RETRY_SECONDS[min(owned.attempts, len(RETRY_SECONDS) - 1)]
            log.warning("Essai raté (%s) : %s ; nouvel essai dans %g s.", where, done.retry or done.mistake, delay)
            owned.attempts, self.counts.retries = owned.attempts + 1, self.counts.retries + 1
            self.member.again(owned, origin.offset, delay)
            return False
        failed = f"{done.retry} ({self.args.max_attempts} essais)" if done.retry else done.mistake
        return self._write(owned, done, done.reason or failed)

    def _write(self, owned: Owned, done: Done, reason: str | None) -> bool:
        """La sortie, ou la lettre morte, avec l'origine en en-têtes."""
        origin = place(done.message)
        try:
            if reason:
                log.warning("Lettre morte (%d:%d) : %s", origin.partition, origin.offset, reason)
                self.outputs.write(f"{self.args.topic}-dlq", *dead_letter(done.message, reason))
            else:
                headers: Headers = [
                    header(TRANSACTION),
                    (SOURCE, owned.topic_id),
                    ("source.partition", b"%d" % origin.partition),
                    ("source.offset", b"%d" % origin.offset),
                ]
                self.outputs.write(self.args.output, done.output, done.key.encode(), headers)
        except Aborted as error:
            self.member.undo(error)
            return False
        owned.next, owned.attempts = origin.offset + 1, 0
        self.counts.read += 1
        self.counts.dead_letters += bool(reason)
        self.counts.written += not reason
        return True

    def _commit_in_time(self) -> None:
        every = TRANSACTION_SECONDS if self.outputs.atomic else COMMIT_SECONDS
        full = not self.outputs.atomic and self.member.pending() >= COMMIT_MESSAGES
        if full or time.monotonic() - self.member.checkpoint_at >= every:
            self.member.checkpoint()

    def measures(self) -> Measures:
        """Pour --metrics-port."""
        member = self.member
        return Measures(self.counts.read, self.lag, member.commits, member.aborts, batches=self.batches)

    def _lag(self) -> str:
        """Messages qui restent à lire, par partition."""
        parts = [f"p{partition} {french_number(left)}" for partition, left in self.lag.items()]
        return "retard " + (", ".join(parts) or "inconnu : aucune partition")

    def __str__(self) -> str:
        member = self.member
        return (
            f"{self.counts}, {member.commits} validations, {member.aborts} annulations, "
            f"{member.rebalances} rééquilibrages"
        )


# --- Options ---


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic à lire")
    parser.option("--output", env="TRANSACTIONS_VALIDEES", default=VALID_TOPIC, help="topic où écrire")
    parser.option("--group", env="TRANSACTIONS_GROUP", default=GROUP, help="groupe de consommateurs")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--exactly-once", action="store_true", help="sorties et position dans une même transaction Kafka")
    parser.option("--instance-id", metavar="NOM",
                  help="membre permanent : relancé avant 6 s, il retrouve ses partitions")  # fmt: skip
    parser.option("--max-messages", type=positive(), help="s'arrête après N messages traités")
    parser.option("--idle-timeout", type=positive(float), help="s'arrête après S secondes sans message")
    parser.option("--reset", type=reset_option, metavar="earliest|latest|DATE",
                  help="d'où lit un groupe qui n'a pas encore de position : earliest, sans l'option")  # fmt: skip
    parser.option("--from-offsets", type=offsets_option, default={}, metavar="PARTITION:OFFSET,…",
                  help="ramène le groupe, arrêté, à ces positions, puis lit")  # fmt: skip
    parser.option("--work", type=load_work, default="exercice2.work:enrich", metavar="MODULE:FONCTION",
                  help="le travail à faire sur chaque transaction")  # fmt: skip
    parser.option("--max-attempts", type=positive(), default=5, help="essais d'un travail qui peut réussir plus tard")
    parser.option("--on-error", choices=ON_ERROR, default="stop",
                  help="si le travail se trompe (erreur imprévue) : arrêter, réessayer d'abord, ou ranger")  # fmt: skip
    topic_options(parser)
    return parser.parse(argv)


def open_outputs(args: argparse.Namespace, config: Config, stop: Stop) -> Outputs:
    """Là où vont les sorties, et la façon de valider."""
    if not args.exactly_once:
        return AtLeastOnce(config, stop)
    name = f"{args.group}-{args.instance_id or uuid.uuid4().hex}"
    return ExactlyOnce(config | TRANSACTION_CONFIG | {"transactional.id": name}, stop, permanent=bool(args.instance_id))


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    identity = {"group.id": args.group} | ({"group.instance.id": args.instance_id} if args.instance_id else {})
    config = client_config(CONSUMER_CONFIG | identity, GUARANTEED, args)
    producer_config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        stream(args, args.topic),
        stream(args, args.output),
        letters(args, f"{args.topic}-dlq"),
    )
    try:
        outputs = open_outputs(args, producer_config, stop)
        with GroupMember(args.topic, config, outputs, stop) as member:
            worker = Worker(args, member, outputs, stop)
            serve_metrics(args.metrics_port, worker.measures)
            member.positions.start_from(args.reset, args.from_offsets, [args.output] if args.exactly_once else [])
            member.join()
            log.info("Lecture de %s (groupe %s), écriture dans %s.", args.topic, args.group, args.output)
            worker.run()
        log.info("Terminé : %s.", worker)
    except Stopped as stopped:
        log.warning("%s", stopped)
    return 0


if __name__ == "__main__":
    run(main)
