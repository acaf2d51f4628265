"""Une transaction bancaire : sa forme, ses règles, sa fabrication. Logique pure, sans Kafka ni horloge.

id          texte     unique, « <suite>-<numéro> » pour les transactions fabriquées
timestamp   datetime  instant de l'opération, UTC, à la milliseconde : c'est l'heure qui compte pour les fenêtres
montant     Decimal   euros, deux décimales au plus, exact : jamais un flottant ; toujours positif
type        texte     paiement, retrait, virement (débits), depot, remboursement (crédits)
compte      texte     le compte : la clé Kafka, donc la partition, donc l'ordre
region      texte
canal       texte     carte, web, agence, mobile
"""

import heapq
import random
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

FIELDS = ("id", "timestamp", "montant", "type", "compte", "region", "canal")
# Type : sens, montant habituel (euros), fréquence.
TYPES = {
    "paiement": ("débit", 35, 60),
    "retrait": ("débit", 60, 12),
    "virement": ("débit", 400, 12),
    "depot": ("crédit", 900, 8),
    "remboursement": ("crédit", 45, 8),
}
CANAUX = {
    "paiement": ("carte", "web", "mobile"),
    "retrait": ("carte", "agence"),
    "virement": ("web", "mobile", "agence"),
    "depot": ("agence", "web"),
    "remboursement": ("carte", "web"),
}
REGIONS = ("Île-de-France", "Auvergne-Rhône-Alpes", "Occitanie", "Bretagne", "Provence-Alpes-Côte d'Azur", "Belgique")
COMPTES = 200
MONTANT_MAX = Decimal(50_000)
CENT = Decimal("0.01")
TEXT_MAX = 100
OLDEST = datetime(2000, 1, 1, tzinfo=UTC)
FUTURE_TOLERANCE = timedelta(days=1)
# Tranche : les montants inférieurs à cette borne (euros).
TRANCHES = (("petit", Decimal(50)), ("moyen", Decimal(1000)), ("gros", Decimal("Infinity")))

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(float_hook=Decimal).decode  # 19.99 reste 19.99, sans flottant binaire


class Transaction(NamedTuple):
    """Une transaction valide."""

    id: str
    timestamp: datetime
    montant: Decimal
    type: str
    compte: str
    region: str
    canal: str


class InvalidTransaction(ValueError):
    """Ce n'est pas une transaction ; le texte dit pourquoi, en une phrase."""


# --- Lire ---


def parse(value: bytes | None, now: datetime) -> Transaction:
    """Transaction contenue dans un message. ``now`` : l'heure présente, UTC.

    Lève InvalidTransaction si ce n'est pas du JSON, s'il manque un champ, si une valeur est absurde.
    """
    try:
        data = _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidTransaction(f"JSON illisible : {error}") from error
    if not isinstance(data, dict):
        raise InvalidTransaction("un objet JSON est attendu")
    return from_fields(data, now)


def from_fields(data: dict[str, Any], now: datetime) -> Transaction:
    """Transaction dont les champs sont donnés ; le montant est un nombre (int ou Decimal), le reste du texte."""
    if missing := [field for field in FIELDS if data.get(field) is None]:
        raise InvalidTransaction(f"champ absent : {', '.join(missing)}")
    kind = _text(data, "type")
    if kind not in TYPES:
        raise InvalidTransaction(f"type : {kind!r} n'est pas un de {', '.join(TYPES)}")
    texts = {field: _text(data, field) for field in ("id", "compte", "region", "canal")}
    return Transaction(timestamp=_instant(data["timestamp"], now), montant=_amount(data["montant"]), type=kind, **texts)


def _text(data: dict[str, Any], field: str) -> str:
    value = data[field]
    if not isinstance(value, str) or not value.strip():
        raise InvalidTransaction(f"{field} : un texte est attendu")
    if len(value) > TEXT_MAX or _CONTROL.search(value):
        raise InvalidTransaction(f"{field} : {TEXT_MAX} caractères imprimables au plus")
    return value


