"""Envoie des transactions dans Kafka (topic transactions-topic), quoi qu'il arrive aux brokers.

    python producer_resilient.py                             les transactions de transactions.csv
    python producer_resilient.py --generate --rate 100       100 transactions par seconde, sans fin
    python producer_resilient.py --generate --seed 42 --count 1000 --rate 0

Garantit : chaque transaction est une fois dans Kafka pour qui lit en read_committed, dans l'ordre de
son compte, même si ce script ou des brokers sont tués : les transactions et le nombre de celles qui sont
parties sont écrits ensemble, dans une transaction Kafka. Relancé, le script continue où il en était : la
même commande ne double rien. Deux brokers morts sur trois : il attend leur retour.
Ne garantit pas : l'envoi de ce qui suit l'arrêt. Arrêté avant la fin, il sort avec le code 1 et dit
combien de transactions ne sont pas confirmées ; la même commande les enverra.
Ensuite : consumer_resilient.py lit ce topic. La transaction est dans transactions.py, la lecture du
fichier dans sources.py, les comptes dans deliveries.py.
"""

import argparse
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from commun import Aborted, PipelineError
from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.contracts import TRANSACTION, header
from commun.exactly_once import POSITIONS_CONFIG, Positions, read_position
from commun.kafka import (
    DEAD_LETTER_BYTES,
    Config,
    client_config,
    dead_letter_headers,
    ensure_topics,
    kafka_options,
)
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from exercice2.deliveries import Deliveries
from exercice2.sources import CsvFile, Generated, Item, Pace, Saved, Source
from exercice2.topic import TOPIC, letters, single, stream, topic_options
from exercice2.transactions import to_json

import msgspec
from confluent_kafka import KafkaError, Message

log = logging.getLogger("pipeline")

SAMPLE = Path(__file__).resolve().parent / "transactions.csv"
COMMIT_SECONDS = 0.5  # une transaction Kafka par demi-seconde : ce qu'un lecteur attend au plus
COMMIT_ROWS = 20_000
STOP_SECONDS = 20.0  # à l'arrêt, attente au plus des dernières confirmations
REPORT_SECONDS = 5.0

PRODUCER_CONFIG = {
    "acks": "all",  # confirmé = écrit sur toutes les copies synchronisées, deux au moins (min.insync.replicas)
    "enable.idempotence": True,  # un renvoi ne crée ni doublon ni désordre
    "retries": 2_147_483_647,  # c'est le délai de livraison qui borne les renvois, pas leur nombre
    "retry.backoff.ms": 500,  # attente avant le premier renvoi ; elle double à chaque échec…
    "retry.backoff.max.ms": 5_000,  # … jusqu'à 5 s
    "delivery.timeout.ms": 30_000,  # au-delà, la transaction Kafka est annulée et ses lignes repartent
    "transaction.timeout.ms": 30_000,  # tué et pas relancé, le script ne bloque pas les lecteurs plus longtemps
    "partitioner": "murmur2_random",  # le choix de partition de Java, Flink et Connect : une clé, une partition
    "linger.ms": 20,  # 20 ms d'attente font des lots : bien moins de requêtes
    "batch.size": 1_000_000,
    "compression.type": "lz4",
    "message.max.bytes": DEAD_LETTER_BYTES,
    "queue.buffering.max.messages": 50_000,  # borne la mémoire ; file pleine, la lecture ralentit
    "statistics.interval.ms": 1_000,  # d'où l'on tire le nombre de renvois
}
GUARANTEED = (
    "acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms", "delivery.timeout.ms", "partitioner",
)  # fmt: skip
CONTRACT = [header(TRANSACTION)]  # commun/contrats/transaction.json


