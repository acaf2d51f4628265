"""consumer.py devant ce que MongoDB et Kafka refusent, taisent ou font attendre ; les corrections, de bout en bout."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from commun.settings import bootstrap_servers, mongo_uri, setting
from exercice3.producer import PARTITIONS
from tests.conftest import services
from tests.lab import Lab, admin, create, expected, ids, settled, wait_until
from tests.wire import MongoWire

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]
from pymongo import MongoClient


@contextmanager
def mongo_admin() -> Iterator[MongoClient[dict[str, Any]]]:
    """Client du compte qui administre MongoDB."""
    account = f"{setting('MONGO_ADMIN_USER')}:{setting('MONGO_ADMIN_PASSWORD')}"
    with MongoClient[dict[str, Any]](f"mongodb://{account}@localhost:{setting('PORT_MONGO')}") as client:
        yield client


def uri(path: str) -> dict[str, str]:
    """MONGO_URI du compte qui administre, vers ``path``."""
    account = f"{setting('MONGO_ADMIN_USER')}:{setting('MONGO_ADMIN_PASSWORD')}"
    return {"MONGO_URI": f"mongodb://{account}@localhost:{setting('PORT_MONGO')}/{path}"}


def test_silence_counts_once_partitions_are_assigned(lab: Lab) -> None:
    """Après un kill -9, le groupe attend la fin de session du mort : --idle-timeout n'est pas encore du silence."""
    lab.produce(10)
    dead = lab.start("consumer")
    wait_until(lambda: len(lab.in_mongo()) == 10, 60, lambda: dead.text)
    dead.stop(signal.SIGKILL)
    lab.produce(300)
    assert "310 messages lus" not in lab.run("consumer", "--idle-timeout", "2")
    assert lab.in_mongo() == ids(expected(300))


def test_the_base_of_the_uri_is_the_one_written(lab: Lab) -> None:
    """La base que nomme MONGO_URI est celle des ventes, pour chaque script ; celle des comptes est refusée."""
    lab.produce(20)
    assert "base « admin », celle des comptes" in lab.run("consumer", "--idle-timeout", "2", code=1, env=uri("admin"))
    with mongo_admin() as client:
        try:
            env = uri("ma_base?authSource=admin")
            lab.run("consumer", "--max-messages", "20", env=env)
            assert client["ma_base"]["ventes"].count_documents({}) == 20
            assert not lab.in_mongo()
            lab.run("schedule_export", "--once", env=env)
            lab.run("pg")
            assert "Tout est égal" in lab.run("reconcile", "--expect", "20", env=env)
        finally:
            client.drop_database("ma_base")


def test_what_mongodb_never_takes_is_a_dead_letter(lab: Lab) -> None:
    """Un index unique ajouté par un autre : les ventes qu'il refuse sont des lettres mortes, avec ce qu'il dit."""
    lab.run("consumer", "--prepare")
    lab.mongo.ventes.create_index([("region", -1)], unique=True)
    lab.produce(100)
    regions = {vente.region for vente in expected(100)}
    said = lab.consume(100)
    assert f"{len(regions)} ventes écrites, 0 déjà là, {100 - len(regions)} lettres mortes" in said
    assert all("duplicate key" in headers["dlq.reason"] for _, headers in lab.dead_letters())


def test_reading_and_writing_is_enough(lab: Lab) -> None:
    """Un compte qui ne peut pas préparer : une phrase dit quoi lancer une fois ; ensuite, readWrite suffit."""
    with mongo_admin() as client:
        client["ventes_db"].command("createUser", "simple", pwd="p", roles=[{"role": "read", "db": "ventes_db"}])
        env = {"MONGO_URI": f"mongodb://simple:p@localhost:{setting('PORT_MONGO')}/ventes_db?authSource=ventes_db"}
        try:
            lab.produce(20)
            assert "python consumer.py --prepare" in lab.run("consumer", "--max-messages", "20", code=1, env=env)
            lab.run("consumer", "--prepare")
            client["ventes_db"].command("updateUser", "simple", roles=[{"role": "readWrite", "db": "ventes_db"}])
            lab.run("consumer", "--max-messages", "20", env=env)
            lab.run("schedule_export", "--once", env=env)
        finally:
            client["ventes_db"].command("dropUser", "simple")
    assert lab.in_files() == ids(expected(20))


def test_a_prepared_collection_is_left_alone(lab: Lab) -> None:
    """Une fois la collection préparée, plus rien ne demande de droit de créer ou de changer : sur le fil."""
    lab.produce(10)
    lab.run("consumer", "--prepare")
    port = setting("PORT_MONGO")
    with MongoWire(int(port)) as wire:
        env = {"MONGO_URI": mongo_uri().replace(f":{port}/", f":{wire.port}/")}
        lab.run("consumer", "--max-messages", "10", env=env)
        lab.run("schedule_export", "--once", env=env)
    asked = {next(iter(command)) for command in wire.commands}
    assert {"insert", "find", "update", "listCollections"} <= asked
    assert not asked & {"create", "collMod", "createIndexes", "dropIndexes"}


@pytest.mark.parametrize("script", ["consumer", "schedule_export"])
def test_a_wrong_password_is_told(lab: Lab, script: str) -> None:
    """Le mot de passe est faux : c'est dit, et le script n'attend pas."""
    env = {"MONGO_PASSWORD": "faux"}
    assert "refuse le compte ou son mot de passe" in lab.run(script, code=1, env=env)


