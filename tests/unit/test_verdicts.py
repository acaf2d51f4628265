"""Les comptes de chaos.py voient chaque faute. Sans serveur."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice

from chaos.verdicts import Window, expected_windows, holes_of, judge, judge_windows
from exercice2.transactions import generate, number_of

import msgspec

START = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_judge_sees_every_fault() -> None:
    """Une perte, un doublon, une inconnue, un désordre."""
    confirmed = [f"00000001-{number:08d}" for number in range(1, 7)]
    assert judge(confirmed, [confirmed[:3], confirmed[3:]]) == (0, 0, 0, 0)
    assert judge(confirmed, [confirmed[1:]]) == (1, 0, 0, 0)
    assert judge(confirmed, [confirmed[:3], confirmed[2:]]) == (0, 1, 0, 0)
    assert judge(confirmed[:5], [confirmed]) == (0, 0, 1, 0)
    assert judge(confirmed, [confirmed[3:] + confirmed[:3]]) == (0, 0, 0, 1)
    assert Counter(map(number_of, confirmed)).total() == 6


def test_expected_windows() -> None:
    """Trois minutes et demie d'une transaction par seconde, deux partitions : la plus lente décide."""
    stream = list(islice(generate(1, START, 1), 210))
    transactions = [(number % 2, one) for number, one in enumerate(stream)]
    windows = expected_windows(transactions, None, timedelta(seconds=60))
    assert {end: content[0] for (_, end), content in windows.items()} == {
        START + timedelta(minutes=1): 59, START + timedelta(minutes=2): 60, START + timedelta(minutes=3): 60,
    }  # fmt: skip
    assert windows["toutes", START + timedelta(minutes=1)][1] == sum((one.montant for one in stream[:59]), Decimal(0))
    slow = [(0 if one.timestamp < START + timedelta(seconds=64) else 1, one) for one in stream]
    assert len(expected_windows(slow, "type", timedelta(seconds=60))) == 0, "la partition 0 en est à 63 s"


def test_judge_windows_sees_every_fault() -> None:
    """Une fenêtre manquante, publiée deux fois, inconnue, fausse d'un centime."""
    transactions = [(0, one) for one in islice(generate(1, START, 1), 210)]
    expected = expected_windows(transactions, "region", timedelta(seconds=20))
    rows = [Window(key, end, *content) for (key, end), content in expected.items()]
    cent = Decimal("0.01")
    other = Window("ailleurs", rows[0].fin, 1, cent, cent, cent)
    wrong = msgspec.structs.replace(rows[0], montant_total=rows[0].montant_total + cent)
    assert judge_windows(expected, rows) == (0, 0, 0, 0)
    assert judge_windows(expected, rows[1:]) == (1, 0, 0, 0)
    assert judge_windows(expected, [*rows, rows[3]]) == (0, 1, 0, 0)
    assert judge_windows(expected, [*rows, other]) == (0, 0, 1, 0)
    assert judge_windows(expected, [wrong, *rows[1:]]) == (0, 0, 0, 1)


def test_holes() -> None:
    """Un numéro répété ne cache pas celui qui manque."""
    assert [holes_of([f"g-{number}" for number in numbers]) for numbers in ([], [1, 2, 3], [1, 2, 2, 4], [2])] == [
        0, 0, 2, 1,
    ]  # fmt: skip
