"""L'écran de kafka_monitor.py : un tableau vivant, ou des lignes JSON et un compte rendu."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from commun.cli import french_number
from commun.metrics import Durations
from exercice2.fenetres.published import instant_text, key_text, per_second
from exercice2.fenetres.windows import NEVER, Result

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

log = logging.getLogger("pipeline")

KEPT = 12  # fenêtres retenues par clé, pour le trait
KEYS = 15  # clés affichées
MOST_KEYS = 1000  # clés retenues : celles qui se taisent s'oublient, la mémoire ne grandit pas avec le temps
WIDE = 140  # colonnes d'un terminal où tout tient
REFRESH_SECONDS = 0.5  # du tableau
REPORT_SECONDS = 10.0  # du compte rendu, avec les lignes JSON
RATE_SECONDS = 5.0  # le débit est celui des dernières secondes
MORE = ("moyenne (€)", "min (€)", "max (€)", "par s")  # ce qui ne s'affiche qu'en large
BARS = "▁▂▃▄▅▆▇█"

Published = tuple[Result, bytes]  # une fenêtre, et l'objet JSON publié
Preview = Callable[[Iterable[Any], int], list[Result]]  # voir HopWindows.preview


@dataclass
class Numbers:
    """Ce que le moniteur a fait depuis son démarrage, et où il en est."""

    read: int = 0
    rejected: int = 0
    late: int = 0
    published: int = 0
    corrections: int = 0
    lag: dict[int, int] = field(default_factory=dict)  # messages qui restent à lire, par partition
    watermark: int = NEVER
    merging: bool = False  # c'est lui qui réunit les comptes et publie
    batches: Durations = field(default_factory=Durations)  # un lot de transactions, compté
    alerts: deque[tuple[str, Result]] = field(default_factory=lambda: deque(maxlen=5))
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque([(time.monotonic(), 0)]))

    def __str__(self) -> str:
        return (
            f"{french_number(self.read)} transactions lues ({french_number(self.rate())}/s), "
            f"{french_number(sum(self.lag.values()))} à lire, {french_number(self.published)} fenêtres publiées, "
            f"{self.corrections} corrections, {self.late} en retard, {self.rejected} refusées"
        )

    def rate(self) -> float:
        """Transactions lues par seconde, ces dernières secondes."""
        now = time.monotonic()
        if now - self.samples[-1][0] >= REFRESH_SECONDS:
            self.samples.append((now, self.read))
        while len(self.samples) > 1 and now - self.samples[1][0] >= RATE_SECONDS:
            self.samples.popleft()
        since, before = self.samples[0]
        return (self.read - before) / max(now - since, 0.001)

    def late_by(self) -> float | None:
        """Retard du watermark sur l'horloge, en secondes ; None si l'on n'en sait rien."""
        known = self.merging and self.watermark != NEVER
        return time.time() - self.watermark / 1000 if known else None

    def delay(self) -> str:
        """Ce retard, en une phrase."""
        if not self.merging:
            return "un autre moniteur du groupe réunit les comptes et publie"
        if (seconds := self.late_by()) is None:
            return "watermark inconnu : une partition n'a encore rien dit"
        return f"watermark en retard de {french_number(seconds, 1)} s sur l'horloge"


