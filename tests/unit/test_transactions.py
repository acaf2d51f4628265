"""Les règles d'une transaction, sa fabrication, sa lecture dans un fichier : sans serveur."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from exercice2.deliveries import Deliveries
from exercice2.fenetres.partials import Reader
from exercice2.sources import CsvFile, Generated, Saved
from exercice2.transactions import InvalidTransaction, disorder, enrich, generate, parse, to_json

import pytest
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
GOOD = {
    "id": "a-1", "timestamp": "2026-05-31T23:59:59.999Z", "montant": 12.34, "type": "paiement", "compte": "FR1",
    "region": "Bretagne", "canal": "carte",
}  # fmt: skip


def test_round_trip() -> None:
    """Écrite puis lue, une transaction est la même, au centime et à la milliseconde."""
    for transaction in islice(generate(5, NOW - timedelta(days=9), 100), 2000):
        assert parse(to_json(transaction), NOW) == transaction


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"montant": 0}, "montant"),
        ({"montant": -5}, "montant"),
        ({"montant": 50_001}, "montant"),
        ({"montant": 1.234}, "décimales"),
        ({"montant": 1e-320}, "décimales"),
        ({"montant": "12"}, "nombre"),
        ({"montant": True}, "nombre"),
        ({"montant": None}, "champ absent : montant"),
        ({"timestamp": "2026-05-31 10:00:00"}, "timestamp"),
        ({"timestamp": "2026-02-30T10:00:00.000Z"}, "timestamp"),
        ({"timestamp": "2026-06-03T10:00:00.000Z"}, "futur"),
        ({"timestamp": "1999-06-03T10:00:00.000Z"}, "ancien"),
        ({"type": "don"}, "type"),
        ({"compte": " "}, "compte"),
        ({"id": "a\x00"}, "imprimables"),
    ],
)
def test_refused(change: dict[str, Any], reason: str) -> None:
    """Une valeur absurde est refusée, avec une raison qui nomme le champ."""
    with pytest.raises(InvalidTransaction, match=reason):
        parse(json.dumps(GOOD | change).encode(), NOW)


@pytest.mark.parametrize("value", [None, b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_not_an_object(value: bytes | None) -> None:
    """Ce qui n'est pas un objet JSON est refusé."""
    with pytest.raises(InvalidTransaction):
        parse(value, NOW)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("20.000000000000000001", "décimales"), ("50000.0000000000001", "entre"), ("1e99999999999999999999", "nombre"),
        ("1e400", "entre"), ("-0", "entre"), ("0.004", "décimales"), ("12.34", ""), ("1234e-2", ""), ("5e4", ""),
        ("12.340000000000000000000", ""),
    ],
)  # fmt: skip
def test_one_verdict(number: str, reason: str) -> None:
    """Le consommateur et le moniteur jugent de même, à la dernière décimale, quel que soit le nombre."""
    value = json.dumps(GOOD).replace("12.34", number).encode()
    record = mock.Mock(value=lambda: value, offset=lambda: 0)
    entries, rejected = Reader(None, 10**13).read([record], 0)
    if reason:
        assert reason in rejected[0][1]
        with pytest.raises(InvalidTransaction, match=reason):
            parse(value, NOW)
    else:
        assert Decimal(entries[0][1]) / 100 == parse(value, NOW).montant == Decimal(number)


def test_another_field_is_any_number() -> None:
    """Un nombre que Python ne sait pas représenter, dans un champ de plus, n'arrête rien."""
    value = json.dumps(GOOD).encode()[:-1] + b',"x":1e99999999999999999999}'
    assert parse(value, NOW).id == "a-1"
    with pytest.raises(InvalidTransaction):
        parse(b'{"x":1e99999999999999999999}', NOW)


def test_enrich() -> None:
    """Un paiement est un débit ; les tranches ont leurs bornes."""
    transaction = parse(json.dumps(GOOD).encode(), NOW)
    assert enrich(transaction) == {"sens": "débit", "solde": Decimal("-12.34"), "tranche": "petit"}
    dearer = transaction._replace(type="depot", montant=Decimal(1000))
    assert enrich(dearer) == {"sens": "crédit", "solde": Decimal(1000), "tranche": "gros"}


