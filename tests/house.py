"""Ce que lit qui ouvre un script : les modules qu'il nomme, ceux qu'il atteint, et les lignes (« make house »).

Nommés : il les importe lui-même, il faut les connaître pour le lire. Atteints : par eux aussi ; les lignes sont celles
du script et de tous ceux-là. ``commun`` lui-même, les erreurs que tous lèvent, n'est pas compté.
"""

import ast
from functools import cache
from pathlib import Path

from commun.settings import ROOT

PACKAGES = ("commun", "exercice1", "exercice2", "exercice3", "services", "tableau")
BUDGET = {  # script : modules qu'il peut nommer, lignes que son lecteur peut atteindre
    "exercice1/producer.py": (13, 4_850), "exercice1/consumer.py": (7, 1_900),
    "exercice2/producer_resilient.py": (9, 3_450), "exercice2/consumer_resilient.py": (9, 3_500),
    "exercice2/kafka_monitor.py": (10, 4_800), "exercice2/dead_letters.py": (5, 2_600),
    "exercice3/producer.py": (6, 1_950), "exercice3/consumer.py": (9, 3_950),
    "exercice3/schedule_export.py": (9, 2_100), "exercice3/pg.py": (9, 1_950), "exercice3/reconcile.py": (7, 3_600),
    "exercice3/dead_letters.py": (5, 2_550), "exercice3/rebuild.py": (6, 1_800),
}  # fmt: skip


@cache
def imported(path: Path) -> frozenset[Path]:
    """Les fichiers du projet que ``path`` importe lui-même."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
        else:
            continue
        files = (ROOT / f"{name.replace('.', '/')}.py" for name in names)
        found |= {file for file in files if file.is_file()}
    return frozenset(found)


def reached(script: Path) -> set[Path]:
    """Les modules du projet que ce script atteint."""
    found, left = set[Path](), [script]
    while left:
        new = imported(left.pop()) - found - {script}
        found |= new
        left += new
    return found


def lines(path: Path) -> int:
    """Lignes d'un fichier."""
    return len(path.read_text(encoding="utf-8").splitlines())


def measure(name: str) -> tuple[int, int, int]:
    """Modules nommés, modules atteints, lignes, pour un script."""
    script = ROOT / name
    modules = reached(script)
    return len(imported(script)), len(modules), lines(script) + sum(map(lines, modules))


if __name__ == "__main__":
    print(f"{'script':<34} {'nommés':>7} {'atteints':>9} {'lignes':>7}")
    for name in BUDGET:
        named, found, total = measure(name)
        print(f"{name:<34} {named:>7} {found:>9} {total:>7}")
