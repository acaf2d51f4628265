"""L'exercice 2, script par script, sur un vrai cluster de trois brokers."""

import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from commun.settings import bootstrap_servers
from exercice2.transactions import number_of
from tests.lab import Running, Scripts, headers, wait_until


class Lab2(Scripts):
    """Un exercice 2 tout neuf : ses topics et son groupe à lui."""

    def __init__(self) -> None:
        self.topic = f"transactions-test-{uuid.uuid4().hex[:8]}"
        self.output = f"{self.topic}-validees"
        names = {"TOPIC": self.topic, "VALIDEES": self.output, "GROUP": f"{self.topic}-group"}
        super().__init__("exercice2", {f"TRANSACTIONS_{name}": value for name, value in names.items()})

    def generate(self, count: int, *options: str) -> str:
        """producer_resilient.py au plus vite."""
        wanted = ("--generate", "--seed", "1", "--rate", "0", "--count", str(count))
        return self.run("producer_resilient", *wanted, *options)

    def consume(self, *options: str) -> str:
        """consumer_resilient.py jusqu'au silence."""
        return self.run("consumer_resilient", "--idle-timeout", "3", *options)

    def ids(self, topic: str) -> list[str]:
        """Identifiants lisibles d'un topic."""
        return [json.loads(message.value() or b"")["id"] for message in self.messages(topic)]

    def send_raw(self, *values: bytes) -> None:
        """Écrit des messages tels quels."""
        producer = Producer({"bootstrap.servers": bootstrap_servers()})
        for value in values:
            producer.produce(self.topic, value, b"cle")
        assert producer.flush(30) == 0


@pytest.fixture
def lab2(stack: None) -> Iterator[Lab2]:
    """Un exercice 2 tout neuf sur les serveurs des tests."""
    lab = Lab2()
    yield lab
    lab.close()


def expected(count: int) -> Counter[str]:
    """Identifiants des ``count`` premières transactions de la graine 1, une fois chacun."""
    return Counter(f"00000001-{number:08d}" for number in range(1, count + 1))


def test_sample_file_twice(lab2: Lab2) -> None:
    """Le fichier fourni part en entier ; renvoyé, il ne double rien ; une clé va dans une seule partition."""
    first = lab2.run("producer_resilient")
    assert "3 000 envoyées, 3 000 confirmées, 0 en attente, 0 reparties, 0 lettres mortes" in first
    assert "Par partition : p0 " in first
    assert "0 envoyées, 0 confirmées" in lab2.run("producer_resilient")
    messages = lab2.messages(lab2.topic)
    assert len(messages) == 3000
    places = {(message.key(), message.partition()) for message in messages}
    assert len(places) == len({key for key, _ in places})


def test_generated_resumes(lab2: Lab2) -> None:
    """La même graine continue où elle en était."""
    lab2.generate(500)
    assert "700 envoyées" in lab2.generate(1200)
    assert Counter(lab2.ids(lab2.topic)) == expected(1200)


def test_bad_rows_are_kept(lab2: Lab2, tmp_path: Path) -> None:
    """Une mauvaise ligne est une lettre morte, octets compris ; les autres partent."""
    path = tmp_path / "t.csv"
    row = "a-{},2026-01-01T00:00:00.000Z,{},paiement,FR1,Bretagne,carte\n"
    text = "id,timestamp,montant,type,compte,region,canal\n" + row.format(1, "1.00") + row.format(2, "gratuit")
    path.write_text(text, encoding="utf-8")
    assert "1 envoyées, 1 confirmées, 0 en attente, 0 reparties, 1 lettres mortes" in lab2.run(
        "producer_resilient", str(path)
    )
    ((raw, said),) = lab2.letters(f"{lab2.topic}-dlq")
    assert raw == row.format(2, "gratuit").encode()
    assert (said["dlq.line"], said["dlq.reason"]) == ("3", "montant : un nombre est attendu")


def test_two_producers_of_a_source(lab2: Lab2) -> None:
    """Le second prend la place du premier, qui s'arrête ; rien n'est doublé."""
    options = ("--generate", "--seed", "1", "--rate", "200")
    first = lab2.start("producer_resilient", *options)
    wait_until(lambda: len(lab2.ids(lab2.topic)) > 100 if "Envoi de" in first.text else False)
    second = lab2.start("producer_resilient", *options)
    assert first.process.wait(60) == 1
    assert "je m'arrête" in first.text
    time.sleep(2)
    assert second.stop(signal.SIGINT) == 0
    found = Counter(lab2.ids(lab2.topic))
    assert found == expected(len(found))


