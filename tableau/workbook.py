"""Le XML de ventes.twb et de ventes.tds, depuis dashboards.py. Logique pure, sans serveur ni horloge.

Mêmes déclarations, mêmes octets : les identifiants sont des sommes de leur nom, rien n'est
tiré au sort. La forme est celle qu'écrit Tableau Desktop 2025.1 et plus récent : format de
base 18.1, et la liste des additions dont le fichier se sert (« manifeste »), sans laquelle
Tableau refuse chacune d'elles. Source : les schémas XSD que Tableau publie
(tableau-document-schemas) et les classeurs enregistrés par Tableau.
"""

import hashlib
import uuid
import xml.etree.ElementTree as ET  # on n'y fait qu'écrire
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tableau.dashboards import (
    DASHBOARDS,
    FIELDS,
    FILTERS,
    FILTERS_HEIGHT,
    HEIGHT,
    PERIOD,
    SHEETS,
    TITLE_HEIGHT,
    VIEW,
    WIDTH,
    Dashboard,
    Field,
    Sheet,
)

USER = "http://www.tableausoftware.com/xml/user"
ET.register_namespace("user", USER)
CAPTION = "Ventes"
FULL = 100_000  # largeur et hauteur d'un tableau de bord, dans l'unité de ses zones
MARGIN = 8  # pixels
OBJECT_MODEL = ("ObjectModelEncapsulateLegacy", "ObjectModelTableType", "SchemaViewerObjectModel")
MANIFEST = (
    "AnimationOnByDefault", "MarkAnimation", *OBJECT_MODEL,
    "SetMembershipControl", "SheetIdentifierTracking", "SortTagCleanup", "WindowsPersistSimpleIdentifiers",
)  # fmt: skip

# Par type de PostgreSQL : code du type dans Tableau, type local, agrégation par défaut, détails.
TYPES: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "date": ("7", "date", "Year", {}),
    "smallint": ("2", "integer", "Sum", {"precision": "5"}),
    "bigint": ("20", "integer", "Sum", {"precision": "19"}),
    "numeric": ("131", "real", "Sum", {"precision": "18", "scale": "2"}),
    "text": ("129", "string", "Count", {"width": "2147483647"}),
}
NOTHING: Mapping[str, str] = {}
DERIVATIONS = {"none": "None", "sum": "Sum", "usr": "User", "wd": "Weekday"}
PILL_TYPES = {"nk": "nominal", "ok": "ordinal", "qk": "quantitative"}


class Server(NamedTuple):
    """Où Tableau se connecte ; le mot de passe est demandé à l'ouverture, il n'est dans aucun fichier."""

    host: str = "localhost"
    port: int = 5432
    database: str = "ventes_db"
    user: str = "tableau"


def digest(name: str) -> str:
    """Identifiant de 32 chiffres hexadécimaux, toujours le même pour un nom."""
    return hashlib.sha256(name.encode()).hexdigest()[:32].upper()


SOURCE = "federated." + digest("source")[:28].lower()
EXTRACT_PATH = "Data/Extracts/ventes.hyper"
EXTRACT_RELATION = {"name": "Extract", "table": "[Extract].[Extract]", "type": "table"}
CONNECTION = "postgres." + digest("connexion")[:28].lower()
OBJECT = f"{VIEW}_{digest(VIEW)}"


def add(parent: ET.Element, tag: str, attributes: Mapping[str, str] = NOTHING, text: str | None = None) -> ET.Element:
    """Ajoute un élément à ``parent``."""
    element = ET.SubElement(parent, tag, dict(attributes))
    element.text = text
    return element


def simple_id(parent: ET.Element, name: str) -> None:
    """Identifiant unique d'une feuille, d'un tableau de bord ou d'une fenêtre."""
    add(parent, "simple-id", {"uuid": "{" + str(uuid.uuid5(uuid.NAMESPACE_OID, name)).upper() + "}"})


def qualified(pill: str) -> str:
    """Le champ, avec sa source : ``[federated.…].[none:region:nk]``."""
    return f"[{SOURCE}].[{pill}]"


def field_of(pill: str) -> Field:
    """Le champ d'une pilule."""
    name = pill.split(":")[-2]
    return next(field for field in FIELDS if field.name == name)


