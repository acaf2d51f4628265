"""Les fenêtres : les cas de sept autres moteurs, un oracle par force brute, des propriétés. Sans serveur."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from commun.settings import ROOT
from exercice2.fenetres.windows import NEVER, HopWindows, Late, Result, Slicing, TrailingWindows, Watermarks
from tests.window_cases import CASES, END, Case, Row, load

import pytest
from hypothesis import given
from hypothesis import strategies as st

ORIGINALS = ROOT.parent / "shared" / "window_cases"
Event = tuple[Any, int, int]  # clé, valeur, instant


# --- Les cas des autres moteurs ---


def play(case: Case, windows: HopWindows | TrailingWindows) -> None:
    """Fait passer un cas au moteur, et compare à chaque pas qui annonce quelque chose."""
    seen: list[Result] = []
    unchecked: list[Result] = []
    refused = 0
    event: list[Any] = []
    for step in case["steps"]:
        if "event" in step:
            event = step["event"]
            refused += not windows.add(*event[:3], *event[3:])
        elif "watermark" in step:
            if step["watermark"] is not None:
                rows = windows.advance(step["watermark"])
                unchecked += [row for row in rows if not (case["at_zero"] and row.start < 0)]
            if step["final"] is not None:
                if step["final"] != "any":
                    same(unchecked, step["final"])
                seen += unchecked
                unchecked = []
        elif "current" in step:
            assert isinstance(windows, HopWindows)
            touched = windows.slicing.windows_of(windows.slicing.slice_of(event[2]))
            still_open = [n for n in touched if windows.slicing.last_instant(n) > windows.watermark]
            rows = [windows.current(event[0], number) for number in still_open]
            same([row for row in rows if not (case["at_zero"] and row.start < 0)], step["current"])
        elif "late" in step:
            assert refused == step["late"]
        else:
            rows = seen + unchecked
            expected = step["all"] if "all" in step else step["has"]
            assert "has" in step or len(rows) == len(expected)
            for row in expected:
                assert any(matches(result, row) for result in rows), row


def matches(result: Result, row: Row) -> bool:
    """Vrai si un résultat a les champs de ``row``."""
    return all(getattr(result, name) == value for name, value in row.items())


def same(results: list[Result], rows: list[Row]) -> None:
    """Autant de résultats que de lignes, et chaque ligne en a un."""
    assert len(results) == len(rows), results
    for row in rows:
        assert any(matches(result, row) for result in results), (row, results)


@pytest.mark.parametrize("case", json.loads(CASES.read_text(encoding="utf-8")), ids=lambda case: case["id"])
def test_case_of_another_engine(case: Case) -> None:
    """Kafka Streams, Flink, Quix, Bytewax, Spark, Beam, Scotty : les mêmes entrées donnent les mêmes fenêtres."""
    if case["kind"] == "hop":
        play(case, HopWindows(case["size"], case["slide"], offset=case["offset"]))
    else:
        play(case, TrailingWindows(case["size"]))


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="les cas d'origine ne sont pas sur cette machine")
def test_cases_are_the_originals() -> None:
    """La copie des cas est celle que donnent les originaux."""
    assert json.loads(CASES.read_text(encoding="utf-8")) == json.loads(json.dumps(load(ORIGINALS)))


# --- L'oracle ---


def stats(values: list[int]) -> tuple[int, int, int, int]:
    """Nombre, somme, minimum, maximum."""
    return len(values), sum(values), min(values), max(values)


def hop_oracle(events: Iterable[Event], size: int, slide: int) -> dict[tuple[Any, int], tuple[int, int, int, int]]:
    """Fenêtres [k * slide, k * slide + size[ de chaque clé, en essayant toutes celles qui pourraient convenir."""
    found: dict[tuple[Any, int], list[int]] = defaultdict(list)
    for key, value, instant in events:
        for window in range((instant - size) // slide - 1, instant // slide + 2):
            if window * slide <= instant < window * slide + size:
                found[key, window * slide].append(value)
    return {place: stats(values) for place, values in found.items()}


def as_dict(results: Iterable[Result]) -> dict[tuple[Any, int], tuple[int, int, int, int]]:
    """Les mêmes, d'après le moteur ; échoue si une fenêtre sort deux fois."""
    found: dict[tuple[Any, int], tuple[int, int, int, int]] = {}
    for row in results:
        assert (row.key, row.start) not in found, f"{row} est sortie deux fois"
        found[row.key, row.start] = (row.count, row.sum, row.min, row.max)
    return found


instants = st.integers(-300, 300) | st.integers(-(10**15), 10**15) | st.integers(10**6, 10**6 + 100)
events_of = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-50, 50), instants), max_size=60)
sizes = st.sampled_from([(60, 10), (60, 60), (10, 3), (7, 5), (3, 10), (100, 1), (1, 1), (50, 49), (12, 8)])


