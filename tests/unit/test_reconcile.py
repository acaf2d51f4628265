"""reconcile.py sans serveur : ce qu'il compare, et dans quel ordre il lit."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from decimal import Decimal
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exercice3 import consumer, lots, producer, reconcile
from exercice3.confirmations import Confirmed, Promise, merged, read_promises
from exercice3.ventes import Vente, generate, parse, to_json
from exercice3.verification import stages
from exercice3.verification.point import Point, Reread, read_point, rows_of
from exercice3.verification.produced import ANY_DATE, Kafka, produced
from exercice3.verification.totals import Key, Latest, Numbers, Totals, differences, on_the_way

import pytest
from hypothesis import given
from hypothesis import strategies as st

SALE, OTHER = ("Suisse", "Tablette"), ("Nulle part", "Inconnu")


def totals(name: str, *sales: Key) -> Totals:
    """Une étape où chaque vente de ``sales`` vaut dix euros."""
    step = Totals(name)
    for sale in sales:
        step.add(*sale, Decimal(10))
    return step


@pytest.mark.parametrize(
    ("first", "second", "sentences"),
    [
        ([SALE], [SALE], []),
        ([SALE], [], ["Kafka, Suisse, Tablette : -1 ventes, -10,00 €."]),
        ([SALE], [SALE, OTHER], ["Kafka, Nulle part, Inconnu : +1 ventes, 10,00 €."]),
        ([], [OTHER], ["Kafka, Nulle part, Inconnu : +1 ventes, 10,00 €."]),
    ],
    ids=["égales", "perdue", "en trop, région et produit inconnus", "en trop, rien avant"],
)
def test_a_sale_too_many_is_seen_as_well_as_a_lost_one(
    first: list[Key], second: list[Key], sentences: list[str]
) -> None:
    """Une vente d'une région ou d'un produit que la première étape n'a pas est une différence aussi."""
    assert differences([totals("produites", *first), totals("Kafka", *second)], None) == sentences


