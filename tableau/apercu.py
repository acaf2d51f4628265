"""Les tableaux de bord dans un navigateur, sans Tableau : les feuilles de ventes.twb, en direct.

    python apercu.py              ouvrez http://localhost:8501
    python apercu.py --port 8600

Lit PostgreSQL avec le rôle tableau, qui ne peut que lire ; se rafraîchit toutes les cinq
secondes, pendant que le pipeline tourne. Les filtres sont dans l'adresse de la page : envoyez
l'adresse, vous partagez la vue. Ctrl-C arrête.
Garantit : les chiffres sont ceux des feuilles de ventes.twb, exécutées en SQL.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from commun import PipelineError
from commun.cli import Parser, Stop, port, run

log = logging.getLogger("pipeline")

PAGE = Path(__file__).parent / "page.py"
PORT = 8501
OPTIONS = {
    "server.address": "127.0.0.1",  # cette machine seulement
    "server.headless": "true",  # n'ouvre pas de navigateur, ne demande pas d'adresse
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",  # jamais de trace sous les yeux d'un visiteur
    "client.toolbarMode": "minimal",
    "theme.base": "light",
    "theme.primaryColor": "#1f4e79",
    "logger.level": "warning",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.option("--port", env="PORT_APERCU", type=port, default=PORT, help="port de la page")
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    if importlib.util.find_spec("streamlit") is None:
        raise PipelineError(
            "Le paquet streamlit manque : « pip install -r requirements.txt », dans le dossier tableau."
        )
    stop = Stop()
    options = [f"--{name}={value}" for name, value in (OPTIONS | {"server.port": str(args.port)}).items()]
    command = [sys.executable, "-m", "streamlit", "run", str(PAGE), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        log.info("Aperçu : http://localhost:%d. Ctrl-C l'arrête.", args.port)
        try:
            while not stop and server.poll() is None:
                stop.wait(0.5)
        finally:  # la page ne garde rien : rien à finir
            server.kill()
    if not stop:
        raise PipelineError(f"Streamlit s'est arrêté tout seul : le port {args.port} est-il déjà pris ?")
    return 0


if __name__ == "__main__":
    run(main)
