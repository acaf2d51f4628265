"""Ce qui change sous les scripts de l'exercice 2 : le topic, le groupe, le fichier ; et comment ils finissent."""

import hashlib
import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from commun.kafka import client_config
from commun.settings import bootstrap_servers
from exercice2.topic import PARTITIONS
from tests.conftest import services
from tests.lab import BankLab, Running, admin, create, generated, settled, wait_until

import psutil
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

HEAD = "id,timestamp,montant,type,compte,region,canal\n"
ROW = "a-{},2026-01-01T00:00:00.000Z,10.50,paiement,FR1,Bretagne,carte\n"


def send(topic: str, *values: bytes, partition: int = 0) -> None:
    """Écrit des messages dans une partition."""
    producer = Producer({"bootstrap.servers": bootstrap_servers(), "acks": "all"})
    for value in values:
        producer.produce(topic, value, b"cle", partition=partition)
    assert producer.flush(30) == 0


def one(id: str, second: int = 0) -> bytes:
    """Une transaction."""
    return json.dumps(
        {"id": id, "timestamp": f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.000Z", "montant": 1,
         "type": "paiement", "compte": "FR1", "region": "Bretagne", "canal": "web"}
    ).encode()  # fmt: skip


def many(name: str, count: int) -> list[bytes]:
    """``count`` transactions."""
    return [one(f"{name}-{number:02d}", number) for number in range(count)]


# --- Le fichier ---


def grow(path: Path, text: str) -> None:
    """Ajoute à la fin."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def edit(path: Path) -> None:
    """Change une ligne déjà partie."""
    path.write_text(path.read_text(encoding="utf-8").replace("10.50", "11.50", 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "change", "expected"),
    [
        (HEAD + ROW.format(1) + ROW.format(2) + "\n", lambda path: None, {"a-1": 1, "a-2": 1}),
        (HEAD + ROW.format(1) + ROW.format(2), edit, {"a-1": 2, "a-2": 2}),
        (HEAD + ROW.format(1) + ROW.format(2)[:-1], lambda path: grow(path, "\n" + ROW.format(3)),
         {"a-1": 1, "a-2": 1, "a-3": 1}),
        (HEAD + ROW.format(1) + ROW.format(2)[:-3], lambda path: grow(path, "te\n"), {"a-1": 1, "a-2": 1}),
    ],
    ids=["ligne vide à la fin", "modifié", "sans fin de ligne, puis grandi", "dernière ligne à moitié écrite"],
)  # fmt: skip
def test_a_file_is_sent_once(
    bank_lab: BankLab, tmp_path: Path, text: str, change: Callable[[Path], None], expected: dict[str, int]
) -> None:
    """Relancé sur un fichier inchangé, ou qui a grandi, le producteur n'envoie que ce qui est nouveau."""
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    wanted = 0 if text.endswith("\n") else 1  # la dernière ligne attend sa fin
    assert ("n'a pas encore de fin de ligne" in bank_lab.run("producer_resilient", str(path), code=wanted)) == wanted
    change(path)
    for _ in range(3):
        bank_lab.run("producer_resilient", str(path))
    messages = [json.loads(message.value() or b"") for message in bank_lab.messages(bank_lab.topic)]
    assert Counter(message["id"] for message in messages) == expected
    assert {message["canal"] for message in messages} == {"carte"}


def test_a_position_of_the_former_version(bank_lab: BankLab, tmp_path: Path) -> None:
    """Une position d'avant, qui comptait les lignes, lignes vides de la fin comprises : rien ne repart."""
    path = tmp_path / "t.csv"
    text = HEAD + ROW.format(1) + ROW.format(2) + "\n"
    path.write_text(text, encoding="utf-8")
    create(f"{bank_lab.topic}-positions")
    producer = Producer({"bootstrap.servers": bootstrap_servers()})
    saved = {"rows": 2, "digest": hashlib.sha256(text.encode()).hexdigest(), "start": ""}
    producer.produce(f"{bank_lab.topic}-positions", json.dumps(saved).encode(), str(path.resolve()).encode())
    assert producer.flush(30) == 0
    grow(path, ROW.format(3))
    bank_lab.run("producer_resilient", str(path))
    assert bank_lab.ids(bank_lab.topic) == ["a-3"]


