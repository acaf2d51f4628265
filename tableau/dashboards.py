"""Ce que montrent les tableaux de bord : les champs, les feuilles, leur place. Des données, aucun code.

workbook.py en fait ventes.twb ; changez une ligne ici, puis « python build_workbook.py ».

Un champ de feuille (« pilule ») s'écrit comme dans Tableau, ``dérivation:champ:type`` :
``none:region:nk`` est la région, ``sum:chiffre_affaires:qk`` sa somme, ``usr:panier_moyen:qk``
un calcul, ``wd:jour:ok`` le jour de la semaine. Types : ``nk`` noms, ``ok`` valeurs en
ordre, ``qk`` axe continu.
"""

from typing import NamedTuple

VIEW = "ventes_analyse"
EURO = 'n#,##0.00 "€";-#,##0.00 "€"'
WHOLE = "n#,##0;-#,##0"
PERCENT = "p0.0%"


class Field(NamedTuple):
    """Un champ de la source : une colonne de la vue, ou un calcul si ``formula`` est donnée.

    ``sql_type`` est celui d'information_schema ; sans lui, le champ est un calcul réel.
    """

    name: str
    caption: str
    sql_type: str = ""
    measure: bool = False
    format: str = ""
    formula: str = ""


FIELDS = (
    Field("jour", "Période (jour)", "date"),
    Field("semaine", "Semaine (lundi)", "date"),
    Field("heure", "Heure", "smallint"),
    Field("region", "Région", "text"),
    Field("produit", "Produit", "text"),
    Field("nombre_ventes", "Nombre de ventes", "bigint", measure=True, format=WHOLE),
    Field("chiffre_affaires", "Chiffre d'affaires", "numeric", measure=True, format=EURO),
    Field("chiffre_affaires_comparable", "Chiffre d'affaires comparable", "numeric", measure=True, format=EURO),
    Field("chiffre_affaires_precedent", "Chiffre d'affaires sept jours plus tôt", "numeric", measure=True, format=EURO),
    Field("chiffre_affaires_7_jours", "Chiffre d'affaires sur sept jours", "numeric", measure=True, format=EURO),
    Field(
        "panier_moyen", "Panier moyen", measure=True, format=EURO,
        formula="SUM([chiffre_affaires]) / SUM([nombre_ventes])",
    ),
    Field(
        "evolution", "Évolution en sept jours", measure=True, format=PERCENT,
        formula="SUM([chiffre_affaires_comparable]) / SUM([chiffre_affaires_precedent]) - 1",
    ),
    Field(
        "moyenne_mobile", "Moyenne mobile sur sept jours", measure=True, format=EURO,
        formula="SUM([chiffre_affaires_7_jours]) / 7",
    ),
)  # fmt: skip

PERIOD, REGION, PRODUCT = "none:jour:qk", "none:region:nk", "none:produit:nk"
FILTERS = (PERIOD, REGION, PRODUCT)
REVENUE, SALES, BASKET = "sum:chiffre_affaires:qk", "sum:nombre_ventes:qk", "usr:panier_moyen:qk"
EVOLUTION, MOVING_AVERAGE = "usr:evolution:qk", "usr:moyenne_mobile:qk"
WEEK, WEEKDAY, HOUR, RANK = "none:semaine:ok", "wd:jour:ok", "none:heure:ok", "rank:sum:chiffre_affaires:ok"


class Sheet(NamedTuple):
    """Une feuille : sa marque (Text, Line, Bar, Square), ses axes, sa couleur, son étiquette.

    ``tooltip`` alterne textes et champs ; ``sort`` classe ``rows`` par chiffre d'affaires décroissant.
    """

    name: str
    mark: str
    rows: str = ""
    cols: str = ""
    color: str = ""
    text: str = ""
    tooltip: tuple[str, ...] = ()
    sort: bool = False


SHEETS = (
    Sheet("Chiffre d'affaires", "Text", text=REVENUE),
    Sheet("Nombre de ventes", "Text", text=SALES),
    Sheet("Panier moyen", "Text", text=BASKET),
    Sheet("Évolution en sept jours", "Text", text=EVOLUTION),
    Sheet("Chiffre d'affaires par jour", "Line", REVENUE, PERIOD, tooltip=(PERIOD, " : ", REVENUE)),
    Sheet("Chiffre d'affaires par région", "Bar", REGION, REVENUE, text=REVENUE, sort=True,
          tooltip=(REGION, " : ", REVENUE, ", ", SALES, " ventes, panier moyen ", BASKET)),
    Sheet("Chiffre d'affaires par produit", "Bar", PRODUCT, REVENUE, text=REVENUE, sort=True,
          tooltip=(PRODUCT, " : ", REVENUE, ", ", SALES, " ventes, panier moyen ", BASKET)),
    Sheet("Régions et produits", "Square", REGION, PRODUCT, color=REVENUE,
          tooltip=(PRODUCT, ", ", REGION, " : ", REVENUE)),
    Sheet("Moyenne mobile sur sept jours", "Line", MOVING_AVERAGE, PERIOD,
          tooltip=("Par jour, sur les sept jours finis le ", PERIOD, " : ", MOVING_AVERAGE)),
    Sheet("Chaque semaine et son évolution", "Bar", REVENUE, WEEK, text=EVOLUTION,
          tooltip=("Semaine du ", WEEK, " : ", REVENUE, ", évolution ", EVOLUTION)),
    Sheet("Jours et heures", "Square", WEEKDAY, HOUR, color=REVENUE,
          tooltip=(WEEKDAY, ", ", HOUR, " h : ", REVENUE)),
    Sheet("Palmarès des produits par région", "Square", REGION, RANK, color=REVENUE, text=PRODUCT,
          tooltip=(REGION, ", ", PRODUCT, " : ", REVENUE)),
)  # fmt: skip


class Dashboard(NamedTuple):
    """Un tableau de bord : ses rangées de feuilles, de haut en bas, chacune avec sa hauteur (pixels)."""

    name: str
    rows: tuple[tuple[int, tuple[str, ...]], ...]


WIDTH, HEIGHT, TITLE_HEIGHT, FILTERS_HEIGHT = 1300, 900, 50, 70
DASHBOARDS = (
    Dashboard("Vue d'ensemble", (
        (90, ("Chiffre d'affaires", "Nombre de ventes", "Panier moyen", "Évolution en sept jours")),
        (190, ("Chiffre d'affaires par jour",)),
        (230, ("Chiffre d'affaires par région", "Chiffre d'affaires par produit")),
        (290, ("Régions et produits",)),
    )),
    Dashboard("Tendances", (
        (240, ("Moyenne mobile sur sept jours", "Chaque semaine et son évolution")),
        (230, ("Jours et heures",)),
        (310, ("Palmarès des produits par région",)),
    )),
)  # fmt: skip