def test_a_sale_on_its_way_is_late_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Une vente traverse tout le pipeline entre deux lectures : elle manque à la fin, elle n'est jamais de trop."""
    arrived = count(1)
    asked: list[str] = []

    def read(*names: str) -> list[Totals]:
        sales = [SALE] * next(arrived)
        return [totals(name, *sales) for name in names]

    def said(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def fake(*_: object) -> Any:
            asked.append(name)
            return answer()

        return fake

    fakes: dict[str, Callable[..., Any]] = {
        "postgres": lambda: nullcontext(
            SimpleNamespace(steps=lambda _: read("PostgreSQL", "par jour", "tableaux"), loaded=set, add=lambda *_: None)
        ),
        "finished_lots": dict,
        "from_files": lambda: stages.Files(read("CSV")[0], 0, []),
        "open_topics": SimpleNamespace,
        "from_mongodb": lambda: (read("MongoDB")[0], 0),
        "from_kafka": lambda: [SimpleNamespace(totals=step) for step in read("produites", "Kafka")][::-1],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(reconcile, name, said(name, fake))
    steps = reconcile.collect(reconcile.parse_options([]), full=True).steps
    assert asked == list(fakes)  # ce qui explique un retard est lu avant l'étape en retard
    assert [(step.name, step.count.total()) for step in steps] == [
        ("produites", 4), ("Kafka", 4), ("MongoDB", 3), ("CSV", 2),
        ("PostgreSQL", 1), ("par jour", 1), ("tableaux", 1),
    ]  # fmt: skip
    assert all(" : -" in sentence for sentence in differences(steps, None))
    assert on_the_way(steps) == [f"1 ventes (10,00 €) vers {name}" for name in ("MongoDB", "CSV", "PostgreSQL")]


# --- Propriétés ---

VENTES = list(islice(generate(7, lambda: ANY_DATE, 1), 30))
CORRECTED = {
    vente.id: [vente._replace(version=2, montant=vente.montant + 1), vente._replace(version=3, annulee=True)]
    for vente in VENTES[:6]
}
HISTORY = [version for vente in VENTES for version in (vente, *CORRECTED.get(vente.id, ()))]
NAMES = ("Kafka", "MongoDB", "CSV", "PostgreSQL")


def stage(name: str, rows: list[Vente], arrived: set[int], passed: set[int]) -> Totals:
    """Une étape qui a les lignes ``arrived`` ; la suivante n'a pas forcément celles qui ne sont pas ``passed``."""
    latest = Latest(Totals(name))
    for number in sorted(arrived):
        latest.add(rows[number], number not in passed)
    latest.replace(rows[number] for number in sorted(arrived))
    return latest.totals


@st.composite
def progress(draw: st.DrawFn) -> list[set[int]]:
    """Ce qui est arrivé à chaque étape : de moins en moins, dans un ordre quelconque."""
    left = set(range(len(HISTORY)))
    found = [left]
    for _ in NAMES[1:]:
        left = left - draw(st.sets(st.sampled_from(sorted(left)), max_size=8)) if left else left
        found.append(left)
    return found


def pipeline(arrived: list[set[int]]) -> list[Totals]:
    """Les étapes, où chacune dit en route exactement ce que la suivante n'a pas."""
    passed = [*arrived[1:], arrived[-1]]
    steps = [stage(name, HISTORY, *pair) for name, *pair in zip(NAMES, arrived, passed, strict=True)]
    first = stage("produites", HISTORY, arrived[0], arrived[0])
    return [first, *steps]


@given(progress())
def test_what_is_on_its_way_is_never_a_fault(arrived: list[set[int]]) -> None:
    """Quelles que soient les ventes et les corrections en route, rien n'est dit perdu ni de trop."""
    assert differences(pipeline(arrived), None) == []


@given(st.integers(1, len(NAMES)), st.integers(6, len(VENTES) - 1), st.sampled_from(["ôtée", "doublée", "centime"]))
def test_everything_arrived_one_fault_names_its_step(step: int, number: int, fault: str) -> None:
    """Tout est arrivé, sauf une vente ôtée, doublée ou changée d'un centime à une étape : celle-là, et elle seule."""
    everything = set(range(len(HISTORY)))
    steps = pipeline([everything] * len(NAMES))
    vente = VENTES[number]
    change = {"ôtée": (-vente.montant, -1), "doublée": (vente.montant, 1), "centime": (Decimal("0.01"), 0)}[fault]
    steps[step].add(vente.region, vente.produit, *change)
    assert {sentence.split(",")[0] for sentence in differences(steps, None)} == {steps[step].name}


@given(st.sets(st.integers(0, 20_000)))
def test_numbers_are_a_set(wanted: set[int]) -> None:
    """Numbers contient ce qu'on y a mis, et le rend en intervalles disjoints."""
    numbers = Numbers()
    assert all(numbers.add(number) for number in wanted)
    assert not any(numbers.add(number) for number in wanted)
    assert len(numbers) == len(wanted)
    ranges = numbers.ranges()
    assert ranges == merged((number, number) for number in wanted)
    assert {number for first, last in ranges for number in range(first, last + 1)} == wanted
    assert all(number in numbers for number in wanted)


@given(st.permutations(range(1, 31)), st.integers(0, 30))
def test_confirmed_never_says_more_than_the_truth(order: list[int], received: int) -> None:
    """Quel que soit l'ordre des accusés de réception, tout est confirmé jusqu'à « jusque », et pas le suivant."""
    confirmed = Confirmed(7, 1)
    acknowledged = order[:received]
    for number in acknowledged:
        confirmed.add(VENTES[number - 1])
    assert set(range(1, confirmed.upto + 1)) <= set(acknowledged)
    assert confirmed.upto + 1 not in acknowledged
    promises, foreign = read_promises([confirmed.to_json()])
    assert (promises, foreign) == ({7: Promise([(1, confirmed.upto)] if confirmed.upto else [])}, 0)


def test_odd_confirmations_are_counted() -> None:
    """Ce qui n'est pas une confirmation se compte, et n'arrête rien."""
    odd = [None, b"", b"[]", b"{}", b'{"graine": 1, "de": 5, "jusque": 1, "corrections": 0}',
           b'{"graine": true, "de": 1, "jusque": 1, "corrections": 0}']  # fmt: skip
    assert read_promises(odd) == ({}, len(odd))


# --- Les ventes produites, devant ce que Kafka montre ---


def read(ventes: list[Vente], promise: list[tuple[int, int]] | None, corrections: int = 0) -> Kafka:
    """Ce qui est lu de ces ventes, avec ou sans promesse."""
    kafka = Kafka({} if promise is None else {7: Promise(promise, corrections)})
    for vente in ventes:
        kafka.add(vente)
    kafka.replace(ventes)
    return kafka


def test_a_promise_makes_a_lost_tail_a_fault() -> None:
    """Les dernières ventes promises manquent : une faute ; sans promesse, rien ne le dirait."""
    assert produced(read(VENTES[:20], None), 0).totals.faults == []
    found = produced(read(VENTES[:20], [(1, 30)]), 0)
    assert found.totals.faults == ["graine 7 : 10 ventes confirmées ne sont pas dans Kafka"]
    assert (found.totals.count.total(), found.unknown) == (30, 0)


def test_an_unpromised_hole_is_not_a_loss() -> None:
    """Un producteur tué en plein vol : ce qui n'a jamais été confirmé peut manquer, la suite promise non."""
    kept = [*VENTES[:10], *VENTES[12:20]]
    first = produced(read(kept, [(1, 10)]), 0).totals
    assert (first.faults, first.count.total()) == ([], 18)
    first = produced(read(kept, None), 0).totals
    assert first.faults == ["graine 7 : 2 ventes ne sont pas dans Kafka"]


def test_purged_messages_explain_as_many_losses() -> None:
    """Kafka a effacé dix messages : dix ventes promises sont refaites ; une onzième est perdue."""
    kafka = read(VENTES[10:], [(1, 30)])
    found = produced(kafka, 12)
    assert (found.totals.faults, found.unknown) == ([], 2)
    assert kafka.totals.count == found.totals.count
    assert produced(read(VENTES[11:], [(1, 30)]), 10).totals.faults


def test_a_lost_correction_is_a_fault() -> None:
    """Une correction confirmée que Kafka n'a plus."""
    corrected = [*VENTES, VENTES[0]._replace(version=2, annulee=True)]
    assert produced(read(corrected, [(1, 30)], 1), 0).totals.faults == []
    faults = produced(read(corrected, [(1, 30)], 2), 0).totals.faults
    assert faults == ["graine 7 : 1 corrections confirmées ne sont pas dans Kafka"]


@given(st.permutations(range(30)), st.integers(1, 29), st.booleans())
def test_a_point_changes_nothing_to_the_verdict(order: list[int], cut: int, other: bool) -> None:
    """Lu en une fois, ou en deux avec un point entre elles : les mêmes totaux, les mêmes fautes, la même suite."""
    ventes = [VENTES[number] for number in sorted(order[:cut]) + sorted(order[cut:])]
    ventes += [VENTES[0]._replace(id="autre")] if other else []
    whole = read(ventes, [(1, 30)])
    expected = produced(whole, 0)
    before = read(ventes[:cut], [(1, 30)])
    first = produced(before, 0)
    missing = first.totals.count.total() - cut
    if missing:  # il n'y a de point que si tout est là : les ventes promises le sont
        before = read(ventes[:cut], [(number, number) for number in (one + 1 for one in order[:cut])])
        first = produced(before, 0)
    point = Point("", {}, 1, "", 0, rows_of(first.totals), rows_of(before.foreign.totals),
                  {str(seed): numbers.ranges() for seed, numbers in before.distinct.runs.items()},
                  sorted(before.distinct.others), first.made, first.states, first.corrections)  # fmt: skip
    point = read_point(json.dumps(asdict(point)).encode()) or point
    after = Kafka({7: Promise([(1, 30)])}, point)
    try:
        for vente in ventes[cut:]:
            after.add(vente)
    except Reread:
        assert any(int(vente.id[-8:]) < max(order[:cut]) + 1 for vente in ventes[cut:] if vente.id != "autre")
        return
    found = produced(after, 0)
    assert (found.totals.count, found.totals.cents) == (expected.totals.count, expected.totals.cents)
    assert (found.totals.faults, after.totals.count) == (expected.totals.faults, whole.totals.count)
    assert (found.made, found.states) == (expected.made, expected.states)
    assert after.distinct.runs[7].ranges() == whole.distinct.runs[7].ranges()


def test_a_point_keeps_suites_apart() -> None:
    """Un identifiant d'un autre programme, de même forme, ne prolonge pas la suite : rien n'est refait jusque-là."""
    seen = {"7": [(1, 30), (20_000_000, 20_000_000)]}
    point = Point("", {}, 1, "", 0, [], [], seen, [], {"7": 30}, {}, {})
    assert point.suite("7").ranges() == [(1, 30)]
    assert len(point.distinct().runs[7]) == 31


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b'{"version": 0}', b'{"version": 1}'])
def test_an_odd_point_is_no_point(value: bytes | None) -> None:
    """Un message qui n'est pas un point, ou d'une autre version : tout est relu."""
    assert read_point(value) is None


