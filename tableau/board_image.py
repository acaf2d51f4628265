"""Image d'un tableau de bord : chaque zone du classeur à sa place, chaque feuille avec ses chiffres.

Demande les paquets de tableau/requirements.txt ; draw.py est le script.
"""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from tableau.charts import BLUE, GREY, alphabetical, chart, text_of
from tableau.database import fetch
from tableau.sheet_sql import Selection, WorkbookSheet, query
from tableau.workbook import FULL

import vl_convert
from PIL import Image
from psycopg2.extensions import connection as Connection

COLORS = 128  # une palette : l'image pèse sept fois moins
SCALE = 1.5  # pixels de l'image par pixel du tableau de bord
TITLE_HEIGHT = 26
FONT = 'font-family="DejaVu Sans, Arial, sans-serif"'


class Box:
    """Place d'une zone, en pixels du tableau de bord."""

    def __init__(self, zone: ET.Element, width: int, height: int) -> None:
        self.x, self.width = (int(zone.attrib[name]) * width / FULL for name in "xw")
        self.y, self.height = (int(zone.attrib[name]) * height / FULL for name in "yh")


def text(x: float, y: float, content: str, size: int, **style: str) -> str:
    """Texte en SVG ; ``style`` en donne les attributs."""
    attributes = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in ({"fill": "#222"} | style).items())
    return f'<text x="{x:.0f}" y="{y:.0f}" {FONT} font-size="{size}" {attributes}>{escape(content)}</text>'


def draw_sheet(sheet: WorkbookSheet, rows: Sequence[Sequence[Any]], box: Box) -> str:
    """Une feuille : son titre, puis son chiffre ou sa figure."""
    parts = [text(box.x + 8, box.y + 18, sheet.name, 13, font_weight="bold")]
    if not sheet.shelves["rows"]:
        value = text_of(sheet.pill("text"), rows[0][0], sheet)
        parts.append(text(box.x + 8, box.y + 58, value, 25, fill=BLUE, font_weight="bold"))
        return "".join(parts)
    figure = chart(sheet, rows).properties(
        width=box.width - 16, height=box.height - TITLE_HEIGHT - 6, autosize={"type": "fit", "contains": "padding"}
    )
    png = base64.b64encode(vl_convert.vegalite_to_png(figure.to_dict(), scale=2)).decode()
    parts.append(
        f'<image x="{box.x + 8:.0f}" y="{box.y + TITLE_HEIGHT:.0f}" width="{box.width - 16:.0f}" '
        f'height="{box.height - TITLE_HEIGHT - 6:.0f}" href="data:image/png;base64,{png}"/>'
    )
    return "".join(parts)


def draw_filter(caption: str, box: Box) -> str:
    """Un filtre, tel qu'il est à l'ouverture : tout est montré."""
    place = f'x="{box.x + 8:.0f}" y="{box.y + 24:.0f}" width="{box.width - 24:.0f}" height="28"'
    frame = f'<rect {place} fill="none" stroke="#c8ced3"/>'
    return text(box.x + 8, box.y + 16, caption, 12, fill=GREY) + frame + text(box.x + 16, box.y + 43, "(Tout)", 12)


def slug(name: str) -> str:
    """Nom de fichier d'un tableau de bord : minuscules sans accent, tirets."""
    return re.sub(r"[^a-z]+", "-", alphabetical(name))


def draw_dashboard(dashboard: ET.Element, sheets: dict[str, WorkbookSheet], connection: Connection) -> Image.Image:
    """Image d'un tableau de bord."""
    size = dashboard.find("size")
    width, height = (0, 0) if size is None else (int(size.attrib["maxwidth"]), int(size.attrib["maxheight"]))
    captions = {column.attrib["name"]: column.attrib["caption"] for column in dashboard.iter("column")}
    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for zone in dashboard.iter("zone"):
        box = Box(zone, width, height)
        match zone.get("type-v2"):
            case "title":
                parts.append(text(box.x + 8, box.y + 32, dashboard.attrib["name"], 22, font_weight="bold", fill=BLUE))
            case "filter":
                name = re.findall(r":(\w+):", zone.attrib["param"])[0]
                parts.append(draw_filter(captions[f"[{name}]"], box))
            case None:
                sheet = sheets[zone.attrib["name"]]
                parts.append(draw_sheet(sheet, fetch(connection, query(sheet, Selection())), box))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{"".join(parts)}</svg>'
    return Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=SCALE))).convert("RGB").quantize(COLORS)
