"""L'exercice 2, script par script, sur un vrai cluster de trois brokers."""

import json
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from exercice2.transactions import number_of
from tests.lab import BankLab, Running, bar, generated, headers, take_place, wait_until

import pytest


def test_sample_file_twice(bank_lab: BankLab) -> None:
    """Le fichier fourni part en entier ; renvoyé, il ne double rien ; une clé va dans une seule partition."""
    first = bank_lab.run("producer_resilient")
    assert "3 000 envoyées, 3 000 confirmées, 0 en attente, 0 reparties, 0 lettres mortes" in first
    assert "Par partition : p0 " in first
    assert "0 envoyées, 0 confirmées" in bank_lab.run("producer_resilient")
    messages = bank_lab.messages(bank_lab.topic)
    assert len(messages) == 3000
    places = {(message.key(), message.partition()) for message in messages}
    assert len(places) == len({key for key, _ in places})


def test_generated_resumes(bank_lab: BankLab) -> None:
    """La même graine continue où elle en était."""
    bank_lab.generate(500)
    assert "700 envoyées" in bank_lab.generate(1200)
    assert Counter(bank_lab.ids(bank_lab.topic)) == generated(1200)


def test_bad_rows_are_kept(bank_lab: BankLab, tmp_path: Path) -> None:
    """Une mauvaise ligne est une lettre morte, octets compris ; les autres partent."""
    path = tmp_path / "t.csv"
    row = "a-{},2026-01-01T00:00:00.000Z,{},paiement,FR1,Bretagne,carte\n"
    text = "id,timestamp,montant,type,compte,region,canal\n" + row.format(1, "1.00") + row.format(2, "gratuit")
    path.write_text(text, encoding="utf-8")
    assert "1 envoyées, 1 confirmées, 0 en attente, 0 reparties, 1 lettres mortes" in bank_lab.run(
        "producer_resilient", str(path)
    )
    ((raw, said),) = bank_lab.letters(f"{bank_lab.topic}-dlq")
    assert raw == row.format(2, "gratuit").encode()
    assert (said["dlq.line"], said["dlq.reason"]) == ("3", "montant : un nombre est attendu")


def test_two_producers_of_a_source(bank_lab: BankLab) -> None:
    """Le second prend la place du premier, qui s'arrête ; rien n'est doublé."""
    options = ("--generate", "--seed", "1", "--rate", "200")
    first = bank_lab.start("producer_resilient", *options)
    wait_until(lambda: len(bank_lab.ids(bank_lab.topic)) > 100 if "Envoi de" in first.text else False)
    second = bank_lab.start("producer_resilient", *options)
    assert first.process.wait(60) == 1
    assert "je m'arrête" in first.text
    time.sleep(2)
    assert second.stop(signal.SIGINT) == 0
    found = Counter(bank_lab.ids(bank_lab.topic))
    assert found == generated(len(found))


def test_a_second_producer_is_slow_to_write(bank_lab: BankLab) -> None:
    """Le premier laisse la place à qui s'est annoncé, même lent ; écarté sans annonce, il continue."""
    options = ("--generate", "--seed", "1", "--rate", "200")
    first = bank_lab.start("producer_resilient", *options)
    wait_until(lambda: len(bank_lab.ids(bank_lab.topic)) > 100 if "Envoi de" in first.text else False)
    bar(bank_lab.topic, "generate:1:200:0")  # comme une transaction qui a trop duré
    first.wait_for("Transaction annulée")
    sent = len(bank_lab.ids(bank_lab.topic))
    wait_until(lambda: len(bank_lab.ids(bank_lab.topic)) > sent)
    second = take_place(bank_lab.topic, "generate:1:200:0")
    assert first.process.wait(60) == 1
    assert "je m'arrête" in first.text
    second.producer.write(second.topic, b"", b"essai")
    second.producer.commit()  # le premier ne lui a pas repris la place
    found = Counter(bank_lab.ids(bank_lab.topic))
    assert found == generated(len(found))