def test_stopped_before_the_end(bank_lab: BankLab) -> None:
    """Arrêté avant la fin d'un fichier, le producteur dit ce qui reste, code 1."""
    producer = bank_lab.start("producer_resilient", "--rate", "50")
    wait_until(lambda: bank_lab.topic in admin().list_topics(timeout=60).topics)
    wait_until(lambda: len(bank_lab.messages(bank_lab.topic)) > 20)
    assert producer.stop(signal.SIGINT) == 1
    sent = len(bank_lab.messages(bank_lab.topic))
    assert f"{3000 - sent:,}".replace(",", " ") + " transactions ne sont pas confirmées" in producer.text


def test_rows_that_are_not_transactions(bank_lab: BankLab, tmp_path: Path) -> None:
    """Une colonne de trop, un guillemet jamais fermé, un autre séparateur : chaque ligne est jugée pour elle-même."""
    path = tmp_path / "t.csv"
    extra = "x-1,2026-01-01T00:00:00.000Z,1.00,paiement,FR1,Provence, Alpes,web\n"
    quote = 'q-2,2026-01-01T00:00:00.000Z,2.00,paiement,FR2,"Bretagne,web\n'
    path.write_text(HEAD + extra + quote + ROW.format(3), encoding="utf-8")
    bank_lab.run("producer_resilient", str(path))
    assert bank_lab.ids(bank_lab.topic) == ["a-3"]
    letters = bank_lab.letters(f"{bank_lab.topic}-dlq")
    assert {(said["dlq.line"], raw) for raw, said in letters} == {("2", extra.encode()), ("3", quote.encode())}
    assert {said["dlq.reason"] for _, said in letters} == {
        "8 champs au lieu de 7", "guillemet ouvert et jamais fermé",
    }  # fmt: skip
    path.write_text((HEAD + ROW.format(4)).replace(",", ";"), encoding="utf-8")
    bank_lab.run("producer_resilient", str(path))
    assert sorted(bank_lab.ids(bank_lab.topic)) == ["a-3", "a-4"]


# --- Le topic et le groupe ---


@pytest.mark.parametrize("mode", [(), ("--exactly-once",)], ids=["au moins une fois", "exactement une fois"])
@pytest.mark.parametrize("count", [5, 40], ids=["plus court", "plus long"])
def test_topic_recreated(bank_lab: BankLab, mode: tuple[str, ...], count: int) -> None:
    """Effacé puis recréé sous un consommateur en marche : le nouveau topic est lu en entier."""
    create(bank_lab.topic)
    send(bank_lab.topic, *many("vieux", 20))
    consumer = bank_lab.start("consumer_resilient", *mode)
    wait_until(lambda: "Lecture de" in consumer.text and len(bank_lab.ids(bank_lab.output)) == 20)
    wait_until(lambda: bank_lab.committed() == 20)
    settled(admin().delete_topics([bank_lab.topic]))
    create(bank_lab.topic)
    send(bank_lab.topic, *many("neuf", count))
    expected = {f"neuf-{number:02d}" for number in range(count)} | {f"vieux-{number:02d}" for number in range(20)}
    wait_until(lambda: set(bank_lab.ids(bank_lab.output)) == expected, 60, lambda: consumer.text)
    assert consumer.stop(signal.SIGINT) == 0
    assert "a été recréé" in consumer.text
    assert bank_lab.consume(*mode).count("0 lues") == 1
    if mode:
        assert len(bank_lab.ids(bank_lab.output)) == len(expected)


def test_topic_recreated_while_stopped(bank_lab: BankLab) -> None:
    """Recréé pendant l'arrêt, plus long que la position : lu en entier, ou dit."""
    create(bank_lab.topic)
    send(bank_lab.topic, *many("vieux", 20))
    bank_lab.consume()
    settled(admin().delete_topics([bank_lab.topic]))
    create(bank_lab.topic)
    send(bank_lab.topic, *many("neuf", 30))
    assert "30 lues" in bank_lab.consume()


def test_reset_latest_is_kept(bank_lab: BankLab) -> None:
    """--reset latest, rien n'arrive, arrêt ; ce qui arrive ensuite est lu par la même commande."""
    create(bank_lab.topic, 2)
    send(bank_lab.topic, *many("avant", 5))
    assert "0 lues" in bank_lab.consume("--reset", "latest")
    send(bank_lab.topic, *many("apres", 1))
    assert "1 lues" in bank_lab.consume("--reset", "latest")


