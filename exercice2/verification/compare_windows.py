"""Compare, ligne à ligne, les fenêtres de kafka_monitor.py et celles d'Apache Flink, sur les mêmes transactions.

    python compare_windows.py                             quatre cas, les deux sortes de fenêtres chacun
    python compare_windows.py --partitions 1 --by region  un seul cas

Deux topics : six partitions, et un désordre que le watermark attend (5 s) ; une seule partition, et jusqu'à 30 s de
désordre : beaucoup de transactions sont en retard, parfois pour une partie de leurs fenêtres seulement. Le Flink de
« make flink » n'est pas touché : le script en démarre un autre, à côté, et l'arrête ; ses topics sont effacés.
Garantit : le code de sortie est 0 si les deux moteurs ont publié les mêmes lignes, une fois chacune (clé, bornes,
nombre, total, moyenne, minimum, maximum, identifiant) ; 1 sinon.
Ensuite : flink/fenetres.sql est le job ; windows.py, le calcul du moniteur.
"""

import argparse
import logging
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from commun import PipelineError
from commun.cli import Parser, Stop, Stopped, french_number, positive, run
from commun.kafka import Config, client_config, connect, delete_topics, ensure_topics
from exercice2.fenetres.published import ALL
from exercice2.sources import REPLAY_START
from exercice2.topic import REPLICATION_FACTOR, TOPIC_CONFIG
from exercice2.transactions import Transaction, disorder, generate, to_json

from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

if TYPE_CHECKING:
    from exercice2.verification.flink_beside import Outcome

log = logging.getLogger("pipeline")

DISORDER = {6: 5.0, 1: 30.0}  # secondes de désordre, par nombre de partitions
RATE = 50.0  # transactions par seconde, en temps des transactions
FLUSH_SECONDS = 60.0
LINE = "{:<10}  {:<8} {:<8}  {:>9}  {:>9}  {:>9}  {}"


# --- Les transactions ---


def transactions(partitions: int, count: int, seed: int) -> Iterator[Transaction]:
    """``count`` transactions en désordre."""
    ordered = islice(generate(seed, REPLAY_START, RATE), count)
    return disorder(ordered, DISORDER[partitions], seed)


def fill(config: Config, topic: str, partitions: int, count: int, seed: int) -> None:
    """Crée le topic et l'écrit."""
    ensure_topics(config, NewTopic(topic, partitions, REPLICATION_FACTOR, config=TOPIC_CONFIG))
    producer: Producer = connect(Producer, config | {"acks": "all", "partitioner": "murmur2_random"})
    for transaction in transactions(partitions, count, seed):
        producer.produce(topic, to_json(transaction), transaction.compte)
        producer.poll(0)
    if producer.flush(FLUSH_SECONDS):
        raise PipelineError(f"Kafka ne confirme pas les transactions de {topic}.")
    push_watermark(producer, topic, partitions, REPLAY_START + timedelta(seconds=count / RATE + 120))


def push_watermark(producer: Producer, topic: str, partitions: int, end: datetime) -> None:
    """Une transaction de plus par partition, bien après les autres, au même instant partout.

    Elle mène le watermark aussi loin dans toutes : une partition dite inactive n'y change plus rien, et les deux
    moteurs ferment les mêmes fenêtres.
    """
    for partition in range(partitions):
        last = next(generate(0, end, RATE))._replace(id=f"fin-{partition}", timestamp=end)
        producer.produce(topic, to_json(last), partition=partition)
    producer.flush(FLUSH_SECONDS)


# --- Comparer ---


def show(outcomes: "list[Outcome]") -> bool:
    """Affiche les comptes, et quelques lignes qui diffèrent ; vrai si toutes sont égales, une fois chacune."""
    print(LINE.format("partitions", "par", "fenêtres", "moniteur", "Flink", "communes", "lignes"))
    for outcome in outcomes:
        common = outcome.monitor & outcome.flink
        counts = (french_number(rows.total()) for rows in (outcome.monitor, outcome.flink, common))
        verdict = "égales" if outcome.same else "DIFFÉRENTES"
        print(LINE.format(outcome.case.partitions, outcome.case.by, outcome.kind, *counts, verdict))
        for row in [*list(outcome.monitor - common)[:3], *list(outcome.flink - common)[:3]]:
            log.debug("Un seul des deux moteurs a publié %s", row)
    return all(outcome.same for outcome in outcomes)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--partitions", type=int, choices=tuple(DISORDER), help="un seul des deux topics")
    parser.option("--by", choices=(ALL, "compte", "type", "region", "canal"),
                  help="une seule clé, au lieu de toutes et compte")  # fmt: skip
    parser.option("--count", type=positive(), default=6_000, help="transactions par topic")
    parser.option("--seed", type=positive(zero=True), default=1, help="graine des transactions")
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    from exercice2.verification.flink_beside import Case, Engines  # noqa: PLC0415 - demande les serveurs sans Docker

    stop = Stop()
    config = client_config({}, options=args)
    prefix = f"comparaison-{uuid.uuid4().hex[:8]}"
    ensure_topics(config)  # Kafka répond-il ?
    engines = Engines(config, stop)
    outcomes: list[Outcome] = []
    try:
        for partitions in [args.partitions] if args.partitions else DISORDER:
            topic = f"{prefix}-{partitions}"
            fill(config, topic, partitions, args.count, args.seed)
            for by in [args.by] if args.by else (ALL, "compte"):
                log.info("%d partition(s), par %s : %d transactions…", partitions, by, args.count)
                outcomes += engines.compare(Case(topic, partitions, by))
    except Stopped:
        log.warning("Arrêté avant la fin : la comparaison n'est pas faite.")
        return 0
    finally:
        delete_topics(config, prefix)
    same = show(outcomes)
    print("Les deux moteurs sont d'accord." if same else "Les deux moteurs ne sont pas d'accord : --log-level debug.")
    return 0 if same else 1


if __name__ == "__main__":
    run(main)
