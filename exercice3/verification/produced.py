"""Les ventes que producer.py a dû produire, refaites à partir de leur graine. Logique pure, sans serveur."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from exercice3.confirmations import Promise, merged
from exercice3.ventes import Vente, generate, id_of, new_fake, run_of
from exercice3.verification.point import Point, Reread, pack, totals_of, unpack
from exercice3.verification.totals import Latest, Numbers, Totals

from faker import Faker

ANY_DATE = datetime(2026, 1, 1)  # noqa: DTZ001 - les dates ne se comparent pas ici
# Plus loin que cela de ses voisins, un numéro n'est pas d'une suite : producer.py n'a jamais plus de 20 000 ventes en
# vol, et dit ce qui est confirmé toutes les cinq secondes.
NEIGHBOURS = 500_000
CHECKED = 20_000  # une suite sans promesse se reconnaît à l'une de ses premières ventes


class Kafka(Latest):
    """Ce qui est lu dans Kafka : les ventes distinctes, et à part celles qui ne sont pas de producer.py."""

    def __init__(self, promises: Mapping[int, Promise], point: Point | None = None) -> None:
        super().__init__(totals_of("Kafka", point.rows if point else ()), point.distinct() if point else None)
        self.promises, self.point = promises, point
        self.foreign = Latest(totals_of("", point.foreign if point else ()), point.distinct() if point else None)
        self.suites = {int(seed): point.suite(seed) for seed in point.made} if point else {}
        self.dead: dict[int, Numbers] = defaultdict(Numbers)
        self.dead_corrections = Counter[int]()
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
            seed, number = run_number
            if vente.version > 1:
                self.dead_corrections[seed] += 1
            else:
                self.dead[seed].add(number)

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
        if self.suites[seed].add(number) and self.point and number <= self.point.made.get(str(seed), 0):
            raise Reread  # une suite interrompue, que l'on complète
        return True


class Suite:
    """Les ventes d'une graine, numéro après numéro, depuis le début ou depuis un état gardé."""

    def __init__(self, seed: int, state: str | None, number: int) -> None:
        self.seed, self._state, self._number = seed, state, number if state else 0
        self._fake: Faker | None = None

    def vente(self, number: int) -> Vente:
        """La vente de ce numéro, plus grand que le précédent."""
        if self._fake is None:
            self._fake = new_fake(self.seed)
            if self._state:
                self._fake.random.setstate(unpack(self._state))
        while True:
            self._number += 1
            vente: Vente = self._fake.vente(id_of(self.seed, self._number), ANY_DATE, 1)
            if self._number == number:
                return vente

    def state(self) -> str | None:
        """De quoi continuer après la dernière."""
        return pack(self._fake.random.getstate()) if self._fake else self._state


def _same(vente: Vente, seed: int, number: int) -> bool:
    """Vrai si cette vente est bien la ``number``-ième de sa graine, à la date près : elle dépend du jour du tirage."""
    return next(generate(seed, lambda: ANY_DATE, 1, number))[:4] == vente[:4]


@dataclass
class Produced:
    """Ce que producer.py a dû produire ; les messages effacés restés sans nom ; et de quoi continuer les suites."""

    totals: Totals
    unknown: int = 0
    made: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    corrections: dict[str, int] = field(default_factory=dict)


def produced(kafka: Kafka, purged: int) -> Produced:
    """Refait les ventes de chaque suite : les promises, et celles que l'on voit dans Kafka.

    Une vente promise que Kafka n'a pas est perdue, à moins que Kafka ait effacé (``purged`` messages) ce qu'on n'avait
    pas lu. D'une suite sans promesse, celle d'un producer.py plus ancien, tout est dû jusqu'au plus grand numéro. Les
    corrections, et les ventes d'un autre programme, sont prises telles quelles.
    """
    totals = Totals("produites", Counter(kafka.foreign.totals.count), Counter(kafka.foreign.totals.cents))
    if kafka.point:
        totals.plus(totals_of("", kafka.point.rows))
        totals.minus(totals_of("", kafka.point.foreign))
    found, missing = Produced(totals), Totals("")
    lost = {seed: _remake(kafka, seed, found, missing) for seed in kafka.suites.keys() | kafka.promises.keys()}
    if (count := sum(lost.values())) <= purged:
        kafka.totals.plus(missing)
        if purged:
            kafka.totals.notes.append(f"{purged} messages effacés par Kafka, dont {count} ventes refaites")
        found.unknown = purged - count
        return found
    for seed, number in lost.items():
        if number:
            sure = "confirmées " if seed in kafka.promises else ""
            totals.faults.append(f"graine {seed} : {number} ventes {sure}ne sont pas dans Kafka")
    return found


def _remake(kafka: Kafka, seed: int, found: Produced, missing: Totals) -> int:
    """Refait une suite depuis le point ; renvoie combien de ventes dues Kafka n'a pas, ajoutées à ``missing``."""
    point, text, lost = kafka.point, str(seed), 0
    seen, promise, dead = kafka.suites.get(seed, Numbers()), kafka.promises.get(seed), kafka.dead.get(seed, ())
    ranges = merged([*seen.ranges(), *(promise.ranges if promise else ())])
    if not ranges:
        return 0
    known = point.made.get(text, 0) if point else 0
    first, last = max(ranges[0][0], known + 1), ranges[-1][1]
    if ranges[0][0] > 1 and not promise:
        found.totals.notes.append(f"la suite {seed} commence à {ranges[0][0]}")
    state = point.states.get(text) if point else None
    suite = Suite(seed, state, known)
    for number in range(first, last + 1):
        vente = suite.vente(number)
        here = number in seen
        if not here and (number in dead or (promise and number not in promise)):
            continue
        final = kafka.corrected.get(vente.id, vente)
        if not final.annulee:
            found.totals.add(final.region, final.produit, final.montant)
        if not here:
            missing.add(final.region, final.produit, final.montant)
            lost += 1
    found.made[text] = last
    if state := suite.state():
        found.states[text] = state
    versions = kafka.corrections(seed) + kafka.dead_corrections[seed]
    found.corrections[text] = versions + (point.corrections.get(text, 0) if point else 0)
    if promise and (few := promise.corrections - found.corrections[text]) > 0:
        found.totals.faults.append(f"graine {seed} : {few} corrections confirmées ne sont pas dans Kafka")
    return lost