@pytest.mark.parametrize(
    "row",
    [["a", "b", "c", "Infinity", "d"], ["a", "b", "c", "1.001", "d"], ["a", "b"], ["a", "b", "c", "x", "d"],
     ["a", "b", "c", "1.00", "d", "0", "false"]],
)  # fmt: skip
def test_an_odd_row_is_refused(row: list[str]) -> None:
    """Une ligne de fichier qui n'est pas une vente lève une erreur que l'appelant attend."""
    with pytest.raises((ValueError, ArithmeticError)):
        stages.from_row(row)


HEADER = b"id,produit,region,montant,date_vente\n"
GOOD_ROW = b"a-1,Tablette,Suisse,10.00,2026-01-01 00:00:00\n"


@pytest.mark.parametrize(
    ("content", "manifest", "words"),
    [
        (HEADER + GOOD_ROW, None, ""),
        (HEADER + GOOD_ROW, "{", "manifeste illisible"),
        (HEADER + GOOD_ROW, '{"fichier": "ventes_000001_0a0a0a0a.csv", "lignes": 1}', "manifeste illisible"),
        (HEADER + b"a-1,Tablette,Suisse,Infinity,2026-01-01 00:00:00\n", None, "une ligne illisible (montant Infinity"),
        (HEADER + b"a-1,Tablette\n", None, "une ligne illisible"),
        (HEADER + b"a-1,\xff,Suisse,10.00,2026-01-01 00:00:00\n", None, "une ligne illisible"),
        (HEADER + GOOD_ROW + GOOD_ROW, None, "1 ventes sont dans deux fichiers"),
    ],
    ids=["bon", "manifeste tronqué", "manifeste sans somme", "Infinity", "ligne courte", "octet", "doublée"],
)
def test_an_odd_file_is_a_sentence(tmp_path: Path, content: bytes, manifest: str | None, words: str) -> None:
    """Un manifeste ou une ligne étranges sont une faute de l'étape CSV, jamais une erreur imprévue."""
    path = tmp_path / "ventes_000001_0a0a0a0a.csv"
    lots.write(path, [(content, content.count(b"\n") - 1)])
    if manifest is not None:
        path.with_suffix(".json").write_text(manifest, encoding="utf-8")
    files = stages.from_files(tmp_path, set())
    assert all(words in fault for fault in files.totals.faults)
    assert len(files.totals.faults) == bool(words)
    assert files.last == 1


