"""Ce que reconcile.py compare : des ventes comptées par région et par produit. Logique pure, sans serveur."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from commun.cli import french_number
from exercice3.confirmations import merged
from exercice3.ventes import MONTANT_MAX, Vente, run_of

SHOWN = 5  # différences citées par étape
CHUNK_BITS = 4096
CENTS_MAX = int(MONTANT_MAX * 100)

Key = tuple[str, str]  # région, produit


@dataclass
class Totals:
    """Ventes d'une étape : nombre et somme en centimes par (région, produit).

    ``late`` : parmi elles, celles que l'étape suivante peut ne pas avoir encore ; ``extra`` : celles, corrigées depuis,
    qu'elle peut avoir encore. ``notes`` : ce qui se dit ; ``faults`` : ce qui n'a pas d'explication.
    """

    name: str
    count: Counter[Key] = field(default_factory=Counter)
    cents: Counter[Key] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    late: "Totals | None" = None
    extra: "Totals | None" = None

    def add(self, region: str, produit: str, amount: Decimal, count: int = 1, sign: int = 1) -> None:
        """Ajoute ``count`` ventes d'un montant total de ``amount`` euros ; ``sign`` -1 les retire."""
        self.count[region, produit] += sign * count
        self.cents[region, produit] += sign * int(amount * 100)

    def plus(self, other: "Totals") -> None:
        """Ajoute les ventes d'un autre compte."""
        self.count.update(other.count)
        self.cents.update(other.cents)

    def minus(self, other: "Totals") -> None:
        """Retire les ventes d'un autre compte."""
        self.count.subtract(other.count)
        self.cents.subtract(other.cents)

    def by(self, axis: int) -> dict[str, tuple[int, int]]:
        """Nombre et centimes par région (``axis`` 0) ou par produit (``axis`` 1)."""
        result: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for key, count in self.count.items():
            known = result[key[axis]]
            result[key[axis]] = (known[0] + count, known[1] + self.cents[key])
        return dict(result)


class Numbers:
    """Un ensemble de numéros, un bit chacun : dix millions qui se suivent tiennent en 1,3 Mo."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._length = 0
        for first, last in ranges:
            self._add_range(first, last)

    def _add_range(self, first: int, last: int) -> None:
        number = first
        while number <= last:
            if number % CHUNK_BITS == 0 and number + CHUNK_BITS - 1 <= last:  # tout un morceau d'un coup
                self._chunks[number // CHUNK_BITS] = bytearray(b"\xff" * (CHUNK_BITS // 8))
                self._length += CHUNK_BITS
                number += CHUNK_BITS
            else:
                self.add(number)
                number += 1

    def add(self, number: int) -> bool:
        """Retient ``number`` ; faux s'il l'était déjà."""
        place, bit = divmod(number, CHUNK_BITS)
        chunk = self._chunks.get(place)
        if chunk is None:
            chunk = self._chunks[place] = bytearray(CHUNK_BITS // 8)
        mask = 1 << (bit & 7)
        if chunk[bit >> 3] & mask:
            return False
        chunk[bit >> 3] |= mask
        self._length += 1
        return True

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, CHUNK_BITS)
        chunk = self._chunks.get(place)
        return chunk is not None and bool(chunk[bit >> 3] & 1 << (bit & 7))

    def __len__(self) -> int:
        return self._length

    def ranges(self) -> list[tuple[int, int]]:
        """Les mêmes, en intervalles disjoints et croissants."""
        return merged(run for place in sorted(self._chunks) for run in self._runs(place))

    def _runs(self, place: int) -> Iterator[tuple[int, int]]:
        start = place * CHUNK_BITS
        bits = bin(int.from_bytes(self._chunks[place], "little"))[:1:-1]
        first = bits.find("1")
        while first >= 0:
            end = bits.find("0", first)
            end = len(bits) if end < 0 else end
            yield start + first, start + end - 1
            first = bits.find("1", end)


class Distinct:
    """Identifiants déjà vus : des numéros par graine pour les ventes de producer.py, du texte pour les autres."""

    def __init__(self) -> None:
        self.runs: dict[int, Numbers] = defaultdict(Numbers)
        self.others: set[str] = set()

    def add(self, id: str) -> bool:
        """Retient ``id`` ; faux s'il l'était déjà."""
        if run_number := run_of(id):
            return self.runs[run_number[0]].add(run_number[1])
        if id in self.others:
            return False
        self.others.add(id)
        return True


class Version(NamedTuple):
    """Une version corrigée, et si l'étape suivante peut ne pas l'avoir encore."""

    vente: Vente
    late: bool


class Latest:
    """Compte chaque vente une fois, dans sa plus grande version ; annulée, elle ne compte pas.

    Les corrections sont rares : elles seules sont gardées en mémoire. Il faut pour cela relire les premières versions
    quand il y a des corrections (``replace``).
    """

    def __init__(self, totals: Totals, seen: "Distinct | None" = None) -> None:
        self.totals = totals
        self.late = totals.late = Totals("")
        self.extra = totals.extra = Totals("")
        self.corrected: dict[str, Vente] = {}
        self.distinct, self.repeated = seen or Distinct(), 0
        self._versions: dict[str, dict[int, Version]] = defaultdict(dict)

    def add(self, vente: Vente, late: bool = False) -> None:
        """Une vente lue."""
        if vente.version == 1:
            if not self.distinct.add(vente.id):
                self.repeated += 1
                return
            self.totals.add(vente.region, vente.produit, vente.montant)
            if late:
                self.late.add(vente.region, vente.produit, vente.montant)
            return
        versions = self._versions[vente.id]
        self.repeated += vente.version in versions
        versions[vente.version] = Version(vente, late)
        if vente.version > self.corrected.get(vente.id, vente).version or vente.id not in self.corrected:
            self.corrected[vente.id] = vente

    def replace(self, again: Iterable[Vente]) -> set[str]:
        """``again`` : toutes les ventes, de nouveau ; les premières versions corrigées laissent la place.

        Renvoie les identifiants corrigés dont la première version n'est pas là.

        D'une vente dont une version est en route, toutes les versions le sont : on ne sait laquelle la suite montre.
        """
        if not self.corrected:
            return set()
        left = set(self.corrected)
        for vente in again:
            if vente.version == 1 and vente.id in left:
                left.discard(vente.id)
                self.totals.add(vente.region, vente.produit, vente.montant, sign=-1)
                if self._moving(vente.id):
                    self.extra.add(vente.region, vente.produit, vente.montant)
        for vente in self.corrected.values():
            if not vente.annulee:
                self.totals.add(vente.region, vente.produit, vente.montant)
            if self._moving(vente.id):
                self.late.add(vente.region, vente.produit, vente.montant)
                for version, _ in self._versions[vente.id].values():
                    self.extra.add(version.region, version.produit, version.montant)
        self.totals.notes.append(f"{len(self.corrected)} corrigées ou annulées")
        return left

    def corrections(self, seed: int) -> int:
        """Nombre de versions corrigées vues des ventes d'une graine."""
        prefix = f"{seed:08x}-"
        return sum(len(versions) for id, versions in self._versions.items() if id.startswith(prefix))

    def _moving(self, id: str) -> bool:
        return any(version.late for version in self._versions[id].values())


