"""L'erreur que le programme sait expliquer."""

START_HINT = "démarrez les services avec « make services » ou « docker-compose up -d »"


class PipelineError(Exception):
    """Une panne prévisible, dite en une phrase : ce qui manque, puis quoi faire.

    ``commun.cli.run`` l'affiche sans trace et termine le script avec le code ``code``.
    """

    code = 1


class UsageError(PipelineError):
    """Une option qui ne convient pas."""

    code = 2