def test_a_changed_file_is_not_that_of_its_manifest(tmp_path: Path) -> None:
    """Les mêmes totaux, une autre date : la somme du manifeste le voit."""
    path = tmp_path / "ventes_000001_0a0a0a0a.csv"
    lots.write(path, [(HEADER + GOOD_ROW, 1)])
    path.write_bytes(path.read_bytes().replace(b"00:00:00", b"00:00:01"))
    (fault,) = stages.from_files(tmp_path, set()).totals.faults
    assert "son contenu n'est pas celui de son manifeste" in fault


def test_a_message_of_producer_is_read_whatever_the_day() -> None:
    """Le verdict ne dépend pas du jour : une vente datée de demain, ou d'après, est une vente."""
    vente = VENTES[0]._replace(date_vente=ANY_DATE.replace(year=2200))
    assert parse(to_json(vente), stages.FAR) == vente


def test_verdict_says_equal_on_its_way_or_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """Trois issues : égal (0), en route (0, ou 1 si l'on attendait), et une faute (1) dont l'étape est nommée."""
    equal = [totals("produites", SALE), totals("Kafka", SALE)]
    moving = [totals("produites", SALE), totals("Kafka")]
    assert reconcile.verdict(equal, [], 0) == 0
    assert "Tout est égal" in capsys.readouterr().out
    assert [reconcile.verdict(moving, [], waited) for waited in (0, 3)] == [0, 1]
    assert "Rien ne manque" in (shown := capsys.readouterr().out)
    assert "Tout n'est pas arrivé au bout de 3 s" in shown
    assert reconcile.verdict(moving, ["Kafka, x : -1 ventes."], 0) == 1
    assert "À regarder d'abord : Kafka" in capsys.readouterr().out


def test_group_has_the_name_of_consumer() -> None:
    """reconcile.py lit les positions du groupe que consumer.py tient."""
    options = reconcile.parse_options([])
    assert (options.group, options.topic) == (consumer.GROUP, producer.TOPIC)
