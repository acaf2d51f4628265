"""Le graphique de chaque feuille, en Altair, depuis les lignes de sa requête. Aucune base de données ici.

page.py le montre dans un navigateur, draw.py en fait une image : la même figure.
"""

import unicodedata
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from commun.cli import french_number
from tableau.sheet_sql import WorkbookSheet

import altair as alt

BLUE, GREY = "#1f4e79", "#5f6b76"
SPACE = "\u202f"  # entre les milliers, et devant € ou %
WEEKDAYS = ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche")
MONTHS = ["janv.", "févr.", "mars", "avr.", "mai", "juin", "juil.", "août", "sept.", "oct.", "nov.", "déc."]
FRENCH = alt.Locale(
    number=alt.NumberLocale(decimal=",", thousands=SPACE, grouping=[3], currency=["", f"{SPACE}€"]),
    time=alt.TimeLocale(
        dateTime="%A %e %B %Y à %X", date="%d/%m/%Y", time="%H:%M:%S", periods=["", ""],
        days=["dimanche", *WEEKDAYS[:6]], shortDays=["dim.", "lun.", "mar.", "mer.", "jeu.", "ven.", "sam."],
        months=MONTHS, shortMonths=MONTHS,
    ),
)  # fmt: skip
LABEL_ROOM = 1.2  # l'axe dépasse la plus longue barre, pour son étiquette
DARK = 0.55  # au-delà de cette part du maximum, une case est foncée : texte blanc


def number(value: Any, format: str) -> str:
    """Une mesure, écrite comme le demande le format du classeur ; un tiret si elle est vide."""
    if value is None:
        return "-"
    if "%" in format:
        return f"{'+' if value > 0 else ''}{french_number(float(value) * 100, 1)}{SPACE}%"
    if "€" in format:
        return f"{french_number(float(value), 2)}{SPACE}€"
    return french_number(float(value))


def text_of(pill: str, value: Any, sheet: WorkbookSheet) -> str:
    """Une valeur telle qu'on la lit : jour de la semaine, date, mesure à son format, nom."""
    if pill.startswith("wd:"):
        return WEEKDAYS[int(value) - 1]
    if isinstance(value, date):
        return f"{value:%d/%m/%Y}"
    if pill.startswith(("sum:", "usr:")):
        return number(value, sheet.labels[pill].format)
    return str(value)


