"""Le banc d'essai lui-même : ce qui l'empêche de toucher à une pile qui n'est pas la sienne."""

from commun.settings import setting
from services.doctor.variables import ELSEWHERE
from tests.conftest import FOREIGN, PORTS
from tests.lab import refuse_foreign

import pytest

# DOCKER_HOST dit où est Docker, MONGOD quel MongoDB essayer : ceux de la machine valent pour les essais aussi.
OF_THE_MACHINE = ("DOCKER_HOST", "MONGOD")


@pytest.mark.parametrize("variable", PORTS)
def test_a_server_that_is_not_ours_is_refused(variable: str) -> None:
    """Sur le port de la pile des essais, rien à dire ; sur tout autre, l'essai échoue avant d'effacer."""
    refuse_foreign(variable, int(setting(variable)))
    for port in (PORTS[variable] - 10_000, 0):
        with pytest.raises(AssertionError, match=f"{variable} : le port {port} n'est pas celui de la pile des essais"):
            refuse_foreign(variable, port)


@pytest.mark.parametrize("name", [*(name for name in ELSEWHERE if name not in OF_THE_MACHINE), "COMPOSE_PROFILES"])
def test_no_variable_leads_the_tests_elsewhere(name: str) -> None:
    """Ce qui mènerait un script, Docker ou les serveurs ailleurs, d'après doctor, est retiré avant tout essai."""
    assert name.startswith(FOREIGN)
