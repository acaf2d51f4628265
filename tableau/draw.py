"""Dessine les tableaux de bord de ventes.twb : les images du README, sans Tableau.

    python draw.py                     écrit images/vue-d-ensemble.png et images/tendances.png
    python draw.py --output-dir /tmp   ailleurs

Lit les feuilles et leur place dans le classeur, exécute leurs requêtes avec le rôle tableau
et dessine le résultat. Ne garantit pas : que Tableau dessine exactement la même chose ; les
chiffres, eux, sont ceux de la base.
"""

import argparse
import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, run
from tableau.database import connect
from tableau.sheet_sql import read_sheets

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).parent
WORKBOOK = FOLDER / "ventes.twb"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--output-dir", type=Path, default=FOLDER / "images", help="dossier où écrire")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    try:
        from tableau.board_image import draw_dashboard, slug  # noqa: PLC0415 - paquets facultatifs
    except ImportError as error:
        raise PipelineError(
            f"Le paquet {error.name} manque : « pip install -r requirements.txt », dans le dossier tableau."
        ) from error
    sheets = read_sheets(WORKBOOK)
    with closing(connect()) as connection:
        for dashboard in ET.parse(WORKBOOK).getroot().iter("dashboard"):  # noqa: S314 - le fichier est le nôtre
            path = args.output_dir / f"{slug(dashboard.attrib['name'])}.png"
            image = draw_dashboard(dashboard, sheets, connection)
            try:
                args.output_dir.mkdir(parents=True, exist_ok=True)
                image.save(path, optimize=True)
            except OSError as error:
                raise PipelineError(f"Impossible d'écrire dans {args.output_dir} ({error.strerror}).") from error
            log.info("%s dessiné.", path)
    return 0


if __name__ == "__main__":
    run(main)
