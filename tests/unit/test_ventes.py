"""Les ventes : règles, fabrication, aller et retour en JSON."""

import json
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

from exercice3.consumer import sort_messages
from exercice3.ventes import (
    CENT,
    MONTANT_MAX,
    OLDEST,
    PRODUITS,
    REGIONS,
    VERSION_MAX,
    InvalidVente,
    Vente,
    generate,
    parse,
    run_of,
    to_json,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 6, 15, 12, 0, 0)
GOOD = {"id": "a", "produit": "Tablette", "region": "Suisse", "montant": 99.9, "date_vente": "2026-06-15 11:00:00"}

texts = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=100
).filter(lambda text: text.strip())  # fmt: skip
ventes = st.builds(
    Vente,
    id=texts,
    produit=texts,
    region=texts,
    montant=st.integers(1, int(MONTANT_MAX) * 100).map(lambda cents: cents * CENT),
    date_vente=st.datetimes(OLDEST, NOW).map(lambda when: when.replace(microsecond=0)),
    version=st.integers(1, VERSION_MAX),
    annulee=st.booleans(),
).map(lambda vente: vente._replace(annulee=vente.annulee and vente.version > 1))


@given(ventes)
def test_json_round_trip(vente: Vente) -> None:
    """Toute vente écrite en JSON est relue exactement, au centime et au caractère près."""
    assert parse(to_json(vente), NOW) == vente
    assert isinstance(json.loads(to_json(vente))["montant"], float)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_sale_or_a_reason(value: bytes) -> None:
    """N'importe quels octets donnent une vente ou une raison, jamais une autre erreur."""
    try:
        parse(value, NOW)
    except InvalidVente as error:
        assert str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values)))
def test_any_object_is_a_sale_or_a_reason(changes: dict[str, object]) -> None:
    """De même pour n'importe quelles valeurs dans les champs d'une vente."""
    try:
        vente = parse(json.dumps(GOOD | changes).encode(), NOW)
    except InvalidVente as error:
        assert str(error)
    else:
        assert 0 < vente.montant <= MONTANT_MAX
        assert vente.montant == vente.montant.quantize(CENT)


@pytest.mark.parametrize("amount", ["0.01", "50", "19.99", "1999.90", "100000", "1e2"])
def test_amounts_accepted_exactly(amount: str) -> None:
    """Le montant relu est celui qui est écrit, sans passer par un flottant."""
    value = json.dumps(GOOD).replace("99.9", amount).encode()
    assert parse(value, NOW).montant == Decimal(amount)


@pytest.mark.parametrize(
    "amount",
    ["0", "-1", "0.001", "100000.01", "1e400", "NaN", "Infinity", '"12"', "true", "null", "[]", "1" + "0" * 5000],
)
def test_absurd_amounts_are_refused(amount: str) -> None:
    """Un montant absurde est refusé avec une raison qui nomme le champ ou le JSON."""
    with pytest.raises(InvalidVente, match=r"montant|JSON"):
        parse(json.dumps(GOOD).replace("99.9", amount).encode(), NOW)


@pytest.mark.parametrize(
    "date", ["2026-06-15", "2026-06-15T11:00:00", "2026-6-15 11:00:00", "2026-02-30 00:00:00", "1999-12-31 23:59:59",
             "2026-06-17 00:00:00", "demain", ""],
)  # fmt: skip
def test_absurd_dates_are_refused(date: str) -> None:
    """Une date mal formée, trop ancienne ou future est refusée."""
    with pytest.raises(InvalidVente, match="date_vente"):
        parse(json.dumps(GOOD | {"date_vente": date}).encode(), NOW)


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    """Le champ absent est nommé."""
    data = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(InvalidVente, match=f"champ absent : {field}"):
        parse(json.dumps(data).encode(), NOW)


def change(**fields: object) -> bytes:
    """Une bonne vente, dont des champs sont autres."""
    return json.dumps(GOOD | fields).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "JSON illisible : Expecting value: line 1 column 1 (char 0)"),
        (change(montant=float("nan")), "JSON illisible : NaN n'est pas un nombre"),
        (b"[]", "un objet JSON est attendu"),
        (b"{}", "champ absent : id, produit, region, montant, date_vente"),
        (change(id=12), "id : un texte est attendu"),
        (change(produit=" "), "produit : un texte est attendu"),
        (change(region="r" * 101), "region : 100 caractères imprimables au plus"),
        (change(region="r\x7f"), "region : 100 caractères imprimables au plus"),
        (change(montant="12"), "montant : un nombre est attendu"),
        (change(montant=0), "montant : 0 n'est pas entre 0,01 et 100000 euros"),
        (change(montant=1.555), "montant : deux décimales au plus"),
        (change(date_vente="hier"), "date_vente : AAAA-MM-JJ HH:MM:SS est attendu"),
        (change(date_vente="2026-6-15 11:00:00"), "date_vente : AAAA-MM-JJ HH:MM:SS est attendu"),
        (
            change(date_vente="2026-06-16 12:00:01"),
            "date_vente : 2026-06-16 12:00:01 est trop ancienne ou dans le futur",
        ),
    ],
)
def test_the_reason_is_exact(value: bytes | None, reason: str) -> None:
    """La raison est celle que l'on lira dans la lettre morte : le champ, et la règle."""
    with pytest.raises(InvalidVente) as refused:
        parse(value, NOW)
    assert str(refused.value) == reason


