"""Les pannes des serveurs."""

from collections.abc import Callable, Sequence
from functools import partial

from chaos.script import NotDoneError, Trial, services
from commun.kafka import admin_config, client_config

from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient

BROKERS = ("kafka1", "kafka2", "kafka3")
FREEZE_SECONDS = 10.0  # plus que la session d'un broker (6 s)
LONG_SECONDS = 40.0  # plus que le délai de livraison de l'exercice 2 (30 s) : sa transaction est annulée


class Servers:
    """Ce qu'on fait aux serveurs ; chaque panne est réparée avant que sa méthode ne rende la main."""

    def __init__(self, trial: Trial, databases: Sequence[str], *, long: bool) -> None:
        self.dice, self.stop, self.databases, self.long = trial.dice, trial.stop, databases, long

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        """Les pannes, et leur nom ; la plus longue si l'essai l'est assez."""
        faults: dict[str, Callable[[], None]] = {
            "un broker tué": lambda: self._kill(self.dice.choice(BROKERS)),
            "deux brokers tués à la fois": lambda: self._kill(*self.dice.sample(BROKERS, 2)),
            "un broker gelé plus longtemps que sa session": lambda: self._freeze(self.dice.choice(BROKERS)),
            "tous les serveurs tués à la fois": lambda: self._kill(*BROKERS, *self.databases),
            "les chefs de partition déplacés": self.move_leaders,
        }
        for name in self.databases:
            faults[f"{name} tué"] = partial(self._kill, name)
            faults[f"{name} gelé"] = partial(self._freeze, name)
        if self.long:
            faults["deux brokers tués, plus longtemps que le délai de livraison"] = lambda: self._kill(
                *self.dice.sample(BROKERS, 2), seconds=LONG_SECONDS
            )
        return faults

    def move_leaders(self) -> None:
        """Après une panne, d'autres brokers mènent les partitions : elles reviennent à leurs chefs d'origine."""
        admin = AdminClient(admin_config(client_config({})))
        try:
            admin.elect_leaders(ElectionType.PREFERRED, None).result(60)  # le client 2.16 refuse les délais
        except KafkaException as error:
            raise NotDoneError(error.args[0].str()) from error

    def _kill(self, *names: str, seconds: float = 0.0) -> None:
        try:
            for name in names:
                services("kill", name)
            self.stop.wait(seconds or self.dice.uniform(1, 6))
        finally:
            services("up")

    def _freeze(self, name: str) -> None:
        services("pause", name)
        try:
            self.stop.wait(FREEZE_SECONDS)
        finally:
            services("resume", name)