def _amount(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidTransaction("montant : un nombre est attendu")
    amount = Decimal(value)
    if not 0 < amount <= MONTANT_MAX:
        raise InvalidTransaction(f"montant : {amount:.6g} n'est pas entre 0,01 et {MONTANT_MAX} euros")
    exact = amount.quantize(CENT)
    if exact != amount:
        raise InvalidTransaction("montant : deux décimales au plus")
    return exact


def _instant(value: Any, now: datetime) -> datetime:
    expected = "timestamp : AAAA-MM-JJTHH:MM:SS.mmmZ est attendu"
    if not isinstance(value, str) or not _TIMESTAMP.fullmatch(value):
        raise InvalidTransaction(expected)
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidTransaction(expected) from None
    if not OLDEST <= instant <= now + FUTURE_TOLERANCE:
        raise InvalidTransaction(f"timestamp : {value} est trop ancien ou dans le futur")
    return instant


def amount_or_text(field: str, text: Any) -> Any:
    """Champ d'une ligne de CSV : un montant lisible devient un Decimal, tout le reste est gardé tel quel."""
    if field == "montant" and isinstance(text, str) and _NUMBER.fullmatch(text):
        return Decimal(text)
    return text


# --- Écrire ---


def instant_text(instant: datetime) -> str:
    """Instant en texte : ``2026-01-31T23:59:59.999Z``."""
    return instant.strftime("%Y-%m-%dT%H:%M:%S.") + f"{instant.microsecond // 1000:03d}Z"


def to_json(transaction: Transaction, **more: object) -> bytes:
    """Message Kafka d'une transaction : un objet JSON, le montant en nombre à deux décimales."""
    fields = transaction._asdict() | {"timestamp": instant_text(transaction.timestamp)}
    return _encode(fields | more)


def enrich(transaction: Transaction) -> dict[str, object]:
    """Le travail : ce qu'une transaction validée a de plus. Ne dépend que d'elle : une redite donne les mêmes octets.

    sens      « débit » ou « crédit »
    solde     Decimal, le montant avec son signe
    tranche   « petit », « moyen » ou « gros »
    """
    sens = TYPES[transaction.type][0]
    return {
        "sens": sens,
        "solde": transaction.montant if sens == "crédit" else -transaction.montant,
        "tranche": next(name for name, bound in TRANCHES if transaction.montant < bound),
    }


# --- Fabriquer ---


def generate(seed: int, start: datetime, rate: float) -> Iterator[Transaction]:
    """Suite sans fin des transactions de la graine ``seed`` : la n-ième est datée de ``start + n / rate``.

    ``rate`` : transactions par seconde. La même graine, le même début et le même rythme donnent les
    mêmes transactions ; un trou dans les numéros des identifiants serait une transaction perdue.
    """
    dice = random.Random(seed)  # noqa: S311 - des transactions d'exemple
    kinds, weights = list(TYPES), [weight for _, _, weight in TYPES.values()]
    number = 0
    while True:
        number += 1
        kind = dice.choices(kinds, weights)[0]
        # Loi log-normale : beaucoup de petits montants, quelques gros ; en centimes entiers, donc exact.
        cents = max(1, min(int(dice.lognormvariate(0, 0.9) * TYPES[kind][1] * 100), int(MONTANT_MAX) * 100))
        instant = start + timedelta(milliseconds=int(number * 1000 / rate))
        compte = dice.randrange(COMPTES)
        yield Transaction(
            f"{seed:08x}-{number:08d}",
            instant.replace(microsecond=instant.microsecond // 1000 * 1000),
            cents * CENT,
            kind,
            f"FR{compte:06d}",
            REGIONS[compte % len(REGIONS)],
            dice.choice(CANAUX[kind]),
        )


def number_of(id: str) -> int:
    """Numéro d'ordre d'un identifiant fabriqué par ``generate``."""
    return int(id.rpartition("-")[2])


def disorder(transactions: Iterable[Transaction], seconds: float, seed: int) -> Iterator[Transaction]:
    """Les mêmes, livrées dans le désordre : chacune a un retard tiré entre 0 et ``seconds``, d'après son timestamp."""
    dice = random.Random(seed)  # noqa: S311 - un désordre rejouable
    waiting: list[tuple[datetime, int, Transaction]] = []
    for number, transaction in enumerate(transactions):
        while waiting and waiting[0][0] <= transaction.timestamp:
            yield heapq.heappop(waiting)[2]
        arrival = transaction.timestamp + timedelta(seconds=dice.uniform(0, seconds))
        heapq.heappush(waiting, (arrival, number, transaction))
    while waiting:
        yield heapq.heappop(waiting)[2]