@pytest.mark.parametrize("mode", [(), ("--exactly-once",)])
def test_consumer_validates(bank_lab: BankLab, mode: tuple[str, ...]) -> None:
    """Les bonnes sont enrichies, une fois, dans l'ordre ; les mauvaises sont gardées ; relancé, rien n'est refait."""
    bank_lab.generate(1000)
    bank_lab.send_raw(b"pas du JSON", b'{"id": "x"}')
    said = bank_lab.consume(*mode)
    assert "1 002 lues" in said
    assert "1 000 validées, 2 lettres mortes" in said
    assert Counter(bank_lab.ids(bank_lab.output)) == generated(1000)
    first = bank_lab.messages(bank_lab.output)[0]
    assert {"sens", "solde", "tranche"} <= json.loads(first.value() or b"").keys()
    assert {"source.partition", "source.offset"} <= headers(first).keys()
    by_partition: dict[int | None, list[int]] = {}
    for message in bank_lab.messages(bank_lab.output):
        by_partition.setdefault(message.partition(), []).append(number_of(json.loads(message.value() or b"")["id"]))
    assert all(numbers == sorted(numbers) for numbers in by_partition.values())
    letters = bank_lab.letters(f"{bank_lab.topic}-dlq")
    assert {raw for raw, _ in letters} == {b"pas du JSON", b'{"id": "x"}'}
    assert all(said["dlq.topic"] == bank_lab.topic and said["dlq.offset"].isdigit() for _, said in letters)
    assert "0 lues" in bank_lab.consume(*mode)


def test_failing_work(bank_lab: BankLab) -> None:
    """Un travail qui échoue est réessayé, puis devient une lettre morte ; celui qui se trompe aussi."""
    bank_lab.generate(12)
    said = bank_lab.consume("--work", "tests.works:fails_twice")
    assert "12 validées, 0 lettres mortes" in said
    assert "Essai raté" in said
    said = bank_lab.consume("--work", "tests.works:never", "--max-attempts", "2", "--group", f"{bank_lab.topic}-b")
    assert "0 validées, 12 lettres mortes, 12 nouveaux essais" in said
    mistaken = ("--work", "tests.works:mistaken", "--group", f"{bank_lab.topic}-c")
    said = bank_lab.consume(*mistaken, "--on-error", "dead-letter")
    assert "0 validées, 12 lettres mortes" in said
    assert "ZeroDivisionError" in said


def test_slow_work_keeps_its_place(bank_lab: BankLab) -> None:
    """Un travail plus long que la session n'exclut pas le membre."""
    bank_lab.generate(2)
    said = bank_lab.consume("--exactly-once", "--max-messages", "1", "--work", "tests.works:very_slow")
    assert "Partitions perdues" not in said
    assert "1 validées" in said
    assert " 0 annulations" in said


def test_where_to_start(bank_lab: BankLab) -> None:
    """--reset latest ne lit que le nouveau ; --from-offsets relit ; --reset DATE part de l'instant dit."""
    bank_lab.generate(50)
    assert "0 lues" in bank_lab.consume("--reset", "latest", "--group", f"{bank_lab.topic}-b")
    assert "50 lues" in bank_lab.consume("--reset", "2020-01-01T00:00Z", "--group", f"{bank_lab.topic}-c")
    assert "0 lues" in bank_lab.consume("--group", f"{bank_lab.topic}-c")
    again = bank_lab.consume("--from-offsets", "0:0", "--group", f"{bank_lab.topic}-c")
    in_first = sum(message.partition() == 0 for message in bank_lab.messages(bank_lab.topic))
    assert f"{in_first} lues" in again