@pytest.mark.long
def test_from_offsets_once(bank_lab: BankLab) -> None:
    """--from-offsets ne rejoue pas quand un autre membre arrive puis part ; hors des bornes, il se refuse."""
    bank_lab.generate(60)
    bank_lab.consume("--exactly-once")
    text = bank_lab.run("consumer_resilient", "--from-offsets", "0:999999", code=1)
    assert "--from-offsets 0:999999 : la partition 0 va de 0 à" in text
    again = ",".join(f"{partition}:0" for partition in range(PARTITIONS))
    first = bank_lab.start("consumer_resilient", "--exactly-once", "--from-offsets", again)
    wait_until(lambda: len(bank_lab.ids(bank_lab.output)) == 120, 60, lambda: first.text)
    second = bank_lab.start("consumer_resilient", "--exactly-once")
    wait_until(lambda: "Partitions reçues" in second.text, 60, lambda: second.text)
    second.stop(signal.SIGINT)
    wait_until(lambda: first.text.count("Partitions reçues") > 1, 60, lambda: first.text)
    assert "des membres en marche" in bank_lab.run("consumer_resilient", "--from-offsets", "0:0", code=1)
    assert first.stop(signal.SIGINT) == 0
    assert Counter(bank_lab.ids(bank_lab.output)) == Counter({id: 2 for id in generated(60)})


def test_positions_erased(bank_lab: BankLab) -> None:
    """Positions du groupe effacées par Kafka : exactement une fois refuse de tout publier à nouveau."""
    bank_lab.generate(30)
    bank_lab.consume("--exactly-once")
    group = bank_lab.env["TRANSACTIONS_GROUP"]
    consumer = Consumer(client_config({"group.id": group}))  # les dernières positions sont écrites : rien ne les rendra
    numbers = [TopicPartition(bank_lab.topic, number) for number in range(PARTITIONS)]
    wait_until(lambda: sum(max(0, one.offset) for one in consumer.committed(numbers, 20)) >= 30)
    consumer.close()
    wait_until(lambda: _erased(group))
    assert "n'a plus de position" in bank_lab.run("consumer_resilient", "--exactly-once", code=1)
    assert Counter(bank_lab.ids(bank_lab.output)) == generated(30)
    assert "30 lues" in bank_lab.consume("--exactly-once", "--reset", "earliest")


def _erased(group: str) -> bool:
    try:
        settled(admin().delete_consumer_groups([group]))
    except KafkaException:
        return False
    return True


def test_records_deleted_before_being_read(bank_lab: BankLab) -> None:
    """Des messages effacés avant d'être lus se disent, et la suite est lue."""
    create(bank_lab.topic)
    send(bank_lab.topic, *many("lu", 5))
    bank_lab.consume()
    send(bank_lab.topic, *many("efface", 10), *many("suite", 3))
    settled(admin().delete_records([TopicPartition(bank_lab.topic, 0, 15)]))
    said = bank_lab.consume()
    assert "3 lues" in said
    assert "les messages 5 à 14 ont été effacés avant d'être lus" in said


@pytest.mark.long
def test_partitions_added(bank_lab: BankLab) -> None:
    """Partitions ajoutées sous un consommateur et un moniteur : lues depuis leur début, aucune fenêtre deux fois."""
    create(bank_lab.topic)
    monitor_options = ("--slide", "60", "--idle-timeout", "2")
    consumer = bank_lab.start("consumer_resilient")
    monitor = bank_lab.start("kafka_monitor", *monitor_options)
    send(bank_lab.topic, one("p0-0", 0), one("p0-1", 100))
    wait_until(lambda: len(bank_lab.messages(bank_lab.windows)) == 1 if "Fenêtres" in monitor.text else False)
    settled(admin().create_partitions([NewPartitions(bank_lab.topic, 2)]))
    wait_until(lambda: len(admin().list_topics(bank_lab.topic, 10).topics[bank_lab.topic].partitions) == 2)
    send(bank_lab.topic, one("p1-0", 30), one("p1-1", 110), partition=1)
    wait_until(lambda: len(set(bank_lab.ids(bank_lab.output))) == 4, 60, lambda: consumer.text)
    wait_until(lambda: len(bank_lab.letters(f"{bank_lab.windows}-dlq")) == 1, 60, lambda: monitor.text)
    assert monitor.stop(signal.SIGINT) == 0
    assert consumer.stop(signal.SIGINT) == 0
    send(bank_lab.topic, one("p0-2", 200), partition=0)
    send(bank_lab.topic, one("p1-2", 200), partition=1)
    settled(admin().create_partitions([NewPartitions(bank_lab.topic, 3)]))
    bank_lab.run("kafka_monitor", "--once", *monitor_options)
    rows = [json.loads(message.value() or b"") for message in bank_lab.messages(bank_lab.windows)]
    assert sorted((row["fin"][11:19], row["nombre"]) for row in rows) == [("00:01:00", 1), ("00:02:00", 2)]