class Sender:
    """Envoie une source : des lignes et la position qui les suit dans une même transaction Kafka."""

    def __init__(self, config: Config, args: argparse.Namespace, source: Source, stop: Stop) -> None:
        self.args, self.source, self.stop = args, source, stop
        self.deliveries = Deliveries()
        told = {"stats_cb": self.deliveries.on_stats, "on_delivery": self._on_delivery}
        self.positions = Positions(config | told, args.topic, stop)
        self.producer = self.positions.producer
        self._name = source.name.encode()
        self._items: Iterator[Item] = iter(())
        self.pace = Pace(args.rate)
        self.batches = Durations()
        self.rows = self.taken = 0  # éléments confirmés ; éléments pris à la source

    def run(self) -> None:
        """Envoie tout, transaction après transaction, jusqu'à la fin de la source ou l'arrêt."""
        found = self.positions.take([self._name])
        self._refuse_lost(self._name not in self.positions.mine)
        self._resume(found)
        reported, more = time.monotonic(), True
        while more and not self.stop:
            try:
                with self.batches:
                    more = self._one_transaction()
            except Aborted as error:
                self._abandon(error)
            if time.monotonic() - reported > REPORT_SECONDS:
                log.info("%s", self.deliveries)
                reported = time.monotonic()

    def _one_transaction(self) -> bool:
        """Des lignes pendant COMMIT_SECONDS, leur position, la validation ; faux à la fin de la source."""
        deadline = time.monotonic() + COMMIT_SECONDS
        start, rejected, more = self.taken, 0, True
        while more and self.taken - start < COMMIT_ROWS and time.monotonic() < deadline and not self.stop:
            if (wait := self.pace.wait(self.taken + 1)) > 0:
                self.producer.poll(min(wait, COMMIT_SECONDS / 5))
                continue
            item = next(self._items, None)
            if item is None:
                more = False
                continue
            self.taken += 1
            rejected += item.transaction is None
            self._send(item)
        if self.taken > start:
            self._commit()
            self.deliveries.on_commit(rejected)
        return more

    def _send(self, item: Item) -> None:
        if item.transaction is None:
            log.warning("Lettre morte (ligne %d) : %s", item.line, item.reason)
            headers = dead_letter_headers(item.reason, topic=self.args.topic, file=self.source.name, line=item.line)
            self.producer.write(f"{self.args.topic}-dlq", item.raw, None, headers)
        else:
            self.deliveries.sent += 1
            key = str(getattr(item.transaction, self.args.key))
            self.producer.write(self.args.topic, to_json(item.transaction), key, CONTRACT)
        self.producer.poll()  # sert les rappels

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Un message est écrit sur les copies synchronisées, ou abandonné avec sa transaction."""
        if error is None and message.topic() == self.args.topic:
            self.deliveries.on_written(message.partition() or 0, message.latency() or 0.0)

    def _commit(self) -> None:
        """La position, puis la validation ; l'arrêt demandé, laisse encore STOP_SECONDS à Kafka."""
        self.positions.write(self._name, msgspec.json.encode(self.source.mark(self.taken)))
        deadline = None
        while True:
            try:
                self.producer.commit()
                self.rows = self.taken
                return
            except Stopped:
                deadline = deadline or time.monotonic() + STOP_SECONDS
                if time.monotonic() > deadline:
                    raise

    # --- Reprendre : la position écrite dans Kafka fait foi ---

    def _resume(self, positions: dict[bytes, bytes]) -> None:
        """La source, à la position confirmée."""
        value = positions.get(self._name)
        saved = read_position(value, Saved) if value else Saved()
        self.taken, self._items = self.source.resume(saved)
        self.rows = self.taken

    def _abandon(self, error: Aborted) -> None:
        """La transaction est annulée ; PipelineError si un autre a pris la source."""
        log.warning("Transaction annulée (%s) : %d lignes vont repartir.", error, self.taken - self.rows)
        self.deliveries.on_abort()
        lost, positions = self.positions.recover()
        self._refuse_lost(bool(lost))
        self._resume(self.positions.all() if positions is None else positions)

    def _refuse_lost(self, lost: bool) -> None:
        if lost:
            raise PipelineError(f"Un autre producteur envoie maintenant {self.source.name} : je m'arrête.")

    def measures(self) -> Measures:
        """Pour --metrics-port."""
        commits, aborts = self.producer.commits, self.producer.aborts
        return Measures(self.deliveries.confirmed, commits=commits, aborts=aborts, batches=self.batches)

    def left(self) -> int:
        """Ce qui reste à envoyer, d'une source qui a une fin."""
        return self.taken - self.rows + (0 if self.source.endless else sum(1 for _ in self._items))


def finish(sender: Sender, topic: str) -> None:
    """Le bilan ; PipelineError si tout n'est pas parti et confirmé."""
    log.info("Terminé : %s, dans %s.", sender.deliveries, topic)
    if sender.deliveries.partitions:
        log.info("Par partition : %s.", sender.deliveries.spread())
    if left := sender.left():
        raise PipelineError(
            f"Arrêté avant la fin : {french_number(left)} transactions ne sont pas confirmées : relancez la même "
            "commande, elles partiront."
        )
    if isinstance(sender.source, CsvFile) and sender.source.unfinished and sender.args.count is None:
        raise PipelineError(
            f"{sender.source.path} : la ligne {sender.source.unfinished} n'a pas encore de fin de ligne (touche "
            "Entrée), elle attend. La même commande l'enverra ensuite."
        )


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE, metavar="FICHIER",
                        help="fichier CSV des transactions [défaut : transactions.csv]")  # fmt: skip
    parser.option("--topic", env="TRANSACTIONS_TOPIC", default=TOPIC, help="topic où écrire")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--key", choices=("compte", "id", "region"), default="compte", help="champ qui choisit la partition")
    parser.option("--generate", action="store_true", help="fabrique des transactions, au lieu de lire un fichier")
    parser.option("--rate", type=positive(float, zero=True),
                  help="transactions par seconde, 0 : au plus vite [défaut : 10 avec --generate, 0 sans]")  # fmt: skip
    parser.option("--count", type=positive(), help="s'arrête à la N-ième transaction de la source")
    parser.option("--seed", type=positive(zero=True), help="graine de --generate : la même reprend la même suite")
    parser.option("--disorder", type=positive(float, zero=True), default=0.0,
                  help="avec --generate, livre dans le désordre, jusqu'à S secondes de retard")  # fmt: skip
    topic_options(parser)
    args = parser.parse(argv)
    if not args.generate and (args.seed is not None or args.disorder):
        parser.error("--seed et --disorder vont avec --generate")
    args.rate = (10.0 if args.generate else 0.0) if args.rate is None else args.rate
    return args


def open_source(args: argparse.Namespace) -> Source:
    """La source que désignent les options."""
    if not args.generate:
        return CsvFile(args.file, args.count, log.info)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    log.info("Suite de la graine %d ; « --seed %d » la reprendra.", seed, seed)
    return Generated(seed, args.rate, args.disorder, args.count)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        stream(args, args.topic),
        letters(args, f"{args.topic}-dlq"),
        single(args, f"{args.topic}-positions", POSITIONS_CONFIG),
    )
    source = open_source(args)
    log.info("Envoi de %s vers %s.", source.name, args.topic)
    sender = Sender(config, args, source, stop)
    serve_metrics(args.metrics_port, sender.measures)
    try:
        sender.run()
    except Stopped as stopped:
        log.warning("%s", stopped)
    finish(sender, args.topic)
    return 0


if __name__ == "__main__":
    run(main)
