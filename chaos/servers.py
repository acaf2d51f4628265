"""Les pannes des serveurs."""

from collections.abc import Callable

from chaos.script import Trial, services

BROKERS = ("kafka1", "kafka2", "kafka3")
DATABASES = ("mongodb", "postgres")
FREEZE_SECONDS = 10.0  # plus que la session d'un broker (6 s)


class Servers:
    """Ce qu'on fait aux serveurs ; chaque panne est réparée avant que sa méthode ne rende la main."""

    def __init__(self, trial: Trial) -> None:
        self.dice, self.stop = trial.dice, trial.stop

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom."""
        return {
            "un broker tué": lambda: self._kill(self.dice.choice(BROKERS)),
            "deux brokers tués à la fois": lambda: self._kill(*self.dice.sample(BROKERS, 2)),
            "un broker gelé plus longtemps que sa session": lambda: self._freeze(self.dice.choice(BROKERS)),
            "MongoDB tué": lambda: self._kill("mongodb"),
            "MongoDB gelé": lambda: self._freeze("mongodb"),
            "PostgreSQL tué": lambda: self._kill("postgres"),
            "PostgreSQL gelé": lambda: self._freeze("postgres"),
            "tous les serveurs tués à la fois": lambda: self._kill(*BROKERS, *DATABASES),
        }

    def _kill(self, *names: str) -> None:
        try:
            for name in names:
                services("kill", name)
            self.stop.wait(self.dice.uniform(1, 6))
        finally:
            services("up")

    def _freeze(self, name: str) -> None:
        services("pause", name)
        try:
            self.stop.wait(FREEZE_SECONDS)
        finally:
            services("resume", name)
