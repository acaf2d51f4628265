"""Kill -9 à l'étape nommée : entre l'écriture et la validation, et partout ailleurs. Chaque vente reste là une fois."""

import hashlib
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

from commun.kafka import client_config, ensure_topics
from exercice3.arrivages import write
from exercice3.collection import open_client, open_database, prepare
from exercice3.producer import PARTITIONS, REPLAY_END
from exercice3.ventes import Vente, generate, to_json
from tests.killer import AFTER, BEFORE, Killer, Life
from tests.lab import Lab, expected, ids, wait_until

import pytest
from confluent_kafka.cimpl import NewTopic

# Où meurt le consommateur, et la combientième fois qu'il y passe. Un kafka.flush attend les lettres mortes.
CONSUMER_DEATHS = (
    (f"{BEFORE} mongo.insert_many", 1),
    (f"{AFTER} mongo.insert_many", 1),
    (f"{BEFORE} kafka.commit", 1),
    (f"{AFTER} kafka.commit", 1),
    (f"{BEFORE} kafka.produce", 3),
    (f"{BEFORE} kafka.flush", 1),
    (f"{AFTER} kafka.flush", 1),
    (f"{BEFORE} mongo.insert_many", 2),
    (f"{BEFORE} kafka.commit", 1),
    (f"{AFTER} mongo.insert_many", 2),
)
WRITTEN_NOT_COMMITTED = (f"{AFTER} mongo.insert_many", f"{AFTER} kafka.flush", f"{BEFORE} kafka.commit")


@pytest.mark.long
def test_consumer_killed_with_work_in_hand(lab: Lab) -> None:
    """Dix kill -9 du consommateur, chacun un lot en main : rien n'est validé avant d'être écrit, rien ne se perd."""
    ventes, bad = expected(3500), [f"pas une vente {number}".encode() for number in range(100)]
    ensure_topics(client_config({}), NewTopic(lab.topic, PARTITIONS, 3))
    mixed = [[*map(to_json, ventes[start :: len(bad)]), letter] for start, letter in enumerate(bad)]
    lab.send_raw(*chain.from_iterable(mixed))
    # Une session courte : celui qui renaît reprend vite les partitions du mort.
    env = lab.env | {"KAFKA_SESSION_TIMEOUT_MS": "6000", "KAFKA_HEARTBEAT_INTERVAL_MS": "1000"}
    committed = 0
    with Killer(lab.folder, "consumer", env) as killer:
        for point, nth in CONSUMER_DEATHS:
            life = killer.live("--idle-timeout", "60", point=point, nth=nth)
            assert life.killed, life.text
            assert str(life.last) == point
            in_hand = 0  # lu depuis la dernière position validée
            for passed in life.points[:-1]:
                in_hand += passed.size if str(passed) == f"{AFTER} kafka.consume" else 0
                in_hand = 0 if str(passed) == f"{AFTER} kafka.commit" else in_hand
            assert in_hand > 0
            before, committed = committed, lab.committed()
            done = len(lab.in_mongo()) + len({value for value, _ in lab.dead_letters()})
            assert committed <= done, f"{point} : {committed} messages validés, {done} écrits"
            if point in WRITTEN_NOT_COMMITTED:
                assert committed < done, f"{point} : rien n'était écrit et pas encore validé"
            if point == f"{AFTER} kafka.commit":
                assert committed >= before + in_hand
        last = killer.live("--max-messages", str(len(ventes) + len(bad) - committed))
    assert not last.killed
    assert lab.in_mongo() == ids(ventes)
    assert {value for value, _ in lab.dead_letters()} == set(bad)
    assert lab.committed() == len(ventes) + len(bad)


def store(ventes: list[Vente]) -> None:
    """Met des ventes dans MongoDB, comme le fait consumer.py."""
    with open_client() as client:
        database = open_database(client)
        prepare(database)
        outcome = write(database, ventes, datetime.now(UTC))
    assert outcome.written == len(ventes)


def whole_files(lab: Lab) -> Counter[str]:
    """``in_files``, après avoir vérifié que chaque manifeste dit vrai."""
    for path in lab.exports.glob("*.json"):
        manifest = json.loads(path.read_bytes())
        assert hashlib.sha256((lab.exports / manifest["fichier"]).read_bytes()).hexdigest() == manifest["sha256"]
    return lab.in_files()


def points(lives: list[Life], *, killed: bool) -> set[str]:
    """Points où ces vies ont fini (``killed``), ou par où elles sont passées."""
    return {str(point) for life in lives for point in (life.points[-1:] if killed else life.points)}


def test_export_killed_at_every_step(lab: Lab) -> None:
    """L'export est tué avant et après chacune de ses écritures : à tout instant, une vente est dans un fichier au plus.

    Des ventes nouvelles arrivent entre deux vies : le lot interrompu et le suivant se mêlent.
    """
    coming, sent = generate(1, lambda: REPLAY_END, 90), list[Vente]()
    lives: list[Life] = []
    with Killer(lab.folder, "schedule_export", lab.env) as killer:
        while not lives or lives[-1].killed:
            fresh = list(islice(coming, 30))
            store(fresh)
            sent += fresh
            lives.append(killer.live("--once", "--lot-size", "100", at=len(lives) + 1))
            assert max(whole_files(lab).values(), default=1) == 1, f"{lives[-1].last} : une vente dans deux fichiers"
    assert whole_files(lab) == ids(sent)
    passed, deaths = points(lives, killed=False), points(lives[:-1], killed=True)
    assert passed == deaths, "chaque étape a été celle d'un kill -9"
    writes = {f"{moment} fichier.{step}" for moment in (BEFORE, AFTER) for step in ("fsync", "replace")}
    assert writes < passed, "et MongoDB a été écrit aussi"
    assert lab.mongo.arrivages.count_documents({"lot": 0}) == 0


