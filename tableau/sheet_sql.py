"""La requête SQL de chaque feuille d'un classeur, telle que Tableau la poserait. Logique pure.

Lit le fichier .twb lui-même, pas les déclarations dont il est fait : un champ mal écrit dans
le classeur donne une requête fausse ici aussi. Les tests exécutent ces requêtes et les
comparent à la table ventes ; apercu.py les montre, draw.py en fait les images du README.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

PILL = re.compile(r"\[[^\]]+\]\.\[([^\]]+)\]")
MEASURES = ("sum:", "usr:", "rank:")


class Label(NamedTuple):
    """Comment une pilule se lit : sa légende et son format, tels qu'ils sont dans le classeur."""

    caption: str
    format: str


class WorkbookSheet(NamedTuple):
    """Une feuille lue dans le classeur.

    ``shelves`` donne les pilules de chaque étagère (rows, cols, color, text, tooltip) ;
    ``labels``, chaque pilule à interroger et comment elle se lit ; ``sort``, ce qui classe les
    marques (pilule et sens), ou rien.
    """

    name: str
    mark: str
    shelves: dict[str, list[str]]
    labels: dict[str, Label]
    formulas: dict[str, str]
    table: str
    sort: tuple[str, ...]

    def pill(self, shelf: str) -> str:
        """Pilule d'une étagère, vide s'il n'y en a pas."""
        return next(iter(self.shelves[shelf]), "")

    @property
    def dimensions(self) -> list[str]:
        """Pilules qui ne sont pas des mesures : une marque par combinaison de leurs valeurs."""
        return [pill for pill in self.labels if not pill.startswith(MEASURES)]


class Selection(NamedTuple):
    """Les trois filtres des tableaux de bord ; None : tout. Les bornes de ``period`` sont comprises."""

    period: tuple[date, date] | None = None
    regions: Sequence[str] | None = None
    products: Sequence[str] | None = None


class Query(NamedTuple):
    """Une requête et ses paramètres, pour ``cursor.execute``."""

    sql: str
    values: dict[str, object]


def read_sheets(path: Path) -> dict[str, WorkbookSheet]:
    """Feuilles du classeur ``path``, par nom."""
    root = ET.parse(path).getroot()  # noqa: S314 - le fichier est le nôtre
    columns = {column.attrib["name"].strip("[]"): column for column in root.findall("datasources/datasource/column")}
    formulas = {
        name: calculation.attrib["formula"]
        for name, column in columns.items()
        if (calculation := column.find("calculation")) is not None
    }
    (relation,) = root.findall("datasources/datasource/connection/relation")
    table = ".".join(re.findall(r"\[([^\]]+)\]", relation.attrib["table"]))
    sheets = {}
    for element in root.findall("worksheets/worksheet"):
        shelves = _shelves(element)
        pills = dict.fromkeys(pill for found in shelves.values() for pill in found)
        fields = {pill: columns[pill.split(":")[-2]].attrib for pill in pills}
        labels = {pill: Label(field["caption"], field.get("default-format", "")) for pill, field in fields.items()}
        mark, sort = (next(iter(element.iter(tag)), None) for tag in ("mark", "computed-sort"))
        sheets[element.attrib["name"]] = WorkbookSheet(
            element.attrib["name"], "" if mark is None else mark.attrib["class"], shelves, labels, formulas, table,
            () if sort is None else (*PILL.findall(sort.attrib["using"]), sort.attrib["direction"]),
        )  # fmt: skip
    return sheets


def _shelves(sheet: ET.Element) -> dict[str, list[str]]:
    """Pilules de chaque étagère d'une feuille ; l'infobulle ne sait dire que ce qui est sur une étagère."""
    texts = {shelf: sheet.findtext(f"table/{shelf}") or "" for shelf in ("rows", "cols")}
    for shelf in ("color", "text", "tooltip"):
        texts[shelf] = " ".join(found.attrib["column"] for found in sheet.findall(f".//encodings/{shelf}"))
    shelves = {shelf: PILL.findall(text) for shelf, text in texts.items()}
    placed = {pill for pills in shelves.values() for pill in pills}
    said = [pill for run in sheet.findall(".//customized-tooltip//run") for pill in PILL.findall(run.text or "")]
    return shelves | {"tooltip": [pill for pill in said if pill in placed]}


def query(sheet: WorkbookSheet, selection: Selection) -> Query:
    """La requête des marques d'une feuille : une colonne par pilule, dans l'ordre de ``sheet.labels``."""
    selected = ", ".join(f'{_expression(pill, sheet)} AS "{pill}"' for pill in sheet.labels)
    where, values = conditions(selection)
    sql = f"SELECT {selected} FROM {sheet.table}{where}"  # noqa: S608 - noms lus dans notre classeur
    if sheet.dimensions:
        sql += " GROUP BY " + ", ".join(_expression(pill, sheet) for pill in sheet.dimensions)
        order = [f'"{pill}"' for pill in sheet.labels if pill in sheet.dimensions or pill.startswith("rank:")]
        if sheet.sort:
            pill, direction = sheet.sort
            order.insert(0, f"{_expression(pill, sheet)} {direction}")
        sql += " ORDER BY " + ", ".join(order)
    return Query(sql, values)


def conditions(selection: Selection) -> tuple[str, dict[str, object]]:
    """Clause WHERE des filtres, vide sans filtre, et ses paramètres."""
    tests: list[str] = []
    values: dict[str, object] = {}
    if selection.period is not None:
        tests.append("jour BETWEEN %(debut)s AND %(fin)s")
        values["debut"], values["fin"] = selection.period
    for name, chosen in (("region", selection.regions), ("produit", selection.products)):
        if chosen is not None:
            tests.append(f"{name} = ANY(%({name})s)")
            values[name] = list(chosen)
    return (" WHERE " + " AND ".join(tests) if tests else ""), values


def _expression(pill: str, sheet: WorkbookSheet) -> str:
    """Expression SQL d'une pilule ; ValueError si elle est d'une sorte que les tableaux n'emploient pas."""
    *prefixes, name, _ = pill.split(":")
    match prefixes:
        case ["none"]:
            return name
        case ["sum"]:
            return f"sum({name})"
        case ["wd"]:
            return f"extract(isodow FROM {name})::integer"
        case ["usr"]:
            # Tableau rend vide une division par zéro.
            guarded = re.sub(r"/ (SUM\(\[\w+\]\))", r"/ nullif(\1, 0)", sheet.formulas[name])
            return re.sub(r"\[(\w+)\]", r"\1", guarded)
        case ["rank", "sum"]:
            # Rang du produit, recommencé pour chaque valeur des autres dimensions.
            others = ", ".join(pill.split(":")[1] for pill in sheet.dimensions if ":produit:" not in pill)
            return f"row_number() OVER (PARTITION BY {others} ORDER BY sum({name}) DESC, produit)"
    raise ValueError(f"pilule inconnue : {pill}")
