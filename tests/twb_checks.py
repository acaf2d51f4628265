"""Ce qu'un classeur Tableau doit tenir et que les schémas XSD ne voient pas : chaque renvoi mène quelque part.

``check`` rend une phrase par faute. Les règles viennent des classeurs enregistrés par Tableau et
des messages qu'il donne : un champ non déclaré disparaît, une feuille sans fenêtre aussi, un
« viewpoints » vide est l'erreur interne 2805CF18, une addition hors du manifeste l'erreur D2E8DA72.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator

REFERENCE = re.compile(r"\[([^\]]+)\]\.\[([^\]]+)\]")
UUID = re.compile(r"\{[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\}")
DERIVATIONS = {"none": "None", "sum": "Sum", "usr": "User", "wd": "Weekday"}
TYPES = {"nk": "nominal", "ok": "ordinal", "qk": "quantitative"}
ZONES = {"layout-basic", "layout-flow", "title", "filter"}
# Ce qu'emploie un fichier, et l'addition qu'il doit alors nommer dans son manifeste.
GATES = {
    ".//zone[@type-v2]": "SetMembershipControl",
    ".//worksheet/simple-id": "SheetIdentifierTracking",
    ".//window/simple-id": "WindowsPersistSimpleIdentifiers",
    ".//computed-sort": "SortTagCleanup",
    ".//object-graph": "ObjectModelEncapsulateLegacy",
    ".//column[@datatype='table']": "ObjectModelTableType",
    ".//extract[@object-id]": "ObjectModelExtractV2",
}
ALWAYS = {"MarkAnimation", "SchemaViewerObjectModel"}
Findings = Iterator[str]


def check(root: ET.Element) -> list[str]:
    """Fautes du classeur, une phrase chacune."""
    rules: list[Callable[[ET.Element], Findings]] = [
        manifest, connections, fields, extracts, sheets, filters, dashboards, windows, identifiers,
    ]  # fmt: skip
    return [finding for rule in rules for finding in rule(root)]


def manifest(root: ET.Element) -> Findings:
    """Chaque addition au format de base est annoncée."""
    listed = {element.tag for element in root.findall("document-format-change-manifest/*")}
    needed = {feature for path, feature in GATES.items() if root.find(path) is not None} | ALWAYS
    yield from (f"manifeste : {feature} manque" for feature in sorted(needed - listed))


def connections(root: ET.Element) -> Findings:
    """L'adresse est complète, aucun mot de passe n'est écrit."""
    for element in root.iter():
        for name in element.attrib:
            if "password" in name:
                yield f"mot de passe écrit dans {element.tag}"
    for connection in root.iter("named-connection"):
        (server,) = connection
        for name in ("authentication", "dbname", "port", "server", "username"):
            if not server.get(name):
                yield f"connexion sans {name}"
    names = {connection.get("name") for connection in root.iter("named-connection")}
    for relation in root.iter("relation"):
        if relation.get("connection", next(iter(names))) not in names:
            yield f"relation {relation.get('name')} : connexion inconnue"


def fields(root: ET.Element) -> Findings:
    """Relation, colonnes décrites, champs, objet : tous parlent de la même table."""
    (source,) = root.findall("datasources/datasource")
    (relation,) = source.findall("connection/relation")
    objects = {element.get("id") for element in source.iter("object")}
    described: dict[str, str] = {}
    for record in source.findall("connection/metadata-records/metadata-record"):
        name = record.findtext("local-name") or ""
        described[name] = record.findtext("local-type") or ""
        if record.findtext("parent-name") != f"[{relation.get('name')}]":
            yield f"{name} : pas la même table que la relation"
        if (record.findtext("object-id") or "").strip("[]") not in objects:
            yield f"{name} : objet inconnu"
    columns = {column.get("name", ""): column for column in source.findall("column")}
    for name, column in columns.items():
        calculation = column.find("calculation")
        if calculation is not None:
            for used in re.findall(r"\[[^\]]+\]", calculation.get("formula", "")):
                if used not in columns:
                    yield f"{name} : la formule emploie {used}, inconnu"
        elif column.get("datatype") == "table":
            if name.partition(".")[2].strip("[]") not in objects:
                yield f"{name} : objet inconnu"
        elif described.get(name) != column.get("datatype"):
            yield f"{name} : type {column.get('datatype')}, décrit comme {described.get(name)}"


def extracts(root: ET.Element) -> Findings:
    """Un extrait décrit les colonnes de la source, et l'objet dit où les lire."""
    (source,) = root.findall("datasources/datasource")
    live = [record.findtext("local-name") for record in source.findall("connection//metadata-record")]
    for extract in source.findall("extract"):
        (connection,) = extract
        (relation,) = connection.findall("relation")
        table = f"[{connection.get('schema')}].[{connection.get('tablename')}]"
        if relation.get("table") != table or source.findall("object-graph//relation")[-1].attrib != relation.attrib:
            yield "extrait : pas la table que l'objet lit"
        if connection.get("class") != "hyper" or not (connection.get("dbname") or "").endswith(".hyper"):
            yield "extrait : pas un fichier .hyper"
        records = connection.findall("metadata-records/metadata-record")
        if [record.findtext("local-name") for record in records] != live:
            yield "extrait : pas les colonnes de la source"
        objects = {f"[{element.get('id')}]" for element in source.iter("object")}
        for record in records:
            if record.findtext("parent-name") != f"[{relation.get('name')}]":
                yield f"extrait : {record.findtext('local-name')} vient d'une autre table"
            if record.findtext("object-id") not in objects:
                yield f"extrait : {record.findtext('local-name')} a un objet inconnu"