def alphabetical(name: str) -> str:
    """Un nom en minuscules sans accent, pour trier : Île-de-France vient après Espagne, pas après Suisse."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("œ", "oe").replace("æ", "ae"))
    return plain.encode("ascii", "ignore").decode()


class Figure:
    """Une feuille et ses marques ; chaque méthode en donne un canal d'Altair.

    Une pilule y devient une colonne ``c0``, ``c1``… et sa forme écrite ``t0``, ``t1``… :
    Altair lirait « sum:montant:qk » comme une consigne.
    """

    def __init__(self, sheet: WorkbookSheet, rows: Sequence[Sequence[Any]]) -> None:
        self.sheet = sheet
        self.place = {pill: position for position, pill in enumerate(sheet.labels)}
        self.columns = dict(zip(sheet.labels, zip(*rows, strict=True), strict=False)) if rows else {}
        self.values = [self._line(row) for row in rows]

    def _line(self, row: Sequence[Any]) -> dict[str, Any]:
        line: dict[str, Any] = {}
        for place, (pill, value) in enumerate(zip(self.sheet.labels, row, strict=True)):
            line |= {f"c{place}": _plain(value), f"t{place}": text_of(pill, value, self.sheet)}
        return line

    def largest(self, pill: str) -> float:
        """Plus grande valeur d'une mesure."""
        return max((float(value) for value in self.columns.get(pill, ()) if value is not None), default=0.0)

    def axis(self, shelf: str) -> dict[str, Any]:
        """Réglages du canal x (étagère cols) ou y (étagère rows)."""
        pill = self.sheet.pill(shelf)
        number_, text = f"c{self.place[pill]}", f"t{self.place[pill]}"
        if pill.startswith(("sum:", "usr:")):
            room = self.largest(pill) * LABEL_ROOM if self.sheet.pill("text") else 0
            scale = alt.Scale(domainMax=room) if room else alt.Scale()
            axis = alt.Axis(format="$,.0f", tickCount=5)
            return {"field": number_, "type": "quantitative", "title": None, "axis": axis, "scale": scale}
        if pill.endswith(":qk"):
            axis = alt.Axis(format="%e %b", labelOverlap=True)
            return {"field": number_, "type": "temporal", "title": None, "axis": axis}
        if pill.startswith(("none:heure", "rank:")):
            scale = alt.Scale(domain=list(range(24))) if pill.startswith("none:heure") else alt.Scale()
            return {"field": number_, "type": "ordinal", "title": None, "axis": alt.Axis(labelAngle=0), "scale": scale}
        names = self.columns.get(pill, ())
        order = sorted(set(names), key=alphabetical) if pill.endswith(":nk") and not self.sheet.sort else None
        axis = alt.Axis(labelAngle=-30) if shelf == "cols" else alt.Axis(labelLimit=190)
        return {"field": text, "type": "nominal", "title": None, "axis": axis, "sort": order}

    def color(self) -> alt.Color:
        """Canal de couleur : une seule teinte, plus soutenue quand la valeur monte."""
        legend = alt.Legend(title=None, format="$,.0f", gradientLength=120)
        place = self.place[self.sheet.pill("color")]
        return alt.Color(field=f"c{place}", type="quantitative", scale=alt.Scale(scheme="blues"), legend=legend)

    def tooltip(self) -> list[alt.Tooltip]:
        """Les pilules de l'infobulle, chacune avec sa légende."""
        pills = dict.fromkeys(self.sheet.shelves["tooltip"])
        return [
            alt.Tooltip(field=f"t{self.place[pill]}", type="nominal", title=self.sheet.labels[pill].caption)
            for pill in pills
        ]

    def labels(self, base: alt.Chart) -> alt.Chart:
        """Les étiquettes : dans les cases, au-dessus des barres debout ou au bout des barres couchées."""
        color = self.sheet.pill("color")
        text = alt.Text(field=f"t{self.place[self.sheet.pill('text')]}", type="nominal")
        if color:
            # Blanc sur une case foncée ; un nom trop long pour sa case est coupé.
            dark = alt.datum[f"c{self.place[color]}"] > DARK * self.largest(color)
            shade = alt.when(dark).then(alt.value("white")).otherwise(alt.value("#222"))
            marks = base.mark_text(fontSize=9, limit=alt.expr("bandwidth('x')")).encode(color=shade)
        elif self.sheet.pill("rows").endswith(":qk"):
            marks = base.mark_text(fontSize=10, color=GREY, dy=-7)
        else:
            marks = base.mark_text(fontSize=10, color=GREY, dx=4, align="left")
        labels: alt.Chart = marks.encode(text=text)
        return labels


def _plain(value: Any) -> Any:
    """Valeur que le JSON des graphiques sait écrire."""
    if isinstance(value, Decimal):
        return float(value)
    # Sans l'heure, un navigateur lirait minuit à Londres : la veille, en Martinique.
    return f"{value.isoformat()}T00:00:00" if isinstance(value, date) else value


def chart(sheet: WorkbookSheet, rows: Sequence[Sequence[Any]]) -> alt.LayerChart:
    """Figure d'une feuille qui a des axes ; ``rows`` vient de sa requête, dans l'ordre de ``sheet.labels``."""
    figure = Figure(sheet, rows)
    base = alt.Chart(alt.InlineData(figure.values)).encode(
        x=alt.X(**figure.axis("cols")), y=alt.Y(**figure.axis("rows")), tooltip=figure.tooltip()
    )
    match sheet.mark:
        case "Line":
            marks = base.mark_line(color=BLUE, strokeWidth=2)
        case "Square":
            marks = base.mark_rect().encode(color=figure.color())
        case "Bar":
            marks = base.mark_bar(color=BLUE, opacity=0.85)
        case _:
            raise ValueError(f"marque inconnue : {sheet.mark}")
    layers = [marks, figure.labels(base)] if sheet.pill("text") else [marks]
    layered: alt.LayerChart = alt.layer(*layers).configure(locale=FRENCH).configure_view(stroke=None)
    return layered
