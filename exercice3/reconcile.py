"""Compare les ventes à chaque étape du pipeline : nombre et somme, au centime, quand vous voulez.

    python reconcile.py                  compare maintenant
    python reconcile.py --wait 30        attend jusqu'à 30 s que tout soit arrivé
    python reconcile.py --expect 10000   exige en plus 10 000 ventes produites

Étapes : produites (ce que Kafka a confirmé à producer.py, refait à partir de la graine de chaque suite), Kafka
(ventes distinctes du topic), MongoDB, fichiers CSV terminés, PostgreSQL, ses sommes par jour, la vue des tableaux
de bord. Chaque étape est comparée à la première, par région et par produit.
Termine avec le code 0 si tout est égal, ou en route : les positions du groupe, les arrivages sans lot et les fichiers
pas encore chargés disent ce qui peut manquer à chaque étape. 1 si une différence reste sans explication, en disant
où ; 1 aussi si, avec --wait, tout n'est pas arrivé à temps.
Ne garantit pas : qu'une vente changée d'une étape à l'autre se voie tant qu'elle peut passer pour une vente en route ;
arrêtez producer.py, puis --wait. Les dates ne se comparent pas.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from commun.cli import Parser, french_number, positive, run
from commun.kafka import client_config
from commun.settings import export_dir
from exercice3.verification.stages import (
    finished_lots,
    from_files,
    from_kafka,
    from_mongodb,
    from_postgres,
    open_topics,
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


def collect(args: argparse.Namespace) -> tuple[list[Totals], int]:
    """Les sept étapes, et les messages effacés par Kafka que rien ne nomme.

    De la fin vers le début : une vente en route manque à la fin, jamais au début. Ce qui l'explique (fichiers chargés,
    lots terminés, positions validées) se lit avant l'étape où elle peut manquer.
    """
    in_postgres, loaded = from_postgres()
    finished = finished_lots()
    files = from_files(args.export_dir, loaded)
    topics = open_topics(client_config({}, (), args.bootstrap_servers), args.topic, args.group)
    mongodb = from_mongodb(finished)
    first, kafka, unknown = from_kafka(topics, args.topic)
    return [first, kafka, mongodb, files, *in_postgres], unknown


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
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option(
        "--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers exportés"
    )
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
        steps, unknown = collect(args)
        found = differences(steps, args.expect, unknown)
        if not (found or on_the_way(steps)) or time.monotonic() > deadline:
            break
        time.sleep(RETRY_SECONDS)
    show(steps)
    return verdict(steps, found, args.wait)


if __name__ == "__main__":
    run(main)