@pytest.mark.parametrize("running", [True, False], ids=["en marche", "arrêté"])
def test_topic_recreated(lab: Lab, running: bool) -> None:
    """Effacé, recréé, plus long que la position du groupe : le nouveau topic est lu en entier."""
    lab.produce(60)
    consumer = lab.start("consumer")
    wait_until(lambda: len(lab.in_mongo()) == 60, 60, lambda: consumer.text)
    if running:
        consumer.process.send_signal(signal.SIGSTOP)
    else:
        consumer.stop()
    settled(admin().delete_topics([lab.topic]))
    create(lab.topic, PARTITIONS)
    lab.produce(300, seed=2)
    if running:
        consumer.process.send_signal(signal.SIGCONT)
    else:
        consumer = lab.start("consumer")
    wait_until(lambda: lab.in_mongo() == ids(expected(60)) + ids(expected(300, 2)), 60, lambda: consumer.text)
    assert consumer.stop(signal.SIGINT) == 0
    assert "a été recréé" in consumer.text or not running


def test_records_deleted_before_being_read(lab: Lab) -> None:
    """Des ventes effacées avant d'être lues se disent, et la suite est lue."""
    create(lab.topic)
    lab.produce(10)
    lab.consume(10)
    lab.produce(20)
    settled(admin().delete_records([TopicPartition(lab.topic, 0, 25)]))
    said = lab.consume(5)
    assert "les messages 10 à 24 ont été effacés avant d'être lus" in said
    assert lab.committed() == 30


def test_a_message_too_big_for_its_letter(lab: Lab) -> None:
    """Plus gros que la file des lettres mortes (il était comprimé), un message y est tronqué, avec sa taille."""
    lab.produce(2)
    compressed = {"bootstrap.servers": bootstrap_servers(), "compression.type": "lz4", "message.max.bytes": 8_000_000}
    producer = Producer(compressed)
    producer.produce(lab.topic, b"x" * 3_000_000)
    assert producer.flush(30) == 0
    assert "1 lettres mortes" in lab.consume(3)
    ((_, headers),) = lab.dead_letters()
    assert headers["dlq.truncated"] == "3000000"


def test_from_beginning_is_for_a_stopped_group(lab: Lab) -> None:
    """--from-beginning ramène tout le groupe : sous un consommateur en marche, il est refusé, et rien ne change."""
    lab.produce(10)
    consumer = lab.start("consumer")
    wait_until(lambda: lab.committed() == 10, 60, lambda: consumer.text)
    assert "a des membres en marche" in lab.run("consumer", "--from-beginning", "--idle-timeout", "2", code=1)
    assert lab.committed() == 10
    assert consumer.stop() == 0
    assert "10 messages lus, 0 ventes écrites" in lab.run("consumer", "--from-beginning", "--idle-timeout", "2")


@pytest.mark.long
def test_ctrl_c_while_kafka_is_out(lab: Lab) -> None:
    """La position ne peut pas être validée, Kafka est gelé : Ctrl-C est entendu, et rien n'est perdu."""
    lab.produce(10)
    consumer = lab.start("consumer")
    wait_until(lambda: len(lab.in_mongo()) == 10, 60, lambda: consumer.text)
    assert services("kill", "mongodb").returncode == 0
    try:
        lab.produce(50)
        consumer.wait_for("j'attends, rien n'est perdu")
        for broker in ("kafka1", "kafka2", "kafka3"):
            assert services("pause", broker).returncode == 0
        assert services("restart", "mongodb").returncode == 0
        consumer.wait_for("MongoDB répond de nouveau")
        assert consumer.stop(signal.SIGINT, timeout=60) == 0
    finally:
        for broker in ("kafka1", "kafka2", "kafka3"):
            services("resume", broker)
        assert services("up").returncode == 0
    lab.run("consumer", "--idle-timeout", "3")
    assert lab.in_mongo() == ids(expected(50))


def test_confirmed_means_two_brokers(lab: Lab) -> None:
    """Le topic que crée producer.py exige deux copies écrites, sur ce cluster ou un autre."""
    lab.produce(1)
    resource = ConfigResource(ConfigResource.Type.TOPIC, lab.topic)
    found = admin().describe_configs([resource])[resource].result()
    assert found["min.insync.replicas"].value == "2"
    assert found["min.insync.replicas"].source == 1  # posée sur le topic, et non prise au cluster


def test_corrections_go_to_the_end(lab: Lab) -> None:
    """--corrections : chaque version est un document de plus, la plus grande reste, et tout est égal au centime."""
    lab.produce(500)
    lab.consume(500)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    assert lab.reconcile(500)
    before = {document["_id"]: document for document in lab.mongo.ventes.find()}
    lab.run("producer", "--count", "500", "--seed", "1", "--rate", "0", "--corrections", "10")
    lab.run("consumer", "--idle-timeout", "3")
    after = {document["_id"]: document for document in lab.mongo.ventes.find()}
    assert before.items() <= after.items(), "rien n'est récrit"
    corrections = len(after) - len(before)
    assert corrections > 20
    lab.run("schedule_export", "--once", "--full")
    lab.run("pg")
    assert lab.in_postgres()[0] == 500
    ((cancelled,),) = lab.sql("SELECT count(*) FROM ventes WHERE annulee")
    assert 0 < cancelled < corrections
    said = lab.reconcile(500 - cancelled)
    assert "Tout est égal" in said
    assert "corrigées ou annulées" in said
    assert "0 nouvelles, 0 modifiées, 0 rejetées" in lab.run("pg", str(lab.exports / "ventes_data.csv"))
