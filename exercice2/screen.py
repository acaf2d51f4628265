"""L'écran de kafka_monitor.py : un tableau vivant dans un terminal, des lignes JSON ailleurs."""

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from commun.cli import french_number
from exercice2.results import instant_text, key_text, per_second
from exercice2.windows import NEVER, Result

KEPT = 30  # fenêtres retenues par clé, pour le trait
KEYS = 15  # clés affichées
REFRESH_SECONDS = 0.5
BARS = "▁▂▃▄▅▆▇█"

Published = tuple[Result, bytes]  # une fenêtre, et l'objet JSON publié


@dataclass
class Numbers:
    """Ce que le moniteur a fait depuis son démarrage."""

    read: int = 0
    rejected: int = 0
    late: int = 0
    published: int = 0
    corrections: int = 0
    watermark: int = NEVER
    alerts: deque[tuple[str, Result]] = field(default_factory=lambda: deque(maxlen=5))
    start: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        rate = self.read / max(time.monotonic() - self.start, 0.001)
        return (
            f"{french_number(self.read)} transactions lues ({french_number(rate)}/s), "
            f"{french_number(self.published)} fenêtres publiées, {self.corrections} corrections, "
            f"{self.late} en retard, {self.rejected} refusées"
        )

    def delay(self) -> str:
        """Retard du watermark sur l'horloge."""
        if self.watermark == NEVER:
            return "watermark inconnu : une partition n'a encore rien dit"
        return f"watermark en retard de {french_number(time.time() - self.watermark / 1000, 1)} s sur l'horloge"


class Screen:
    """Affiche les fenêtres publiées."""

    def __init__(self) -> None:
        self.console = Console(stderr=False)
        self.live: Live | None = None
        self._last: dict[str, deque[Result]] = {}
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, published: list[Published], numbers: Numbers) -> None:
        """De nouvelles fenêtres, et où en est le moniteur."""
        corrections = sum(not result.final for result, _ in published)
        numbers.corrections += corrections
        numbers.published += len(published) - corrections
        if self.live is None:
            if published:
                sys.stdout.write(b"\n".join([*(value for _, value in published), b""]).decode())
                sys.stdout.flush()
            return
        for result, _ in published:
            self._last.setdefault(key_text(result.key), deque(maxlen=KEPT)).append(result)
        if time.monotonic() - self._shown_at > REFRESH_SECONDS:
            self._shown_at = time.monotonic()
            self.live.update(self._render(numbers), refresh=True)

    def _render(self, numbers: Numbers) -> Group:
        table = Table(title="Dernière fenêtre de chaque clé")
        for name in ("clé", "fin (UTC)", "nombre", "total (€)", "moyenne (€)", "min (€)", "max (€)", "par s"):
            table.add_column(name, justify="left" if name == "clé" else "right")
        table.add_column("total, dernières fenêtres")
        for key in sorted(self._last, key=lambda key: -self._last[key][-1].sum)[:KEYS]:
            result = self._last[key][-1]
            amounts = (result.sum, result.sum / result.count, result.min, result.max)
            cells = [french_number(cents / 100, 2) for cents in amounts]
            trend = sparkline([past.sum for past in self._last[key]])
            end, rate = instant_text(result.end)[11:19], french_number(per_second(result), 1)
            table.add_row(key, end, french_number(result.count), *cells, rate, trend)
        alerts = [
            Text(f"ALERTE {text} : {key_text(result.key)}, fin {instant_text(result.end)}", style="bold red")
            for text, result in numbers.alerts
        ]
        return Group(table, Text(f"{numbers}, {numbers.delay()}"), *alerts)


def sparkline(values: list[int]) -> str:
    """Un trait de blocs, du plus petit au plus grand."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
