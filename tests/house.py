"""Ce que lit qui ouvre un script : les modules du projet qu'il atteint, et leurs lignes (« make house »).

Compte les imports, directs ou non, des fichiers du projet ; le script lui-même n'est pas dans le nombre de modules.
"""

import ast
from functools import cache
from pathlib import Path

from commun.settings import ROOT

PACKAGES = ("commun", "exercice1", "exercice2", "exercice3", "services", "tableau")
SCRIPTS = (
    "exercice1/producer.py", "exercice1/consumer.py", "exercice2/producer_resilient.py",
    "exercice2/consumer_resilient.py", "exercice2/kafka_monitor.py", "exercice2/dead_letters.py",
    "exercice3/producer.py", "exercice3/consumer.py", "exercice3/schedule_export.py", "exercice3/pg.py",
    "exercice3/reconcile.py",
)  # fmt: skip


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


if __name__ == "__main__":
    print(f"{'script':<32} {'modules':>7} {'lignes':>7}")
    for name in SCRIPTS:
        modules = reached(ROOT / name)
        print(f"{name:<32} {len(modules):>7} {lines(ROOT / name) + sum(map(lines, modules)):>7}")
