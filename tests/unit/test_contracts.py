"""Le contrat des messages : un schéma accepte ce que les scripts envoient, refuse ce que leurs lecteurs refusent."""

import copy
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from types import SimpleNamespace
from typing import Any

from commun import contracts
from commun.kafka import dead_letter_headers, dead_letter_of
from commun.settings import ROOT
from exercice2 import transactions
from exercice2.fenetres import published
from exercice2.fenetres.windows import Result
from exercice3 import ventes
from tests.unit.test_transactions import GOOD, NOW

import pytest
from jsonschema import Draft202012Validator

SALE = {
    "id": "a-1", "produit": "Tablette", "region": "Île-de-France", "montant": Decimal("19.99"),
    "date_vente": "2026-01-31 12:00:00",
}  # fmt: skip
WRONG_TEXT = ("", "   ", "a\nb", "x" * 101, 3, None, ["a"])
WRONG_AMOUNT = (0, -1, Decimal("1.001"), Decimal("100000.01"), "12", True, None)
Change = dict[str, Any]


def schema(name: str) -> dict[str, Any]:
    """Le schéma d'une sorte de messages ; ses nombres exacts."""
    path = ROOT / "commun" / "contrats" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    return found


def valid(schema: dict[str, Any], value: bytes) -> bool:
    """Vrai si ce message est du contrat."""
    return bool(Draft202012Validator(schema).is_valid(json.loads(value, parse_float=Decimal)))


def dump(data: Change) -> bytes:
    """Un message JSON, ses montants en nombres exacts."""
    return json.dumps(data, ensure_ascii=False, default=float).encode()


def reads_sale(value: bytes) -> bool:
    """Vrai si consumer.py en fait une vente."""
    try:
        ventes.parse(value, datetime(2026, 6, 1))
    except ventes.InvalidVente:
        return False
    return True


def reads_transaction(value: bytes) -> bool:
    """Vrai si consumer_resilient.py en fait une transaction."""
    try:
        transactions.parse(value, NOW)
    except transactions.InvalidTransaction:
        return False
    return True


def changes(good: Change, amount: str, texts: tuple[str, ...]) -> list[Change]:
    """Un bon message, et tout ce qu'on peut y changer : un champ absent, d'un autre type, hors bornes, en trop."""
    found = [good, good | {"en_plus": {"a": [1]}}]
    found += [{name: value for name, value in good.items() if name != missing} for missing in good]
    found += [good | {name: value} for name in texts for value in (*WRONG_TEXT, "x" * 100, "é")]
    return found + [good | {amount: value} for value in (*WRONG_AMOUNT, 1, Decimal("0.01"), Decimal("49999.99"))]


