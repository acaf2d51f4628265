"""Jouer de nombreuses histoires d'un modèle, en parallèle, et dire lesquelles sont fausses."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def play(live: Callable[[int], str], word: str) -> None:
    """« NOMBRE [PREMIÈRE GRAINE] » : joue ces histoires ; termine le programme, 1 s'il y a une faute.

    ``live`` : d'une graine à ce qui n'y est pas allé, ou rien.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":  # l'ordre des ensembles fait partie de la graine
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    seeds = range(first, first + int(sys.argv[1]))
    with ProcessPoolExecutor() as pool:
        faults = [fault for fault in pool.map(live, seeds, chunksize=10) if fault]
    print(*faults[:12], sep="\n\n")
    print(f"{len(seeds)} {word}, {len(faults)} fautes.")
    sys.exit(bool(faults))
