"""L'exercice 3 de bout en bout, sur de vrais serveurs."""

import hashlib
import json
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

from commun.settings import ROOT, bootstrap_servers, mongo_uri, postgres_dsn, setting
from tests.lab import Lab, as_json, expected, ids, wait_until
from tests.wire import MongoWire

import psycopg2
import pytest
from bson.decimal128 import Decimal128
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pymongo.errors import WriteError

SCRIPTS = ("producer", "consumer", "schedule_export", "pg", "reconcile", "demo")


def test_every_sale_arrives_once(lab: Lab) -> None:
    """Les quatre scripts à la suite : chaque vente est une fois à chaque étape, au centime."""
    ventes = expected(2000)
    assert "2000 confirmées" in lab.produce(2000)
    assert "2000 ventes écrites" in lab.consume(2000)
    lab.run("schedule_export", "--once")
    lab.run("pg")

    assert lab.in_mongo() == lab.in_files() == ids(ventes)
    assert lab.in_postgres() == (2000, sum(v.montant for v in ventes))
    stored = lab.sql("SELECT id, produit, region, montant, date_vente FROM ventes ORDER BY id")
    assert stored == [v[:5] for v in ventes]
    assert "Tout est égal" in lab.reconcile(2000)


def test_mongo_documents_are_exact(lab: Lab) -> None:
    """Montant décimal exact, vraie date, moment du traitement."""
    lab.produce(10)
    lab.consume(10)
    vente = expected(1)[0]
    document = lab.mongo.ventes.find_one({"_id": vente.id})
    assert document is not None
    assert document["montant"] == Decimal128(vente.montant)
    assert document["date_vente"] == vente.date_vente
    assert document["timestamp_traitement"] is not None


def test_redelivery_changes_nothing(lab: Lab) -> None:
    """Un topic relu en entier, puis la même suite envoyée deux fois : aucun doublon, aucune lettre morte."""
    lab.produce(500)
    lab.consume(500)
    before = list(lab.mongo.ventes.find().sort("_id", 1))
    lab.produce(500)
    output = lab.consume(1000, "--from-beginning")
    assert "1000 messages lus, 0 ventes écrites, 1000 déjà là, 0 lettres mortes" in output
    assert list(lab.mongo.ventes.find().sort("_id", 1)) == before


def test_offsets_survive_restart(lab: Lab) -> None:
    """Un consommateur arrêté au milieu reprend là où il en était, sans relire."""
    lab.produce(300)
    assert "100 messages lus" in lab.consume(100)
    assert "200 messages lus, 200 ventes écrites" in lab.consume(200)
    assert "0 messages lus" in lab.run("consumer", "--idle-timeout", "3")


def test_invalid_messages_become_dead_letters(lab: Lab) -> None:
    """Ce qui n'est pas une vente va dans la file des lettres mortes, octets et origine gardés ; la suite passe."""
    lab.produce(20)
    vente = expected(21)[20]
    bad = [
        b"pas du json", b"", b"\xff\xfe", b"[1, 2]", b'"texte"', b"[" * 100_000,
        as_json(vente, montant=-3), as_json(vente, montant="12"), as_json(vente, montant=12.345),
        as_json(vente, montant=True), as_json(vente, montant=float("nan")), as_json(vente, montant=10**40),
        as_json(vente, date_vente="hier"), as_json(vente, date_vente="2999-01-01 00:00:00"),
        as_json(vente, produit=None), as_json(vente, produit="a\u0000b"), as_json(vente, region="\ud800"),
        as_json(vente, id=""), as_json(vente, id=12),
    ]  # fmt: skip
    lab.send_raw(*bad, as_json(vente))
    output = lab.consume(40)

    assert f"40 messages lus, 21 ventes écrites, 0 déjà là, {len(bad)} lettres mortes" in output
    letters = lab.dead_letters()
    assert sorted(value or b"" for value, _ in letters) == sorted(bad)
    for _, headers in letters:
        assert headers["dlq.topic"] == lab.topic
        assert headers["dlq.reason"]
        assert headers["dlq.partition"].isdigit()
        assert headers["dlq.offset"].isdigit()
        assert headers["dlq.time"].endswith("Z")
    assert lab.in_mongo() == ids(expected(21))


def test_a_huge_invalid_message_is_kept_whole(lab: Lab) -> None:
    """Un message invalide à la limite de taille de Kafka : ses en-têtes de lettre morte ne le font pas déborder."""
    lab.produce(3)
    huge = b"x" * 999_900
    lab.send_raw(huge)
    assert "1 lettres mortes" in lab.consume(4)
    assert [value for value, _ in lab.dead_letters()] == [huge]


