"""Les deux étages du moniteur : égaux aux fenêtres simples, et rejouables n'importe où. Sans serveur."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from exercice2.fenetres.partials import Combiner, Merger, Partial, Position, Reader, Windows, to_hold
from exercice2.fenetres.published import alert_option, euros, instant_text, mean, per_second
from exercice2.fenetres.published import to_json as to_result
from exercice2.fenetres.windows import NEVER, HopWindows, Result, TrailingWindows
from exercice2.transactions import InvalidTransaction, generate, parse, to_json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

BASE = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
NOW = BASE + 10**12
TEMPLATE = {
    "id": "", "timestamp": "", "montant": 0, "type": "paiement", "compte": "a", "region": "Bretagne", "canal": "web",
}  # fmt: skip


@dataclass
class Message:
    """Un message Kafka, ce qu'il en faut."""

    raw: bytes
    place: int

    def value(self) -> bytes:
        """Ses octets."""
        return self.raw

    def offset(self) -> int:
        """Sa place."""
        return self.place


def message(place: int, key: str, cents: int, instant: int) -> Message:
    """Le message d'une transaction."""
    fields = TEMPLATE | {"id": str(place), "timestamp": instant_text(BASE + instant), "compte": key}
    return Message(json.dumps(fields | {"montant": cents / 100}).encode(), place)


def new(slide: int | None, grace: int = 0, max_late: int = 60) -> Windows:
    """Des fenêtres de 60 ms."""
    return TrailingWindows(60, max_late) if slide is None else HopWindows(60, slide, grace)


events_of = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 99), st.integers(0, 400)), min_size=1, max_size=60
)
slides = st.sampled_from([10, 60, 7, 90, None])


def combine(combiner: Combiner, partition: int, messages: list[Message], cuts: list[int]) -> list[Partial]:
    """Les Partial de messages, coupés en morceaux."""
    edges = sorted({0, *(cut % (len(messages) + 1) for cut in cuts), len(messages)})
    found = []
    for start, stop in pairwise(edges):
        partial, rejected = combiner.combine(partition, messages[start:stop], NOW)
        assert not rejected
        found.append(msgspec.json.decode(msgspec.json.encode(partial), type=Partial))
    return found


def content(results: list[Result]) -> list[Any]:
    """Les résultats, comparables."""
    return sorted((r.key, r.start, r.end, r.count, r.sum, r.min, r.max, r.final, str(r.tag)) for r in results)


