"""Les vues, le classeur et l'aperçu : chaque chiffre est celui que donne la table ventes."""

import random
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
import xml.etree.ElementTree as ET
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import URLError

from commun import PipelineError
from commun.settings import ROOT, postgres_dsn, setting
from exercice3.ventes import Vente, generate
from tableau import build_workbook, draw
from tableau.board_image import SCALE
from tableau.charts import number
from tableau.dashboards import FIELDS, HEIGHT, SHEETS, VIEW, WIDTH
from tableau.database import connect, fetch
from tableau.sheet_sql import Selection, WorkbookSheet, query, read_sheets
from tableau.workbook import EXTRACT_PATH
from tests.lab import Lab, Running, wait_until

import psycopg2
import pytest
import streamlit
from PIL import Image
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect, sync_playwright
from psycopg2.extras import execute_values
from streamlit.testing.v1 import AppTest

WORKBOOK = ROOT / "tableau" / "ventes.twb"
PAGE = str(ROOT / "tableau" / "page.py")
SHEET_BY_NAME = read_sheets(WORKBOOK)
END = datetime(2026, 3, 18, 15, 20)
COUNT = 3000
CHROMIUM = shutil.which("chromium")
Rows = list[tuple[Any, ...]]


def insert(ventes: list[Vente]) -> None:
    """Écrit des ventes droit dans la table ; une vente connue est corrigée. Triées, comme dans load.sql."""
    statement = (
        "INSERT INTO ventes (id, produit, region, montant, date_vente) VALUES %s "
        "ON CONFLICT (id) DO UPDATE SET montant = excluded.montant"
    )
    with closing(psycopg2.connect(**postgres_dsn())) as connection, connection, connection.cursor() as cursor:
        execute_values(cursor, statement, [vente[:5] for vente in sorted(ventes)], page_size=COUNT)


@pytest.fixture
def sales(lab: Lab) -> list[Vente]:
    """Trois mille ventes sur trente jours dans la table, le schéma et les vues de pg.py."""
    lab.run("pg")
    ventes = list(islice(generate(3, lambda: END, 30), COUNT))
    insert(ventes)
    return ventes


@pytest.fixture(autouse=True)
def _fresh_caches() -> None:
    """Streamlit garde les réponses d'un test à l'autre."""
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()


def run_sheet(sheet: WorkbookSheet, selection: Selection) -> Rows:
    """Lignes d'une feuille, lues avec le rôle tableau."""
    with closing(connect()) as connection:
        return fetch(connection, query(sheet, selection))


def cents(value: Decimal | None) -> Decimal | None:
    """Arrondi au centime."""
    return None if value is None else value.quantize(Decimal("0.01"))


# --- Les sommes tenues par PostgreSQL