def test_a_refused_dead_letter_stops_the_reader(lab: Lab) -> None:
    """Kafka refuse la lettre morte (file trop étroite) : le script le dit, sort avec 1, et le message sera relu."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers()})
    narrow = NewTopic(f"{lab.topic}-dlq", 1, 3, config={"max.message.bytes": "1000"})
    admin.create_topics([narrow])[narrow.topic].result()
    lab.produce(3)
    lab.send_raw(b"x" * 5000)
    for _ in range(2):
        assert f"Kafka refuse d'écrire dans {lab.topic}-dlq" in lab.run("consumer", "--max-messages", "4", code=1)


def test_same_id_other_content_is_a_dead_letter(lab: Lab) -> None:
    """Deux ventes différentes sous un même identifiant : la première reste, la seconde n'est pas perdue."""
    lab.produce(5)
    lab.consume(5)
    vente = expected(1)[0]
    other = as_json(vente, montant=99.99)
    lab.send_raw(other, as_json(vente), other, as_json(vente))
    assert "2 déjà là, 2 lettres mortes" in lab.consume(4)
    assert lab.mongo.ventes.find_one({"_id": vente.id})["montant"] == Decimal128(vente.montant)  # type: ignore[index]
    assert "déjà une autre vente" in lab.dead_letters()[0][1]["dlq.reason"]


def test_mongodb_refuses_a_float_amount(lab: Lab) -> None:
    """Le validateur de la collection protège aussi des autres programmes."""
    lab.produce(1)
    lab.consume(1)
    document = lab.mongo.ventes.find_one({})
    assert document is not None
    with pytest.raises(WriteError, match="validation"):
        lab.mongo.ventes.insert_one(document | {"_id": "x", "montant": 12.5})


def test_every_write_asks_for_the_journal(lab: Lab) -> None:
    """Sur le fil, chaque écriture de consumer.py et de schedule_export.py exige la majorité et le journal.

    MONGO_URI demande moins, et n'est pas suivie : une vente confirmée est sur le disque.
    """
    lab.produce(30)
    port = setting("PORT_MONGO")
    writes: dict[str, list[object]] = {}
    for script, options in (("consumer", ["--max-messages", "30"]), ("schedule_export", ["--once"])):
        with MongoWire(int(port)) as wire:
            uri = mongo_uri().replace(f":{port}/", f":{wire.port}/") + "&w=1&journal=false"
            lab.run(script, *options, env={"MONGO_URI": uri})
        found = [c for c in wire.commands if {"insert", "update", "delete", "findAndModify", "bulkWrite"} & c.keys()]
        writes[script] = [command.get("writeConcern") for command in found]
    assert lab.in_mongo() == ids(expected(30))
    for script, concerns in writes.items():
        assert concerns, f"{script} n'a rien écrit"
        assert concerns == [{"w": "majority", "j": True}] * len(concerns), f"{script} : {concerns}"


@pytest.mark.parametrize(
    "query",
    [
        {"arrivage": "x"},
        {"arrivage": None, "lot_export": 0},
        {"date_vente": expected(1)[0].date_vente},
        {"region": "Suisse"},
    ],
)
def test_queries_use_an_index(lab: Lab, query: dict[str, object]) -> None:
    """L'export et les filtres ne parcourent pas toute la collection."""
    lab.produce(50)
    lab.consume(50)
    assert "IXSCAN" in str(lab.mongo.ventes.find(query).explain())


def test_two_consumers_share_and_never_double(lab: Lab) -> None:
    """Deux consommateurs du même groupe, dont l'un arrive en route et l'autre part : chaque vente une fois."""
    producer = lab.start("producer", "--seed", "1", "--rate", "400")
    first = lab.start("consumer")
    wait_until(lambda: len(lab.in_mongo()) > 300, 60, lambda: first.text)
    second = lab.start("consumer")
    second.wait_for("messages lus")
    assert first.stop() == 0
    assert producer.stop() == 0
    sent = len(lab.messages(lab.topic))
    wait_until(lambda: len(lab.in_mongo()) == sent, 60, lambda: second.text)
    assert second.stop() == 0
    assert lab.in_mongo() == ids(expected(sent))
    for script in (first, second):
        assert "0 lettres mortes" in script.text.splitlines()[-1]
        assert " 0 ventes écrites" not in script.text.splitlines()[-1]


