"""Compare les ventes à chaque étape du pipeline : nombre et somme, au centime, quand vous voulez.

    python reconcile.py                  compare maintenant
    python reconcile.py --wait 30        attend jusqu'à 30 s que tout soit arrivé
    python reconcile.py --expect 10000   exige en plus 10 000 ventes produites
    python reconcile.py --full           relit tout, sans se fier à la dernière fois

Étapes : produites (ce que Kafka a confirmé à producer.py, refait à partir de la graine de chaque suite), Kafka
(ventes distinctes du topic), MongoDB, fichiers CSV terminés, PostgreSQL, ses sommes par jour, la vue des tableaux
de bord. Chaque étape est comparée à la première, par région et par produit.
Termine avec le code 0 si tout est égal, ou en route : les positions du groupe, les arrivages sans lot et les fichiers
pas encore chargés disent ce qui peut manquer à chaque étape. 1 si une différence reste sans explication, en disant
où ; 1 aussi si, avec --wait, tout n'est pas arrivé à temps.
Ne lit que ce qui est venu depuis la dernière fois où tout était égal : ce point est dans ventes-stream-verifie. À la
moindre différence, il relit tout, et c'est ce verdict-là qui compte.
Ne garantit pas : sans --full, qu'une vente changée après avoir été vérifiée se voie ; ni qu'une vente changée entre
deux étapes se voie tant qu'elle peut passer pour une vente en route : arrêtez producer.py, puis --wait. Les dates ne se
comparent pas.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commun.cli import Parser, french_number, positive, run
from commun.kafka import client_config, kafka_options
from commun.settings import export_dir
from exercice3.verification.point import OTHERS_MAX, STATES_MAX, Point, Reread, rows_of, save
from exercice3.verification.produced import Kafka, Produced
from exercice3.verification.stages import (
    Files,
    Lots,
    Topics,
    finished_lots,
    from_files,
    from_kafka,
    from_mongodb,
    last_point,
    open_topics,
    postgres,
)
from exercice3.verification.totals import Totals, differences, on_the_way

TOPIC = "ventes-stream"
GROUP = "ventes-consumer-group"
RETRY_SECONDS = 1.0


def show(steps: Sequence[Totals]) -> None:
    """Affiche les totaux de chaque étape, puis le détail par région et par produit."""
    print(f"{'étape':<12}{'ventes':>10}{'montant (€)':>18}")
    for step in steps:
        amount = french_number(sum(step.cents.values()) / 100, 2)
        notes = f"   ({', '.join(step.notes)})" if step.notes else ""
        print(f"{step.name:<12}{french_number(step.count.total()):>10}{amount:>18}{notes}")
    for axis, title in enumerate(("région", "produit")):
        tables = [step.by(axis) for step in steps]
        print(f"\n{title:<28}{'ventes':>10}{'montant (€)':>18}   étapes égales")
        for value in sorted(set().union(*tables)):
            count, cents = tables[0].get(value, (0, 0))
            equal = [
                step.name
                for step, table in zip(steps, tables, strict=True)
                if table.get(value, (0, 0)) == (count, cents)
            ]
            verdict = "toutes" if len(equal) == len(steps) else ", ".join(equal)
            print(f"{value:<28}{french_number(count):>10}{french_number(cents / 100, 2):>18}   {verdict}")


@dataclass
class Audit:
    """Ce qui a été lu : les sept étapes, et de quoi en faire un point."""

    steps: list[Totals]
    topics: Topics
    lots: Lots
    files: Files
    documents: int
    kafka: Kafka
    produced: Produced
    whole: bool  # tout a été lu, et pas seulement ce qui est venu depuis un point


def collect(args: argparse.Namespace, *, full: bool) -> Audit:
    """Tout, ou ce qui est venu depuis le dernier point. Lève Reread s'il ne suffit pas.

    De la fin vers le début : une vente en route manque à la fin, jamais au début. Ce qui l'explique (fichiers chargés,
    lots terminés, positions validées) se lit avant l'étape où elle peut manquer.
    """
    config = client_config({}, (), args)
    point = None if full else last_point(open_topics(config, args.topic, args.group), args.topic)
    with postgres() as snapshot:
        in_postgres, loaded = snapshot.steps(point), snapshot.loaded()
        if point and point.file not in {name for name, _ in loaded}:
            raise Reread
        finished = finished_lots(point)
        files = from_files(args.export_dir, loaded, point)
        snapshot.add(in_postgres[0], files.ids)
    topics = open_topics(config, args.topic, args.group)
    mongodb, documents = from_mongodb(finished, point)
    kafka, produced = from_kafka(topics, args.topic, point)
    steps = [produced.totals, kafka.totals, mongodb, files.totals, *in_postgres]
    return Audit(steps, topics, finished, files, documents, kafka, produced, point is None)


def audit(args: argparse.Namespace) -> tuple[Audit, list[str]]:
    """Ce qui est nouveau, puis tout s'il y a une différence ; et les différences."""
    if not args.full:
        try:
            read = collect(args, full=False)
            found = differences(read.steps, args.expect, read.produced.unknown)
            if not found or read.whole:
                return read, found
        except Reread:
            pass
    read = collect(args, full=True)
    return read, differences(read.steps, args.expect, read.produced.unknown)