@given(seconds=st.floats(0, 30), seed=st.integers(0, 1000), skip=st.integers(0, 300))
def test_disorder(seconds: float, seed: int, skip: int) -> None:
    """Le désordre ne perd rien, ne double rien, et ne retarde personne de plus que dit ; il est rejouable."""
    ordered = list(islice(generate(seed, NOW, 20), 300))
    shuffled = list(disorder(ordered, seconds, seed))
    assert sorted(shuffled) == sorted(ordered)
    latest = NOW
    for transaction in shuffled:
        latest = max(latest, transaction.timestamp)
        assert latest - transaction.timestamp <= timedelta(seconds=seconds)
    assert shuffled[skip:] == list(islice(disorder(ordered, seconds, seed), skip, None))


def test_disorder_is_real() -> None:
    """Le désordre mêle vraiment : des transactions en doublent d'autres, de plus d'une demi-fois le retard permis."""
    shuffled = list(disorder(islice(generate(1, NOW, 20), 300), 3.0, 1))
    late = [max(t.timestamp for t in shuffled[: n + 1]) - t.timestamp for n, t in enumerate(shuffled)]
    assert sum(delay > timedelta(0) for delay in late) > 100
    assert max(late) > timedelta(seconds=1.5)


@given(cut=st.integers(0, 120), spread=st.sampled_from([0.0, 3.0]))
def test_generated_source_resumes(cut: int, spread: float) -> None:
    """Reprise n'importe où, la suite fabriquée continue exactement."""
    source = Generated(3, 0, spread, 120)
    whole = list(source.resume(Saved())[1])
    assert [item.transaction for item in whole[cut:]] == [
        item.transaction for item in Generated(3, 0, spread, 120).resume(source.mark(cut))[1]
    ]


def test_file_source_resumes(tmp_path: Path) -> None:
    """Un fichier qui a grandi continue où il en était ; un autre contenu repart du début ; le reste est gardé."""
    path = tmp_path / "t.csv"
    head = "id,timestamp,montant,type,compte,region,canal\n"
    row = "a-{},2026-01-01T00:00:00.000Z,10.50,paiement,FR1,Bretagne,carte\n"
    path.write_text(head + row.format(1) + "trop,court\n" + row.format(2), encoding="utf-8")
    said: list[str] = []
    source = CsvFile(path, None, said.append)
    items = list(source.resume(Saved())[1])
    assert [item.transaction.id if item.transaction else item.raw for item in items] == ["a-1", b"trop,court\n", "a-2"]
    assert items[1].line == 3
    saved = source.mark(3)
    with path.open("a", encoding="utf-8") as file:
        file.write(row.format(3))
    later = [item.transaction for item in CsvFile(path, None, said.append).resume(saved)[1]]
    assert [transaction.id for transaction in later if transaction] == ["a-3"]
    path.write_text(head + row.format(9), encoding="utf-8")
    assert len(list(CsvFile(path, None, said.append).resume(saved)[1])) == 1
    assert "n'est plus le fichier déjà envoyé" in said[-1]


def test_deliveries() -> None:
    """Ce qui est écrit n'est confirmé qu'à la validation ; une annulation fait tout repartir."""
    deliveries = Deliveries()
    for partition, milliseconds in ((0, 10), (1, 20), (1, 90)):
        deliveries.sent += 1
        deliveries.on_written(partition, milliseconds / 1000)
    assert "3 envoyées, 0 confirmées, 3 en attente, 0 reparties" in str(deliveries)
    deliveries.on_commit(rejected=2)
    deliveries.sent += 4
    deliveries.on_written(0, 0.01)
    deliveries.on_abort()
    deliveries.on_stats(json.dumps({"name": "p#1", "brokers": {"1": {"txretries": 2}, "2": {"txretries": 3}}}))
    assert "7 envoyées, 3 confirmées, 0 en attente, 4 reparties, 2 lettres mortes, 5 renvois" in str(deliveries)
    assert (deliveries.percentile(0.5), deliveries.percentile(0.99)) == (10, 90)
    assert deliveries.spread() == "p0 1, p1 2"
