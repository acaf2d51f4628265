"""Les feuilles des tableaux de bord sur dix millions de ventes : par les vues, et droit dans la table.

    python bench/views.py                   dix millions de ventes sur un an ; dix minutes, 3 Go de disque
    python bench/views.py --count 1000000

Tout se passe dans le schéma « mesure », effacé à la fin : vos ventes ne sont pas touchées.
Chaque feuille de ventes.twb est exécutée telle que Tableau la poserait, puis la même question
est posée à la table ventes ; les deux réponses doivent être égales. Le meilleur de trois
essais est gardé. ``--plans`` ajoute les plans de PostgreSQL.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from typing import Any

from commun import PipelineError
from commun.cli import Parser, french_number, positive, run
from commun.settings import ROOT, postgres_dsn
from exercice3.schema import apply_schema
from exercice3.ventes import PRODUITS, REGIONS
from tableau.sheet_sql import Query, Selection, query, read_sheets

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger("pipeline")

LOT = 500_000
TRIES = 3
DAYS = 365
LAST_DAY = date(2025, 12, 31)
LAST_MONTH = Selection(period=(date(2025, 12, 2), LAST_DAY))
# Une vente par ligne, plus nombreuses au fil de l'année, sur toutes les heures, régions et tous les produits.
FILL = """
    INSERT INTO ventes (id, produit, region, montant, date_vente)
    SELECT
        'mesure-' || lpad(n::text, 9, '0'), (%(produits)s)[1 + n %% 10], (%(regions)s)[1 + n / 10 %% 10],
        (50 + random() * 1000)::numeric(10, 2),
        date %(last)s + interval '1 day' - random() * sqrt(random()) * %(days)s * interval '1 day'
    FROM generate_series(%(start)s, %(start)s + %(count)s - 1) AS n
"""
# La même question, sans les vues : une colonne par pilule, dans le même ordre.
DIRECT = {
    "Chiffre d'affaires": "SELECT sum(montant) FROM ventes{where}",
    "Panier moyen": "SELECT sum(montant) / count(*) FROM ventes{where}",
    "Chiffre d'affaires par jour": "SELECT sum(montant), date_vente::date FROM ventes{where} GROUP BY 2 ORDER BY 2",
    "Chiffre d'affaires par région": (
        "SELECT region, sum(montant), count(*), sum(montant) / count(*) FROM ventes{where} GROUP BY 1 ORDER BY 2 DESC"
    ),
    "Régions et produits": "SELECT region, produit, sum(montant) FROM ventes{where} GROUP BY 1, 2 ORDER BY 1, 2",
}


def fill(connection: Connection, count: int) -> None:
    """Écrit ``count`` ventes, par lots, déclencheurs compris."""
    names: dict[str, Any] = {"produits": list(PRODUITS), "regions": list(REGIONS), "days": DAYS, "last": LAST_DAY}
    started = time.monotonic()
    for start in range(1, count + 1, LOT):
        with connection, connection.cursor() as cursor:
            cursor.execute(FILL, names | {"start": start, "count": min(LOT, count + 1 - start)})
        done = min(start + LOT - 1, count)
        log.info("%s ventes, %.0f s.", french_number(done), time.monotonic() - started)
    connection.set_session(autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE ventes, ventes_par_heure, ventes_par_jour")


def timed(connection: Connection, asked: Query) -> tuple[float, list[tuple[Any, ...]]]:
    """Millisecondes du meilleur essai, et les lignes."""
    best, rows = float("inf"), []
    for _ in range(TRIES):
        with connection.cursor() as cursor:
            started = time.monotonic()
            cursor.execute(asked.sql, asked.values)
            rows = cursor.fetchall()
            best = min(best, (time.monotonic() - started) * 1000)
    return best, rows


def rounded(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Lignes comparables : un quotient au centime près, sans les jours où rien ne s'est vendu."""
    return [
        tuple(round(value, 2) if hasattr(value, "quantize") else value for value in row) for row in rows if all(row)
    ]


def measure(connection: Connection, plans: bool) -> bool:
    """Affiche le temps de chaque feuille, sur l'année puis sur trente jours ; faux si une réponse diffère."""
    equal = True
    for title, selection in (("toute l'année", Selection()), ("trente jours", LAST_MONTH)):
        print(f"\n{title:<36}{'vues (ms)':>12}{'table (ms)':>12}{'fois':>8}")
        for name, sheet in read_sheets(ROOT / "tableau" / "ventes.twb").items():
            asked = query(sheet, selection)
            asked = Query(asked.sql.replace("public.", "mesure."), asked.values)
            mine, rows = timed(connection, asked)
            line = f"{name:<36}{french_number(mine):>12}"
            if name in DIRECT:
                where = " WHERE date_vente >= %(debut)s AND date_vente < %(fin)s::date + 1" if selection.period else ""
                theirs, wanted = timed(connection, Query(DIRECT[name].format(where=where), asked.values))
                line += f"{french_number(theirs):>12}{french_number(theirs / mine):>8}"
                if sorted(rounded(rows)) != sorted(rounded(wanted)):
                    line += "   DIFFÉRENTES"
                    equal = False
            print(line, flush=True)
            if plans:
                with connection.cursor() as cursor:
                    cursor.execute("EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) " + asked.sql, asked.values)
                    print(*(f"    {text}" for (text,) in cursor.fetchall()), sep="\n")
    return equal


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--count", type=positive(), default=10_000_000, help="nombre de ventes")
    parser.option("--plans", action="store_true", help="affiche aussi les plans d'exécution")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    try:
        connection = psycopg2.connect(**postgres_dsn(), connect_timeout=5, options="-c search_path=mesure")
    except psycopg2.OperationalError as error:
        raise PipelineError("PostgreSQL ne répond pas : démarrez les services avec « make services ».") from error
    with closing(connection):
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("DROP SCHEMA IF EXISTS mesure CASCADE; CREATE SCHEMA mesure")
            apply_schema(connection)
            fill(connection, args.count)
            equal = measure(connection, args.plans)
        finally:
            connection.rollback()
            with connection, connection.cursor() as cursor:
                cursor.execute("DROP SCHEMA mesure CASCADE")
    print("\nRéponses égales." if equal else "\nDes réponses diffèrent.")
    return 0 if equal else 1


if __name__ == "__main__":
    run(main)
