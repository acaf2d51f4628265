"""Une vente : sa forme, ses règles, sa fabrication. Logique pure, sans serveur ni horloge.

identifiant  texte      unique, « <suite>-<numéro> » pour les ventes de producer.py
produit      texte
region       texte
montant      Decimal    euros, deux décimales au plus, exact : jamais un flottant
date_vente   datetime   heure locale du magasin, à la seconde, sans fuseau

Une vente corrigée ou annulée est envoyée de nouveau, sous le même identifiant et une version plus grande ; un message
sans version est la version 1.
"""

import json
import random
import re
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, count
from typing import Any, Generic, NamedTuple, TypeVar

from faker import Faker
from faker.providers import BaseProvider

K = TypeVar("K")
V = TypeVar("V")

DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
FIELDS = ("id", "produit", "region", "montant", "date_vente")
VERSION_FIELDS = ("version", "annulee")
VERSION_MAX = 2**31 - 1
SEED_MAX = 2**32 - 1
CENT = Decimal("0.01")
MONTANT_MAX = Decimal(100_000)
TEXT_MAX = 100
OLDEST = datetime(2000, 1, 1)  # noqa: DTZ001 - sans fuseau, comme date_vente
FUTURE_TOLERANCE = timedelta(days=1)

# Produit : prix le plus bas, prix le plus haut (euros), popularité.
PRODUITS = {
    "Ordinateur portable": (449, 2000, 12),
    "Smartphone": (149, 1399, 18),
    "Tablette": (99, 1099, 10),
    "Téléviseur": (199, 1999, 8),
    "Console de jeux": (249, 649, 9),
    "Casque audio": (50, 399, 14),
    "Montre connectée": (59, 899, 10),
    "Appareil photo": (129, 2000, 5),
    "Imprimante": (55, 599, 7),
    "Enceinte": (50, 499, 7),
}
REGIONS = {
    "Île-de-France": 20, "Auvergne-Rhône-Alpes": 13, "Provence-Alpes-Côte d'Azur": 10, "Occitanie": 9, "Bretagne": 7,
    "Belgique": 9, "Suisse": 8, "Allemagne": 11, "Espagne": 7, "Italie": 6,
}  # fmt: skip
# Ventes par heure de la journée : la nuit presque rien, une pointe à midi, une autre le soir.
HEURES = (1, 1, 0, 0, 0, 1, 2, 4, 7, 10, 12, 15, 18, 14, 12, 12, 14, 18, 20, 17, 12, 8, 5, 2)

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_RUN_ID = re.compile(r"([0-9a-f]{8})-([0-9]{8,})")


class Vente(NamedTuple):
    """Une vente valide."""

    id: str
    produit: str
    region: str
    montant: Decimal
    date_vente: datetime
    version: int = 1
    annulee: bool = False


class InvalidVente(ValueError):
    """Ce message n'est pas une vente ; le texte dit pourquoi, en une phrase."""


def to_json(vente: Vente) -> bytes:
    """Message Kafka d'une vente : un objet JSON en UTF-8, le montant en nombre à deux décimales."""
    version = f', "version": {vente.version}, "annulee": {json.dumps(vente.annulee)}' if vente.version > 1 else ""
    return (
        f'{{"id": {json.dumps(vente.id)}, "produit": {_quoted(vente.produit)}, "region": {_quoted(vente.region)}, '
        f'"montant": {vente.montant.quantize(CENT)}, "date_vente": "{vente.date_vente}"{version}}}'
    ).encode()


@lru_cache(1000)  # les mêmes produits et régions reviennent sans cesse
def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def parse(value: bytes | None, now: datetime) -> Vente:
    """Vente contenue dans un message ; ``now`` est l'heure présente, sans fuseau.

    Lève InvalidVente si le message n'est pas du JSON en UTF-8, s'il manque un champ,
    ou si une valeur est absurde. Les champs en trop sont ignorés.
    """
    try:
        # parse_float=Decimal : 19.99 reste 19.99, sans passer par un flottant binaire.
        text = (value or b"").decode("utf-8")
        data = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise InvalidVente(f"JSON illisible : {error}") from error
    if not isinstance(data, dict):
        raise InvalidVente("un objet JSON est attendu")
    if missing := [field for field in FIELDS if data.get(field) is None]:
        raise InvalidVente(f"champ absent : {', '.join(missing)}")
    return Vente(
        id=_text(data, "id"),
        produit=_text(data, "produit"),
        region=_text(data, "region"),
        montant=_amount(data["montant"]),
        date_vente=_date(data["date_vente"], now),
        version=(version := _version(data.get("version", 1))),
        annulee=_cancelled(data.get("annulee", False), version),
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} n'est pas un nombre")


def _text(data: dict[str, Any], field: str) -> str:
    value = data[field]
    if not isinstance(value, str) or not value.strip():
        raise InvalidVente(f"{field} : un texte est attendu")
    if len(value) > TEXT_MAX or _CONTROL.search(value):
        raise InvalidVente(f"{field} : {TEXT_MAX} caractères imprimables au plus")
    return value


