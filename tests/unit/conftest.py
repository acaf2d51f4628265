"""Ces tests-là n'ont besoin d'aucun serveur : ils n'en rencontrent aucun, même quand la pile des autres tourne."""

from tests.conftest import PORTS, SHIFT

import pytest


@pytest.fixture(autouse=True)
def _free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """D'autres ports que ceux de la pile des tests."""
    for name, port in PORTS.items():
        monkeypatch.setenv(name, str(port + SHIFT + 40))