@pytest.mark.parametrize("date", ["2000-01-01 00:00:00", "2026-06-16 12:00:00"])
def test_dates_at_the_bounds_are_accepted(date: str) -> None:
    """La plus ancienne date, et un jour d'avance exactement, passent."""
    assert f"{parse(change(date_vente=date), NOW).date_vente}" == date


def test_a_text_of_100_characters_is_accepted() -> None:
    """Cent caractères passent, cent un non."""
    assert parse(change(produit="é" * 100), NOW).produit == "é" * 100


def test_the_message_is_exact() -> None:
    """Les octets d'un message : accents lisibles, deux décimales, l'identifiant en ASCII."""
    vente = Vente("é-1", "Téléviseur", "Île-de-France", Decimal(5), datetime(2026, 1, 2, 3, 4, 5))
    assert to_json(vente).decode() == (
        '{"id": "\\u00e9-1", "produit": "Téléviseur", "region": "Île-de-France", "montant": 5.00, '
        '"date_vente": "2026-01-02 03:04:05"}'
    )


def test_generation_is_reproducible() -> None:
    """La même graine donne les mêmes ventes, une autre graine d'autres ventes, « start » la suite exacte."""
    first = list(islice(generate(5, lambda: NOW, 30), 50))
    assert first == list(islice(generate(5, lambda: NOW, 30), 50))
    assert first[20:] == list(islice(generate(5, lambda: NOW, 30, start=21), 30))
    other = list(islice(generate(6, lambda: NOW, 30), 50))
    assert not {vente.id for vente in first} & {vente.id for vente in other}
    # Identifiants, produits, régions et montants ne dépendent pas de l'horloge : reconcile.py en vit.
    later = list(islice(generate(5, lambda: NOW + timedelta(days=400), 7), 50))
    assert [vente[:4] for vente in first] == [vente[:4] for vente in later]


def test_the_sales_of_a_seed_never_change() -> None:
    """Les premières ventes de la graine 1, à jamais : reconcile.py les refait des années après pour les comparer."""
    now = datetime(2026, 6, 15, 12, 34, 56, 789)
    found = [(*v[:3], str(v.montant), str(v.date_vente)) for v in islice(generate(1, lambda: now, 90), 6)]
    assert found == [
        ("00000001-00000001", "Smartphone", "Allemagne", "791.46", "2026-04-08 11:33:49"),
        ("00000001-00000002", "Téléviseur", "Provence-Alpes-Côte d'Azur", "399.07", "2026-05-11 15:57:03"),
        ("00000001-00000003", "Casque audio", "Allemagne", "206.52", "2026-05-26 12:54:44"),
        ("00000001-00000004", "Enceinte", "Espagne", "56.92", "2026-06-15 07:36:57"),
        ("00000001-00000005", "Imprimante", "Suisse", "503.28", "2026-05-27 18:36:01"),
        ("00000001-00000006", "Téléviseur", "Occitanie", "422.67", "2026-04-08 11:14:56"),
    ]


def test_generated_sales_are_plausible() -> None:
    """10 produits dans leur fourchette de prix, 10 régions, des dates de la période, des pointes à midi et le soir."""
    found = list(islice(generate(1, lambda: NOW, 90), 5000))
    assert {vente.produit for vente in found} == PRODUITS.keys()
    assert {vente.region for vente in found} == REGIONS.keys()
    assert len(PRODUITS) == len(REGIONS) == 10
    for vente in found:
        low, high, _ = PRODUITS[vente.produit]
        assert max(50, low) <= vente.montant <= min(2000, high)
        assert NOW - timedelta(days=91) <= vente.date_vente <= NOW
        assert parse(to_json(vente), NOW) == vente
    hours = Counter(vente.date_vente.hour for vente in found)
    assert hours[12] > 3 * hours[6]
    assert hours[18] > 3 * hours[23]
    assert hours[3] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 10**9))
def test_identifiers_carry_run_and_number(seed: int, number: int) -> None:
    """L'identifiant rend sa graine et son numéro ; un autre identifiant n'en rend pas."""
    assert run_of(f"{seed:08x}-{number:08d}") == (seed, number)
    assert run_of(f"V{number}") is None


class Sent:
    """Un message de Kafka : une valeur, et son heure d'envoi en millisecondes."""

    def __init__(self, value: bytes, when: float) -> None:
        self._value, self._when = value, int(when)

    def value(self) -> bytes:
        """Ses octets."""
        return self._value

    def timestamp(self) -> tuple[int, int]:
        """Nature et instant."""
        return 1, self._when


@pytest.mark.parametrize(("sent", "good"), [(NOW.timestamp() * 1000, True), (-1, False), (1e17, False)])
def test_a_late_clock_buries_no_sale(sent: float, good: bool) -> None:
    """L'horloge du consommateur retarde de deux mois : une vente d'hier n'est pas dans le futur, Kafka le sait."""
    messages: list[Any] = [Sent(json.dumps(GOOD).encode(), sent)]
    batches, rejected = sort_messages(messages, NOW - timedelta(days=60))
    assert (len(batches[0]), len(rejected)) == (int(good), int(not good))


@pytest.mark.parametrize("value", [b'{"montant": 1e99999999999999999999}', '{"id": "é"}'.encode("utf-16")])
def test_what_json_reads_and_a_sale_is_not(value: bytes) -> None:
    """Un nombre que Decimal refuse, un autre encodage : une lettre morte, et non la fin de consumer.py."""
    with pytest.raises(InvalidVente, match="JSON illisible"):
        parse(value, NOW)