class Allowance:
    """Ce qui peut manquer à une étape, ou y être en trop, sans faute : ce qui est encore en route vers elle.

    ``unknown`` : messages que Kafka a effacés avant qu'on les lise ; eux aussi peuvent y être en trop.
    """

    def __init__(self, unknown: int) -> None:
        self.late, self.extra, self.unknown = Totals(""), Totals(""), unknown

    def widen(self, step: Totals) -> None:
        """Ce que ``step`` n'a pas encore passé à la suite."""
        self.late.plus(step.late or Totals(""))
        self.extra.plus(step.extra or Totals(""))

    def gap(self, reference: Totals, step: Totals, key: Key) -> tuple[int, int]:
        """Ventes et centimes que rien n'explique, en trop (positifs) ou manquants ; (0, 0) s'il n'y en a pas."""
        count = reference.count[key]
        cents = reference.cents[key]
        return (
            _outside(
                step.count[key], count - self.late.count[key], count + self.extra.count[key] + self.unknown
            ),
            _outside(
                step.cents[key], cents - self.late.cents[key],
                cents + self.extra.cents[key] + self.unknown * CENTS_MAX,
            ),
        )  # fmt: skip


def _outside(value: int, low: int, high: int) -> int:
    """De combien ``value`` dépasse de l'intervalle."""
    return value - max(low, min(value, high))


def differences(steps: Sequence[Totals], expected: int | None, unknown: int = 0) -> list[str]:
    """Phrases qui disent ce que rien n'explique, étape par étape ; vide si tout est là, ou en route."""
    reference, allowance = steps[0], Allowance(0)
    found = [f"{step.name} : {fault}." for step in steps for fault in step.faults]
    if expected is not None and reference.count.total() != expected:
        found.append(f"{expected} ventes étaient attendues, {reference.count.total()} ont été produites.")
    for step in steps[1:]:
        gaps = []
        for key in sorted(reference.count.keys() | step.count.keys()):
            count, cents = allowance.gap(reference, step, key)
            if count or cents:
                gaps.append(f"{step.name}, {key[0]}, {key[1]} : {count:+d} ventes, {french_number(cents / 100, 2)} €.")
        found += gaps[:SHOWN] + (
            [f"{step.name} : et {len(gaps) - SHOWN} autres différences."] if len(gaps) > SHOWN else []
        )
        allowance.unknown = unknown
        allowance.widen(step)
    return found


def on_the_way(steps: Sequence[Totals]) -> list[str]:
    """Combien de ventes sont encore en route vers chaque étape, et combien de centimes ; vide si tout est arrivé."""
    found = []
    for before, after in pairwise(steps):
        count, cents = before.count.total() - after.count.total(), before.cents.total() - after.cents.total()
        if count or cents:
            found.append(f"{french_number(count)} ventes ({french_number(cents / 100, 2)} €) vers {after.name}")
    return found