def test_export_takes_only_what_is_new(lab: Lab) -> None:
    """Chaque passage n'exporte que les ventes nouvelles, par lots bornés ; rien de nouveau, aucun fichier."""
    lab.produce(250)
    for size in (100, 100, 50):
        lab.consume(size)
    lab.run("schedule_export", "--once", "--lot-size", "100")
    manifests = [json.loads(path.read_text()) for path in sorted(lab.exports.glob("*.json"))]
    assert sum(manifest["lignes"] for manifest in manifests) == 250
    assert max(manifest["lignes"] for manifest in manifests) <= 100
    for manifest in manifests:
        content = (lab.exports / manifest["fichier"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == manifest["sha256"]
        assert content.decode("utf-8").splitlines()[0] == "id,produit,region,montant,date_vente"
    assert "Rien de nouveau" in lab.run("schedule_export", "--once")

    lab.produce(251)
    lab.consume(251)
    lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(expected(251))
    assert not list(lab.exports.glob(".*")), "aucun brouillon ne reste"


def test_full_export_has_everything(lab: Lab) -> None:
    """--full écrit tout l'historique en plus ; PostgreSQL le charge sans rien changer."""
    lab.produce(120)
    lab.consume(120)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    lab.run("schedule_export", "--once", "--full")
    output = lab.run("pg", str(lab.exports / "ventes_data.csv"))
    assert "120 lignes, 0 nouvelles, 0 modifiées, 0 rejetées" in output
    assert lab.in_files() == ids(expected(120)), "ventes_data.csv n'est pas un lot"


def test_a_recreated_topic_skips_nothing(lab: Lab) -> None:
    """Un topic supprimé puis recréé repart de l'offset 0 : les nouvelles ventes sont exportées quand même."""
    lab.produce(30)
    lab.consume(30)
    lab.run("schedule_export", "--once")
    lab.topic += "-bis"
    lab.env |= {"VENTES_TOPIC": lab.topic, "VENTES_GROUP": lab.topic}
    lab.produce(30, seed=2)
    lab.consume(30)
    lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(expected(30)) + ids(expected(30, seed=2))


def test_export_runs_on_schedule_until_stopped(lab: Lab) -> None:
    """schedule_export.py exporte à intervalle régulier et s'arrête proprement."""
    lab.produce(10)
    lab.consume(10)
    script = lab.start("schedule_export", "--every", "1")
    script.wait_for("10 ventes exportées")
    lab.produce(20)
    lab.consume(20)
    wait_until(lambda: lab.in_files().total() == 20, 60, lambda: script.text)
    assert script.stop(signal.SIGINT) == 0


def write_lot(
    folder: Path, name: str, lines: list[bytes], manifest: dict[str, object] | None = None,
    header: bytes = b"id,produit,region,montant,date_vente\n",
) -> Path:  # fmt: skip
    """Écrit un fichier de lot et son manifeste."""
    folder.mkdir(parents=True, exist_ok=True)
    content = b"".join([header, *lines])
    (folder / f"{name}.csv").write_bytes(content)
    facts = {"fichier": f"{name}.csv", "lignes": len(lines), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(facts | (manifest or {})))
    return folder / f"{name}.csv"


def test_refused_rows_are_kept_with_their_reason(lab: Lab) -> None:
    """Une ligne que PostgreSQL refuserait va dans ventes_rejets ; les autres sont chargées."""
    good, when = b"2025-01-01 10:00:00", b",P,R,10.50,2025-01-01 10:00:00\n"
    lines = {
        b"ok1" + when: None,
        b"a2,P,R,abc," + good + b"\n": "montant",
        b"a3,P,R,10.555," + good + b"\n": "montant",
        b"a4,P,R,NaN," + good + b"\n": "montant",
        b"a5,P,R,99999999999," + good + b"\n": "montant",
        b"a6,P,R,0," + good + b"\n": "montant nul",
        b"a7,P,R,10,now\n": "date_vente",
        b"a8,P,R,10,2025-02-30 10:00:00\n": "date_vente",
        b"a9,P,R\n": "3 champs",
        b"b1,P,R,1,x,y\n": "6 champs",
        b"b2,P\xe9,R,1," + good + b"\n": "UTF-8",
        b"b3,P\0,R,1," + good + b"\n": "octet nul",
        b"b4,,R,1," + good + b"\n": "vide",
        b"ok1,P,R,11," + good + b"\n": "id déjà vu",
        'ok2,"Télé, ""4K""",R,3.10,'.encode() + good + b"\n": None,
    }
    write_lot(lab.exports, "ventes_000001_x", list(lines))
    lab.run("pg")

    rejected: dict[int, str] = dict(lab.sql("SELECT ligne, raison FROM ventes_rejets"))
    wanted = {number: reason for number, reason in enumerate(lines.values(), start=2) if reason}
    assert rejected.keys() == wanted.keys()
    for number, reason in wanted.items():
        assert reason in rejected[number], (number, rejected[number])
    assert lab.sql("SELECT id, produit, montant FROM ventes ORDER BY id") == [
        ("ok1", "P", Decimal("10.50")),
        ("ok2", 'Télé, "4K"', Decimal("3.10")),
    ]
    assert lab.sql("SELECT lignes, nouvelles, rejetees FROM ventes_chargements") == [(15, 2, 13)]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"lignes": 3}, "annoncées"),
        ({"sha256": "0" * 64}, "contenu différent"),
        ({"fichier": None, "lignes": "?"}, "manifeste"),
    ],
)
def test_a_half_written_file_changes_nothing(lab: Lab, manifest: dict[str, object], reason: str) -> None:
    """Un fichier qui n'est pas celui de son manifeste n'est pas chargé ; complété, il l'est."""
    line = b"v1,P,R,10.50,2025-01-01 10:00:00\n"
    write_lot(lab.exports, "ventes_000001_x", [line], manifest)
    assert reason in lab.run("pg", code=1)
    assert lab.in_postgres() == (0, Decimal(0))
    assert lab.sql("SELECT * FROM ventes_chargements") == []
    write_lot(lab.exports, "ventes_000001_x", [line])
    lab.run("pg")
    assert lab.in_postgres() == (1, Decimal("10.50"))