@pytest.mark.parametrize("mode", [(), ("--exactly-once",)])
def test_consumer_validates(lab2: Lab2, mode: tuple[str, ...]) -> None:
    """Les bonnes sont enrichies, une fois, dans l'ordre ; les mauvaises sont gardées ; relancé, rien n'est refait."""
    lab2.generate(1000)
    lab2.send_raw(b"pas du JSON", b'{"id": "x"}')
    said = lab2.consume(*mode)
    assert "1 002 lues" in said
    assert "1 000 validées, 2 lettres mortes" in said
    assert Counter(lab2.ids(lab2.output)) == expected(1000)
    first = lab2.messages(lab2.output)[0]
    assert {"sens", "solde", "tranche"} <= json.loads(first.value() or b"").keys()
    assert {"source.partition", "source.offset"} <= headers(first).keys()
    by_partition: dict[int | None, list[int]] = {}
    for message in lab2.messages(lab2.output):
        by_partition.setdefault(message.partition(), []).append(number_of(json.loads(message.value() or b"")["id"]))
    assert all(numbers == sorted(numbers) for numbers in by_partition.values())
    letters = lab2.letters(f"{lab2.topic}-dlq")
    assert {raw for raw, _ in letters} == {b"pas du JSON", b'{"id": "x"}'}
    assert all(said["dlq.topic"] == lab2.topic and said["dlq.offset"].isdigit() for _, said in letters)
    assert "0 lues" in lab2.consume(*mode)


def test_failing_work(lab2: Lab2) -> None:
    """Un travail qui échoue est réessayé, puis devient une lettre morte ; celui qui se trompe aussi."""
    lab2.generate(40)
    said = lab2.consume("--work", "tests.works:fails_twice")
    assert "40 validées, 0 lettres mortes" in said
    assert "Essai raté" in said
    said = lab2.consume("--work", "tests.works:never", "--max-attempts", "2", "--group", f"{lab2.topic}-b")
    assert "0 validées, 40 lettres mortes, 40 nouveaux essais" in said
    said = lab2.consume("--work", "tests.works:mistaken", "--group", f"{lab2.topic}-c")
    assert "0 validées, 40 lettres mortes" in said
    assert "ZeroDivisionError" in said


def test_slow_work_keeps_its_place(lab2: Lab2) -> None:
    """Un travail plus long que la session n'exclut pas le membre."""
    lab2.generate(6)
    said = lab2.consume("--exactly-once", "--max-messages", "2", "--work", "tests.works:very_slow")
    assert "Partitions perdues" not in said
    assert "2 validées" in said
    assert " 0 annulations" in said


def test_where_to_start(lab2: Lab2) -> None:
    """--reset latest ne lit que le nouveau ; --from-offsets relit ; --reset DATE part de l'instant dit."""
    lab2.generate(50)
    assert "0 lues" in lab2.consume("--reset", "latest", "--group", f"{lab2.topic}-b")
    assert "50 lues" in lab2.consume("--reset", "2020-01-01T00:00Z", "--group", f"{lab2.topic}-c")
    assert "0 lues" in lab2.consume("--group", f"{lab2.topic}-c")
    again = lab2.consume("--from-offsets", "0:0", "--group", f"{lab2.topic}-c")
    in_first = sum(message.partition() == 0 for message in lab2.messages(lab2.topic))
    assert f"{in_first} lues" in again


def test_group_shares_and_replaces(lab2: Lab2) -> None:
    """Trois membres se partagent les partitions ; l'un tué, les autres finissent, sans perte ni doublon."""
    lab2.generate(100)
    options = ("--generate", "--seed", "1", "--rate", "200")
    members: list[Running] = [lab2.start("consumer_resilient", "--exactly-once") for _ in range(3)]
    wait_until(lambda: all("Partitions reçues" in member.text for member in members), 90)
    producer = lab2.start("producer_resilient", *options)
    time.sleep(3)
    members[0].stop(signal.SIGKILL)
    time.sleep(8)
    assert producer.stop(signal.SIGTERM) == 0
    sent = Counter(lab2.ids(lab2.topic))
    wait_until(lambda: len(lab2.ids(lab2.output)) >= len(sent), 90, lambda: members[1].text)
    assert [member.stop(signal.SIGINT) for member in members[1:]] == [0, 0]
    assert Counter(lab2.ids(lab2.output)) == sent


def test_dead_letters_come_back(lab2: Lab2, tmp_path: Path) -> None:
    """Une lettre se lit, se répare et revient ; une lettre encore fausse ne revient pas."""
    lab2.generate(1)
    (good,) = lab2.messages(lab2.topic)
    bad = (good.value() or b"").replace(b"00000001-00000001", b"reparee").replace(b'"montant":', b'"montant":-')
    lab2.send_raw(bad)
    lab2.consume()
    line = lab2.run("dead_letters").strip()
    letter: dict[str, Any] = json.loads(line)
    assert "montant" in letter["reason"]
    path = tmp_path / "lettres.jsonl"
    path.write_text(line, encoding="utf-8")
    assert "Rien n'est renvoyé" in lab2.run("dead_letters", "--resend", str(path), code=1)
    letter["valeur"] = letter["valeur"].replace('"montant":-', '"montant":')
    path.write_text(json.dumps(letter), encoding="utf-8")
    lab2.run("dead_letters", "--resend", str(path))
    lab2.consume()
    assert Counter(lab2.ids(lab2.output)) == Counter(["00000001-00000001", "reparee"])