def point_of(read: Audit) -> Point | None:
    """Le point d'une lecture où tout est arrivé ; None si un lot vient d'être écrit, ou s'il serait trop gros."""
    distinct, lot = read.kafka.distinct, max(read.lots, default=0)
    if not lot or read.files.last > lot or len(distinct.others) > OTHERS_MAX or read.produced.unknown:
        return None
    return Point(
        read.topics.topic_id, {str(number): offset for number, offset in read.topics.committed.items()}, lot,
        read.lots[lot][0], read.documents, rows_of(read.steps[0]), rows_of(read.kafka.foreign.totals),
        {str(seed): numbers.ranges() for seed, numbers in distinct.runs.items()}, sorted(distinct.others),
        read.produced.made, dict(list(read.produced.states.items())[-STATES_MAX:]), read.produced.corrections,
    )  # fmt: skip


def verdict(steps: Sequence[Totals], found: Sequence[str], waited: float) -> int:
    """Dit ce qui est égal, en route, ou faux ; renvoie le code de sortie."""
    left = on_the_way(steps)
    if left:
        print("\nEn route :", *left, sep="\n  ")
    if found:
        print("\nDIFFÉRENCES :", *found, sep="\n  ")
        wrong = next((step.name for step in steps if any(text.startswith(step.name) for text in found)), steps[0].name)
        print(f"\nÀ regarder d'abord : {wrong}, la première étape qui diffère.")
        return 1
    total = french_number(steps[0].count.total())
    if not left:
        print(f"\nTout est égal, au centime, de producer.py aux tableaux de bord ({total} ventes).")
    elif waited:
        print(f"\nTout n'est pas arrivé au bout de {waited:g} s : les scripts tournent-ils ?")
    else:
        print(f"\nRien ne manque : ce qui n'est pas encore arrivé est en route ({total} ventes).")
    return 1 if left and waited else 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--topic", env="VENTES_TOPIC", default=TOPIC, help="topic des ventes")
    parser.option("--group", env="VENTES_GROUP", default=GROUP, help="groupe de consumer.py")
    kafka_options(parser)
    parser.option(
        "--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers exportés"
    )
    parser.option("--full", action="store_true", help="relit tout, sans se fier à la dernière fois")
    parser.option("--expect", type=positive(zero=True), help="nombre de ventes qui doivent avoir été produites")
    parser.option(
        "--wait", type=positive(float, zero=True), default=0.0, help="attend S secondes au plus que tout soit arrivé"
    )
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    deadline = time.monotonic() + args.wait
    while True:
        read, found = audit(args)
        equal = not (found or on_the_way(read.steps))
        if equal or time.monotonic() > deadline:
            break
        time.sleep(RETRY_SECONDS)
    if equal and (point := point_of(read)):
        save(read.topics.config, args.topic, point)
    show(read.steps)
    return verdict(read.steps, found, args.wait)


if __name__ == "__main__":
    run(main)