SALES = changes(SALE, "montant", ("id", "produit", "region")) + [
    SALE | change
    for change in (
        {"version": 1}, {"version": 2}, {"version": 0}, {"version": "2"}, {"version": 2**31}, {"annulee": True},
        {"annulee": True, "version": 2}, {"annulee": False}, {"annulee": "oui", "version": 2},
        {"date_vente": "2026-01-31"}, {"date_vente": "2026-13-01 00:00:00"}, {"date_vente": "1999-12-31 23:59:59"},
        {"date_vente": "2026-01-31 24:00:00"}, {"date_vente": 12}, {"date_vente": "2026-01-31T12:00:00"},
    )
]  # fmt: skip
TRANSACTIONS = changes(GOOD, "montant", ("id", "compte", "region", "canal")) + [
    GOOD | change
    for change in (
        {"type": "don"}, {"type": None}, {"montant": 50_001}, {"timestamp": "2026-05-31T23:59:59Z"},
        {"timestamp": "2026-05-31T24:00:00.000Z"}, {"timestamp": "1999-05-31T23:00:00.000Z"},
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reads", "messages"), [("vente", reads_sale, SALES), ("transaction", reads_transaction, TRANSACTIONS)]
)
def test_the_schema_and_the_reader_agree(name: str, reads: Callable[[bytes], bool], messages: list[Change]) -> None:
    """Message par message : accepté par l'un, accepté par l'autre."""
    contract = schema(name)
    disagreed = [message for message in messages if valid(contract, dump(message)) != reads(dump(message))]
    assert disagreed == []
    verdicts = [reads(dump(message)) for message in messages]
    assert min(verdicts.count(True), verdicts.count(False)) >= 5


def test_what_is_sent_is_of_its_contract() -> None:
    """Ventes, corrections, transactions, enrichies ou non, fenêtres : mille de chaque."""
    sale, transaction, window = (schema(name) for name in ("vente", "transaction", "fenetre"))
    sent = ventes.with_corrections(islice(ventes.generate(1, lambda: datetime(2026, 1, 1), 90), 1000), 10, 1)
    assert all(valid(sale, ventes.to_json(vente)) for vente in sent)
    for one in islice(transactions.generate(1, NOW - timedelta(days=1), 10), 1000):
        assert valid(transaction, transactions.to_json(one))
        assert valid(transaction, transactions.to_json(one, **transactions.enrich(one)))
    for number in range(1, 1000):
        result = Result(None, number * 1000, number * 1000 + 60_000, number, number * 7, 1, 7, number % 2 == 0, "a-1")
        assert valid(window, published.to_json(result))
    assert not valid(window, b'{"cle": "toutes"}')


def test_dead_letters_are_of_their_contract() -> None:
    """Celle d'un message, celle d'une ligne de fichier ; sans origine, ce n'en est pas une."""
    message: Any = SimpleNamespace(topic=lambda: "t", partition=lambda: 3, offset=lambda: 12, headers=lambda: None)
    contract = Draft202012Validator(schema("lettre_morte"))
    for headers in (dead_letter_of(message, "raison"), dead_letter_headers("r", topic="t", file="f.csv", line=3)):
        told = {name: value.decode() for name, value in headers if isinstance(value, bytes)}
        assert contract.is_valid(told), told
        assert not contract.is_valid(
            {name: value for name, value in told.items() if name not in ("dlq.line", "dlq.offset")}
        )


# --- Changer un contrat ---


def test_an_older_consumer_and_a_newer_producer_agree() -> None:
    """Un champ facultatif de plus : le lecteur d'aujourd'hui lit la même vente, son schéma l'accepte."""
    newer = copy.deepcopy(schema("vente"))
    newer["properties"]["magasin"] = {"type": "string"}
    message = dump(SALE | {"magasin": "Brest"})
    assert valid(newer, message)
    assert valid(schema("vente"), message)
    now = datetime(2026, 6, 1)
    assert ventes.parse(message, now) == ventes.parse(dump(SALE), now)
    assert valid(newer, dump(SALE))  # et l'inverse : un producteur d'avant, un lecteur d'après


def test_another_change_is_refused_not_misread() -> None:
    """Un champ renommé, ou d'un autre type : lettre morte pour le lecteur d'aujourd'hui, jamais une autre vente."""
    renamed = {("prix" if name == "montant" else name): value for name, value in SALE.items()}
    for message in (renamed, SALE | {"montant": "19,99"}, SALE | {"montant": 1999.999}):
        assert not reads_sale(dump(message))


def test_every_contract_is_told_in_a_header() -> None:
    """Les numéros de contracts.py sont ceux des schémas."""
    names = {path.stem for path in (ROOT / "commun" / "contrats").iterdir()}
    told = (contracts.SALE, contracts.TRANSACTION, contracts.WINDOW, contracts.LETTER)
    assert {contract.partition("/")[0] for contract in told} == names
    for contract in told:
        assert contract in json.dumps(schema(contract.partition("/")[0]), default=float)
    assert contracts.header(contracts.SALE) == ("contrat", b"vente/1")
