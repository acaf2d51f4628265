"""La pile des tests : de vrais serveurs, sur des ports et dans un dossier à part.

Elle ne touche jamais à une pile déjà en marche (« make services » ou docker-compose).
« make test » répartit les tests sur quelques processus : chacun a la sienne.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
# Un chemin qu'un étudiant peut avoir : espaces, accent, et ce qui commente ou se remplace dans bien des réglages.
DATA = str(ROOT / ".data-tests" / f"pile {WORKER} #1 ;é, 100%s")
PORTS = {  # sous 32768 : au-delà, le système en prête un à n'importe quelle connexion sortante
    "PORT_KAFKA1": 19092,
    "PORT_KAFKA2": 19093,
    "PORT_KAFKA3": 19094,
    "PORT_CONNECT": 18083,
    "PORT_FLINK": 18081,
    "PORT_MONGO": 17018,
    "PORT_POSTGRES": 15432,
}

# Deux copies du projet essayées en même temps : TESTS_PORT_OFFSET=500 (12000 au plus) décale les ports de l'une.
# Pas 1000 : un broker aurait le port du contrôleur d'une autre.
SHIFT = 100 * WORKER + int(os.environ.get("TESTS_PORT_OFFSET") or 0)

# Tout ce qui pourrait mener un script, ou un essai qui efface, ailleurs que sur la pile des essais. COLUMNS :
# pytest-xdist impose 80, un script lit la largeur du terminal.
FOREIGN = (
    "PG", "MONGO_", "KAFKA", "COMPOSE_", "POSTGRES", "PIPELINE_", "PORT_", "SERVICES_", "CSV_", "TRANSACTIONS_",
    "VENTES_", "EXPORT_", "FLINK_", "TABLEAU_", "LOG_LEVEL", "COLUMNS", "NO_COLOR",
)  # fmt: skip
for name in [name for name in os.environ if name.startswith(FOREIGN)]:
    del os.environ[name]
# Avant tout import du projet : les réglages se lisent dans l'environnement.
os.environ |= {"SERVICES_DATA": DATA} | {name: str(port + SHIFT) for name, port in PORTS.items()}

pytest_plugins = ["tests.lab"]

# Sur une machine lente, une propriété lente n'est pas une propriété fausse.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Les fichiers les plus longs d'abord : les processus finissent ensemble."""
    folders = ("faults", "integration", "docs", "models", "unit")
    items.sort(key=lambda item: folders.index(item.path.parent.name))


def services(*arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Exécute « python -m services … » sur la pile des tests."""
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def family() -> list[psutil.Process]:
    """Le superviseur de la pile des tests et tous ses descendants."""
    try:
        supervisor = psutil.Process(int(Path(DATA, "supervisord.pid").read_text()))
        return [supervisor, *supervisor.children(recursive=True)]
    except (OSError, psutil.NoSuchProcess):
        return []


def listening_addresses() -> set[str]:
    """Adresses où les processus de la pile des tests écoutent."""
    connections = [connection for process in family() for connection in process.net_connections("tcp")]
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}


def pytest_xdist_auto_num_workers() -> int:
    """« --numprocesses auto » : deux piles par cœur, car un essai attend souvent ; 3,5 Go pour chacune."""
    return max(1, min(4, 2 * (os.cpu_count() or 1), int(psutil.virtual_memory().total / 3.5e9)))


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[None]:
    """Les serveurs, démarrés une fois pour toute la session de tests, arrêtés à la fin.

    Deux « pytest » dans le même dossier auraient la même pile : le second attend la fin du premier.
    """
    from commun.systems import locked  # noqa: PLC0415 - rien du projet avant que l'environnement soit réglé

    def say(sentence: str) -> None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{sentence}", file=sys.stderr)

    lock = Path(f"{DATA}.verrou")
    lock.parent.mkdir(exist_ok=True)
    with locked(lock, "D'autres essais tournent dans ce dossier", say), running_stack():
        yield


@contextlib.contextmanager
def running_stack() -> Iterator[None]:
    """La pile des tests, arrêtée même si elle a mal démarré ou si un essai l'a perdue ; les comptes se font après."""
    services("reset", "--oui")
    try:
        started = services("up", timeout=600)
        assert started.returncode == 0, started.stderr
        yield
    finally:
        processes = family()
        stopped = services("down")
    assert len(processes) > len(PORTS), "la pile ne tourne plus"
    assert stopped.returncode == 0, stopped.stderr
    left = [process for process in processes if process.is_running()]
    assert not left, f"« down » a laissé des processus : {left}"
    erased = services("reset", "--oui")
    assert erased.returncode == 0, erased.stderr
    assert not Path(DATA).exists(), "« reset » a laissé quelque chose"


@pytest.fixture(autouse=True)
def _no_leftover_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Les variables KAFKA_… de la machine ne règlent pas les tests."""
    for name in list(os.environ):
        if name.startswith("KAFKA_"):
            monkeypatch.delenv(name)
