"""Ce que tous les scripts partagent et qu'un cours n'expliquerait pas au tableau ; ici, leurs erreurs.

Importé avant tout autre paquet : un Ctrl-C pendant que le reste se charge finit en une phrase, lui aussi.

- ``cli`` : options en français, arrêt propre, codes de sortie ; ``settings`` : environnement et fichier .env ;
- ``systems`` : ce qui change de Linux à macOS et à Windows ; ``metrics`` : mesures et journal ;
- ``kafka`` : réglages, topics, envoi, lettres mortes ; ``topics`` : lire un topic jusqu'à sa fin ;
- ``csv_header``, ``csv_rows`` : le lecteur de CSV ;
- ``exactly_once`` : les transactions de Kafka, et les positions écrites avec les lignes ;
- ``group_member``, ``group_positions``, ``outputs`` : le membre d'un groupe, ses positions, ses façons de valider.
"""

import sys
from types import TracebackType

START_HINT = "démarrez les services avec « make services » ou « docker-compose up -d »"
INTERRUPTED = "Interrompu avant la fin."


class PipelineError(Exception):
    """Une panne prévisible, dite en une phrase : ce qui manque, puis quoi faire.

    ``commun.cli.run`` l'affiche sans trace et termine le script avec le code ``code``.
    """

    code = 1


class UsageError(PipelineError):
    """Une option qui ne convient pas."""

    code = 2


class Aborted(Exception):
    """La transaction de Kafka est à annuler : rien de ce qu'elle portait ne sera lisible, tout est à refaire."""


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_interrupted
