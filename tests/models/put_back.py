"""Les fautes d'autrefois, remises une à une dans le vrai code : un modèle qui ne les trouve pas ne prouve rien.

``python -m tests.models.put_back`` les remet toutes et dit, pour chacune, combien d'histoires il a fallu.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commun.exactly_once import Positions
from commun.settings import ROOT
from exercice1 import changes, files, follow, reading
from tests.models import claims, lives

MOST = 1_000  # histoires ; une faute que tant ne montrent pas n'est pas vue


def _hasty(take: Callable[..., dict[bytes, bytes]]) -> Callable[..., dict[bytes, bytes]]:
    """Les positions sont lues avant que les autres ne soient barrés, et non après."""

    def taken(self: Positions, sources: list[bytes]) -> dict[bytes, bytes]:
        early = self.all()
        return {source: early[source] for source in take(self, sources) if source in early}

    return taken


def _header_always(self: Any, header: Any, *_: object) -> Any:
    """La première ligne est un en-tête, quoi qu'il y ait avant."""
    return header


LIVES, CLAIMS = lives.live, claims.live
# Chaque faute : le modèle qui doit la trouver, puis l'objet, l'attribut et la valeur qui la remettent.
FAULTS: dict[str, tuple[Callable[[int], str], object, str, object]] = {
    "deux producteurs démarrent ensemble": (CLAIMS, Positions, "take", _hasty(Positions.take)),
    "un fichier tourné est relu sous son nouveau nom": (LIVES, files.Files, "known", lambda self, inode: iter(())),
    "vidé, il n'a plus d'en-tête": (LIVES, reading.OpenCsv, "_compare", _header_always),
    "vidé, il commence par un trou": (LIVES, reading, "_hole", lambda file: 0),
    "la copie d'avant le vidage est relue": (LIVES, files.Files, "copied", lambda *_: ((), False)),
    "une ligne tardive dans le fichier renommé": (
        LIVES, files.Files.__init__, "__kwdefaults__", {"rotate_wait": 0.0, "once": False},
    ),
    "deux rotations entre deux regards": (LIVES, follow.Follower, "_find_missed", lambda *_: None),
    "une rotation derrière un lien": (LIVES, follow.Follower, "_folders", lambda self: [Path(self.path)]),
    "deux écritures à la même date": (LIVES, changes, "TICK_SECONDS", -1e9),
}  # fmt: skip


def find(name: str) -> int:
    """Nombre d'histoires qu'il a fallu pour trouver cette faute, remise pour de bon ; 0 si aucune ne la montre."""
    live, owner, attribute, value = FAULTS[name]
    setattr(owner, attribute, value)
    told = ("AssertionError", "donne")  # un compte faux ; et non une erreur de ce que l'on vient de remettre
    return next((n for n in range(1, MOST + 1) if any(word in fault for fault in [live(n)] for word in told)), 0)


def search(name: str) -> int:
    """``find``, dans un processus à part."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.put_back", name],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(find(sys.argv[1]))
    else:
        for fault in FAULTS:
            print(f"{search(fault) or 'jamais':>6}  {fault}", flush=True)
