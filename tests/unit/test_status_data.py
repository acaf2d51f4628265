"""L'état des données, sans serveur : ce qui s'en dit, et ce qui en fait une sonde."""

import copy
from typing import Any

from services import __main__ as services_main
from services.data import lines, waiting
from services.doctor.data import judge_data

import pytest

STATE: dict[str, Any] = {
    "kafka": {"messages": {"ventes-stream": 12_000}, "retard": {"g": 3}, "lettres_mortes": {"ventes-stream-dlq": 0}},
    "mongodb": {"ventes": 11_997, "a_exporter": 97, "lots_ouverts": 0, "dernier_export": 30.0},
    "postgresql": {"ventes": 11_000, "rejets": 0, "dernier_chargement": 4000.0},
    "fichiers": {"lots": 9, "a_charger": 0},
}
MUTE = {"erreur": "personne"}


def changed(server: str, **values: object) -> dict[str, Any]:
    """Le même état, avec d'autres valeurs pour ce serveur."""
    state = copy.deepcopy(STATE)
    state[server] |= values
    return state


def test_every_figure_is_told() -> None:
    """Lignes à chaque étape, retard, ce qui attend, âges, refus ; un serveur muet n'empêche rien."""
    assert list(lines(STATE)) == [
        "ventes       Kafka 12 000, MongoDB 11 997, PostgreSQL 11 000",
        "retard       g : 3 messages",
        "à exporter   97 ventes, 0 lots ouverts ; dernier lot il y a 30 s",
        "à charger    0 lots sur 9 ; dernier chargement il y a 66 min",
        "à réparer    rien",
    ]
    refused = changed("kafka", lettres_mortes={"ventes-stream-dlq": 2}) | {
        "postgresql": {"rejets": 1, "ventes": 0, "dernier_chargement": None},
        "mongodb": MUTE, "fichiers": {"lots": 0, "a_charger": None},
    }  # fmt: skip
    text = "\n".join(lines(refused))
    assert "ventes-stream-dlq 2, ventes_rejets 1" in text
    assert "MongoDB ?" in text
    assert "sans état    mongodb : personne" in text


@pytest.mark.parametrize(
    ("state", "limit", "expected"),
    [
        (STATE, None, False), (STATE, 97, False), (STATE, 96, True),
        (changed("kafka", retard={"a": 5, "b": 1000}), 500, True),
        (changed("fichiers", a_charger=1), 0, True),
        (STATE | {"mongodb": MUTE}, 1000, True), (STATE | {"mongodb": MUTE}, None, False),
    ],
)  # fmt: skip
def test_status_is_a_probe(state: dict[str, Any], limit: int | None, expected: bool) -> None:
    """--max-waiting borne le plus grand retard ; ne rien savoir n'est pas un succès."""
    assert services_main.overdue(state, limit) is expected
    assert waiting(STATE) == 97


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (STATE, "rien à réparer"),
        (changed("kafka", lettres_mortes={"csv-topic-dlq": 4}), "csv-topic-dlq : 4 lettres mortes"),
        (changed("postgresql", rejets=2), "PostgreSQL a rejeté 2 lignes"),
        (changed("mongodb", dernier_export=4000.0), "97 ventes attendent l'export ; le dernier : il y a 66 min"),
        (changed("mongodb", dernier_export=None), "97 ventes attendent l'export ; le dernier : jamais"),
        (changed("fichiers", a_charger=3), "3 lots attendent le chargement"),
        (STATE | {"kafka": MUTE}, "sans réponse de kafka"),
    ],
)
def test_doctor_judges_the_data(state: dict[str, Any], words: str) -> None:
    """Ce qui n'est pas passé, ce qui attend alors que rien n'avance ; sinon, rien à redire."""
    (finding,) = judge_data(state)
    assert words in finding.message
    assert ("--topic csv-topic --summary" in finding.cure) == ("lettres" in words)
    assert (finding.state == "ok") == (state is STATE)
    assert bool(finding.cure) == (finding.state == "warning")


@pytest.mark.parametrize("options", [["up", "--json"], ["down", "--watch", "1"], ["up", "--max-waiting", "0"]])
def test_options_go_with_status(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Sur une autre commande, elles n'auraient pas de sens : code 2, une phrase."""
    with pytest.raises(SystemExit) as error:
        services_main.parse(options)
    assert error.value.code == 2
    assert "vont avec « status »" in capsys.readouterr().err
