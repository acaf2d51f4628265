"""Les lettres mortes sans serveur : leur nom, leur fichier, ce qui se répare dans chaque exercice."""

import json
from pathlib import Path

from commun import PipelineError
from commun.contracts import SALE, header
from commun.dead_letters import Line, main, name_of, named, repaired
from exercice1 import dead_letters as csv_letters
from exercice2 import dead_letters as bank_letters
from exercice3 import dead_letters as sale_letters
from exercice3.ventes import to_json
from tests.lab import expected
from tests.unit.test_transactions import GOOD

import pytest

VENTE = to_json(expected(1)[0]).decode()


def test_a_letter_told_twice_is_one_letter() -> None:
    """L'heure et la raison ne font pas une autre lettre ; l'origine et les octets, si."""
    origin = {"topic": "t", "partition": "0", "offset": "12"}
    letter = named(origin | {"reason": "a", "time": "1"}, b"x")
    assert letter["lettre"] == named(origin | {"reason": "b", "time": "2"}, b"x")["lettre"]
    others = [named(origin, b"y"), named(origin | {"offset": "13"}, b"x")]
    assert letter["lettre"] not in {other["lettre"] for other in others}
    assert name_of(letter | {"valeur": "réparée"}) == letter["lettre"]


def test_a_letter_too_deep_is_still_to_repair() -> None:
    """Des crochets sans fin dans « valeur » : la lettre reste à réparer, comme toute autre."""
    with pytest.raises(ValueError, match="un objet JSON est attendu"):
        csv_letters.again({"valeur": "[" * 5000})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"valeur": 1}', "\n\n12", '{"valeur": "\\ud800"}'])
def test_what_is_not_a_letter_is_said(tmp_path: Path, content: str) -> None:
    """Le fichier, la ligne, et que rien n'est renvoyé."""
    path = tmp_path / "lettres.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"ligne . : ce n'est pas une lettre"):
        repaired(path, sale_letters.again, "t")
    with pytest.raises(PipelineError, match="Impossible de lire"):
        repaired(tmp_path / "absent", sale_letters.again, "t")


def test_a_letter_of_another_topic_is_refused(tmp_path: Path) -> None:
    """Le retard d'une fenêtre n'est pas à renvoyer : la transaction est déjà dans son topic."""
    path = tmp_path / "lettres.jsonl"
    path.write_text(json.dumps({"topic": "autre", "valeur": VENTE}), encoding="utf-8")
    with pytest.raises(PipelineError, match="cette lettre vient de autre, pas de t"):
        repaired(path, sale_letters.again, "t")


@pytest.mark.parametrize("line", [{"valeur": "a,b"}, {"valeur": "[]"}, {"valeur": "{}"}])
def test_a_csv_letter_becomes_an_object(line: Line) -> None:
    """Exercice 1 : un objet JSON, sous la clé et avec l'origine de la lettre ; sinon, refusé."""
    with pytest.raises(ValueError, match="objet JSON"):
        csv_letters.again(line)
    with pytest.raises(ValueError, match="objet JSON"):  # Python le lirait, un autre non
        csv_letters.again({"valeur": '{"id": NaN}'})
    fixed = {"valeur": '{"id":  "é", "prix": 19.90}', "cle": "v.csv", "file": "/v.csv", "line": "3"}
    headers = [("source.file", b"/v.csv"), ("source.line", b"3")]
    assert csv_letters.again(fixed) == ("v.csv", fixed["valeur"].encode(), headers)  # l'écriture des nombres comprise


def test_a_transaction_is_sent_under_its_account() -> None:
    """Exercice 2 : un message, ou une ligne de CSV."""
    key, value, _ = bank_letters.again({"valeur": json.dumps(GOOD)})
    assert (key, json.loads(value)["id"]) == (GOOD["compte"], GOOD["id"])
    with pytest.raises(ValueError, match="CSV illisible"):
        bank_letters.again({"line": "3", "valeur": '"a'})


def test_a_rejected_sale_needs_a_greater_version() -> None:
    """Exercice 3 : une lettre redevient la vente ; un rejet de PostgreSQL, sa version suivante."""
    vente = expected(1)[0]
    assert sale_letters.again({"valeur": VENTE, "topic": "ventes-stream"}) == (vente.id, VENTE.encode(), [header(SALE)])
    with pytest.raises(ValueError, match="version"):
        sale_letters.again({"valeur": VENTE, "file": "ventes_000001.csv", "line": "2"})
    corrected = to_json(vente._replace(version=2))
    assert sale_letters.again({"valeur": corrected.decode(), "line": "2"})[1] == corrected


def test_empty_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Une mauvaise option : code 2, une phrase."""
    with pytest.raises(SystemExit) as error:
        main(sale_letters.EXERCISE, ["--inconnue"])
    assert error.value.code == 2
    assert "inconnu" in capsys.readouterr().err


def test_a_letter_is_sent_or_closed_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    """--resend et --done ensemble : mauvais usage, rien n'est fait."""
    with pytest.raises(SystemExit) as stopped:
        main(csv_letters.EXERCISE, ["--resend", "a", "--done", "b"])
    assert stopped.value.code == 2
    assert "l'un ou l'autre" in capsys.readouterr().err


def test_a_letter_cannot_become_two(tmp_path: Path) -> None:
    """Une lettre scindée en deux lignes : l'une se perdrait sans un mot ; la même deux fois n'en est qu'une."""
    path = tmp_path / "lettres.jsonl"
    lines = [json.dumps({"lettre": "a", "valeur": json.dumps({"id": number})}) for number in (1, 1, 2)]
    path.write_text("\n".join(lines[:2]), encoding="utf-8")
    assert len({name for name, _ in repaired(path, csv_letters.again, "t")}) == 1
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(PipelineError, match="ligne 3 : cette lettre y est deux fois"):
        repaired(path, csv_letters.again, "t")