def declared(element: ET.Element, root: ET.Element) -> tuple[set[str], list[str]]:
    """Pilules déclarées par une feuille ou un tableau de bord, et les fautes de ces déclarations."""
    known = {column.get("name"): column for column in root.findall("datasources/datasource/column")}
    pills, faults = set(), []
    for dependency in element.iter("datasource-dependencies"):
        local = {column.get("name") for column in dependency.findall("column")}
        for column in dependency.findall("column"):
            original = known.get(column.get("name"))
            if original is None or original.attrib != column.attrib:
                faults.append(f"{column.get('name')} : pas le champ de la source")
        for instance in dependency.findall("column-instance"):
            name = instance.get("name", "").strip("[]")
            pills.add(name)
            *_, derivation, field, kind = name.split(":")
            wanted = {"column": f"[{field}]", "derivation": DERIVATIONS[derivation], "type": TYPES[kind]}
            if instance.get("column") not in local:
                faults.append(f"{name} : champ non déclaré")
            if any(instance.get(key) != value for key, value in wanted.items()):
                faults.append(f"{name} : ne dit pas ce qu'il est")
    return pills, faults


def references(element: ET.Element) -> Iterator[tuple[str, str]]:
    """Toutes les pilules auxquelles un élément renvoie, et d'où."""
    for child in element.iter():
        for text in (
            child.text or "",
            *(child.get(name, "") for name in ("column", "using", "param", "ordering-field")),
        ):
            for _, pill in REFERENCE.findall(text):
                yield child.tag, pill


def sheets(root: ET.Element) -> Findings:
    """Chaque pilule d'une feuille y est déclarée, et la source existe."""
    (source,) = root.findall("datasources/datasource")
    for sheet in root.iter("worksheet"):
        pills, faults = declared(sheet, root)
        yield from (f"{sheet.get('name')} : {fault}" for fault in faults)
        for tag, pill in references(sheet):
            if pill not in pills:
                yield f"{sheet.get('name')} : {tag} renvoie à {pill}, non déclaré"
        shelves = [child for child in sheet.iter() if child.tag in ("rows", "cols")] + sheet.findall(".//encodings/*")
        placed = {pill for shelf in shelves for _, pill in references(shelf)}
        for run in sheet.findall(".//customized-tooltip//run"):
            if any(pill not in placed for _, pill in references(run)):
                yield f"{sheet.get('name')} : l'infobulle nomme un champ qui n'est sur aucune étagère"
        text = ET.tostring(sheet, encoding="unicode")
        if {name for name, _ in REFERENCE.findall(text)} != {source.get("name")}:
            yield f"{sheet.get('name')} : renvoi à une source inconnue"


