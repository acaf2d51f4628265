"""La page de l'aperçu, que apercu.py fait servir par Streamlit : les feuilles de ventes.twb, dans un navigateur.

Streamlit relit ce fichier de haut en bas à chaque visite et à chaque clic. Les filtres sont
dans l'adresse (bind="query-params") : l'envoyer, c'est partager la vue.
"""

import logging
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from commun import PipelineError
from tableau.charts import alphabetical, chart, text_of
from tableau.dashboards import DASHBOARDS, Dashboard
from tableau.database import Unreachable, connect, fetch
from tableau.sheet_sql import Query, Selection, WorkbookSheet, query, read_sheets

import streamlit as st
from psycopg2.extensions import connection as Connection

log = logging.getLogger("pipeline")

WORKBOOK = Path(__file__).parent / "ventes.twb"
REFRESH_SECONDS = 5
CHART_HEIGHT = 300  # pixels
ROW_HEIGHT = 26  # pixels par ligne d'une feuille à cases ou à barres
AXIS_HEIGHT = 90  # pixels sous ces lignes
NO_SALES = "Aucune vente dans PostgreSQL pour l'instant : « make demo » en fabrique, et elles apparaîtront ici."
NOTHING_SELECTED = "Aucune vente avec ces filtres : élargissez la période, ou retirez une région ou un produit."
ANY, CHOOSE = "Toute la période", "Choisir les dates"
PERIODS = {ANY: None, "7 derniers jours": 7, "30 derniers jours": 30, "90 derniers jours": 90, CHOOSE: None}
DOMAIN = Query(
    "SELECT min(jour), max(jour), array_agg(DISTINCT region), array_agg(DISTINCT produit) FROM ventes_par_jour "
    "WHERE nombre_ventes > 0",
    {},
)
SALES = "Nombre de ventes"


@st.cache_resource
def database() -> Connection:
    """La connexion, partagée par tous les visiteurs."""
    return connect()


@st.cache_data(ttl=REFRESH_SECONDS / 2, show_spinner=False)
def rows(asked: Query) -> list[tuple[Any, ...]]:
    """Lignes d'une requête, gardées un instant : cent visiteurs ne posent pas cent fois la même."""
    try:
        return fetch(database(), asked)
    except Unreachable:
        database.clear()  # PostgreSQL a pu redémarrer : une connexion neuve, une seule fois
        return fetch(database(), asked)


@st.cache_resource
def sheets() -> dict[str, WorkbookSheet]:
    """Les feuilles du classeur."""
    return read_sheets(WORKBOOK)


def choose_period(first: date, last: date) -> tuple[date, date] | None:
    """Le filtre de période ; « 7 derniers jours » suit les ventes qui arrivent."""
    name = st.selectbox("Période", list(PERIODS), key="periode", bind="query-params")
    if name == CHOOSE:
        chosen = st.date_input(
            "Du … au …", (first, last), first, last, key="dates", format="DD/MM/YYYY", bind="query-params"
        )
        return (chosen[0], chosen[-1]) if chosen else None  # un seul clic fait : la fin manque encore
    days = PERIODS[name]
    return (last - timedelta(days=days - 1), last) if days else None


def choose(label: str, name: str, values: Sequence[str]) -> list[str] | None:
    """Le filtre d'une dimension : rien de coché veut dire tout."""
    return (
        st.multiselect(label, sorted(values, key=alphabetical), key=name, placeholder="Tout", bind="query-params")
        or None
    )


def choose_dashboard() -> Dashboard:
    """Lequel des tableaux de bord."""
    boards = {board.name: board for board in DASHBOARDS}
    name = st.segmented_control(
        "Tableau de bord", list(boards), default=DASHBOARDS[0].name, required=True, key="tableau",
        label_visibility="collapsed", bind="query-params",
    )  # fmt: skip
    return boards[name]


def show_sheet(sheet: WorkbookSheet, selection: Selection) -> None:
    """Une feuille : un chiffre, ou une figure."""
    found = rows(query(sheet, selection))
    if not sheet.shelves["rows"]:
        pill = sheet.pill("text")
        st.metric(sheet.name, text_of(pill, found[0][0], sheet))
        return
    st.markdown(f"**{sheet.name}**")
    tall = sheet.pill("rows").endswith(":nk")
    height = ROW_HEIGHT * len({row[0] for row in found}) + AXIS_HEIGHT if tall else CHART_HEIGHT
    st.altair_chart(chart(sheet, found).properties(height=height), width="stretch", theme=None, key=sheet.name)


def show_board(board: Dashboard, selection: Selection) -> None:
    """Un tableau de bord ; sur un téléphone, Streamlit empile les colonnes."""
    if not rows(query(sheets()[SALES], selection))[0][0]:
        st.info(NOTHING_SELECTED)
        return
    for _, names in board.rows:
        for place, name in zip(st.columns(len(names)), names, strict=True):
            with place:
                show_sheet(sheets()[name], selection)


@st.fragment(run_every=REFRESH_SECONDS)
def body() -> None:
    """Filtres et tableau de bord, redessinés toutes les REFRESH_SECONDS ; une panne se dit en une phrase."""
    try:
        first, last, regions, products = rows(DOMAIN)[0]
        if first is None:
            st.info(NO_SALES)
            return
        board = choose_dashboard()
        places = st.columns(3)
        with places[0]:
            period = choose_period(first, last)
        with places[1]:
            chosen_regions = choose("Région", "region", regions)
        with places[2]:
            chosen_products = choose("Produit", "produit", products)
        show_board(board, Selection(period, chosen_regions, chosen_products))
        st.caption(f"Actualisé à {datetime.now().astimezone():%H:%M:%S}, puis toutes les {REFRESH_SECONDS} secondes.")
    except PipelineError as error:
        st.warning(f"{error} La page réessaie toutes les {REFRESH_SECONDS} secondes.")
    except Exception:  # le visiteur ne doit jamais voir une trace
        log.exception("Erreur inattendue de l'aperçu.")
        st.error("Une erreur inattendue est survenue ; elle est décrite dans le terminal où tourne apercu.py.")


st.set_page_config(page_title="Ventes", layout="wide")
st.title("Ventes")
body()
