"""Des vies de fichiers au hasard ; « make lives » en vit vingt mille."""

import os
from concurrent.futures import ProcessPoolExecutor

from tests.models.lives import live

LIVES = int(os.environ.get("LIVES", "400"))


def test_any_life() -> None:
    """Chaque ligne une fois, quoi qu'il arrive aux fichiers et au lecteur."""
    with ProcessPoolExecutor(2) as pool:
        faults = [fault for fault in pool.map(live, range(LIVES), chunksize=10) if fault]
    assert not faults, f"{len(faults)} fautes en {LIVES} vies : {faults[0]}"