def recomputed(lab: Lab) -> tuple[Rows, Rows]:
    """Les sommes par heure et par jour, refaites depuis la table."""
    per_hour = (
        "SELECT date_vente::date, extract(hour FROM date_vente)::smallint, region, produit, count(*), sum(montant) "
        "FROM ventes GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    )
    per_day = (
        "SELECT date_vente::date, region, produit, count(*), sum(montant) FROM ventes GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    return lab.sql(per_hour), lab.sql(per_day)


def kept(lab: Lab) -> tuple[Rows, Rows]:
    """Les mêmes, telles que les déclencheurs les tiennent."""
    return (
        lab.sql("SELECT * FROM ventes_par_heure WHERE nombre_ventes > 0 ORDER BY 1, 2, 3, 4"),
        lab.sql("SELECT * FROM ventes_par_jour WHERE nombre_ventes > 0 ORDER BY 1, 2, 3"),
    )


def test_sums_follow_every_write(lab: Lab, sales: list[Vente]) -> None:
    """Ajouts, corrections, effacements, dans n'importe quel ordre : les sommes sont celles de la table."""
    dice = random.Random(5)
    more = islice(generate(4, lambda: END, 3), 10_000)
    for _ in range(12):
        kind = dice.choice(("insert", "update", "delete", "upsert"))
        pattern = f"%{dice.randrange(100):02d}"
        match kind:
            case "insert":
                insert(list(islice(more, 200)))
            case "update":
                lab.sql(
                    "UPDATE ventes SET montant = montant + 0.01, region = 'Suisse', "
                    "date_vente = date_vente - interval '1 day' WHERE id LIKE %s",
                    pattern,
                )
            case "delete":
                lab.sql("DELETE FROM ventes WHERE id LIKE %s", pattern)
            case "upsert":
                lab.sql(
                    "INSERT INTO ventes SELECT id, 'Tablette', region, montant * 2, date_vente FROM ventes "
                    "WHERE id LIKE %s "
                    "ON CONFLICT (id) DO UPDATE SET produit = excluded.produit, montant = excluded.montant",
                    pattern,
                )
        assert kept(lab) == recomputed(lab), kind
    lab.sql("TRUNCATE ventes")
    assert kept(lab) == ([], [])


def test_a_cancelled_write_changes_nothing(lab: Lab, sales: list[Vente]) -> None:
    """Une transaction annulée n'a jamais eu lieu pour les sommes non plus."""
    before = kept(lab)
    with closing(psycopg2.connect(**postgres_dsn())) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ventes SET montant = montant + 1")
        connection.rollback()
    assert kept(lab) == before


def test_views_come_back_with_the_table(lab: Lab, sales: list[Vente]) -> None:
    """Sur une base d'avant les vues, ou dont la table a été effacée, pg.py les refait depuis les ventes présentes."""
    lab.sql("DROP TABLE ventes CASCADE")
    lab.run("pg")
    assert kept(lab) == ([], [])
    lab.sql("DROP TABLE ventes_par_heure, ventes_par_jour CASCADE")
    lab.sql("DROP FUNCTION ventes_compter, ventes_oublier CASCADE")
    insert(sales)
    lab.run("pg")
    assert kept(lab) == recomputed(lab)
    insert(list(islice(generate(4, lambda: END, 3), 10)))
    assert kept(lab) == recomputed(lab)


def test_concurrent_writers(lab: Lab, sales: list[Vente]) -> None:
    """Quatre écritures à la fois, chacune à moitié neuve et à moitié correction : ni verrou mortel ni somme perdue."""
    together = threading.Barrier(4)
    fresh = list(islice(generate(100, lambda: END, 2), 4 * 10 * 50))

    def write(number_: int) -> None:
        together.wait(60)
        for lot in range(10):
            known = sales[lot * 50 : lot * 50 + 50][:: 1 if number_ % 2 else -1]
            new = fresh[(number_ * 10 + lot) * 50 :][:50]
            insert([vente._replace(montant=vente.montant + number_ + 1) for vente in known] + new)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert kept(lab) == recomputed(lab)
    assert lab.sql("SELECT count(*) FROM ventes") == [(COUNT + len(fresh),)]


def test_a_taken_name_does_not_stop_the_loads(lab: Lab) -> None:
    """Un objet de l'étudiant porte le nom d'une vue : il reste, une phrase le dit, les ventes se chargent."""
    lab.sql("CREATE TABLE ventes_par_jour (mon_travail text)")
    try:
        assert "Vues des tableaux de bord non posées" in lab.run("pg")
        assert lab.sql("SELECT count(*) FROM ventes") == [(0,)]
        assert lab.sql("SELECT mon_travail FROM ventes_par_jour") == []
    finally:
        lab.sql("DROP TABLE ventes_par_jour")
    assert "non posées" not in lab.run("pg")
    assert kept(lab) == ([], [])


OLD_VIEW = """
    CREATE OR REPLACE VIEW ventes_par_region AS
    SELECT region, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
        0::numeric AS panier_moyen, 0::numeric AS part, 1::bigint AS rang
    FROM ventes_par_jour GROUP BY region
"""


def test_changed_views_and_lost_rights_are_set_again(lab: Lab, sales: list[Vente]) -> None:
    """Un views.sql d'avant, un droit retiré, puis une vue effacée : pg.py remet tout, sans toucher aux sommes."""
    before = kept(lab)
    lab.sql(OLD_VIEW)
    lab.sql("UPDATE schema_version SET empreinte = 'd''avant' WHERE etape = 'views'")
    lab.sql("REVOKE SELECT ON ventes_palmares FROM tableau")
    lab.run("pg")
    assert lab.sql("SELECT max(rang) FROM ventes_par_region") == [(10,)]
    assert lab.sql("SELECT count(*) > 0 FROM ventes_palmares", reader=True) == [(True,)]
    lab.sql("DROP VIEW ventes_analyse")
    lab.run("pg")
    assert run_sheet(SHEET_BY_NAME["Nombre de ventes"], Selection()) == [(COUNT,)]
    assert kept(lab) == before


def test_ready_made_views(lab: Lab, sales: list[Vente]) -> None:
    """Périodes, rangs, parts et évolutions des vues toutes faites, refaits en Python."""
    totals: dict[str, dict[datetime, Decimal]] = {
        grain: defaultdict(Decimal) for grain in ("heure", "jour", "semaine", "mois")
    }
    for vente in sales:
        hour = vente.date_vente.replace(minute=0, second=0)
        day = hour.replace(hour=0)
        for grain, start in (
            ("heure", hour),
            ("jour", day),
            ("semaine", day - timedelta(days=day.weekday())),
            ("mois", day.replace(day=1)),
        ):
            totals[grain][start] += vente.montant
    step = {"heure": timedelta(hours=1), "jour": timedelta(days=1), "semaine": timedelta(days=7)}
    for grain, found in totals.items():
        rows = lab.sql("SELECT debut, chiffre_affaires, chiffre_affaires_precedent, evolution FROM ventes_par_periode "
                       "WHERE grain = %s ORDER BY debut", grain)  # fmt: skip
        assert {debut: total for debut, total, _, _ in rows} == found
        for debut, total, before, change in rows[1:]:
            earlier = debut - step[grain] if grain in step else (debut - timedelta(days=1)).replace(day=1)
            assert before == found.get(earlier, 0)
            assert change == (None if not before else round((total - before) / before, 4))
        assert rows[0][2:] == (None, None)

    by_region: dict[str, list[Decimal]] = defaultdict(list)
    for vente in sales:
        by_region[vente.region].append(vente.montant)
    ranked = sorted(by_region, key=lambda name: -sum(by_region[name]))
    everything = sum(vente.montant for vente in sales)
    assert lab.sql("SELECT * FROM ventes_par_region ORDER BY rang") == [
        (name, len(by_region[name]), sum(by_region[name]), round(sum(by_region[name]) / len(by_region[name]), 2),
         round(sum(by_region[name]) / everything, 4), place)
        for place, name in enumerate(ranked, 1)
    ]  # fmt: skip
    assert lab.sql("SELECT sum(nombre_ventes), min(rang), max(rang) FROM ventes_par_produit") == [(COUNT, 1, 10)]
    in_switzerland: dict[str, Decimal] = defaultdict(Decimal)
    for vente in sales:
        if vente.region == "Suisse":
            in_switzerland[vente.produit] += vente.montant
    best = max(in_switzerland, key=lambda name: in_switzerland[name])
    share = round(in_switzerland[best] / sum(in_switzerland.values()), 4)
    palmares = "SELECT produit, part_region FROM ventes_palmares WHERE region = 'Suisse' AND rang_region = 1"
    assert lab.sql(palmares) == [(best, share)]


RELATIONS = (
    "ventes_par_heure", "ventes_par_jour", VIEW, "ventes_par_periode", "ventes_par_region", "ventes_par_produit",
    "ventes_palmares",
)  # fmt: skip


def test_tableau_reads_the_views_and_nothing_more(lab: Lab, sales: list[Vente]) -> None:
    """Le rôle tableau lit chaque vue ; il n'écrit pas dans les sommes."""
    for relation in RELATIONS:
        assert lab.sql(f"SELECT count(*) > 0 FROM {relation}", reader=True) == [(True,)]
        assert lab.sql("SELECT obj_description(%s::regclass) IS NOT NULL", relation) == [(True,)]
        assert lab.sql("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
                       "AND col_description(attrelid, attnum) IS NULL", relation) == []  # fmt: skip
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        lab.sql("SET TRANSACTION READ WRITE; UPDATE ventes_par_jour SET nombre_ventes = 0", reader=True)


# --- Le classeur


def test_workbook_columns_are_the_view_s(lab: Lab, sales: list[Vente]) -> None:
    """Chaque colonne du classeur est dans la vue, avec ce type ; chaque colonne de la vue est commentée."""
    found = lab.sql("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s "
                    "ORDER BY ordinal_position", VIEW)  # fmt: skip
    assert found == [(field.name, field.sql_type) for field in FIELDS if field.sql_type]
    described = ET.parse(WORKBOOK).findall(".//datasources//metadata-record")
    assert [record.findtext("remote-name") for record in described] == [name for name, _ in found]
    assert [record.findtext("scale") for record in described if record.findtext("scale")] == ["2"] * 4


FALL = date(2026, 3, 4)  # cette sélection n'y vend rien, sept jours plus tôt si : tout y est perdu
SELECTIONS = [
    Selection(),
    Selection(period=(date(2026, 3, 2), date(2026, 3, 12))),
    Selection(regions=("Suisse", "Île-de-France")),
    Selection(period=(date(2026, 3, 10), date(2026, 3, 18)), regions=("Bretagne",), products=("Tablette", "Enceinte")),
    Selection(period=(FALL, FALL), regions=("Allemagne",), products=("Appareil photo",)),
    Selection(products=("Aucun",)),
]


class Expected:
    """Les chiffres d'une sélection, refaits en Python depuis les ventes."""

    def __init__(self, sales: list[Vente], selection: Selection) -> None:
        self.first = min(vente.date_vente for vente in sales).date()
        self.last = max(vente.date_vente for vente in sales)
        self.all = [
            vente
            for vente in sales
            if (selection.regions is None or vente.region in selection.regions)
            and (selection.products is None or vente.produit in selection.products)
        ]
        start, end = selection.period or (self.first, self.last.date())
        self.days = [start + timedelta(days=number) for number in range((end - start).days + 1)]
        self.ventes = [vente for vente in self.all if start <= vente.date_vente.date() <= end]

    def total(self, ventes: list[Vente]) -> Decimal:
        """Chiffre d'affaires."""
        return sum((vente.montant for vente in ventes), Decimal(0))

    def on(self, day: date) -> list[Vente]:
        """Ventes d'un jour, période ou non."""
        return [vente for vente in self.all if vente.date_vente.date() == day]

    def moving_average(self, day: date) -> Decimal | None:
        """Moyenne des sept jours finis ce jour-là ; ni le premier jour ni le dernier n'y entrent."""
        if day < self.first + timedelta(days=7) or day >= self.last.date():
            return None
        return cents(sum((self.total(self.on(day - timedelta(days=back))) for back in range(7)), Decimal(0)) / 7)

    def evolution(self, days: list[date]) -> Decimal | None:
        """Jours qui ont un précédent, comparés à celui-ci, à la même heure pour le dernier jour."""
        comparable = [day for day in days if day > self.first + timedelta(days=7)]
        now = sum((self.total(self.on(day)) for day in comparable), Decimal(0))
        before = Decimal(0)
        for day in comparable:
            earlier = self.on(day - timedelta(days=7))
            if day == self.last.date():
                earlier = [vente for vente in earlier if vente.date_vente.hour <= self.last.hour]
            before += self.total(earlier)
        return round(now / before - 1, 6) if before else None


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_sheet_is_the_table_s_truth(lab: Lab, sales: list[Vente], selection: Selection) -> None:
    """Chaque feuille du classeur, exécutée en SQL sous chaque filtre, donne les chiffres refaits en Python."""
    wanted = Expected(sales, selection)
    found = {name: run_sheet(sheet, selection) for name, sheet in SHEET_BY_NAME.items()}
    assert found.keys() == {sheet.name for sheet in SHEETS}
    total, count = wanted.total(wanted.ventes), len(wanted.ventes)
    assert (found["Chiffre d'affaires"][0][0] or 0) == total
    assert (found["Nombre de ventes"][0][0] or 0) == count
    assert cents(found["Panier moyen"][0][0]) == (cents(total / count) if count else None)
    ((evolution,),) = found["Évolution en sept jours"]
    assert (None if evolution is None else round(evolution, 6)) == wanted.evolution(wanted.days)
    assert selection.period != (FALL, FALL) or evolution == -1

    per_day = {day: amount for amount, day in found["Chiffre d'affaires par jour"]}
    assert {day: amount for day, amount in per_day.items() if amount} == {
        day: wanted.total(wanted.on(day)) for day in wanted.days if wanted.on(day)
    }
    averages = {day: cents(amount) for amount, day in found["Moyenne mobile sur sept jours"]}
    assert {day: amount for day, amount in averages.items() if amount} == {
        day: average for day in wanted.days if (average := wanted.moving_average(day))
    }
    by: dict[str, dict[Any, Decimal]] = {
        name: defaultdict(Decimal) for name in ("region", "produit", "both", "week", "hour")
    }
    for vente in wanted.ventes:
        day = vente.date_vente.date()
        keys = (vente.region, vente.produit, (vente.region, vente.produit), day - timedelta(days=day.weekday()),
                (day.isoweekday(), vente.date_vente.hour))  # fmt: skip
        for kind, key in zip(by, keys, strict=True):
            by[kind][key] += vente.montant
    for name, kind in (("région", "region"), ("produit", "produit")):
        bars = found[f"Chiffre d'affaires par {name}"]
        assert {row[0]: row[1] for row in bars if row[1]} == by[kind]
        assert [row[1] for row in bars] == sorted((row[1] for row in bars), reverse=True)
        assert all(cents(row[3]) == cents(row[1] / row[2]) for row in bars if row[2])
    assert {row[:2]: row[2] for row in found["Régions et produits"] if row[2]} == by["both"]
    assert {row[:2]: row[2] for row in found["Jours et heures"] if row[2]} == by["hour"]
    weeks = {week: (amount, change) for amount, week, change in found["Chaque semaine et son évolution"]}
    assert weeks.keys() >= by["week"].keys()
    for week, (amount, change) in weeks.items():
        assert amount == by["week"].get(week, 0)
        days = [day for day in wanted.days if week <= day < week + timedelta(days=7)]
        assert (None if change is None else round(change, 6)) == wanted.evolution(days)
    ranks: dict[str, list[tuple[int, Decimal, str]]] = defaultdict(list)
    for region, rank, amount, product in found["Palmarès des produits par région"]:
        ranks[region].append((rank, amount, product))
    assert ranks.keys() >= {region for region, _ in by["both"]}
    for region, rows in ranks.items():
        assert [rank for rank, _, _ in rows] == list(range(1, len(rows) + 1))
        assert [amount for _, amount, _ in rows] == sorted((amount for _, amount, _ in rows), reverse=True)
        assert {product: amount for _, amount, product in rows if amount} == {
            product: amount for (where, product), amount in by["both"].items() if where == region
        }


def test_a_sheet_is_only_as_right_as_the_file(lab: Lab, sales: list[Vente], tmp_path: Path) -> None:
    """Un champ faux dans le classeur fait un chiffre faux : les requêtes viennent bien du fichier."""
    broken = tmp_path / "faux.twb"
    text = WORKBOOK.read_text(encoding="utf-8")
    broken.write_text(
        text.replace("SUM([chiffre_affaires]) / SUM([nombre_ventes])", "SUM([chiffre_affaires]) / SUM([heure])")
    )
    right, wrong = (read_sheets(path)["Panier moyen"] for path in (WORKBOOK, broken))
    assert run_sheet(right, Selection()) != run_sheet(wrong, Selection())


def test_packaged_workbook_holds_the_sales(lab: Lab, sales: list[Vente], tmp_path: Path) -> None:
    """ventes.twbx : le classeur et un extrait qui a les mêmes sommes, au centime."""
    hyper = pytest.importorskip("tableauhyperapi", reason="« make twbx » n'a pas été lancé : tableauhyperapi manque")
    assert build_workbook.main(["--extract", "--output-dir", str(tmp_path)]) == 0
    with zipfile.ZipFile(tmp_path / "ventes.twbx") as package:
        assert package.namelist() == ["ventes.twb", EXTRACT_PATH]
        package.extractall(tmp_path)
    with (
        hyper.HyperProcess(hyper.Telemetry.DO_NOT_SEND_USAGE_DATA_TO_TABLEAU, parameters={"log_config": ""}) as process,
        hyper.Connection(process.endpoint, tmp_path / EXTRACT_PATH) as extract,
    ):
        total, count = extract.execute_list_query(
            'SELECT sum("chiffre_affaires"), sum("nombre_ventes") FROM "Extract"."Extract"'
        )[0]
    assert (Decimal(str(total)), int(count)) == (sum(vente.montant for vente in sales), COUNT)


def test_an_extract_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sans tableauhyperapi : une phrase qui dit comment l'avoir."""
    monkeypatch.delitem(sys.modules, "tableau.extract", raising=False)
    monkeypatch.setitem(sys.modules, "tableauhyperapi", None)
    with pytest.raises(PipelineError, match="make twbx"):
        build_workbook.main(["--extract", "--output-dir", str(tmp_path)])


def test_drawing_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sans les paquets de l'aperçu : une phrase qui nomme celui qui manque."""
    monkeypatch.delitem(sys.modules, "tableau.board_image", raising=False)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(PipelineError, match="vl_convert manque"):
        draw.main(["--output-dir", str(tmp_path)])


def test_drawings_come_from_the_workbook(lab: Lab, sales: list[Vente], tmp_path: Path) -> None:
    """draw.py dessine les deux tableaux de bord, à la taille du classeur."""
    assert draw.main(["--output-dir", str(tmp_path)]) == 0
    for path in (ROOT / "tableau" / "images").glob("*.png"):
        if path.name != "apercu.png":
            with Image.open(tmp_path / path.name) as mine, Image.open(path) as theirs:
                assert mine.size == theirs.size == (round(WIDTH * SCALE), round(HEIGHT * SCALE))
                assert len(mine.getcolors(256) or ()) > 20
    assert len(list(tmp_path.glob("*.png"))) == 2


# --- L'aperçu


def page(**parameters: str | list[str]) -> AppTest:
    """La page, exécutée sans navigateur, avec les filtres de l'adresse."""
    app = AppTest.from_file(PAGE, default_timeout=60)
    for name, value in parameters.items():
        app.query_params[name] = value
    return app.run()


def figures(app: AppTest) -> dict[str, str]:
    """Les chiffres affichés, par nom."""
    assert not app.exception
    return {metric.label: metric.value for metric in app.metric}


def test_the_page_shows_the_table_s_figures(lab: Lab, sales: list[Vente]) -> None:
    """Sans filtre, puis filtrée par ses listes : les chiffres sont ceux de la table."""
    app = page()
    total = sum(vente.montant for vente in sales)
    assert figures(app)["Chiffre d'affaires"] == number(total, "€")
    assert figures(app)["Nombre de ventes"] == number(COUNT, "")
    assert figures(app)["Panier moyen"] == number(total / COUNT, "€")
    app.multiselect[0].select("Suisse")
    app.multiselect[1].select("Tablette").run()
    chosen = [vente.montant for vente in sales if (vente.region, vente.produit) == ("Suisse", "Tablette")]
    assert figures(app)["Chiffre d'affaires"] == number(sum(chosen), "€")


def test_a_shared_address_gives_the_same_view(lab: Lab, sales: list[Vente]) -> None:
    """Les filtres se lisent dans l'adresse, période choisie comprise ; ce qui n'a pas de sens y est ignoré."""
    app = page(periode="Choisir les dates", dates=["2026-03-10", "2026-03-12"], region=["Suisse", "Atlantide"])
    start, end = date(2026, 3, 10), date(2026, 3, 12)
    chosen = [vente for vente in sales if start <= vente.date_vente.date() <= end and vente.region == "Suisse"]
    assert figures(app)["Nombre de ventes"] == number(len(chosen), "")
    assert app.date_input[0].value == (start, end)
    week = page(periode="7 derniers jours")
    recent = [vente for vente in sales if vente.date_vente.date() > END.date() - timedelta(days=7)]
    assert figures(week)["Nombre de ventes"] == number(len(recent), "")
    assert figures(page(periode="nimporte", dates="hier", tableau="Autre"))["Nombre de ventes"] == number(COUNT, "")


def test_second_dashboard(lab: Lab, sales: list[Vente]) -> None:
    """L'autre tableau de bord montre ses feuilles."""
    app = page(tableau="Tendances")
    assert not app.exception
    assert any("Palmarès" in text.value for text in app.markdown)


def sentences(app: AppTest) -> str:
    """Ce que la page dit au visiteur hors des chiffres."""
    assert not app.exception
    return " ".join(element.value for element in (*app.info, *app.warning, *app.error))


def test_the_visitor_never_sees_a_trace(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vue absente, table vide, filtre sans vente, base arrêtée, faute imprévue : une phrase."""
    assert "python pg.py" in sentences(page())
    lab.run("pg")
    streamlit.cache_data.clear()
    assert "Aucune vente dans PostgreSQL" in sentences(page())
    some = list(islice(generate(3, lambda: END, 30), 20))
    insert(some)
    streamlit.cache_data.clear()
    sold = {(vente.region, vente.produit) for vente in some}
    apart = [(region, product) for region, _ in sold for _, product in sold if (region, product) not in sold]
    region, product = apart[0]
    assert "élargissez la période" in sentences(page(region=region, produit=product))
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    monkeypatch.setenv("PGPORT", "1")
    assert "PostgreSQL ne répond pas" in sentences(page())
    monkeypatch.undo()
    monkeypatch.setattr("tableau.database.connect", lambda: 1 / 0)
    assert "erreur inattendue" in sentences(page())


def test_a_restarted_server_is_found_again(lab: Lab, sales: list[Vente]) -> None:
    """La connexion gardée meurt avec PostgreSQL ; la suivante la remplace."""
    assert figures(page())
    lab.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tableau' AND pid <> pg_backend_pid()",
        reader=True,
    )
    streamlit.cache_data.clear()
    assert figures(page())["Nombre de ventes"] == number(COUNT, "")


def test_reading_says_what_is_wrong(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sans la vue, sans droit sur elle ou avec un mauvais mot de passe : une phrase, chacune la sienne."""
    with pytest.raises(PipelineError, match="ventes_analyse"):
        run_sheet(SHEET_BY_NAME["Panier moyen"], Selection())
    monkeypatch.setenv("TABLEAU_PASSWORD", "faux")
    with pytest.raises(PipelineError, match="TABLEAU_PASSWORD"):
        connect()
    monkeypatch.delenv("TABLEAU_PASSWORD")
    lab.run("pg")
    lab.sql("REVOKE SELECT ON ventes_analyse FROM tableau")
    with pytest.raises(PipelineError, match="n'a pas le droit"):
        run_sheet(SHEET_BY_NAME["Panier moyen"], Selection())


@pytest.fixture
def preview(lab: Lab) -> Iterator[tuple[Running, str]]:
    """apercu.py en marche, et son adresse."""
    port = str(int(setting("PORT_POSTGRES")) + 50)
    address = f"http://localhost:{port}"
    running = Running([sys.executable, "apercu.py", "--port", port], lab.env, ROOT / "tableau")
    wait_until(lambda: _open(address), 60, lambda: running.text)
    yield running, address
    running.stop()


@pytest.mark.skipif(CHROMIUM is None, reason="le navigateur chromium n'est pas installé")
def test_in_a_real_browser(lab: Lab, sales: list[Vente], preview: tuple[Running, str]) -> None:
    """Dans Chromium, à la largeur d'un téléphone : figures dessinées, chiffres qui montent, filtre dans l'adresse."""
    running, address = preview
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        screen = browser.new_page(viewport={"width": 390, "height": 844})
        screen.goto(address)
        expect(screen.get_by_text(number(COUNT, ""), exact=True)).to_be_visible(timeout=60_000)
        expect(screen.locator("canvas, .vega-embed svg").first).to_be_visible(timeout=60_000)
        width = screen.evaluate("document.documentElement.scrollWidth")
        insert(list(islice(generate(9, lambda: END, 30), 11)))
        expect(screen.get_by_text(number(COUNT + 11, ""), exact=True)).to_be_visible(timeout=60_000)

        def chosen() -> bool:  # la page se redessine sans cesse, et peut avaler un clic
            with suppress(AssertionError, PlaywrightTimeout):
                screen.get_by_role("combobox", name="Région").fill("Suisse", timeout=5_000)
                screen.get_by_role("option", name="Suisse").click(timeout=5_000)
                expect(screen).to_have_url(re.compile("region=Suisse"), timeout=5_000)
            return "region=Suisse" in screen.url

        wait_until(chosen)
        browser.close()
    assert width <= 390
    assert running.stop() == 0
    assert "Traceback" not in running.text


def test_a_taken_port_is_one_sentence(lab: Lab, preview: tuple[Running, str]) -> None:
    """Le port déjà pris : une phrase, code 1."""
    _, address = preview
    port = address.rpartition(":")[2]
    done = subprocess.run([sys.executable, "apercu.py", "--port", port], cwd=ROOT / "tableau", env=lab.env,
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert "déjà pris" in done.stderr.splitlines()[-1]


def _open(address: str) -> bool:

    try:
        with urllib.request.urlopen(address):
            return True
    except URLError:
        return False
