"""Ce qui arrêterait les scripts sur cette machine, et le remède de chaque chose.

    python -m services doctor          une ligne par contrôle, le remède en dessous
    python -m services doctor --json   la même chose pour un programme

Garantit : rien n'est modifié ; chaque contrôle dure cinq secondes au plus, tous ensemble aussi.
Ne garantit pas : ce qui n'est pas regardé ; « inconnu » dit ce qui n'a pas pu l'être.
Code de sortie : 1 si quelque chose arrêterait les scripts, 0 sinon ; un avertissement n'arrête rien.
Sans environnement installé : « make doctor ».
"""

import os
import sys
from collections.abc import Sequence

from commun.cli import Parser, run
from services.doctor.report import PROBLEM, Check, as_json, as_text, examine, load

MODULES = (
    "environment", "machine", "jars", "env_file", "variables", "ports", "docker", "supervisor", "kafka", "topics",
    "connect", "mongodb", "postgresql", "data",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    parser = Parser(__doc__, prog="python -m services doctor")
    parser.option("--json", action="store_true", help="une liste d'objets : check, state, message, cure")
    args = parser.parse(argv, any_level=True)
    checks: dict[str, Check] = {}
    for module in MODULES:
        checks |= load(module)
    findings = examine(checks)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(as_json(findings) if args.json else as_text(findings, colour=colour))
    return 1 if any(finding.state == PROBLEM for finding in findings) else 0


if __name__ == "__main__":
    run(main)
