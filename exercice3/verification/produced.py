"""Les ventes que producer.py a dû produire, refaites à partir de leur graine. Logique pure, sans serveur."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime
from itertools import islice

from exercice3.confirmations import Promise, merged
from exercice3.ventes import Vente, generate, run_of
from exercice3.verification.totals import Latest, Numbers, Totals

ANY_DATE = datetime(2026, 1, 1)  # noqa: DTZ001 - les dates ne se comparent pas ici
# Plus loin que cela de ses voisins, un numéro n'est pas d'une suite : producer.py n'a jamais plus de 20 000 ventes en
# vol, et dit ce qui est confirmé toutes les cinq secondes.
NEIGHBOURS = 500_000
CHECKED = 20_000  # une suite sans promesse se reconnaît à l'une de ses premières ventes


class Kafka(Latest):
    """Ce qui est lu dans Kafka : les ventes distinctes, et à part celles qui ne sont pas de producer.py."""

    def __init__(self, promises: Mapping[int, Promise]) -> None:
        super().__init__(Totals("Kafka"))
        self.promises = promises
        self.foreign = Latest(Totals(""))
        self.suites: dict[int, Numbers] = {}
        self.dead: dict[int, Numbers] = defaultdict(Numbers)
        self._top = {seed: promise.ranges[-1][1] for seed, promise in promises.items() if promise.ranges}
        self._not_ours: set[int] = set()

    def add(self, vente: Vente, late: bool = False) -> None:
        """Une vente lue."""
        super().add(vente, late)
        if not self._ours(vente):
            self.foreign.add(vente, late)

    def bury(self, vente: Vente) -> None:
        """Une vente que consumer.py a mise dans les lettres mortes."""
        if run_number := run_of(vente.id):
            self.dead[run_number[0]].add(run_number[1])

    def _ours(self, vente: Vente) -> bool:
        """Vrai pour une vente d'une suite de producer.py : une suite promise, ou dont la première lue est la sienne."""
        seed, number = run_of(vente.id) or (-1, 0)
        if seed < 0 or seed in self._not_ours:
            return False
        if vente.version > 1:
            return True
        if seed not in self.suites:
            if seed not in self.promises and not (number <= CHECKED and _same(vente, seed, number)):
                self._not_ours.add(seed)
                return False
            self.suites[seed] = Numbers()
        if number > self._top.get(seed, number) + NEIGHBOURS:
            return False
        self._top[seed] = max(number, self._top.get(seed, 0))
        self.suites[seed].add(number)
        return True


def _same(vente: Vente, seed: int, number: int) -> bool:
    """Vrai si cette vente est bien la ``number``-ième de sa graine, à la date près : elle dépend du jour du tirage."""
    return next(generate(seed, lambda: ANY_DATE, 1, number))[:4] == vente[:4]


def produced(kafka: Kafka, purged: int) -> tuple[Totals, int]:
    """Refait les ventes de chaque suite : les promises, et celles que l'on voit dans Kafka.

    Une vente promise que Kafka n'a pas est perdue, à moins que Kafka ait effacé (``purged`` messages) ce qu'on n'avait
    pas lu. D'une suite sans promesse, celle d'un producer.py plus ancien, tout est dû jusqu'au plus grand numéro. Les
    corrections, et les ventes d'un autre programme, sont prises telles quelles. Renvoie aussi combien de messages
    effacés restent sans nom.
    """
    totals = Totals("produites", Counter(kafka.foreign.totals.count), Counter(kafka.foreign.totals.cents))
    missing, lost = Totals(""), Counter[int]()
    for seed in kafka.suites.keys() | kafka.promises.keys():
        seen, promise, dead = kafka.suites.get(seed, Numbers()), kafka.promises.get(seed), kafka.dead.get(seed, ())
        ranges = merged([*seen.ranges(), *(promise.ranges if promise else ())])
        if not ranges:
            continue
        first, last = ranges[0][0], ranges[-1][1]
        if first > 1 and not promise:
            totals.notes.append(f"la suite {seed} commence à {first}")
        for number, vente in enumerate(islice(generate(seed, lambda: ANY_DATE, 1, first), last - first + 1), first):
            here = number in seen
            if not here and (number in dead or (promise and number not in promise)):
                continue
            final = kafka.corrected.get(vente.id, vente)
            if not final.annulee:
                totals.add(final.region, final.produit, final.montant)
            if not here:
                missing.add(final.region, final.produit, final.montant)
                lost[seed] += 1
        if promise and (few := promise.corrections - kafka.corrections(seed)) > 0:
            totals.faults.append(f"graine {seed} : {few} corrections confirmées ne sont pas dans Kafka")
    if lost.total() <= purged:
        kafka.totals.plus(missing)
        if purged:
            kafka.totals.notes.append(f"{purged} messages effacés par Kafka, dont {lost.total()} ventes refaites")
        return totals, purged - lost.total()
    for seed, count in lost.items():
        sure = "confirmées " if seed in kafka.promises else ""
        totals.faults.append(f"graine {seed} : {count} ventes {sure}ne sont pas dans Kafka")
    return totals, 0
