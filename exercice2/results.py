"""Un résultat de fenêtre, tel qu'il est publié et affiché ; et les alertes. Logique pure, sans Kafka."""

import argparse
import operator
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from exercice2.windows import Result

ALL = "toutes"  # la clé de ce qui n'en a pas
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Row(msgspec.Struct, omit_defaults=True):
    """Une fenêtre. Montants en euros, nombres exacts ; instants UTC, à la milliseconde.

    fin           exclue ; comprise avec --slide event
    par_seconde   transactions par seconde de fenêtre
    correction    vrai : des retards ont changé une fenêtre déjà publiée
    id            avec --slide event, la transaction où la fenêtre finit
    """

    cle: str
    debut: str
    fin: str
    nombre: int
    montant_total: msgspec.Raw
    montant_moyen: msgspec.Raw
    montant_min: msgspec.Raw
    montant_max: msgspec.Raw
    par_seconde: float
    correction: bool = False
    id: str | None = None


def to_row(result: Result) -> Row:
    """La ligne d'un résultat, dont les valeurs sont en centimes."""
    return Row(
        ALL if result.key is None else str(result.key),
        instant_text(result.start),
        instant_text(result.end),
        result.count,
        euros(result.sum),
        mean(result.sum, result.count),
        euros(result.min),
        euros(result.max),
        round(result.count * 1000 / (result.end - result.start), 6),
        not result.final,
        result.tag,
    )


def euros(cents: int) -> msgspec.Raw:
    """Un montant : 1990 centimes s'écrivent 19.90."""
    sign, (whole, rest) = "-" if cents < 0 else "", divmod(abs(cents), 100)
    return msgspec.Raw(f"{sign}{whole}.{rest:02d}")


def mean(cents: int, count: int) -> msgspec.Raw:
    """Une moyenne, arrondie au millionième d'euro, la moitié loin de zéro, comme AVG dans Flink SQL."""
    millionths = (2 * abs(cents) * 10_000 + count) // (2 * count)
    return msgspec.Raw(f"{'-' if cents < 0 else ''}{millionths // 1_000_000}.{millionths % 1_000_000:06d}")


def instant_text(instant: int) -> str:
    """Un instant en millisecondes, en texte : ``2026-01-31T23:59:59.999Z``."""
    seconds, milliseconds = divmod(instant, 1000)
    if seconds not in _texts:
        if len(_texts) > 100_000:
            _texts.clear()
        _texts[seconds] = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{_texts[seconds]}.{milliseconds:03d}Z"


_texts: dict[int, str] = {}  # la plupart des instants partagent leur seconde


class Alert(NamedTuple):
    """Une condition sur une fenêtre : ``montant_total > 10000``."""

    text: str
    field: str
    compare: Any
    threshold: Decimal

    def holds(self, row: Row) -> bool:
        """Vrai si la fenêtre franchit le seuil."""
        value = getattr(row, self.field)
        exact = Decimal(bytes(value).decode()) if isinstance(value, msgspec.Raw) else Decimal(str(value))
        return bool(self.compare(exact, self.threshold))


FIELDS = ("nombre", "montant_total", "montant_moyen", "montant_min", "montant_max", "par_seconde")


def alert_option(text: str) -> Alert:
    """Type d'option : ``montant_total > 10000``."""
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*", text)
    if not match or match[1] not in FIELDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} : écrivez par exemple « montant_total > 10000 » ({', '.join(FIELDS)} ; >, >=, <, <=)"
        )
    return Alert(f"{match[1]} {match[2]} {match[3]}", match[1], OPERATORS[match[2]], Decimal(match[3]))