def test_a_file_without_manifest_waits(lab: Lab) -> None:
    """Sans manifeste, un fichier n'est pas terminé : ignoré dans le dossier, refusé s'il est nommé."""
    path = write_lot(lab.exports, "ventes_000001_x", [b"v1,P,R,10.50,2025-01-01 10:00:00\n"])
    path.with_suffix(".json").unlink()
    lab.run("pg")
    assert "pas de manifeste" in lab.run("pg", str(path), code=1)
    assert lab.in_postgres() == (0, Decimal(0))


def test_loading_twice_and_together_changes_nothing(lab: Lab) -> None:
    """Quatre chargements en même temps, puis un cinquième : chaque vente une fois, chaque fichier inscrit une fois."""
    lab.produce(3000)
    lab.consume(3000)
    lab.run("schedule_export", "--once", "--lot-size", "1000")
    together = [lab.start("pg") for _ in range(4)]
    for script in together:
        assert script.process.wait(60) == 0, script.text
    lab.run("pg")
    assert lab.in_postgres() == (3000, sum(v.montant for v in expected(3000)))
    lots = len(list(lab.exports.glob("*.csv")))
    assert lots > 1
    assert lab.sql("SELECT count(*), sum(nouvelles) FROM ventes_chargements") == [(lots, 3000)]


def test_a_corrected_sale_is_updated(lab: Lab) -> None:
    """Un fichier plus récent corrige une vente ; une vente identique n'est pas récrite."""
    write_lot(
        lab.exports, "ventes_000001_x", [b"v1,P,R,10.50,2025-01-01 10:00:00\n", b"v2,P,R,1,2025-01-01 10:00:00\n"]
    )
    lab.run("pg")
    write_lot(
        lab.exports, "ventes_000002_x", [b"v1,P,R,11.00,2025-01-01 10:00:00\n", b"v2,P,R,1,2025-01-01 10:00:00\n"]
    )
    assert "2 lignes, 0 nouvelles, 1 modifiées" in lab.run("pg")


