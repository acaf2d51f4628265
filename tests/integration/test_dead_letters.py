"""Ce qui n'est pas passé se répare et revient, une fois seulement : exercices 1 et 3 (le 2 : test_exercice2.py)."""

import json
from pathlib import Path
from typing import Any

from exercice3.ventes import to_json
from tests.lab import CsvLab, Lab, as_json, expected

SUMMARY = ("dead_letters", "--summary")


def letters(lab: CsvLab | Lab, *options: str) -> list[dict[str, Any]]:
    """Les lettres à traiter."""
    return [json.loads(line) for line in lab.run("dead_letters", *options).splitlines() if line.startswith("{")]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    """Un fichier de lettres."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_a_csv_row_comes_back(csv_lab: CsvLab, tmp_path: Path) -> None:
    """Exercice 1 : une ligne mal formée, réparée en objet JSON, arrive dans le topic, une fois."""
    csv_lab.write("id,ville\n1,Brest\n2\n")
    csv_lab.run("producer", "--once")
    (letter,) = letters(csv_lab)
    path = write(tmp_path / "lettres.jsonl", [letter])
    assert "Rien n'est renvoyé" in csv_lab.run("dead_letters", "--resend", path, code=1)
    path = write(tmp_path / "lettres.jsonl", [letter | {"valeur": '{"id": "2", "ville": "Quimper"}'}])
    for count in (1, 0):
        assert f"{count} lettres renvoyées" in csv_lab.run("dead_letters", "--resend", path)
    assert sorted(csv_lab.column("ville")) == ["Brest", "Quimper"]
    assert "0  lettres" in csv_lab.run(*SUMMARY)


def test_letters_and_rejects_of_the_sales(lab: Lab, tmp_path: Path) -> None:
    """Exercice 3 : deux lettres mortes et un rejet de PostgreSQL, réparés ou classés ; tout est égal ensuite."""
    first, second, third = expected(3)
    lab.produce(1)
    lab.consume(1)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    lab.send_raw(as_json(second, montant=-1), b"{", to_json(third))
    lab.sql(f"ALTER TABLE ventes ADD CONSTRAINT petit CHECK (id <> '{third.id}' OR version > 1)")
    lab.consume(3)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    shown = lab.run(*SUMMARY)
    assert "3  lettres" in shown
    assert "refusée par PostgreSQL" in shown
    assert len(letters(lab, "--reason", "montant")) == 1
    left = letters(lab)
    (bad,) = (line for line in left if "montant" in line["reason"])
    (broken,) = (line for line in left if line["valeur"] == "{")
    (reject,) = (line for line in left if "file" in line)
    fixed = [
        bad | {"valeur": to_json(second).decode()},
        reject | {"valeur": to_json(third._replace(version=2)).decode()},
    ]
    path = write(tmp_path / "lettres.jsonl", fixed)
    assert "2 lettres renvoyées" in lab.run("dead_letters", "--resend", path)
    assert "1 lettres classées" in lab.run("dead_letters", "--done", write(tmp_path / "fini.jsonl", [broken, fixed[0]]))
    assert "0  lettres" in lab.run(*SUMMARY)
    assert {line["traitee"] for line in letters(lab, "--all")} == {"renvoyée", "classée"}
    assert "0 lettres renvoyées" in lab.run("dead_letters", "--resend", path)
    lab.consume(2)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    assert lab.in_postgres()[0] == 3
    assert "Tout est égal" in lab.reconcile(3)
    assert first.id in lab.in_mongo()
