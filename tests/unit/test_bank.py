"""Les réglages des scripts de l'exercice 2, et ce qui voyage avec une position : sans serveur."""

import argparse
import json
import random
from pathlib import Path

from commun import PipelineError
from commun.dead_letters import repaired
from commun.group_positions import joined, offsets_option, reset_option, split
from commun.kafka import client_config
from exercice2 import consumer_resilient, kafka_monitor
from exercice2.dead_letters import again
from exercice2.fenetres.partials import Position
from exercice2.fenetres.screen import MOST_KEYS, Screen
from exercice2.fenetres.windows import Result
from exercice2.topic import TOPIC
from exercice2.transactions import InvalidTransaction
from tests.unit.test_transactions import GOOD

import msgspec
import pytest


@pytest.mark.parametrize(
    "option",
    [
        ("--max-delay", "2"), ("--grace", "30"), ("--max-future", "3600"), ("--idle-timeout", "60"),
        ("--alert", "nombre > 3"), ("--output", "autre"), ("--alerts", "autre"), ("--by", "type"), ("--size", "30"),
        ("--slide", "event"),
    ],
)  # fmt: skip
def test_one_group_per_setting(option: tuple[str, str]) -> None:
    """Deux moniteurs réglés autrement ne sont pas du même groupe ; sans réglage, le groupe est celui d'avant."""
    usual = kafka_monitor.parse_options([])
    assert usual.group == "fenetres-transactions-topic-60-10-toutes"
    assert kafka_monitor.parse_options(option).group != usual.group


def test_seconds_are_milliseconds() -> None:
    """64,1 s sont 64 100 ms ; moins d'une milliseconde n'est pas une durée."""
    assert kafka_monitor.parse_options(["--size", "64.1"]).size_ms == 64_100
    assert kafka_monitor.parse_options(["--grace", "0"]).grace_ms == 0
    with pytest.raises(argparse.ArgumentTypeError, match="au moins une milliseconde"):
        kafka_monitor.milliseconds("0.0001")


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("KAFKA_DELIVERY_TIMEOUT_MS", "message.timeout.ms"), ("KAFKA_REQUEST_REQUIRED_ACKS", "acks"),
        ("KAFKA_GROUP_ID", "group.id"), ("KAFKA_TRANSACTIONAL_ID", "transactional.id"),
    ],
)  # fmt: skip
def test_guaranteed_by_any_name(monkeypatch: pytest.MonkeyPatch, variable: str, said: str) -> None:
    """Une propriété garantie ne se change pas, même sous son autre nom ; l'identité du script non plus."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(PipelineError, match=f"{variable} changerait « {said} »"):
        client_config(consumer_resilient.PRODUCER_CONFIG, consumer_resilient.GUARANTEED)


def test_another_name_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un réglage permis, sous son autre nom, remplace celui du script au lieu de s'y ajouter."""
    monkeypatch.setenv("KAFKA_QUEUE_BUFFERING_MAX_MS", "7")
    config = client_config({"linger.ms": 20})
    assert config["linger.ms"] == "7"
    assert "queue.buffering.max.ms" not in config


@pytest.mark.parametrize("metadata", ["", '{"instant":1}', "x" * 5000])
def test_metadata_come_back(metadata: str) -> None:
    """L'identité du topic et les métadonnées du script, jointes puis séparées."""
    assert split(joined("abc-_1", metadata)) == ("abc-_1", metadata)


def test_metadata_of_the_former_version() -> None:
    """Une position d'avant n'a pas d'identité ; ses métadonnées restent lisibles."""
    assert split(None) == split("") == ("", "")
    assert split('{"instant":5,"idle":true}') == ("", '{"instant":5,"idle":true}')


def test_metadata_of_many_partitions() -> None:
    """Les watermarks de MOST_PARTITIONS partitions tiennent dans ce que Kafka admet (4 096 octets)."""
    dice, count = random.Random(1), kafka_monitor.MOST_PARTITIONS
    marks = {number: 1_767_225_600_000 + dice.randrange(20_000) for number in range(count)}
    position = msgspec.json.encode(Position(12, min(marks.values()), marks, list(range(0, count, 7)))).decode()
    assert len(joined("x" * 22, position)) <= 4096
    assert split(joined("x" * 22, position))[1] == position


def test_options() -> None:
    """--reset et --from-offsets."""
    assert reset_option("latest") == "latest"
    assert str(reset_option("2026-01-31T08:00")) == "2026-01-31 08:00:00+00:00"
    assert offsets_option("0:1500,3:12") == {0: 1500, 3: 12}
    for wrong in (reset_option, offsets_option):
        with pytest.raises(argparse.ArgumentTypeError):
            wrong("n'importe quoi")


def test_letters_of_a_file(tmp_path: Path) -> None:
    """Un saut de ligne Unicode dans un texte n'en est pas un ; une ligne de CSV se renvoie."""
    path = tmp_path / "lettres.jsonl"
    value = json.dumps(GOOD | {"region": "Île\u2028de\u0085France"}, ensure_ascii=False)
    row = {"line": "3", "valeur": "a-2;2026-01-01T00:00:00.000Z;10.5;paiement;FR1;Bretagne;carte"}
    path.write_text(json.dumps({"valeur": value}, ensure_ascii=False) + "\n" + json.dumps(row) + "\n\n", "utf-8")
    assert [key for _, (key, _, _) in repaired(path, again, TOPIC)] == ["FR1", "FR1"]
    path.write_text(json.dumps(row | {"valeur": "trop,court"}), "utf-8")
    with pytest.raises(PipelineError, match="2 champs au lieu de 7"):
        repaired(path, again, TOPIC)


def test_invalid_is_a_value_error() -> None:
    """Le lecteur CSV range à part ce que refuse une transaction."""
    assert issubclass(InvalidTransaction, ValueError)


def result(key: str, end: int, total: int) -> Result:
    """Une fenêtre close d'une minute."""
    return Result(key, end - 60_000, end, 1, total, total, total)


def test_the_screen_forgets() -> None:
    """Les clés qui vivent encore d'abord ; un nombre borné de clés, quelle que soit la durée."""
    screen = Screen("json")
    screen.keep(result("hier", 60_000, 10**9))
    for number in range(5 * MOST_KEYS):
        screen.keep(result(f"k{number}", 86_400_000, number))
        screen.keep(result("vivante", 86_400_000, 7))
    assert len(screen.last) == MOST_KEYS
    assert "vivante" in screen.last
    few = Screen("json")
    for one in (result("hier", 60_000, 10**9), result("b", 86_400_000, 5), result("a", 86_390_000, 9)):
        few.keep(one)
    assert few.ranked() == ["a", "b", "hier"]
