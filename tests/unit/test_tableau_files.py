"""ventes.twb et ventes.tds : tels qu'ils sont générés, et tels que Tableau les demande."""

import importlib
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from commun import PipelineError
from commun.settings import ROOT
from tableau import build_workbook
from tableau.workbook import Server, build_datasource
from tableau.workbook import build_workbook as workbook
from tests.twb_checks import check

import pytest

FOLDER = ROOT / "tableau"
# Les schémas que Tableau publie et un second vérificateur, à côté du dépôt quand on les a.
REFERENCE = ROOT.parent / "shared" / "tableau"
SCHEMAS = sorted(REFERENCE.glob("xsd/twb_*.xsd"))
needs_reference = pytest.mark.skipif(not SCHEMAS, reason="les schémas XSD de Tableau ne sont pas à côté du dépôt")
# Ce vérificateur-là laisse ses fichiers ouverts.
careless = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    """Les fichiers du dépôt sont ceux que build_workbook.py écrit pour le .env livré, octet pour octet."""
    delivered = Server()  # le .env d'ici peut avoir d'autres ports
    options = ["--port", str(delivered.port), "--database", delivered.database]
    assert build_workbook.main([*options, "--output-dir", str(tmp_path)]) == 0
    for name in ("ventes.twb", "ventes.tds"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"python build_workbook.py récrit {name}"


def test_the_server_address_goes_everywhere(tmp_path: Path) -> None:
    """Une autre adresse est dans le classeur et dans la source, sans toucher au reste."""
    options = ["--server", "db.exemple.fr", "--port", "6543", "--database", "autre", "--user", "lecteur"]
    assert build_workbook.main([*options, "--output-dir", str(tmp_path)]) == 0
    for name in ("ventes.twb", "ventes.tds"):
        (server,) = ET.parse(tmp_path / name).iter("named-connection")
        assert server[0].attrib == {
            "authentication": "username-password", "class": "postgres", "dbname": "autre", "one-time-sql": "",
            "port": "6543", "server": "db.exemple.fr", "username": "lecteur",
        }  # fmt: skip


def test_nothing_points_nowhere() -> None:
    """Le classeur tient toutes les règles, avec et sans extrait."""
    assert check(ET.fromstring(workbook(Server()))) == []
    assert check(ET.fromstring(workbook(Server(), extract=True))) == []


def test_source_is_the_workbook_s() -> None:
    """ventes.tds décrit exactement la source du classeur."""
    source = ET.fromstring(build_datasource(Server()))
    (inside,) = ET.fromstring(workbook(Server())).findall("datasources/datasource")
    source.remove(source[0])  # son manifeste
    plain = [[ET.canonicalize(ET.tostring(child), strip_text=True) for child in root] for root in (source, inside)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("script", ["apercu", "build_workbook", "draw"])
def test_scripts_speak_french(script: str) -> None:
    """--help dit comment lancer le script ; une mauvaise option est une phrase, code 2."""

    def launch(option: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"{script}.py", option]
        return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)

    assert launch("--help").stdout.startswith("Usage : ")
    assert f"python {script}.py" in launch("--help").stdout
    wrong = launch("--nimporte")
    assert (wrong.returncode, "option ou argument inconnu : --nimporte" in wrong.stderr) == (2, True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Dossier absent : une phrase."""
    with pytest.raises(PipelineError, match="Impossible d'écrire"):
        build_workbook.main(["--output-dir", str(tmp_path / "absent")])


def first(path: str) -> Callable[[ET.Element], ET.Element]:
    """Premier élément d'un chemin."""
    return lambda root: next(iter(root.findall(path)))


def put(path: str, name: str, value: str) -> Callable[[ET.Element], None]:
    """Faute : un attribut faux."""
    return lambda root: first(path)(root).attrib.update({name: value})


def drop(path: str) -> Callable[[ET.Element], None]:
    """Faute : un élément absent."""

    def fault(root: ET.Element) -> None:
        element = first(path)(root)
        next(parent for parent in root.iter() if element in list(parent)).remove(element)

    return fault


def write(path: str, text: str) -> Callable[[ET.Element], None]:
    """Faute : un texte faux."""
    return lambda root: setattr(first(path)(root), "text", text)


def move_first(path: str) -> Callable[[ET.Element], None]:
    """Faute : le dernier enfant passe devant."""

    def fault(root: ET.Element) -> None:
        element = first(path)(root)
        element.insert(0, element[-1])
        del element[-1]

    return fault


SERVER = ".//named-connection/connection"
FAULTS = [
    (drop("document-format-change-manifest/SetMembershipControl"), "manifeste"),
    (drop("document-format-change-manifest/SheetIdentifierTracking"), "manifeste"),
    (drop("document-format-change-manifest/WindowsPersistSimpleIdentifiers"), "manifeste"),
    (drop("document-format-change-manifest/SortTagCleanup"), "manifeste"),
    (drop("document-format-change-manifest/ObjectModelEncapsulateLegacy"), "manifeste"),
    (drop("document-format-change-manifest/ObjectModelTableType"), "manifeste"),
    (drop("document-format-change-manifest/ObjectModelExtractV2"), "manifeste"),
    (drop("document-format-change-manifest/MarkAnimation"), "manifeste"),
    (drop("document-format-change-manifest/SchemaViewerObjectModel"), "manifeste"),
    (put(".//extract/connection", "tablename", "Autre"), "pas la table"),
    (put(".//extract/connection", "dbname", "Data/ventes.csv"), "pas un fichier .hyper"),
    (drop(".//extract//metadata-record"), "pas les colonnes"),
    (write(".//extract//parent-name", "[ventes]"), "autre table"),
    (write(".//extract//object-id", "[autre]"), "objet inconnu"),
    (drop(".//encodings/tooltip"), "aucune étagère"),
    (put(SERVER, "password", "secret"), "mot de passe"),
    (put(SERVER, "username", ""), "sans username"),
    (put(".//connection/relation", "connection", "postgres.autre"), "connexion inconnue"),
    (write(".//metadata-record/parent-name", "[autre]"), "pas la même table"),
    (write(".//metadata-record/object-id", "[autre]"), "objet inconnu"),
    (put(".//object", "id", "autre"), "objet inconnu"),
    (put("datasources//column/calculation", "formula", "SUM([inconnu])"), "inconnu"),
    (put("datasources//column[@name='[heure]']", "datatype", "string"), "type string"),
    (drop("datasources//column[@name='[produit]']"), "pas le champ de la source"),
    (drop(".//worksheet//datasource-dependencies/column[@name='[region]']"), "champ non déclaré"),
    (drop(".//worksheet//column-instance[@name='[none:region:nk]']"), "non déclaré"),
    (put(".//worksheet//column-instance", "derivation", "Max"), "ne dit pas ce qu'il est"),
    (write(".//worksheet//cols", "[autre].[none:jour:qk]"), "source inconnue"),
    (put(".//encodings/text", "column", "[s].[sum:inconnu:qk]"), "non déclaré"),
    (put(".//computed-sort", "using", "[s].[sum:inconnu:qk]"), "non déclaré"),
    (put(".//table-calc", "ordering-field", "[s].[none:inconnu:nk]"), "non déclaré"),
    (write(".//customized-tooltip//run", "<[s].[sum:inconnu:qk]>"), "non déclaré"),
    (drop(".//worksheet//filter"), "2 filtres"),
    (drop(".//slices/column"), "hors des tranches"),
    (put(".//groupfilter", "level", "[none:heure:ok]"), "autre niveau"),
    (put(".//filter[@class='categorical']", "filter-group", "2"), "groupe de filtres"),
    (put(".//dashboard", "name", "Panier moyen"), "nom d'une feuille"),
    (drop(".//dashboard//column-instance"), "filtre non déclaré"),
    (put(".//zone[@name='Panier moyen']", "name", "Inconnue"), "feuille inconnue"),
    (put(".//zone[@name='Panier moyen']", "id", "2"), "même identifiant"),
    (put(".//zone[@type-v2='title']", "type-v2", "titre"), "zone de type titre"),
    (put(".//zone[@type-v2='title']", "w", "100001"), "hors du cadre"),
    (move_first(".//zones/zone"), "zone-style"),
    (drop(".//zone/zone[@type-v2='filter']"), "un filtre manque"),
    (put(".//zone/zone[@type-v2='filter']", "name", "Jours et heures"), "feuille absente"),
    (put(".//size", "maxwidth", "1400"), "taille fixe"),
    (drop(".//window[@class='worksheet']"), "une fenêtre"),
    (drop(".//window/cards"), "sans volets"),
    (drop(".//viewpoint"), "viewpoints"),
    (drop(".//window/active"), "zone active"),
    (put(".//window/simple-id", "uuid", "{0}"), "mal formé"),
    (
        lambda root: first(".//window/simple-id")(root).attrib.update(first(".//worksheet/simple-id")(root).attrib),
        "deux fois",
    ),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS)
def test_each_rule_finds_its_fault(fault: Callable[[ET.Element], None], sentence: str) -> None:
    """Chaque faute mise dans un classeur juste est trouvée, et nommée."""
    root = ET.fromstring(workbook(Server(), extract=True))
    fault(root)
    assert any(sentence in finding for finding in check(root)), check(root)


def reference_module(name: str) -> ModuleType:
    """Module de vérification posé à côté du dépôt."""
    if str(REFERENCE) not in sys.path:
        sys.path.append(str(REFERENCE))
    return importlib.import_module(name)


@needs_reference
@careless
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.stem)
@pytest.mark.parametrize("extract", [False, True])
def test_valid_for_tableau_s_schemas(schema: Path, extract: bool, tmp_path: Path) -> None:
    """Le classeur suit les schémas publiés ; un élément déplacé n'y passe plus."""
    twbxsd = reference_module("twbxsd")
    path = tmp_path / "ventes.twb"
    path.write_bytes(workbook(Server(), extract))
    assert twbxsd.validate(str(path), str(schema)) == (True, [])
    broken = ET.fromstring(path.read_bytes())
    move_first(".//worksheet/table/view")(broken)
    path.write_bytes(ET.tostring(broken))
    assert not twbxsd.validate(str(path), str(schema))[0]


@needs_reference
@careless
@pytest.mark.parametrize("extract", [False, True])
def test_a_second_checker_agrees(extract: bool, tmp_path: Path) -> None:
    """Un vérificateur écrit par d'autres n'y trouve aucune erreur ; il en trouve dans un classeur cassé."""
    twbcheck = reference_module("twbcheck")
    path = tmp_path / "ventes.twb"
    path.write_bytes(workbook(Server(), extract))
    findings = twbcheck.check(str(path), vocab=str(REFERENCE / "vocab.json"))
    assert [finding for finding in findings if finding[0] == "ERROR"] == []
    # Le seul mot que les classeurs récents de Tableau n'emploient pas : « tout » pour une période.
    assert [finding[2] for finding in findings] == ["value never seen: filter@included-values='all'"]
    broken = ET.fromstring(path.read_bytes())
    drop(".//viewpoint")(broken)
    path.write_bytes(ET.tostring(broken))
    assert any(finding[0] == "ERROR" for finding in twbcheck.check(str(path)))