def _amount(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidVente("montant : un nombre est attendu")
    amount = Decimal(value)
    if not 0 < amount <= MONTANT_MAX:
        raise InvalidVente(f"montant : {amount:.6g} n'est pas entre 0,01 et {MONTANT_MAX} euros")
    exact = amount.quantize(CENT)
    if exact != amount:
        raise InvalidVente("montant : deux décimales au plus")
    return exact


def _version(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= VERSION_MAX:
        raise InvalidVente("version : un entier positif est attendu")
    return value


def _cancelled(value: Any, version: int) -> bool:
    if not isinstance(value, bool):
        raise InvalidVente("annulee : true ou false est attendu")
    if value and version == 1:
        raise InvalidVente("annulee : une vente ne s'annule qu'à partir de sa version 2")
    return value


def _date(value: Any, now: datetime) -> datetime:
    try:
        when = datetime.strptime(value, DATE_FORMAT)  # noqa: DTZ007 - sans fuseau, exprès
    except (TypeError, ValueError):
        raise InvalidVente("date_vente : AAAA-MM-JJ HH:MM:SS est attendu") from None
    if when.strftime(DATE_FORMAT) != value:
        raise InvalidVente("date_vente : AAAA-MM-JJ HH:MM:SS est attendu")
    if not OLDEST <= when <= now + FUTURE_TOLERANCE:
        raise InvalidVente(f"date_vente : {value} est trop ancienne ou dans le futur")
    return when


class VentesProvider(BaseProvider):
    """Fournisseur Faker : ``fake.vente(…)`` rend une vente plausible."""

    def vente(self, id: str, end: datetime, days: int) -> Vente:
        """Vente datée des ``days`` jours qui précèdent ``end``, plus souvent à midi et le soir."""
        draw: random.Random = self.generator.random
        produit, (low, high, _) = _PRODUITS.pick(draw)
        region, _ = _REGIONS.pick(draw)
        # Loi triangulaire : les prix bas sont les plus fréquents ; en centimes entiers, donc exact.
        cents = int(draw.triangular(low * 100, high * 100, low * 100))
        (hour, _), second, back = _HEURES.pick(draw), draw.randrange(3600), draw.random()
        midnight = end.replace(hour=0, minute=0, second=0, microsecond=0)
        when = midnight + timedelta(-int(back * days), hour * 3600 + second)
        if when > end:  # plus tard aujourd'hui : le premier des ``days`` jours, pas une seconde fois hier
            when -= timedelta(days=days)
        return Vente(id, produit, region, Decimal(cents) * CENT, when)


class _Choices(Generic[K, V]):
    """Tirage de ``random.choices``, le même nombre pour nombre, dont les poids ne sont sommés qu'une fois."""

    def __init__(self, values: Mapping[K, V], weights: Iterable[int]) -> None:
        self._values = list(values.items())
        self._sums = list(accumulate(weights))
        self._total, self._last = float(self._sums[-1]), len(self._sums) - 1

    def pick(self, draw: random.Random) -> tuple[K, V]:
        """Une valeur, au hasard de ``draw``."""
        return self._values[bisect(self._sums, draw.random() * self._total, 0, self._last)]


_PRODUITS = _Choices(PRODUITS, [weight for _, _, weight in PRODUITS.values()])
_REGIONS = _Choices(REGIONS, REGIONS.values())
_HEURES = _Choices(dict(enumerate(HEURES)), HEURES)


def generate(seed: int, clock: Callable[[], datetime], days: int, start: int = 1) -> Iterator[Vente]:
    """Suite sans fin des ventes de la graine ``seed``, à partir de la ``start``-ième.

    Chaque vente est datée des ``days`` jours qui précèdent ``clock()``. La même graine donne
    les mêmes identifiants, produits, régions et montants, toujours ; les dates aussi si
    l'horloge est fixe. L'identifiant porte la graine et le numéro d'ordre : un trou dans
    les numéros serait une vente perdue.
    """
    fake = new_fake(seed)
    draw: Callable[[str, datetime, int], Vente] = fake.vente
    for number in count(1):
        vente = draw(id_of(seed, number), clock(), days)
        if number >= start:
            yield vente


def new_fake(seed: int) -> Faker:
    """Le hasard d'une suite ; ``fake.random`` en est l'état."""
    fake = Faker("fr_FR")
    fake.add_provider(VentesProvider)
    fake.seed_instance(seed)
    return fake


def id_of(seed: int, number: int) -> str:
    """Identifiant d'une vente d'une suite ; ``run_of`` en est l'inverse."""
    return f"{seed:08x}-{number:08d}"


def with_corrections(ventes: Iterable[Vente], percent: float, seed: int) -> Iterator[Vente]:
    """Ces ventes, et un peu plus tard une version corrigée ou annulée de ``percent`` pour cent d'entre elles.

    Un second hasard les tire : les ventes elles-mêmes restent celles de leur graine.
    """
    draw = random.Random(seed)  # noqa: S311 - rien de secret
    waiting: deque[Vente] = deque()
    for vente in ventes:
        yield vente
        if draw.random() * 100 < percent:
            waiting.append(vente)
        if waiting and draw.random() < 0.1:
            yield _corrected(waiting.popleft(), draw, waiting)
    while waiting:
        yield _corrected(waiting.popleft(), draw, waiting)


def _corrected(vente: Vente, draw: random.Random, waiting: deque[Vente]) -> Vente:
    """La version suivante : annulée une fois sur deux, sinon d'un autre montant, et parfois corrigée encore."""
    if draw.random() < 0.5:
        return vente._replace(version=vente.version + 1, annulee=True)
    low, high, _ = PRODUITS[vente.produit]
    corrected = vente._replace(version=vente.version + 1, montant=Decimal(draw.randint(low * 100, high * 100)) * CENT)
    if draw.random() < 0.1:
        waiting.append(corrected)
    return corrected


def run_of(id: str) -> tuple[int, int] | None:
    """Graine et numéro d'ordre d'un identifiant fabriqué par ``generate``, None pour tout autre."""
    match = _RUN_ID.fullmatch(id)
    return (int(match[1], 16), int(match[2])) if match and (len(match[2]) == 8 or match[2][0] != "0") else None
