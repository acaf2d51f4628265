"""Les comptes de chaos.py : ce qui devait sortir, ce qui est sorti. Logique pure, sans Kafka."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from exercice2.transactions import Transaction, number_of

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SIZE, DELAY = timedelta(seconds=60), timedelta(seconds=5)  # ceux de kafka_monitor.py

Place = tuple[str, datetime]  # une fenêtre : sa clé, sa fin
Content = tuple[int, Decimal, Decimal, Decimal]  # nombre, total, minimum, maximum


class Verdict(NamedTuple):
    """Les comptes : transactions perdues, doublées, inconnues, ou sorties avant une plus ancienne."""

    lost: int
    doubled: int
    unknown: int
    misplaced: int


def judge(confirmed: list[str], output: list[list[str]]) -> Verdict:
    """Compare ce que le producteur a fait confirmer à ce qui est sorti, partition par partition."""
    expected, found = Counter(confirmed), Counter(id for ids in output for id in ids)
    numbers = [[number_of(id) for id in ids] for ids in output]
    return Verdict(
        lost=sum((expected - found).values()),
        doubled=sum(count - 1 for count in found.values()),
        unknown=sum(count for id, count in found.items() if id not in expected),
        misplaced=sum(later < earlier for ids in numbers for earlier, later in pairwise(ids)),
    )


def holes_of(ids: list[str]) -> int:
    """Numéros manquants ou répétés d'une suite fabriquée, jusqu'au dernier : 1, 2, 2, 4 en a deux."""
    numbers = Counter(map(number_of, ids))
    missing = max(numbers, default=0) - len(numbers)
    return missing + sum(count - 1 for count in numbers.values())


class WindowsVerdict(NamedTuple):
    """Les comptes des fenêtres : manquantes, publiées deux fois, inconnues, ou au contenu faux."""

    lost: int
    doubled: int
    unknown: int
    wrong: int


class Window(msgspec.Struct):
    """Ce que les comptes lisent d'une fenêtre publiée."""

    cle: str
    fin: datetime
    nombre: int
    montant_total: Decimal
    montant_min: Decimal
    montant_max: Decimal


def expected_windows(
    transactions: Iterable[tuple[int, Transaction]], by: str | None, slide: timedelta
) -> dict[Place, Content]:
    """Les fenêtres que doit donner un topic sans retard : ses transactions, chacune avec sa partition.

    Chacune est mise, une par une, dans toutes les fenêtres qui la contiennent : lent, et sans rien partager avec
    windows.py. Sont closes celles que le watermark atteint : le plus petit des instants les plus avancés.
    """
    contents: dict[Place, list[Decimal]] = defaultdict(list)
    highest: dict[int, datetime] = {}
    for partition, one in transactions:
        highest[partition] = max(highest.get(partition, EPOCH), one.timestamp)
        start = EPOCH + (one.timestamp - EPOCH) // slide * slide
        while start + SIZE > one.timestamp:
            contents["toutes" if by is None else str(getattr(one, by)), start + SIZE].append(one.montant)
            start -= slide
    watermark = min(highest.values(), default=EPOCH) - DELAY
    return {
        place: (len(amounts), sum(amounts, Decimal(0)), min(amounts), max(amounts))
        for place, amounts in contents.items()
        if place[1] - timedelta(milliseconds=1) <= watermark
    }


def judge_windows(expected: dict[Place, Content], published: Iterable[Window]) -> WindowsVerdict:
    """Compare les fenêtres qui devaient être publiées à celles qui le sont."""
    times: Counter[Place] = Counter()
    unknown = wrong = 0
    for window in published:
        place = window.cle, window.fin
        times[place] += 1
        content = window.nombre, window.montant_total, window.montant_min, window.montant_max
        unknown += place not in expected
        wrong += place in expected and expected[place] != content
    lost = sum(place not in times for place in expected)
    return WindowsVerdict(lost, sum(count - 1 for count in times.values()), unknown, wrong)