def filters(root: ET.Element) -> Findings:
    """Les trois filtres sont les mêmes partout, et posés sur des tranches."""
    groups: dict[str, set[str]] = {}
    for sheet in root.iter("worksheet"):
        slices = {column.text for column in sheet.findall(".//slices/column")}
        found = sheet.findall(".//filter")
        if len(found) != 3:
            yield f"{sheet.get('name')} : {len(found)} filtres au lieu de trois"
        for element in found:
            groups.setdefault(element.get("filter-group", ""), set()).add(element.get("column", ""))
            if element.get("column") not in slices:
                yield f"{sheet.get('name')} : filtre hors des tranches"
            for group in element.findall("groupfilter"):
                if not element.get("column", "").endswith("." + group.get("level", "")):
                    yield f"{sheet.get('name')} : le filtre porte sur un autre niveau"
    if sorted(map(len, groups.values())) != [1, 1, 1]:
        yield "un groupe de filtres n'est pas le même dans toutes les feuilles"


def dashboards(root: ET.Element) -> Findings:
    """Chaque zone montre quelque chose qui existe, à sa place ; chaque filtre est sur chaque tableau de bord."""
    names = {sheet.get("name") for sheet in root.iter("worksheet")}
    for board in root.iter("dashboard"):
        if board.get("name") in names:
            yield f"{board.get('name')} : nom d'une feuille"
        pills, faults = declared(board, root)
        yield from (f"{board.get('name')} : {fault}" for fault in faults)
        zones = list(board.iter("zone"))
        shown = [zone.get("name") for zone in zones if "type-v2" not in zone.attrib]
        yield from (f"{board.get('name')} : feuille inconnue {name}" for name in shown if name not in names)
        if [count for count in Counter(zone.get("id") for zone in zones).values() if count > 1]:
            yield f"{board.get('name')} : deux zones de même identifiant"
        for zone in zones:
            if zone.get("type-v2", "title") not in ZONES:
                yield f"{board.get('name')} : zone de type {zone.get('type-v2')}"
            x, y, width, height = (int(zone.get(name, "-1")) for name in ("x", "y", "w", "h"))
            if min(x, y, width, height) < 0 or max(x + width, y + height) > 100_000:
                yield f"{board.get('name')} : zone hors du cadre"
            if zone.find("zone-style") is not None and zone[-1].tag != "zone-style":
                yield f"{board.get('name')} : zone-style n'est pas en dernier"
        boxes = [zone for zone in zones if zone.get("type-v2") == "filter"]
        if len(boxes) != 3 or any(zone.get("name") not in shown for zone in boxes):
            yield f"{board.get('name')} : un filtre manque ou s'appuie sur une feuille absente"
        for zone in boxes:
            if any(pill not in pills for _, pill in REFERENCE.findall(zone.get("param", ""))):
                yield f"{board.get('name')} : filtre non déclaré"
        size = board.find("size")
        if (
            size is None
            or size.get("minwidth") != size.get("maxwidth")
            or size.get("minheight") != size.get("maxheight")
        ):
            yield f"{board.get('name')} : taille fixe donnée comme un intervalle"


def windows(root: ET.Element) -> Findings:
    """Une fenêtre par feuille et par tableau de bord, qui montre toutes ses feuilles."""
    boards = {board.get("name"): board for board in root.iter("dashboard")}
    wanted = sorted([("worksheet", sheet.get("name")) for sheet in root.iter("worksheet")]
                    + [("dashboard", name) for name in boards])  # fmt: skip
    if sorted((window.get("class"), window.get("name")) for window in root.iter("window")) != wanted:
        yield "il manque une fenêtre, ou il y en a une de trop"
    for window in root.iter("window"):
        if window.get("class") == "worksheet":
            if window.find("cards") is None:
                yield f"{window.get('name')} : fenêtre sans volets"
        elif window.get("name") in boards:
            zones = boards[window.get("name")].iter("zone")
            shown = sorted(zone.get("name", "") for zone in zones if "type-v2" not in zone.attrib)
            if sorted(view.get("name", "") for view in window.iter("viewpoint")) != shown:
                yield f"{window.get('name')} : les viewpoints ne sont pas ses feuilles"
            if window.find("active") is None:
                yield f"{window.get('name')} : fenêtre sans zone active"


def identifiers(root: ET.Element) -> Findings:
    """Les identifiants uniques le sont, et bien formés."""
    found = [element.get("uuid", "") for element in root.iter("simple-id")]
    if len(set(found)) != len(found):
        yield "identifiant employé deux fois"
    if not all(map(UUID.fullmatch, found)):
        yield "identifiant mal formé"
