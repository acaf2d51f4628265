"""Le contenu d'une fenêtre, et ce qui n'a pu y entrer. Logique pure."""

from collections.abc import Hashable
from typing import Any

import msgspec

NEVER = -(1 << 62)  # avant tout instant : le watermark de départ

Key = Hashable
Stats = list[Any]  # [nombre, somme, minimum, maximum]


class Result(msgspec.Struct, frozen=True):
    """Une fenêtre et son contenu. ``final`` : faux pour une correction (``update``) ou un aperçu."""

    key: Any
    start: int
    end: int  # exclue pour HopWindows, comprise pour TrailingWindows
    count: int
    sum: Any
    min: Any
    max: Any
    final: bool = True
    tag: Any = None  # TrailingWindows : ce que l'événement portait


class Late(msgspec.Struct, frozen=True):
    """Un événement refusé : toutes ses fenêtres étaient closes au watermark ``watermark``."""

    key: Any
    value: Any
    timestamp: int
    watermark: int
    tag: Any = None


def merge(into: Stats, other: Stats) -> None:
    """Ajoute ``other`` à ``into``."""
    into[0] += other[0]
    into[1] += other[1]
    into[2] = min(into[2], other[2])
    into[3] = max(into[3], other[3])


def by_key(result: Result) -> tuple[bool, Any]:
    """Ordre des clés : les absentes d'abord, les autres par leur texte."""
    return (result.key is not None, "" if result.key is None else str(result.key))