def test_one_copy_is_told(bank_lab: BankLab) -> None:
    """Un topic qui n'a qu'une copie se dit, et s'écrit tout de même ; un topic où rien ne s'écrit aussi."""
    said = bank_lab.generate(100, "--replication-factor", "1", "--partitions", "2")
    assert f"Le topic {bank_lab.topic} n'a que 1 copie(s)" in said
    assert len(bank_lab.messages(bank_lab.topic)) == 100
    assert len(admin().list_topics(bank_lab.topic, 10).topics[bank_lab.topic].partitions) == 2
    settled(admin().create_topics([NewTopic(bank_lab.output, 1, 1, config={"min.insync.replicas": "2"})]))
    assert "Rien ne peut s'écrire" in bank_lab.run("consumer_resilient", "--idle-timeout", "1", code=1)


# --- Comment ils finissent ---


def test_any_number(bank_lab: BankLab) -> None:
    """Un nombre JSON, quel qu'il soit, n'arrête personne."""
    create(bank_lab.topic)
    send(bank_lab.topic, b'{"x":1e99999999999999999999}', one("a").replace(b'"montant": 1', b'"montant": 1e999999999'))
    send(bank_lab.topic, one("b"), one("c", 200))
    assert "1 fenêtres publiées" in bank_lab.run("kafka_monitor", "--once", "--slide", "60")
    assert "2 validées, 2 lettres mortes" in bank_lab.consume()


@pytest.mark.parametrize("mode", [(), ("--exactly-once",)], ids=["au moins une fois", "exactement une fois"])
def test_a_message_too_big_for_its_letter(bank_lab: BankLab, mode: tuple[str, ...]) -> None:
    """Plus gros que la file des lettres mortes, un message y est tronqué, avec sa taille et sa place."""
    create(bank_lab.topic)
    producer = Producer({
        "bootstrap.servers": bootstrap_servers(), "compression.type": "lz4", "message.max.bytes": 8_000_000,
    })  # fmt: skip
    for value in (one("a"), b"x" * 3_000_000, one("b")):
        producer.produce(bank_lab.topic, value)
    assert producer.flush(30) == 0
    assert "2 validées, 1 lettres mortes" in bank_lab.consume(*mode)
    ((raw, said),) = bank_lab.letters(f"{bank_lab.topic}-dlq")
    assert (said["dlq.truncated"], said["dlq.offset"]) == ("3000000", "1")
    assert raw is not None
    assert raw == b"x" * len(raw)


@pytest.mark.parametrize("choice", ["stop", "retry"])
def test_mistaken_work_stops(bank_lab: BankLab, choice: str) -> None:
    """Un travail qui se trompe arrête le script : rien n'est rangé, rien n'est perdu."""
    bank_lab.generate(12)
    said = bank_lab.run(
        "consumer_resilient", "--work", "tests.works:mistaken", "--on-error", choice, "--max-attempts", "2", code=1
    )
    assert "Le travail s'est trompé" in said
    assert "ZeroDivisionError" in said
    assert bank_lab.letters(f"{bank_lab.topic}-dlq") == []
    assert "12 validées" in bank_lab.consume()


def test_lag_reaches_zero(bank_lab: BankLab) -> None:
    """Tout lu, le retard est nul : une marque de transaction n'est pas un message."""
    bank_lab.generate(100)
    consumer = bank_lab.start("consumer_resilient", "--exactly-once")
    wait_until(lambda: "retard p0 0, p1 0, p2 0, p3 0, p4 0, p5 0" in consumer.text, 60, lambda: consumer.text)
    assert consumer.stop(signal.SIGINT) == 0


