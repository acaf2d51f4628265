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
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

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
MAX_EUROS = 50_000
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


# --- Lire : un seul analyseur, pour le consommateur, le moniteur et les fichiers ---


class Fields(msgspec.Struct, gc=False):
    """Les champs d'un message ; le montant, tel qu'il est écrit : un flottant perdrait ses dernières décimales."""

    id: str
    timestamp: str
    montant: msgspec.Raw
    type: str
    compte: str
    region: str
    canal: str


Read = tuple[Fields, int, int]  # les champs, le montant en centimes, l'instant en millisecondes depuis 1970

LEARNED = 1_000_000  # textes et secondes déjà admis, gardés : les mêmes reviennent sans cesse
SHORT_NUMBER = 15  # caractères d'un nombre qu'un flottant rend tel quel
_seconds: dict[str, int] = {}  # « 2026-01-31T23:59:59 »
_texts: set[str] = set()
_MILLISECONDS = {f".{number:03d}Z": number for number in range(1000)}
_decode = msgspec.json.Decoder(Fields).decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(value: bytes | None) -> Read:
    """Ce que porte un message, date future comprise. Lève InvalidTransaction, qui dit ce qui ne va pas."""
    try:
        fields = _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidTransaction(_why(value or b"", error)) from error
    return check(fields)


def check(fields: Fields) -> Read:
    """De même, des champs déjà séparés."""
    if fields.type not in TYPES:
        raise InvalidTransaction(f"type : {fields.type!r} n'est pas un de {', '.join(TYPES)}")
    if not (fields.compte in _texts and fields.region in _texts and fields.canal in _texts):
        _learn_texts(fields)
    if not fields.id.isprintable() or len(fields.id) > TEXT_MAX or not fields.id.strip():
        _check_text("id", fields.id)
    text = fields.timestamp
    second, millisecond = _seconds.get(text[:19]), _MILLISECONDS.get(text[19:])
    if second is None or millisecond is None:
        second, millisecond = _learn_instant(text)
    return fields, _cents(bytes(fields.montant)), second + millisecond


def parse(value: bytes | None, now: datetime) -> Transaction:
    """Transaction contenue dans un message. ``now`` : l'heure présente, UTC ; lève InvalidTransaction."""
    return _transaction(read(value), now)


def from_fields(data: Mapping[str, str], now: datetime) -> Transaction:
    """Transaction d'une ligne de CSV. Lève InvalidTransaction."""
    if missing := [field for field in FIELDS if not data.get(field)]:
        raise InvalidTransaction(f"champ absent : {', '.join(missing)}")
    if not _NUMBER.fullmatch(data["montant"]):
        raise InvalidTransaction("montant : un nombre est attendu")
    fields = Fields(
        data["id"], data["timestamp"], msgspec.Raw(data["montant"].encode()), data["type"], data["compte"],
        data["region"], data["canal"],
    )  # fmt: skip
    return _transaction(check(fields), now)


def _transaction(read: Read, now: datetime) -> Transaction:
    fields, cents, instant = read
    timestamp = _EPOCH + timedelta(milliseconds=instant)
    if timestamp > now + FUTURE_TOLERANCE:
        raise InvalidTransaction(f"timestamp : {fields.timestamp} est trop ancien ou dans le futur")
    return Transaction(fields.id, timestamp, cents * CENT, fields.type, fields.compte, fields.region, fields.canal)


def _why(value: bytes, error: Exception) -> str:
    """Ce qui ne va pas dans un message que l'analyseur refuse."""
    try:
        data = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        where = re.search(r"byte (\d+)", str(error))
        return "JSON illisible" + (f" (octet {where[1]})" if where else "")
    if not isinstance(data, dict):
        return "un objet JSON est attendu"
    if missing := [field for field in FIELDS if data.get(field) is None]:
        return f"champ absent : {', '.join(missing)}"
    wrong = [field for field in FIELDS if field != "montant" and not isinstance(data[field], str)]
    return f"{', '.join(wrong)} : un texte est attendu"


def _check_text(field: str, value: str) -> None:
    if not value.strip():
        raise InvalidTransaction(f"{field} : un texte est attendu")
    if len(value) > TEXT_MAX or _CONTROL.search(value):
        raise InvalidTransaction(f"{field} : {TEXT_MAX} caractères imprimables au plus")


def _learn_texts(fields: Fields) -> None:
    for field in ("compte", "region", "canal"):
        _check_text(field, getattr(fields, field))
    if len(_texts) > LEARNED:
        _texts.clear()
    _texts.update((fields.compte, fields.region, fields.canal))


def _learn_instant(text: str) -> tuple[int, int]:
    expected = "timestamp : AAAA-MM-JJTHH:MM:SS.mmmZ est attendu"
    if not _TIMESTAMP.fullmatch(text):
        raise InvalidTransaction(expected)
    try:
        instant = datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        raise InvalidTransaction(expected) from None
    if instant < OLDEST:
        raise InvalidTransaction(f"timestamp : {text} est trop ancien ou dans le futur")
    if len(_seconds) > LEARNED:
        _seconds.clear()
    second = _seconds[text[:19]] = (instant - _EPOCH) // timedelta(milliseconds=1)
    return second, _MILLISECONDS[text[19:]]


def _cents(text: bytes) -> int:
    """Un nombre JSON, en centimes, exact."""
    if text == b"null":
        raise InvalidTransaction("champ absent : montant")
    try:
        value = float(text) if len(text) <= SHORT_NUMBER else Decimal(text.decode())
    except (ValueError, InvalidOperation):
        raise InvalidTransaction("montant : un nombre est attendu") from None
    if not 0 < value <= MAX_EUROS:
        raise InvalidTransaction(f"montant : {value:.6g} n'est pas entre 0,01 et {MAX_EUROS} euros")
    cents = round(value * 100)
    if (cents / 100 if isinstance(value, float) else cents * CENT) != value:
        raise InvalidTransaction("montant : deux décimales au plus")
    return cents


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
        cents = max(1, min(int(dice.lognormvariate(0, 0.9) * TYPES[kind][1] * 100), MAX_EUROS * 100))
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