def test_views_grants_and_connections_survive_loads(lab: Lab) -> None:
    """La table n'est jamais remplacée : une vue et une connexion ouverte de Tableau voient la suite."""
    lab.run("pg")
    lab.sql("CREATE VIEW ma_vue AS SELECT region, sum(montant) FROM ventes GROUP BY region")
    tableau = psycopg2.connect(**postgres_dsn(reader=True))
    try:
        with tableau.cursor() as cursor:
            cursor.execute("SELECT 'ventes'::regclass::oid, count(*) FROM ventes")
            before = cursor.fetchone()
            tableau.commit()
            lab.produce(40)
            lab.consume(40)
            lab.run("schedule_export", "--once")
            lab.run("pg")
            cursor.execute("SELECT 'ventes'::regclass::oid, count(*) FROM ventes")
            after = cursor.fetchone()
    finally:
        tableau.close()
    assert before is not None
    assert after == (before[0], 40)
    assert lab.sql("SELECT count(*) > 0 FROM ma_vue") == [(True,)]


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO ventes SELECT 'x', 'p', 'r', 1, now()", "DELETE FROM ventes", "CREATE TEMPORARY TABLE t (x int)",
     "CREATE TABLE t (x int)", "SELECT * FROM ventes_rejets"],
)  # fmt: skip
def test_tableau_can_only_read(lab: Lab, statement: str) -> None:
    """Le rôle tableau lit ventes et ne peut rien d'autre, même hors de sa transaction en lecture seule."""
    lab.run("pg")
    assert lab.sql("SELECT count(*) FROM ventes", reader=True) == [(0,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        lab.sql(f"SET TRANSACTION READ WRITE; {statement}", reader=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_french_and_complete(script: str) -> None:
    """--help dit comment lancer le script, en français, sans serveur."""
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"], cwd=ROOT / "exercice3", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage : ")
    assert f"python {script}.py" in done.stdout
    for english in ("usage:", "options:", "show this help", "positional"):
        assert english not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_option_exits_with_2(script: str) -> None:
    """Une mauvaise option : une phrase en français, code 2."""
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--nimporte"],
        cwd=ROOT / "exercice3",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "option ou argument inconnu : --nimporte" in done.stderr


@pytest.mark.parametrize(
    ("script", "options", "env", "sentence"),
    [
        ("producer", [], {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "Kafka ne répond pas sur localhost:1"),
        ("consumer", [], {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "Kafka ne répond pas sur localhost:1"),
        ("consumer", [], {"MONGO_URI": "mongodb://localhost:1"}, "MongoDB ne répond pas"),
        ("consumer", [], {"MONGO_PASSWORD": "faux"}, "MongoDB refuse"),
        ("schedule_export", ["--once"], {"MONGO_URI": "mongodb://localhost:1"}, "MongoDB ne répond pas"),
        ("pg", [], {"PGPORT": "1"}, "PostgreSQL ne répond pas"),
        ("pg", [], {"PGPASSWORD": "faux"}, "refuse la connexion"),
        ("reconcile", [], {"PGPORT": "1"}, "PostgreSQL ne répond pas"),
        ("demo", [], {"PGPORT": "1"}, "l'environnement mène ailleurs (PGPORT)"),
        ("demo", ["--any-server"], {"PGPORT": "1"}, "PostgreSQL ne répond pas"),
    ],
)  # fmt: skip
def test_a_missing_server_is_one_sentence(
    lab: Lab, script: str, options: list[str], env: dict[str, str], sentence: str
) -> None:
    """Serveur absent ou compte refusé : une phrase, code 1, aucune trace."""
    assert sentence in lab.run(script, *options, code=1, env=env)


@pytest.mark.parametrize("script", ["producer", "consumer", "schedule_export", "pg"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_is_clean(lab: Lab, script: str, number: int) -> None:
    """Ctrl-C et SIGTERM finissent ce qui est en vol et sortent avec le code 0."""
    running = lab.start(script, *(["--watch"] if script == "pg" else []))
    if script == "pg":
        wait_until(lambda: lab.sql("SELECT to_regclass('ventes_chargements') IS NOT NULL") == [(True,)])
    else:
        running.wait_for({"producer": "Envoi", "consumer": "Lecture", "schedule_export": "Rien de nouveau"}[script])
    assert running.stop(number) == 0, running.text
    if script == "producer":
        summary = running.text.splitlines()[-1]
        sent, confirmed = summary.split("Terminé : ")[1].split(" envoyées, ")
        assert confirmed.startswith(f"{sent} confirmées")


def test_a_guarantee_cannot_be_overridden(lab: Lab) -> None:
    """Une variable KAFKA_… règle tout, sauf ce sur quoi la garantie repose."""
    assert "KAFKA_ACKS changerait « acks »" in lab.run("producer", code=1, env={"KAFKA_ACKS": "0"})
    assert "nimporte.quoi" in lab.run("producer", code=1, env={"KAFKA_NIMPORTE_QUOI": "1"})
    lab.produce(1, env={"KAFKA_LINGER_MS": "1", "KAFKA_HEAP_OPTS": "-Xmx1g"})