def pills_of(sheet: Sheet) -> list[str]:
    """Toutes les pilules d'une feuille, filtres compris, chacune une fois."""
    used = (sheet.rows, sheet.cols, sheet.color, sheet.text, *(part for part in sheet.tooltip if is_pill(part)))
    return sorted({*filter(None, used), *FILTERS})


def is_pill(part: str) -> bool:
    """Vrai pour une pilule, faux pour un bout de texte d'infobulle."""
    return part.endswith((":nk", ":ok", ":qk"))


# --- La source de données


def relation(parent: ET.Element) -> None:
    """La vue lue dans PostgreSQL."""
    table = {"connection": CONNECTION, "name": VIEW, "table": f"[public].[{VIEW}]", "type": "table"}
    add(parent, "relation", table)


def all_metadata(connection: ET.Element, table: str) -> None:
    """Les colonnes de ``table`` : la vue, ou son extrait."""
    records = add(connection, "metadata-records")
    for ordinal, field in enumerate((field for field in FIELDS if field.sql_type), 1):
        metadata(records, field, ordinal, table)


def metadata(parent: ET.Element, field: Field, ordinal: int, table: str) -> None:
    """Une colonne, telle que Tableau la décrit."""
    code, local_type, aggregation, details = TYPES[field.sql_type]
    if table != VIEW and local_type == "date":
        code = "133"  # une date dans un extrait
    record = add(parent, "metadata-record", {"class": "column"})
    values = {
        "remote-name": field.name, "remote-type": code, "local-name": f"[{field.name}]", "parent-name": f"[{table}]",
        "remote-alias": field.name, "ordinal": str(ordinal), "local-type": local_type, "aggregation": aggregation,
        **details, "contains-null": "true",
    }  # fmt: skip
    for tag, value in values.items():
        add(record, tag, text=value)
    if local_type == "string":
        add(record, "cast-to-local-type", text="true")
        add(record, "collation", {"flag": "0", "name": "LEN_RUS"})
        attributes = add(record, "attributes")
        add(attributes, "attribute", {"datatype": "string", "name": "TypeIsVarchar"}, '"true"')
    add(record, "object-id", text=f"[{OBJECT}]")


def column(parent: ET.Element, field: Field) -> None:
    """Un champ : sa légende, son type, son format, son calcul."""
    local_type = TYPES[field.sql_type][1] if field.sql_type else "real"
    kind = "quantitative" if field.measure else "nominal" if local_type == "string" else "ordinal"
    attributes = {"caption": field.caption, "datatype": local_type}
    if field.format:
        attributes["default-format"] = field.format
    attributes |= {"name": f"[{field.name}]", "role": "measure" if field.measure else "dimension", "type": kind}
    element = add(parent, "column", attributes)
    if field.formula:
        add(element, "calculation", {"class": "tableau", "formula": field.formula})


def fill_datasource(source: ET.Element, server: Server, extract: bool = False) -> None:
    """Connexion, colonnes et champs : cinq endroits qui doivent s'accorder, ou Tableau retire des champs."""
    connection = add(source, "connection", {"class": "federated"})
    named = add(add(connection, "named-connections"), "named-connection", {"caption": server.host, "name": CONNECTION})
    address = {"dbname": server.database, "one-time-sql": "", "port": str(server.port), "server": server.host}
    add(
        named,
        "connection",
        {"authentication": "username-password", "class": "postgres", **address, "username": server.user},
    )
    relation(connection)
    all_metadata(connection, VIEW)
    add(source, "aliases", {"enabled": "yes"})
    for field in sorted(FIELDS):
        column(source, field)
    table = {"caption": VIEW, "datatype": "table", "name": f"[__tableau_internal_object_id__].[{OBJECT}]"}
    add(source, "column", table | {"role": "measure", "type": "quantitative"})
    if extract:
        packed = add(source, "extract", {"count": "-1", "enabled": "true", "object-id": "", "units": "records"})
        place = {"class": "hyper", "dbname": EXTRACT_PATH, "schema": "Extract", "tablename": "Extract"}
        options = {"access_mode": "readonly", "authentication": "auth-none", "default-settings": "hyper"}
        hyper = add(packed, "connection", options | place | {"sslmode": "", "username": "tableau_internal_user"})
        add(hyper, "relation", EXTRACT_RELATION)
        all_metadata(hyper, "Extract")
    add(source, "layout", {"dim-ordering": "alphabetic", "measure-ordering": "alphabetic", "show-structure": "true"})
    add(source, "date-options", {"start-of-week": "monday"})
    objects = add(add(source, "object-graph"), "objects")
    view = add(objects, "object", {"caption": VIEW, "id": OBJECT})
    relation(add(view, "properties", {"context": ""}))
    if extract:
        add(add(view, "properties", {"context": "extract"}), "relation", EXTRACT_RELATION)