def test_letters_repaired_by_any_editor(bank_lab: BankLab, tmp_path: Path) -> None:
    """U+2028 dans un texte, une ligne vide à la fin, une ligne de CSV réparée : renvoyées."""
    create(bank_lab.topic, PARTITIONS)
    letters = [
        {"reason": "montant", "valeur": one("e-1").decode().replace("Bretagne", "Île\u2028de\u0085France\x1c")},
        {"reason": "type", "file": "t.csv", "line": "3", "valeur": ROW.format(2)},
    ]
    path = tmp_path / "lettres.jsonl"
    letters[0]["valeur"] = letters[0]["valeur"].replace("\x1c", "")
    path.write_text("".join(json.dumps(letter, ensure_ascii=False) + "\n" for letter in letters) + "\n", "utf-8")
    bank_lab.run("dead_letters", "--resend", str(path))
    assert sorted(bank_lab.ids(bank_lab.topic)) == ["a-2", "e-1"]
    assert "Aucune lettre morte" in bank_lab.run("dead_letters")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("KAFKA_DELIVERY_TIMEOUT_MS", "25", "KAFKA_DELIVERY_TIMEOUT_MS changerait « message.timeout.ms »"),
        ("KAFKA_GROUP_ID", "autre", "KAFKA_GROUP_ID changerait « group.id »"),
        ("KAFKA_TOPIC", "autre", "Vérifiez KAFKA_TOPIC"),
        ("KAFKA_BOOTSTRAP_SERVERS", "machine.invalid:9092", "aucune machine ne porte ce nom"),
    ],
)
def test_settings_that_cannot_be(bank_lab: BankLab, name: str, value: str, said: str) -> None:
    """Un réglage qui toucherait à la garantie se refuse en se nommant ; la vraie cause d.une panne se dit."""
    assert said in bank_lab.run("consumer_resilient", "--idle-timeout", "1", env={name: value}, code=1)


def test_a_monitor_that_fails_early_ends(bank_lab: BankLab) -> None:
    """Une faute dès les premiers messages : le moniteur finit, code 1."""
    create(bank_lab.topic)
    send(bank_lab.topic, *many("a", 3))
    name = f"{bank_lab.topic}-{uuid.uuid4().hex[:4]}"
    bank_lab.run("kafka_monitor", "--once", "--group", name)
    send(f"{name}-partiels", b"ceci n'est pas un compte")
    assert "Erreur imprévue" in bank_lab.run("kafka_monitor", "--once", "--group", name, code=1, timeout=60)


def frozen(names: tuple[str, ...] = ("kafka1", "kafka2", "kafka3")) -> None:
    """Gèle des brokers."""
    for name in names:
        assert services("pause", name).returncode == 0


def thawed() -> None:
    """Les réveille tous."""
    for name in ("kafka1", "kafka2", "kafka3"):
        services("resume", name)


@pytest.mark.long
@pytest.mark.parametrize("mode", [(), ("--exactly-once",)], ids=["au moins une fois", "exactement une fois"])
def test_stopped_while_kafka_is_mute(bank_lab: BankLab, mode: tuple[str, ...]) -> None:
    """Ctrl-C pendant que Kafka ne confirme rien : une phrase, pas une erreur imprévue ; rien n'est perdu ensuite."""
    producer = bank_lab.start("producer_resilient", "--generate", "--seed", "1", "--rate", "300")
    consumer = bank_lab.start("consumer_resilient", *mode)
    wait_until(lambda: len(bank_lab.ids(bank_lab.output)) > 200 if "Partitions reçues" in consumer.text else False, 90)
    try:
        frozen()
        time.sleep(3)
        assert consumer.stop(signal.SIGINT, 90) == 0
    finally:
        thawed()
    assert "imprévue" not in consumer.text
    assert "Traceback" not in consumer.text
    # Kafka se réveille à peine : le producteur a tout confirmé, ou dit ce qui manque.
    assert producer.stop(signal.SIGINT, 90) == 0 or "relancez la même commande" in producer.text, producer.text
    sent = Counter(bank_lab.ids(bank_lab.topic))
    bank_lab.consume(*mode, "--idle-timeout", "8")
    found = Counter(bank_lab.ids(bank_lab.output))
    assert found == sent if mode else found >= sent


def test_a_second_interruption(bank_lab: BankLab) -> None:
    """Le second Ctrl-C n'attend pas un travail bloqué."""
    bank_lab.generate(3)
    consumer: Running = bank_lab.start("consumer_resilient", "--work", "tests.works:blocked")
    consumer.wait_for("je suis bloqué")
    consumer.process.send_signal(signal.SIGINT)
    consumer.wait_for("un premier Ctrl-C est venu")
    assert consumer.process.poll() is None
    assert consumer.stop(signal.SIGINT) == 1


@pytest.mark.long
def test_memory_is_bounded(bank_lab: BankLab) -> None:
    """Kafka muet, le producteur attend sans rien amasser, même au plus vite."""
    producer = bank_lab.start("producer_resilient", "--generate", "--seed", "1", "--rate", "0")
    wait_until(lambda: "Envoi de" in producer.text and len(bank_lab.messages(bank_lab.topic)) > 1000)
    try:
        frozen()
        highest = 0
        for _ in range(20):
            time.sleep(2)
            highest = max(highest, psutil.Process(producer.process.pid).memory_info().rss)
    finally:
        thawed()
        producer.stop(signal.SIGKILL)
    assert highest < 500_000_000