@given(events=events_of, shape=sizes, cuts=st.lists(instants, max_size=6))
def test_hop_equals_the_oracle(events: list[Event], shape: tuple[int, int], cuts: list[int]) -> None:
    """Tout désordre, tous pas, tous instants : sans retard, les fenêtres sont celles de l'oracle, une fois chacune."""
    windows = HopWindows(*shape)
    found: list[Result] = []
    left = sorted(events, key=lambda event: event[2])
    for cut in [*sorted(cuts), END]:
        now = [event for event in left if event[2] <= cut]
        left = [event for event in left if event[2] > cut]
        random.Random(cut).shuffle(now)
        for event in now:
            assert windows.add(*event)
        found += windows.advance(cut)
    assert as_dict(found) == hop_oracle(events, *shape)
    assert [row.end for row in found] == sorted(row.end for row in found)
    assert not windows.take_late()


@given(events=events_of, shape=sizes, delay=st.integers(0, 80), grace=st.sampled_from([0, 0, 15, 200]))
def test_hop_late_events(events: list[Event], shape: tuple[int, int], delay: int, grace: int) -> None:
    """Le retard se juge fenêtre par fenêtre, contre un oracle qui tient chaque fenêtre à part."""
    size, slide = shape
    windows = HopWindows(size, slide, grace)
    contents: dict[tuple[Any, int], list[int]] = defaultdict(list)
    emitted: set[tuple[Any, int]] = set()
    highest = watermark = NEVER
    for key, value, instant in events:
        starts = [n * slide for n in range((instant - size) // slide - 1, instant // slide + 2)]
        starts = [start for start in starts if start <= instant < start + size]
        alive = [start for start in starts if start + size - 1 + grace > watermark]
        assert windows.add(key, value, instant) == (bool(alive) or not starts)
        corrected = {}
        for start in alive:
            contents[key, start].append(value)
            if start + size - 1 <= watermark:
                corrected[key, start] = stats(contents[key, start])
        assert as_dict(windows.take_updates()) == corrected
        highest = max(highest, instant)
        watermark = max(watermark, highest - delay)
        due = {place for place in contents if place[1] + size - 1 <= watermark} - emitted
        due -= corrected.keys()
        expected = {place: stats(contents[place]) for place in due}
        emitted |= due | corrected.keys()
        assert as_dict(windows.advance(watermark)) == expected


@given(
    events=events_of, size=st.sampled_from([1, 10, 60, 500]), delay=st.integers(0, 80),
    max_late=st.sampled_from([None, 0, 1, 60, 500]),
)  # fmt: skip
def test_trailing_equals_the_oracle(events: list[Event], size: int, delay: int, max_late: int | None) -> None:
    """Un résultat par événement accepté, égal aux ``size`` millisecondes qui le précèdent dans sa clé."""
    windows = TrailingWindows(size, max_late)
    accepted: list[tuple[Any, int, int, int]] = []
    found: list[Result] = []
    last: dict[Any, int] = defaultdict(lambda: NEVER)
    watermark = NEVER
    for rank, (key, value, instant) in enumerate(events):
        on_time = instant > last[key] and (max_late is None or instant > watermark - max_late)
        assert windows.add(key, value, instant, rank) == on_time
        if on_time:
            accepted.append((key, value, instant, rank))
        watermark = max(watermark, instant - delay)
        rows = windows.advance(watermark)
        found += rows
        for row in rows:
            last[row.key] = max(last[row.key], row.end)
    found += windows.advance(END)
    assert sorted(row.tag for row in found) == [rank for *_, rank in accepted]
    for row in found:
        inside = [v for key, v, instant, _ in accepted if key == row.key and row.end - size <= instant <= row.end]
        assert (row.count, row.sum, row.min, row.max) == stats(inside)


def test_late_is_what_the_watermark_has_reached() -> None:
    """max_late=0 : à l'instant du watermark il est trop tard, même pour une clé qui n'a rien rendu."""
    windows = TrailingWindows(60, max_late=0)
    windows.advance(100)
    assert [windows.add("a", 1, instant) for instant in (99, 100, 101)] == [False, False, True]
    assert [(late.timestamp, late.watermark) for late in windows.take_late()] == [(99, 100), (100, 100)]


@given(events=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 300)), max_size=40))
def test_shuffle_within_the_delay(events: list[Event]) -> None:
    """Mélanger des événements dans la limite du délai ne change aucun résultat final."""
    ordered = sorted(events, key=lambda event: event[2])
    shuffled = sorted(ordered, key=lambda event: event[2] + random.Random(str(event)).uniform(0, 20))

    def finals(stream: list[Event]) -> dict[tuple[Any, int], tuple[int, int, int, int]]:
        windows, found, highest = HopWindows(60, 10), [], NEVER
        for key, value, instant in stream:
            assert windows.add(key, value, instant)
            highest = max(highest, instant)
            found += windows.advance(highest - 20)
        return as_dict([*found, *windows.advance(END)])

    assert finals(shuffled) == finals(ordered)