def use_datasource(parent: ET.Element) -> None:
    """Renvoi à la source, dans une feuille ou un tableau de bord."""
    add(add(parent, "datasources"), "datasource", {"caption": CAPTION, "name": SOURCE})


def dependencies(parent: ET.Element, pills: Iterable[str]) -> None:
    """Déclare chaque champ et chaque pilule qui servent : ce qui n'est pas déclaré disparaît à l'ouverture."""
    pills = list(pills)
    element = add(parent, "datasource-dependencies", {"datasource": SOURCE})
    used = {field_of(pill).name for pill in pills}
    formulas = " ".join(field.formula for field in FIELDS if field.name in used)
    for field in FIELDS:
        if field.name in used or f"[{field.name}]" in formulas:
            column(element, field)
    for pill in pills:
        derivation = pill.split(":")[-3]
        instance = {"column": f"[{field_of(pill).name}]", "derivation": DERIVATIONS[derivation], "name": f"[{pill}]"}
        added = add(element, "column-instance", instance | {"pivot": "key", "type": PILL_TYPES[pill[-2:]]})
        if pill.startswith("rank:"):  # rang du produit, recommencé pour chaque région
            order = {"ordering-field": qualified("none:produit:nk"), "ordering-type": "Field"}
            add(added, "table-calc", order | {"rank-options": "Unique,Descending", "type": "Rank"})
    element[:] = sorted(element, key=lambda child: child.get("name", ""))  # l'ordre qu'écrit Tableau


# --- Les feuilles


def formatted(parent: ET.Element, runs: Iterable[tuple[str, dict[str, str]]]) -> None:
    """Texte mis en forme : des morceaux, chacun avec ses attributs."""
    text = add(parent, "formatted-text")
    for content, attributes in runs:
        add(text, "run", attributes, content)


def title(parent: ET.Element, name: str, size: int) -> None:
    """Titre d'une feuille ou d'un tableau de bord."""
    heading = add(add(parent, "layout-options"), "title")
    formatted(heading, [(name, {"bold": "true", "fontsize": str(size)})])


def filters(view: ET.Element) -> None:
    """Période, région et produit : le même groupe dans toutes les feuilles, donc un seul filtre pour toutes."""
    for group, pill in enumerate(FILTERS, 2):
        attributes = {"column": qualified(pill), "filter-group": str(group)}
        if pill == PERIOD:
            add(view, "filter", {"class": "quantitative", **attributes, "included-values": "all"})
        else:
            element = add(view, "filter", {"class": "categorical", **attributes})
            everything = {f"{{{USER}}}ui-enumeration": "all", f"{{{USER}}}ui-marker": "enumerate"}
            add(element, "groupfilter", {"function": "level-members", "level": f"[{pill}]", **everything})


def worksheet(parent: ET.Element, sheet: Sheet) -> None:
    """Une feuille."""
    element = add(parent, "worksheet", {"name": sheet.name})
    title(element, sheet.name, 12)
    table = add(element, "table")
    view = add(table, "view")
    use_datasource(view)
    dependencies(view, pills_of(sheet))
    filters(view)
    if sheet.sort:
        largest = {"direction": "DESC", "using": qualified("sum:chiffre_affaires:qk")}
        add(view, "computed-sort", {"column": qualified(sheet.rows), **largest})
    slices = add(view, "slices")
    for pill in FILTERS:
        add(slices, "column", text=qualified(pill))
    add(view, "aggregation", {"value": "true"})
    add(table, "style")
    pane(add(table, "panes"), sheet)
    add(table, "rows", text=qualified(sheet.rows) if sheet.rows else None)
    add(table, "cols", text=qualified(sheet.cols) if sheet.cols else None)
    simple_id(element, f"feuille {sheet.name}")


