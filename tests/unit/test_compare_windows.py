"""compare_windows.py : ce qu'il tient pour égal, et pour différent."""

from collections import Counter
from decimal import Decimal
from itertools import islice
from typing import Any

from exercice2.verification.compare_windows import DISORDER, show, transactions
from exercice2.verification.flink_beside import Case, Outcome, Row

import pytest

TWO = Decimal("2.50")
ROW = Row("k", "2026-01-01T00:00:00.000Z", "2026-01-01T00:01:00.000Z", 1, TWO, TWO, TWO, TWO, Decimal("0.016667"), "b")
OTHER = ROW._replace(id="c")


def same(monitor: list[Row], flink: list[Row]) -> bool:
    """Le verdict."""
    return show([Outcome(Case("t", 1, "compte"), "OVER", Counter(monitor), Counter(flink))])


def test_equal_rows() -> None:
    """Les mêmes lignes, dans n'importe quel ordre ; 2.5 et 2.50 sont le même montant."""
    assert same([ROW, OTHER], [OTHER, ROW._replace(montant_total=Decimal("2.5"))])


@pytest.mark.parametrize("change", [{"nombre": 3}, {"montant_max": Decimal(9)}, {"fin": ""}, {"id": "z"}])
def test_a_different_row_is_seen(change: dict[str, Any]) -> None:
    """Une ligne qui diffère d'un champ, chez l'un ou chez l'autre."""
    assert not same([ROW, OTHER], [OTHER, ROW._replace(**change)])
    assert not same([OTHER, ROW._replace(**change)], [ROW, OTHER])


def test_a_repeated_row_or_a_lost_one_is_seen() -> None:
    """Une ligne deux fois, même chez les deux, ou une que l'un n'a pas ; deux moteurs muets ne prouvent rien."""
    assert not same([ROW, OTHER], [ROW, OTHER, OTHER])
    assert not same([ROW, OTHER], [ROW])
    assert not same([ROW, ROW], [ROW, ROW])
    assert not same([], [])


@pytest.mark.parametrize(("partitions", "delay"), DISORDER.items())
def test_disorder_is_the_one_told(partitions: int, delay: float) -> None:
    """Le désordre tient dans le délai dit, et dépasse 5 s sur une seule partition."""
    highest, worst = None, 0.0
    for transaction in islice(transactions(partitions, 2_000, 3), 2_000):
        highest = max(highest or transaction.timestamp, transaction.timestamp)
        worst = max(worst, (highest - transaction.timestamp).total_seconds())
    assert worst <= delay
    assert (worst > 5) == (partitions == 1)
