"""L'erreur que le programme sait expliquer."""


class PipelineError(Exception):
    """Une panne prévisible, dite en une phrase : ce qui manque, puis quoi faire.

    ``commun.cli.run`` l'affiche sans trace et termine le script avec le code 1.
    """
