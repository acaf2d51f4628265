"""reconcile.py sans serveur : ce qu'il compare, et dans quel ordre il lit."""

from collections.abc import Callable
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from exercice3 import reconcile
from exercice3.reconcile import Key, Totals

SALE, OTHER = ("Suisse", "Tablette"), ("Nulle part", "Inconnu")


def totals(name: str, *sales: Key) -> Totals:
    """Une étape où chaque vente de ``sales`` vaut dix euros."""
    step = Totals(name)
    for sale in sales:
        step.add(*sale, Decimal(10))
    return step


@pytest.mark.parametrize(
    ("first", "second", "sentences"),
    [
        ([SALE], [SALE], []),
        ([SALE], [], ["Kafka, Suisse, Tablette : -1 ventes, -10,00 €."]),
        ([SALE], [SALE, OTHER], ["Kafka, Nulle part, Inconnu : +1 ventes, 10,00 €."]),
        ([], [OTHER], ["Kafka, Nulle part, Inconnu : +1 ventes, 10,00 €."]),
    ],
    ids=["égales", "perdue", "en trop, région et produit inconnus", "en trop, rien avant"],
)
def test_a_sale_too_many_is_seen_as_well_as_a_lost_one(
    first: list[Key], second: list[Key], sentences: list[str]
) -> None:
    """Une vente d'une région ou d'un produit que la première étape n'a pas est une différence aussi."""
    assert reconcile.differences([totals("produites", *first), totals("Kafka", *second)], None) == sentences


def test_a_sale_on_its_way_is_late_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Une vente traverse tout le pipeline entre deux lectures : elle manque à la fin, elle n'est jamais de trop."""
    arrived = count(1)

    def read(*names: str) -> list[Totals]:
        sales = [SALE] * next(arrived)
        return [totals(name, *sales) for name in names]

    fakes: dict[str, Callable[..., Any]] = {
        "from_kafka": lambda args: tuple(read("produites", "Kafka")),
        "from_mongodb": lambda: read("MongoDB")[0],
        "from_files": lambda args: read("CSV")[0],
        "from_postgres": lambda: read("PostgreSQL", "par jour", "tableaux"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(reconcile, name, fake)
    steps = reconcile.collect(reconcile.parse_options([]))
    assert [(step.name, step.count.total()) for step in steps] == [
        ("produites", 4), ("Kafka", 4), ("MongoDB", 3), ("CSV", 2),
        ("PostgreSQL", 1), ("par jour", 1), ("tableaux", 1),
    ]  # fmt: skip
    assert all(" : -" in sentence for sentence in reconcile.differences(steps, None))
