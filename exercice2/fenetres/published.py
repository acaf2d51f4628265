"""Un résultat de fenêtre, tel qu'il est publié et affiché ; et les alertes. Logique pure, sans Kafka.

Un résultat publié est un objet JSON ; montants en euros, nombres exacts ; instants UTC, à la milliseconde :

cle, debut, fin   la clé (« toutes » sans --by) et la fenêtre ; fin est exclue, comprise avec --slide event
nombre            transactions
montant_total, montant_moyen, montant_min, montant_max
par_seconde       transactions par seconde de fenêtre
correction        vrai, et présent, si des retards ont changé une fenêtre déjà publiée
id                avec --slide event, la transaction où finit la fenêtre
"""

import argparse
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from exercice2.fenetres.windows import Result

import msgspec

ALL = "toutes"  # la clé de ce qui n'en a pas
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
EXACT_MAX = 10**15  # quinze chiffres : au-delà, un flottant n'a plus toutes les décimales, un Decimal prend sa place

Amount = float | Decimal


def key_text(key: Any) -> str:
    """La clé, telle qu'elle est publiée."""
    return ALL if key is None else str(key)


def key_of(result: Result) -> bytes:
    """La clé Kafka d'une fenêtre : une correction remplace, dans un topic compacté, la fenêtre qu'elle corrige."""
    place = f"{key_text(result.key)}|{instant_text(result.end)}"
    return (f"{place}|{result.tag}" if result.tag is not None else place).encode()


class WindowRow(msgspec.Struct, omit_defaults=True, gc=False):
    """L'objet publié."""

    cle: str
    debut: str
    fin: str
    nombre: int
    montant_total: Amount
    montant_moyen: Amount
    montant_min: Amount
    montant_max: Amount
    par_seconde: float
    correction: bool = False
    id: str | None = None


_encode = msgspec.json.Encoder(decimal_format="number").encode


def to_json(result: Result) -> bytes:
    """L'objet publié pour un résultat, dont les valeurs sont en centimes."""
    start, end, count, total = result.start, result.end, result.count, result.sum
    return _encode(
        WindowRow(
            key_text(result.key), instant_text(start), instant_text(end), count, euros(total), mean(total, count),
            euros(result.min), euros(result.max), per_second(result), not result.final, result.tag,
        )
    )  # fmt: skip


def per_second(result: Result) -> float:
    """Transactions par seconde de fenêtre, au millionième."""
    length = 2 * (result.end - result.start)
    return (2 * result.count * 10**9 + length // 2) // length / 1_000_000


def euros(cents: int) -> Amount:
    """Un montant : 1990 centimes font 19.9. Le texte JSON du flottant a les décimales exactes jusqu'à EXACT_MAX."""
    return cents / 100 if -EXACT_MAX < cents < EXACT_MAX else Decimal(cents) / 100


def mean(cents: int, count: int) -> Amount:
    """Une moyenne, arrondie au millionième d'euro, la moitié loin de zéro, comme AVG dans Flink SQL."""
    if cents < 0:
        return -mean(-cents, count)
    millionths = (20_000 * cents + count) // (2 * count)
    return millionths / 1_000_000 if millionths < EXACT_MAX else Decimal(millionths) / 1_000_000


_MILLISECONDS = [f".{number:03d}Z" for number in range(1000)]


def instant_text(instant: int) -> str:
    """Un instant en millisecondes, en texte : ``2026-01-31T23:59:59.999Z``."""
    return _second_text(instant // 1000) + _MILLISECONDS[instant % 1000]


@lru_cache(100_000)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


# --- Alertes ---

FIELDS: dict[str, Callable[[Result], Decimal]] = {
    "nombre": lambda result: Decimal(result.count),
    "montant_total": lambda result: Decimal(result.sum) / 100,
    "montant_moyen": lambda result: Decimal(result.sum) / 100 / result.count,
    "montant_min": lambda result: Decimal(result.min) / 100,
    "montant_max": lambda result: Decimal(result.max) / 100,
    "par_seconde": lambda result: Decimal(result.count) * 1000 / (result.end - result.start),
}


class Alert(NamedTuple):
    """Une condition sur une fenêtre : ``montant_total > 10000``."""

    text: str
    field: str
    compare: Callable[[Decimal, Decimal], bool]
    threshold: Decimal

    def holds(self, result: Result) -> bool:
        """Vrai si la fenêtre franchit le seuil."""
        return self.compare(FIELDS[self.field](result), self.threshold)


def alert_option(text: str) -> Alert:
    """Type d'option : ``montant_total > 10000``."""
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*", text)
    if not match or match[1] not in FIELDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} : écrivez par exemple « montant_total > 10000 » ({', '.join(FIELDS)} ; >, >=, <, <=)"
        )
    return Alert(f"{match[1]} {match[2]} {match[3]}", match[1], OPERATORS[match[2]], Decimal(match[3]))
