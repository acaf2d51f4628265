"""compare_windows.py : ce qu'il tient pour égal, pour juste et pour faux."""

from collections import Counter
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest

from exercice2.compare_windows import DISORDER, show, transactions, verdict
from exercice2.engines import Case, Outcome, Row, Rows

AMOUNTS = {"a": Decimal("1.00"), "b": Decimal("2.50"), "c": Decimal("4.00")}
SECONDS = {"a": 0, "b": 30, "c": 75}


def over(*ids: str) -> Rows:
    """Les lignes OVER d'un moteur qui a accepté ``ids``."""
    found: Rows = Counter()
    for id in ids:
        inside = [AMOUNTS[other] for other in ids if SECONDS[id] - 60 <= SECONDS[other] <= SECONDS[id]]
        total = sum(inside, Decimal(0))
        start, end = (f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.000Z" for seconds in _bounds(id))
        found[Row("k", start, end, len(inside), total, total / len(inside), min(inside), max(inside), id)] += 1
    return found


def _bounds(id: str) -> tuple[int, int]:
    return SECONDS[id] + 600 - 60, SECONDS[id] + 600


def outcome(monitor: Rows, flink: Rows, kind: str = "OVER", partitions: int = 1) -> Outcome:
    """Un résultat."""
    return Outcome(Case("t", partitions, "compte"), kind, monitor, flink)


def test_numbers_are_equal_whatever_their_zeros() -> None:
    """2.5 et 2.50 sont le même montant."""
    (row,) = over("b")
    assert verdict(outcome(over("b"), Counter([row._replace(montant_total=Decimal("2.5"))])), AMOUNTS) == "égales"


@pytest.mark.parametrize(("kind", "partitions"), [("HOP", 1), ("OVER", 6)])
def test_elsewhere_any_difference_is_wrong(kind: str, partitions: int) -> None:
    """Hors de l'exception, une ligne de plus est fausse."""
    assert verdict(outcome(over("a", "c"), over("a", "b", "c"), kind, partitions), AMOUNTS) == "FAUSSES"


def test_flink_may_accept_more() -> None:
    """L'exception : Flink a accepté « b », le moniteur non ; chaque ligne est juste."""
    assert verdict(outcome(over("a", "c"), over("a", "b", "c")), AMOUNTS) == "justes, Flink accepte plus"


@pytest.mark.parametrize("change", [{"nombre": 3}, {"montant_total": Decimal(3)}, {"montant_max": Decimal(9)}])
def test_a_wrong_row_is_seen(change: dict[str, Any]) -> None:
    """Une ligne qui ne compte pas ce que son moteur a accepté, chez l'un ou chez l'autre."""
    right = over("a", "b", "c")
    *others, row = sorted(right, key=lambda row: row.fin)
    wrong = Counter([*others, row._replace(**change)])
    assert verdict(outcome(over("a", "c"), wrong), AMOUNTS) == "FAUSSES"
    assert verdict(outcome(wrong, right), AMOUNTS) == "FAUSSES"


def test_a_repeated_row_or_a_lost_one_is_seen() -> None:
    """Une ligne deux fois, ou une que le moniteur seul a acceptée."""
    assert verdict(outcome(over("a", "c"), over("a", "b", "c") + over("c")), AMOUNTS) == "FAUSSES"
    assert verdict(outcome(over("a", "b", "c"), over("a", "c")), AMOUNTS) == "FAUSSES"


def test_nothing_at_all_is_not_a_success() -> None:
    """Deux moteurs qui ne publient rien ne prouvent rien."""
    assert not show([outcome(Counter(), Counter())], AMOUNTS)
    assert show([outcome(over("a"), over("a"))], AMOUNTS)


@pytest.mark.parametrize(("partitions", "delay"), DISORDER.items())
def test_disorder_is_the_one_told(partitions: int, delay: float) -> None:
    """Le désordre tient dans le délai dit, et dépasse 5 s sur une seule partition."""
    highest, worst = None, 0.0
    for transaction in islice(transactions(partitions, 2_000, 3), 2_000):
        highest = max(highest or transaction.timestamp, transaction.timestamp)
        worst = max(worst, (highest - transaction.timestamp).total_seconds())
    assert worst <= delay
    assert (worst > 5) == (partitions == 1)