def test_a_lot_is_only_what_it_names(lab: Lab) -> None:
    """Les numéros de lots repartent de 1 : les ventes qui portent déjà ce numéro ne sont pas exportées deux fois."""
    ventes = expected(50)
    store(ventes[:30])
    lab.run("schedule_export", "--once")
    lab.mongo.lots_export.drop()
    store(ventes[30:])
    lab.run("schedule_export", "--once")
    assert whole_files(lab) == ids(ventes)


def test_two_exports_killed_while_consumers_write(lab: Lab) -> None:
    """Deux exports tués au hasard, dix fois chacun, pendant que deux consommateurs écrivent : une vente, un fichier."""
    consumers = [lab.start("consumer") for _ in range(2)]
    producer = lab.start("producer", "--seed", "1", "--rate", "100")
    deadline = time.monotonic() + 200

    def export(seed: int) -> list[str]:
        draw, deaths = random.Random(seed), list[str]()
        with Killer(lab.folder, "schedule_export", lab.env) as killer:
            while len(deaths) < 10 and time.monotonic() < deadline:
                life = killer.live("--once", "--lot-size", "20", at=draw.randrange(1, 40))
                deaths += [str(life.last)] if life.killed else []
        return deaths

    with ThreadPoolExecutor(2) as pool:
        for deaths in list(pool.map(export, (11, 12))):
            assert len(deaths) == 10, producer.text + consumers[0].text
            assert len(set(deaths)) > 3, f"tué en trop peu d'endroits : {deaths}"
    assert producer.stop() == 0
    count = int(producer.text.partition("Terminé : ")[2].split()[0])
    wait_until(lambda: len(lab.in_mongo()) == count, 90, lambda: consumers[0].text)
    for script in consumers:
        assert script.stop() == 0, script.text
    lab.run("schedule_export", "--once")
    assert whole_files(lab) == ids(expected(count))


def write_lot(folder: Path, number: int) -> Path:
    """Un lot de dix ventes et d'une ligne refusée, et son manifeste ; les ventes portent le numéro du lot."""
    lines = [f"{number}-{row},P,R,1.50,2025-01-01 10:00:00\n" for row in range(10)] + ["refusée\n"]
    content = "".join(["id,produit,region,montant,date_vente\n", *lines]).encode()
    path = folder / f"ventes_{number:06d}.csv"
    path.write_bytes(content)
    facts = {"fichier": path.name, "lignes": len(lines), "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def loaded(lab: Lab) -> set[str]:
    """Fichiers inscrits dans PostgreSQL ; leurs dix ventes et leur rejet y sont, et rien de plus."""
    registered = lab.sql("SELECT fichier, nouvelles, rejetees FROM ventes_chargements")
    names = {str(name) for name, *_ in registered}
    assert registered == [(name, 10, 1) for name, *_ in registered]
    per_file = "SELECT format('ventes_%s.csv', lpad(split_part(id, '-', 1), 6, '0')), count(*) FROM ventes GROUP BY 1"
    assert dict(lab.sql(per_file)) == dict.fromkeys(names, 10)
    assert {name for (name,) in lab.sql("SELECT fichier FROM ventes_rejets")} == names
    return names


def test_loader_killed_at_every_step(lab: Lab) -> None:
    """pg.py est tué avant et après chacune de ses requêtes : un fichier est chargé et inscrit, ou rien n'est changé."""
    lab.exports.mkdir()
    lab.run("pg")  # les tables d'abord : le reste de leur pose est sans effet
    lives: list[Life] = []
    files: list[Path] = []
    unseen = 0
    with Killer(lab.folder, "pg", lab.env) as killer:
        while not lives or lives[-1].killed:
            before = loaded(lab)
            if len(before) == len(files):
                files.append(write_lot(lab.exports, len(files)))
            life = killer.live(at=len(lives) + 1)
            lives.append(life)
            steps = [str(point) for point in life.points]
            if life.killed and f"{AFTER} postgres.copy" in steps:
                # Tout est écrit ou presque : avant la validation, personne ne le voit ; après, tout le monde.
                committed = f"{AFTER} postgres.commit" in steps[steps.index(f"{AFTER} postgres.copy") :]
                assert (files[-1].name in loaded(lab)) == committed
                unseen += str(life.last) == f"{BEFORE} postgres.commit"
    assert loaded(lab) == {path.name for path in files}
    assert unseen, "aucun kill -9 entre l'écriture et sa validation"
    passed, deaths = points(lives, killed=False), points(lives[:-1], killed=True)
    assert passed == deaths, "chaque étape a été celle d'un kill -9"
    assert {f"{BEFORE} postgres.copy", f"{AFTER} postgres.copy"} < passed