@pytest.mark.parametrize("mode", [(), ("--exactly-once",)])
def test_group_shares_and_replaces(bank_lab: BankLab, mode: tuple[str, ...]) -> None:
    """Trois membres se partagent les partitions ; l'un tué, les autres finissent ; rien de perdu, ni de doublé."""
    members: list[Running] = [bank_lab.start("consumer_resilient", *mode) for _ in range(3)]
    wait_until(lambda: all("Partitions reçues" in member.text for member in members), 90)
    producer = bank_lab.start("producer_resilient", "--generate", "--seed", "1", "--rate", "400")
    wait_until(lambda: len(bank_lab.ids(bank_lab.output)) > 300, 60, lambda: producer.text)
    members[0].stop(signal.SIGKILL)
    wait_until(lambda: sum(member.text.count("Partitions reçues") for member in members[1:]) > 2, 60)
    assert producer.stop(signal.SIGTERM) == 0
    sent = Counter(bank_lab.ids(bank_lab.topic))
    wait_until(lambda: set(sent) == set(bank_lab.ids(bank_lab.output)), 90, lambda: members[1].text)
    assert [member.stop(signal.SIGINT) for member in members[1:]] == [0, 0]
    found = Counter(bank_lab.ids(bank_lab.output))
    assert found == sent if mode else found >= sent
    origins = {
        (headers(m)["source.partition"], headers(m)["source.offset"]) for m in bank_lab.messages(bank_lab.output)
    }
    assert len(origins) == len(sent)


def test_static_member_comes_back(bank_lab: BankLab) -> None:
    """Un membre permanent tué et relancé retrouve ses partitions sans déranger l'autre ; son double est refusé."""
    first = bank_lab.start("consumer_resilient", "--instance-id", "a")
    first.wait_for("Partitions reçues : ")
    second = bank_lab.start("consumer_resilient", "--instance-id", "b")
    wait_until(lambda: "rendues" in first.text and re.search(r"reçues : \d", second.text) is not None, 60)
    before = second.text
    first.stop(signal.SIGKILL)
    first = bank_lab.start("consumer_resilient", "--instance-id", "a")
    first.wait_for("Partitions reçues : ")
    bank_lab.generate(100)
    wait_until(lambda: len(bank_lab.ids(bank_lab.output)) == 100, 60, lambda: first.text)
    assert [line for line in second.text.removeprefix(before).splitlines() if "Partitions" in line] == []
    double = bank_lab.start("consumer_resilient", "--instance-id", "a")
    wait_until(lambda: first.process.poll() is not None or double.process.poll() is not None, 60)
    loser = first if first.process.poll() is not None else double
    assert loser.stop() == 1
    assert "--instance-id" in loser.text


def test_dead_letters_come_back(bank_lab: BankLab, tmp_path: Path) -> None:
    """Une lettre se lit, se répare et revient ; une lettre encore fausse ne revient pas."""
    bank_lab.generate(1)
    (good,) = bank_lab.messages(bank_lab.topic)
    bad = (good.value() or b"").replace(b"00000001-00000001", b"reparee").replace(b'"montant":', b'"montant":-')
    bank_lab.send_raw(bad)
    bank_lab.consume()
    line = bank_lab.run("dead_letters").strip()
    letter: dict[str, Any] = json.loads(line)
    assert "montant" in letter["reason"]
    path = tmp_path / "lettres.jsonl"
    path.write_text(line, encoding="utf-8")
    assert "Rien n'est renvoyé" in bank_lab.run("dead_letters", "--resend", str(path), code=1)
    letter["valeur"] = letter["valeur"].replace('"montant":-', '"montant":')
    path.write_text(json.dumps(letter), encoding="utf-8")
    bank_lab.run("dead_letters", "--resend", str(path))
    bank_lab.consume()
    assert Counter(bank_lab.ids(bank_lab.output)) == Counter(["00000001-00000001", "reparee"])
    assert "0 lettres renvoyées" in bank_lab.run("dead_letters", "--resend", str(path))  # relancé : rien n'est doublé
    assert "Aucune lettre morte" in bank_lab.run("dead_letters")
    assert json.loads(bank_lab.run("dead_letters", "--all").strip())["traitee"] == "renvoyée"