@given(events=events_of, slide=slides, delay=st.integers(0, 60), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_two_stages_equal_one(
    events: list[tuple[str, int, int]], slide: int | None, delay: int, cuts: list[int]
) -> None:
    """Une partition, coupée n'importe où : comme des fenêtres que chaque événement fait avancer."""
    simple = new(slide)
    expected: list[Result] = []
    late, highest = [], NEVER
    for number, (key, cents, instant) in enumerate(events):
        if not simple.add(key, cents, BASE + instant, str(number) if slide is None else None):
            late.append(number)
        highest = max(highest, BASE + instant)
        expected += simple.advance(highest - delay)
    simple_slicing = simple.slicing if isinstance(simple, HopWindows) else None
    combiner = Combiner(Reader("compte", 0), simple_slicing, delay)
    merger = Merger(new(slide), [0], 0, None)
    found: list[Result] = []
    messages = [message(number, *event) for number, event in enumerate(events)]
    for offset, partial in enumerate(combine(combiner, 0, messages, cuts)):
        found += merger.apply(offset, partial)
    assert content(found) == content(expected)
    assert sorted(item.offset for item in merger.late) == late
    assert not merger.late_slices


@given(
    streams=st.lists(events_of, min_size=1, max_size=3), slide=slides, delay=st.integers(0, 60),
    order=st.randoms(use_true_random=False), stops=st.lists(st.integers(0, 100), min_size=1, max_size=4),
)  # fmt: skip
def test_restart_anywhere(
    streams: list[list[tuple[str, int, int]]], slide: int | None, delay: int, order: Any, stops: list[int]
) -> None:
    """Des arrêts après n'importe quel Partial, même en plein rejeu : rien ne manque, rien ne double."""
    grace, max_late = order.choice([0, 30]), order.choice([0, 7, 60])
    slicing = windows.slicing if isinstance(windows := new(slide), HopWindows) else None
    log: list[Partial] = []
    for partition, events in enumerate(streams):
        messages = [message(number, *event) for number, event in enumerate(events)]
        own = combine(Combiner(Reader("compte", 0), slicing, delay), partition, messages, [order.randrange(99)] * 3)
        if order.random() < 0.3:
            own.insert(order.randrange(len(own) + 1), Partial(partition, NEVER, idle=True))
        for partial in own:  # dans l'ordre de la partition, mêlé au hasard aux autres
            places = [n for n in range(len(log) + 1) if all(p.partition != partition for p in log[n:])]
            log.insert(order.choice(places), partial)
    whole = Merger(new(slide, grace, max_late), range(len(streams)), 0, None)
    expected = [result for offset, partial in enumerate(log) for result in whole.apply(offset, partial)]
    lives = [Merger(new(slide, grace, max_late), range(len(streams)), 0, None)]
    found, start = list[Result](), 0
    for stop in [*stops, None]:
        life = lives[-1]
        end = len(log) if stop is None else start + stop % (len(log) - start + 1)
        found += [result for offset in range(start, end) for result in life.apply(offset, log[offset])]
        if stop is not None:
            start, saved = life.low, msgspec.json.decode(msgspec.json.encode(life.position), type=Position)
            lives.append(Merger(new(slide, grace, max_late), range(len(streams)), start, saved))
    assert content(found) == content(expected)
    assert [late for life in lives for late in life.late] == whole.late
    assert [late for life in lives for late in life.late_slices] == whole.late_slices
    assert lives[-1].marks.overall == whole.marks.overall


def test_restart_remembers_a_silent_key() -> None:
    """Une clé se tait, puis livre en retard : après un arrêt, sa fenêtre a encore ce qui précède le silence."""
    combiner = Combiner(Reader("compte", 0), None, 0)
    events = [(0, "a", 5, 100), (1, "b", 1, 165), (2, "a", 7, 120)]
    log = [combiner.combine(0, [message(*event)], NOW)[0] for event in events]
    first = Merger(new(None), [0], 0, None)
    for offset, partial in enumerate(log[:2]):
        first.apply(offset, partial)
    second = Merger(new(None), [0], first.low, first.position)
    found = [result for offset in range(first.low, 3) for result in second.apply(offset, log[offset])]
    assert [(row.key, row.end, row.count, row.sum) for row in found] == [("a", BASE + 120, 2, 12)]


@given(cents=st.integers(-(10**18), 10**18), count=st.integers(1, 10**6))
def test_amounts_are_exact(cents: int, count: int) -> None:
    """Un montant publié a ses décimales exactes, si grand soit-il ; une moyenne est au millionième."""
    published = to_result(Result("a", 0, 60_000, count, cents, cents, cents))
    row = json.loads(published, parse_float=Decimal, parse_int=Decimal)
    assert row["montant_total"] == row["montant_min"] == Decimal(cents) / 100
    exact = Fraction(cents, 100 * count)
    assert abs(Fraction(row["montant_moyen"]) - exact) <= Fraction(1, 2_000_000)


def test_idle_partition_comes_back_late() -> None:
    """Une partition inactive revient avec du passé : ses tranches sont refusées, et désignées pour être retrouvées."""
    windows = HopWindows(60, 10)
    merger = Merger(windows, [0, 1], 0, None)
    merger.apply(0, Partial(1, NEVER, idle=True))
    reader = Reader("compte", 0)
    (ahead,) = combine(Combiner(reader, windows.slicing, 5), 0, [message(0, "a", 5, 500)], [])
    assert merger.apply(1, ahead) == []
    (back,) = combine(Combiner(reader, windows.slicing, 5), 1, [message(7, "a", 5, 100), message(8, "a", 5, 460)], [])
    merger.apply(2, back)
    (late,) = merger.late_slices
    assert (late.partial.first, late.partial.last, len(late.numbers)) == (7, 8, 1)
    assert merger.marks.overall == BASE + 495


def test_a_partition_far_ahead_waits() -> None:
    """Deux minutes d'avance : elle attend ; une minute : elle reprend. Sans rien savoir d'une autre, personne."""
    minute = 60_000
    assert to_hold({0: 2 * minute + 1, 1: 0, 2: minute}, set()) == {0}
    assert to_hold({0: 2 * minute, 1: 0}, set()) == set()
    assert to_hold({0: 2 * minute, 1: minute - 1}, {0}) == {0}
    assert to_hold({0: 2 * minute, 1: minute}, {0}) == set()
    assert to_hold({0: 9 * minute}, {0}) == set(), "les autres n'ont plus rien à lire"
    assert to_hold({0: 9 * minute, 1: NEVER}, set()) == to_hold({}, {0}) == set()


def test_low_follows() -> None:
    """La place à retenir avance avec le watermark : une minute de Partial à relire, pas plus."""
    windows = HopWindows(60, 10)
    combiner, merger = Combiner(Reader(None, 0), windows.slicing, 5), Merger(windows, [0], 0, None)
    for number in range(1000):
        partial, _ = combiner.combine(0, [message(number, "a", 1, number)], NOW)
        merger.apply(number, partial)
        assert number - merger.low < 60 + 5 + 10 + 60


@pytest.mark.parametrize("by", [None, "type", "region", "compte", "canal"])
def test_reader_agrees_with_parse(by: str | None) -> None:
    """Le chemin rapide lit ce que lit ``parse``, au centime et à la milliseconde."""
    reader = Reader(by, 10**9)
    transactions = generate(3, datetime(2026, 1, 1, tzinfo=UTC), 7.3)
    for transaction, _ in zip(transactions, range(2000), strict=False):
        ((key, cents, instant, _, id),), _ = reader.read([Message(to_json(transaction), 0)], NOW)
        assert key == (None if by is None else getattr(transaction, by))
        assert Decimal(cents) / 100 == transaction.montant
        assert datetime.fromtimestamp(instant / 1000, UTC) == transaction.timestamp
        assert id == transaction.id


anything = (
    st.none()
    | st.text(max_size=4)
    | st.sampled_from([" ", "\x7f", "\t", "\u00a0", "x" * 101])
    | st.floats()
    | st.integers()
)


@example(change={"montant": 3e-299})
@example(change={"montant": 1.5000000001})
@example(change={"montant": 0.01})
@example(change={"montant": 50_000.0})
@given(change=st.dictionaries(st.sampled_from(sorted(TEMPLATE)), anything))
def test_reader_refuses_what_parse_refuses(change: dict[str, Any]) -> None:
    """Le chemin rapide et ``parse`` rendent le même verdict, quoi qu'on leur donne."""
    good = TEMPLATE | {"id": "x", "timestamp": "2026-01-01T00:00:00.000Z", "montant": 1.5}
    value = json.dumps(good | change, allow_nan=True).encode()

    def verdict(read: Any) -> bool:
        try:
            read(value)
        except InvalidTransaction:
            return False
        return True

    now = datetime.fromtimestamp(NOW / 1000, UTC)
    reader = Reader(None, 86_400_000)
    reader.read([Message(json.dumps(good).encode(), 0)], NOW)
    entries, _ = reader.read([Message(value, 0)], NOW)
    assert bool(entries) == verdict(lambda v: parse(v, now))


def test_far_future_is_refused() -> None:
    """Une transaction de demain fermerait tout : elle est refusée, et n'avance pas le watermark."""
    combiner = Combiner(Reader(None, 60_000), HopWindows(60, 10).slicing, 5)
    _, rejected = combiner.combine(0, [message(0, "a", 1, 0), message(1, "a", 1, 60_001)], BASE)
    assert [rank for rank, _ in rejected] == [1]
    assert combiner.highest == BASE


def test_rows_are_exact() -> None:
    """Montants et moyennes exacts ; l'alerte compare des nombres exacts."""
    assert [euros(-5), euros(123456)] == [-0.05, 1234.56]
    assert [mean(100, 3), mean(200, 3), mean(-1, 20_000)] == [0.333333, 0.666667, -0.000001]
    assert [per_second(Result(None, 0, 60_000, n, 0, 0, 0)) for n in (1, 2, 700)] == [0.016667, 0.033333, 11.666667]
    result = Result(None, BASE, BASE + 60_000, 3, 1_000_001, 1, 999_999, final=False, tag='l"une')
    assert json.loads(to_result(result), parse_float=Decimal) == {
        "cle": "toutes", "debut": "2026-01-01T00:00:00.000Z", "fin": "2026-01-01T00:01:00.000Z", "nombre": 3,
        "montant_total": Decimal("10000.01"), "montant_moyen": Decimal("3333.336667"), "montant_min": Decimal("0.01"),
        "montant_max": Decimal("9999.99"), "par_seconde": Decimal("0.05"), "correction": True, "id": 'l"une',
    }  # fmt: skip
    assert alert_option("montant_total > 10000").holds(result)
    assert not alert_option("montant_total > 10000.01").holds(result)
    assert alert_option("par_seconde<=0.05").holds(result)