def pane(parent: ET.Element, sheet: Sheet) -> None:
    """La marque d'une feuille : couleur, étiquette, infobulle."""
    element = add(parent, "pane", {"selection-relaxation-option": "selection-relaxation-allow"})
    add(add(element, "view"), "breakdown", {"value": "auto"})
    add(element, "mark", {"class": sheet.mark})
    placed = (sheet.rows, sheet.cols, sheet.color, sheet.text)
    # Une infobulle ne dit que ce qui est sur une étagère : le reste va sur la sienne.
    said = [part for part in dict.fromkeys(sheet.tooltip) if is_pill(part) and part not in placed]
    encodings = [("color", sheet.color), ("text", sheet.text), *(("tooltip", pill) for pill in said)]
    if any(pill for _, pill in encodings):
        shelf = add(element, "encodings")
        for tag, pill in encodings:
            if pill:
                add(shelf, tag, {"column": qualified(pill)})
    if sheet.tooltip:
        bubble = add(element, "customized-tooltip")
        formatted(bubble, [(f"<{qualified(part)}>" if is_pill(part) else part, {}) for part in sheet.tooltip])
    if sheet.text and not sheet.rows:  # un chiffre seul, en grand
        big = {"bold": "true", "fontalignment": "1", "fontsize": "22"}
        formatted(add(element, "customized-label"), [(f"<{qualified(sheet.text)}>", big)])
    if sheet.text:
        rule = add(add(element, "style"), "style-rule", {"element": "mark"})
        for attribute in ("mark-labels-show", "mark-labels-cull"):
            add(rule, "format", {"attr": attribute, "value": "true"})


# --- Les tableaux de bord


def dashboard(parent: ET.Element, board: Dashboard) -> None:
    """Un tableau de bord : titre, filtres, puis ses rangées de feuilles."""
    element = add(parent, "dashboard", {"name": board.name})
    title(element, board.name, 18)
    add(element, "style")
    size = {"maxheight": str(HEIGHT), "maxwidth": str(WIDTH), "minheight": str(HEIGHT), "minwidth": str(WIDTH)}
    add(element, "size", size | {"sizing-mode": "fixed"})
    use_datasource(element)
    dependencies(element, FILTERS)
    zones = add(element, "zones")
    Zones(zones).board(board)
    simple_id(element, f"tableau de bord {board.name}")


class Zones:
    """Place les zones d'un tableau de bord ; les pixels deviennent des cent-millièmes."""

    def __init__(self, zones: ET.Element) -> None:
        self.zones = zones
        self.last_id = 1

    def zone(self, parent: ET.Element, box: tuple[float, float, float, float], **attributes: str) -> ET.Element:
        """Une zone : ``box`` donne x, y, largeur et hauteur, en pixels."""
        self.last_id += 1
        x, y, width, height = box
        place = {"h": height / HEIGHT, "w": width / WIDTH, "x": x / WIDTH, "y": y / HEIGHT}
        units = {name: str(round(value * FULL)) for name, value in place.items()}
        names = {name.replace("_", "-"): value for name, value in attributes.items()}
        return add(parent, "zone", {"id": str(self.last_id), **names, **units})

    def board(self, board: Dashboard) -> None:
        """Toutes les zones, de haut en bas."""
        root = self.zone(self.zones, (0, 0, WIDTH, HEIGHT), type_v2="layout-basic")
        left, top, width, height = MARGIN, float(MARGIN), WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        flow = self.zone(root, (left, top, width, height), type_v2="layout-flow", param="vert")
        self.leaf(flow, (left, top, width, TITLE_HEIGHT), type_v2="title")
        top += TITLE_HEIGHT
        host = board.rows[0][1][0]
        row = self.zone(flow, (left, top, width, FILTERS_HEIGHT), type_v2="layout-flow", param="horz")
        for pill, box in zip(FILTERS, split(left, top, width, FILTERS_HEIGHT, len(FILTERS)), strict=True):
            mode = {} if pill == PERIOD else {"mode": "checkdropdown"}
            self.leaf(row, box, type_v2="filter", name=host, param=qualified(pill), **mode)
        top += FILTERS_HEIGHT
        scale = (HEIGHT - MARGIN - top) / sum(wanted for wanted, _ in board.rows)
        for wanted, sheets in board.rows:
            row = self.zone(flow, (left, top, width, wanted * scale), type_v2="layout-flow", param="horz")
            for sheet, box in zip(sheets, split(left, top, width, wanted * scale, len(sheets)), strict=True):
                self.leaf(row, box, name=sheet)
            top += wanted * scale
        zone_style(root, 0)

    def leaf(self, parent: ET.Element, box: tuple[float, float, float, float], **attributes: str) -> None:
        """Une zone qui montre quelque chose."""
        zone_style(self.zone(parent, box, **attributes), 4)