@given(shape=sizes, offset=st.integers(-20, 20), instant=st.integers(-(10**14), 10**14))
def test_slicing(shape: tuple[int, int], offset: int, instant: int) -> None:
    """Une tranche contient l'instant, n'est coupée par aucun bord, et ses fenêtres sont celles de l'instant."""
    size, slide = shape
    slicing = Slicing(size, slide, offset)
    number = slicing.slice_of(instant)
    start, end = slicing.bounds(number)
    assert start <= instant < end
    near = range((instant - offset - size) // slide - 1, (instant - offset) // slide + 2)
    holding = [n for n in near if offset + n * slide <= instant < offset + n * slide + size]
    assert list(slicing.windows_of(number)) == holding
    for window in holding:
        assert number in slicing.slices_of(window)
        assert slicing.start(window) <= start
        assert end <= slicing.start(window) + size


def test_memory_does_not_grow() -> None:
    """Mille heures de flux : les tranches gardées sont celles d'une fenêtre, pas plus."""
    windows = HopWindows(60_000, 10_000)
    for minute in range(60_000):
        windows.add(minute % 10, 1, minute * 60_000)
        windows.advance(minute * 60_000 - 5_000)
        assert len(windows.slices) <= 16


def test_preview_is_the_next_window() -> None:
    """La minute qui se remplit : celle que le watermark fermera la première, telle qu'elle est."""
    windows = HopWindows(60, 10)
    assert windows.preview([], 9) == []
    for instant in (5, 25, 64):
        windows.add("a", instant, instant)
    windows.add("b", 1, 61)
    windows.advance(59)
    assert [(r.key, r.start, r.end, r.count, r.sum, r.final) for r in windows.preview(["a", "z"], 2)] == [
        ("a", 10, 70, 2, 89, False)
    ]
    assert {row.key for row in windows.preview(["a"], 9)} == {"a", "b"}
    windows.advance(119)
    assert windows.preview(["a"], 9) == [], "tout est clos : rien ne se remplit"
    windows.advance(1000)
    windows.add("c", 1, 5000)
    assert [(row.key, row.end) for row in windows.preview(["a"], 9)] == [("c", 5010)]


def test_watermarks() -> None:
    """Le plus petit des partitions actives ; une inconnue retient tout ; il ne recule jamais."""
    marks = Watermarks(range(3))
    assert marks.update(0, 100) == NEVER
    assert marks.update(1, 90) == NEVER
    assert marks.set_idle(2) == 90
    assert marks.update(1, 120) == 100
    assert marks.update(2, 50) == 100
    assert marks.update(0, 110) == 100
    assert marks.update(2, 105) == 105
    assert [marks.set_idle(n) for n in range(3)] == [105, 105, 120]  # plus personne : le plus avancé


def test_when_an_event_stops_counting() -> None:
    """``open_until`` : un cran avant, l'événement compte encore ; à ce watermark, il est refusé. La grâce s'ajoute."""
    hop = HopWindows(10, 5, grace=3)
    assert hop.open_until(hop.slicing.slice_of(12)) == 19 + 3
    assert TrailingWindows(10, max_late=3).open_until(12) == 12 + 10 + 3
    for late, accepted in ((21, True), (22, False)):
        hop = HopWindows(10, 5, grace=3)
        hop.advance(late)
        assert hop.add("a", 1, 12) is accepted
    with pytest.raises(ValueError, match="sans max_late"):
        TrailingWindows(10).open_until(0)


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_has_a_length(size: int) -> None:
    """Une fenêtre d'aucune durée est refusée."""
    with pytest.raises(ValueError, match="strictement positif"):
        TrailingWindows(size)


def test_a_refused_event_is_kept_whole() -> None:
    """Un événement en retard est rendu tel qu'il est venu, avec son étiquette et le watermark d'alors."""
    windows = TrailingWindows(10, max_late=5)
    windows.advance(100)
    assert not windows.add("a", 7, 95, "étiquette")
    assert windows.take_late() == [Late("a", 7, 95, 100, "étiquette")]
    assert windows.take_late() == []


def test_events_of_an_instant_keep_their_order() -> None:
    """Au même instant, les résultats sortent dans l'ordre d'arrivée, quelles que soient les clés."""
    windows = TrailingWindows(10)
    for key in "cabz":
        windows.add(key, 1, 50, key)
    assert [result.key for result in windows.advance(50)] == list("cabz")


def test_the_first_instant_of_a_trailing_window_counts() -> None:
    """[instant - size, instant] : le plus grand et le plus petit d'exactement size plus tôt comptent encore."""
    windows = TrailingWindows(10)
    for value, instant in ((9, 40), (1, 40), (5, 50), (5, 51)):
        windows.add("a", value, instant)
    found = [(r.end, r.count, r.sum, r.min, r.max) for r in windows.advance(60)]
    assert found == [(40, 2, 10, 1, 9), (40, 2, 10, 1, 9), (50, 3, 15, 1, 9), (51, 2, 10, 5, 5)]


def test_cases_say_their_origin() -> None:
    """Les cas copiés disent d'où ils viennent."""
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    assert {case["source"]["license"] for case in cases} == {"Apache-2.0"}
    assert len({case["source"]["repo"] for case in cases}) == 7