class Screen:
    """Affiche les fenêtres publiées, en tableau vivant (``table``) ou en lignes (``json``)."""

    def __init__(self, style: str) -> None:
        self.live = Live(console=Console(), auto_refresh=False) if style == "table" else None
        self.last: dict[Any, deque[Result]] = {}  # la clé la plus anciennement publiée d'abord
        self._shown_at = time.monotonic()
        self._streams: dict[logging.StreamHandler[Any], Any] = {}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
            if sys.__stderr__ and sys.__stderr__.isatty():  # le journal s'écrit au-dessus du tableau, pas dedans
                handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
                self._streams = {handler: handler.setStream(sys.stderr) for handler in handlers}
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        for handler, stream in self._streams.items():
            if stream:
                handler.setStream(stream)

    def keep(self, result: Result) -> None:
        """Retient une fenêtre publiée."""
        past = self.last.pop(result.key, None) or deque(maxlen=KEPT)
        past.append(result)
        self.last[result.key] = past
        while len(self.last) > MOST_KEYS:
            del self.last[next(iter(self.last))]

    def ranked(self) -> list[Any]:
        """Les clés à montrer : celles qui vivent encore d'abord, puis les plus gros totaux."""
        newest = max((past[-1].end for past in self.last.values()), default=0)

        def rank(key: Any) -> tuple[bool, Any]:
            one = self.last[key][-1]
            return newest - one.end > one.end - one.start, -one.sum

        return sorted(self.last, key=rank)[:KEYS]

    def show(self, published: list[Published], numbers: Numbers, preview: Preview) -> None:
        """De nouvelles fenêtres, et où en est le moniteur."""
        corrections = sum(not result.final for result, _ in published)
        numbers.corrections += corrections
        numbers.published += len(published) - corrections
        if self.live is None and published:
            sys.stdout.write(b"\n".join([*(value for _, value in published), b""]).decode())
            sys.stdout.flush()
        if self.live is not None:
            for result, _ in published:
                self.keep(result)
        if time.monotonic() - self._shown_at < (REFRESH_SECONDS if self.live else REPORT_SECONDS):
            return
        self._shown_at = time.monotonic()
        if self.live is None:
            log.info("%s ; %s.", numbers, numbers.delay())
        else:
            self.live.update(self._render(self.live, numbers, preview), refresh=True)

    def _render(self, live: Live, numbers: Numbers, preview: Preview) -> Group:
        shown = self.ranked()
        current = {result.key: result for result in preview(shown, KEYS)}
        shown = [*shown, *(key for key in current if key not in self.last)][:KEYS]
        wide = live.console.width >= WIDE
        filling = next((f", {instant_text(result.end)[11:19]}" for result in current.values()), "") if wide else ""
        names = ["fin", "nombre", "total (€)", *(MORE if wide else ()), "évolution", f"en cours{filling}"]
        table = Table(
            box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="La dernière minute close de chaque clé (heures UTC)"
        )
        table.add_column("clé", no_wrap=True, max_width=30 if wide else 16)
        for name in [*names, "total (€)"] if wide else names:
            table.add_column(name, justify="left" if name == "évolution" else "right", no_wrap=True)
        for key in shown:
            closed = _closed(self.last.get(key), wide) or [""] * (len(names) - 1)
            table.add_row(key_text(key), *closed, *_opened(current.get(key), wide))
        alerts = [
            Text(f"ALERTE {text} : {key_text(result.key)}, fin {instant_text(result.end)}", style="bold red")
            for text, result in numbers.alerts
        ]
        return Group(table, Text(f"{numbers} ; {numbers.delay()}"), *alerts)


def _closed(past: "deque[Result] | None", wide: bool) -> list[str]:
    """Cellules de la dernière fenêtre close d'une clé, et le trait des précédentes ; vide s'il n'y en a pas."""
    if not past:
        return []
    result = past[-1]
    cells = [instant_text(result.end)[11:19], french_number(result.count), _amount(result.sum, wide)]
    if wide:
        cells += [_amount(cents, wide) for cents in (result.sum / result.count, result.min, result.max)]
        cells.append(french_number(per_second(result), 1))
    return [*cells, sparkline([window.sum for window in past])]


def _opened(result: Result | None, wide: bool) -> list[str]:
    """Cellules de la fenêtre qui se remplit."""
    if not result:
        return []
    return [french_number(result.count), *([_amount(result.sum, wide)] if wide else [])]


def _amount(cents: float, wide: bool) -> str:
    return french_number(cents / 100, 2 if wide else 0)


def sparkline(values: list[int]) -> str:
    """Un trait de blocs, du plus petit au plus grand."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