def split(x: float, y: float, width: float, height: float, count: int) -> Iterator[tuple[float, float, float, float]]:
    """Partage une rangée en ``count`` parts égales."""
    for number in range(count):
        yield x + width * number / count, y, width / count, height


def zone_style(zone: ET.Element, margin: int) -> None:
    """Bordure et marge ; toujours en dernier dans la zone."""
    style = add(zone, "zone-style")
    values = {"border-color": "#000000", "border-style": "none", "border-width": "0", "margin": str(margin)}
    for attribute, value in values.items():
        add(style, "format", {"attr": attribute, "value": value})


def windows(parent: ET.Element) -> None:
    """Une fenêtre par tableau de bord et par feuille ; sans la sienne, une feuille disparaît."""
    element = add(parent, "windows", {"source-height": "30"})
    for number, board in enumerate(DASHBOARDS):
        first = {"maximized": "true"} if number == 0 else {}
        window = add(element, "window", {"class": "dashboard", **first, "name": board.name})
        viewpoints = add(window, "viewpoints")
        for _, sheets in board.rows:
            for sheet in sheets:
                add(add(viewpoints, "viewpoint", {"name": sheet}), "zoom", {"type": "entire-view"})
        add(window, "active", {"id": "-1"})
        simple_id(window, f"fenêtre {board.name}")
    for sheet_ in SHEETS:
        window = add(element, "window", {"class": "worksheet", "name": sheet_.name})
        cards(add(window, "cards"))
        simple_id(window, f"fenêtre {sheet_.name}")


def cards(parent: ET.Element) -> None:
    """Les volets autour d'une feuille, comme Tableau les ouvre."""
    strips: dict[str, list[tuple[str, tuple[str, ...]]]] = {
        "left": [("160", ("pages", "filters", "marks"))],
        "top": [("2147483647", ("columns",)), ("2147483647", ("rows",)), ("31", ("title",))],
    }
    for name, content in strips.items():
        edge = add(parent, "edge", {"name": name})
        for size, types in content:
            strip = add(edge, "strip", {"size": size})
            for type_ in types:
                add(strip, "card", {"type": type_})


# --- Les fichiers


def build_workbook(server: Server, extract: bool = False) -> bytes:
    """Contenu de ventes.twb ; avec ``extract``, celui qui va dans ventes.twbx à côté de ses données."""
    root = ET.Element("workbook", {"original-version": "18.1", "source-build": "0.0.0 (0000.0.0.0)",
                                   "source-platform": "win", "version": "18.1"})  # fmt: skip
    manifest(root, (*MANIFEST[:4], *(["ObjectModelExtractV2"] if extract else []), *MANIFEST[4:]))
    preferences = add(root, "preferences")
    for name, value in (("ui.encoding.shelf.height", "24"), ("ui.shelf.height", "26")):
        add(preferences, "preference", {"name": name, "value": value})
    source = {"caption": CAPTION, "inline": "true", "name": SOURCE, "version": "18.1"}
    fill_datasource(add(add(root, "datasources"), "datasource", source), server, extract)
    worksheets = add(root, "worksheets")
    for sheet in SHEETS:
        worksheet(worksheets, sheet)
    dashboards = add(root, "dashboards")
    for board in DASHBOARDS:
        dashboard(dashboards, board)
    windows(root)
    return to_bytes(root)


def build_datasource(server: Server) -> bytes:
    """Contenu de ventes.tds : la source seule, pour faire ses propres feuilles."""
    root = ET.Element("datasource", {"formatted-name": SOURCE, "inline": "true", "source-platform": "win",
                                     "version": "18.1"})  # fmt: skip
    manifest(root, OBJECT_MODEL)
    fill_datasource(root, server)
    return to_bytes(root)


def manifest(root: ET.Element, features: Iterable[str]) -> None:
    """Les additions au format de base dont le fichier se sert."""
    element = add(root, "document-format-change-manifest")
    for feature in features:
        add(element, feature)


def to_bytes(root: ET.Element) -> bytes:
    """Le fichier, en UTF-8, une balise par ligne."""
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8' ?>\n\n{text}\n".encode()
