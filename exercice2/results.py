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

import msgspec

from exercice2.windows import Result

ALL = "toutes"  # la clé de ce qui n'en a pas
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def key_text(key: Any) -> str:
    """La clé, telle qu'elle est publiée."""
    return ALL if key is None else str(key)


def to_json(result: Result) -> bytes:
    """L'objet publié pour un résultat, dont les valeurs sont en centimes."""
    more = "" if result.final else ',"correction":true'
    if result.tag is not None:
        more += f',"id":{_quoted(result.tag)}'
    return (
        f'{{"cle":{_quoted(key_text(result.key))},"debut":"{instant_text(result.start)}",'
        f'"fin":"{instant_text(result.end)}","nombre":{result.count},"montant_total":{euros(result.sum)},'
        f'"montant_moyen":{mean(result.sum, result.count)},"montant_min":{euros(result.min)},'
        f'"montant_max":{euros(result.max)},"par_seconde":{per_second(result):.6g}{more}}}'
    ).encode()


@lru_cache(10_000)
def _quoted(text: str) -> str:
    """Un texte, en JSON."""
    return msgspec.json.encode(text).decode()


def per_second(result: Result) -> float:
    """Transactions par seconde de fenêtre."""
    return result.count * 1000 / (result.end - result.start)


def euros(cents: int) -> str:
    """Un montant : 1990 centimes s'écrivent 19.90."""
    if cents < 0:
        return "-" + euros(-cents)
    return f"{cents // 100}.{cents % 100:02d}"


def mean(cents: int, count: int) -> str:
    """Une moyenne, arrondie au millionième d'euro, la moitié loin de zéro, comme AVG dans Flink SQL."""
    if cents < 0:
        return "-" + mean(-cents, count)
    millionths = (20_000 * cents + count) // (2 * count)
    return f"{millionths // 1_000_000}.{millionths % 1_000_000:06d}"


def instant_text(instant: int) -> str:
    """Un instant en millisecondes, en texte : ``2026-01-31T23:59:59.999Z``."""
    seconds = instant // 1000
    return f"{_second_text(seconds)}.{instant - seconds * 1000:03d}Z"


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
