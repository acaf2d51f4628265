"""Où en est un consommateur dans chacune de ses partitions. Logique pure, sans Kafka.

Une place (offset) est celle du prochain message à traiter. Trois places par partition :
``committed`` est dans Kafka ; ``done`` suit le dernier message traité ; entre les deux, ce qu'un
arrêt net ferait retraiter.
"""

from dataclasses import dataclass


@dataclass(eq=False)  # deux attributions de la même partition ne sont pas la même
class Owned:
    """Une partition, pendant qu'elle est à nous ; réattribuée, c'en est une autre."""

    partition: int
    committed: int
    done: int
    attempts: int = 0  # essais déjà ratés du message qui est à ``done``


class Offsets:
    """Les partitions qui sont à nous et leurs places."""

    def __init__(self) -> None:
        self.owned: dict[int, Owned] = {}

    def assign(self, partition: int, start: int) -> None:
        """Une partition arrive ; ``start`` est la place d'où elle est lue."""
        self.owned[partition] = Owned(partition, start, start)

    def revoke(self, partition: int) -> None:
        """Une partition s'en va : plus rien de ce qui est en cours pour elle ne compte."""
        self.owned.pop(partition, None)

    def holds(self, owned: Owned | None) -> bool:
        """Vrai si cette attribution est toujours la nôtre."""
        return owned is not None and self.owned.get(owned.partition) is owned

    def pending(self) -> dict[int, int]:
        """Places à valider, par partition : celles qui ont avancé."""
        return {owned.partition: owned.done for owned in self.owned.values() if owned.done > owned.committed}

    def count(self) -> int:
        """Messages traités dont la place n'est pas validée (les marques de transaction comptent aussi)."""
        return sum(
            owned.done - max(owned.committed, 0) for owned in self.owned.values() if owned.done > owned.committed
        )

    def commit(self, places: dict[int, int]) -> None:
        """Ces places sont validées."""
        for partition, place in places.items():
            if partition in self.owned:
                self.owned[partition].committed = place

    def rollback(self) -> dict[int, int]:
        """Ce qui n'est pas validé n'a pas eu lieu ; rend les places à reprendre, par partition."""
        places = {owned.partition: owned.committed for owned in self.owned.values()}
        for partition, place in places.items():
            self.assign(partition, place)
        return places
