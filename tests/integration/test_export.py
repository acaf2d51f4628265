"""L'export de MongoDB : rien de perdu, rien deux fois, quoi que l'on fasse à la base et au dossier."""

import gzip
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from commun.settings import mongo_uri, setting
from exercice3.arrivages import write
from exercice3.collection import open_client, open_database, prepare
from exercice3.ventes import Vente
from tests.former import FormerLab
from tests.killer import AFTER, Killer
from tests.lab import Lab, expected, ids
from tests.wire import MongoWire

import pytest
from bson.decimal128 import Decimal128


def store(ventes: list[Vente]) -> None:
    """Met des ventes dans MongoDB, comme le fait consumer.py."""
    with open_client() as client:
        database = open_database(client)
        prepare(database)
        assert write(database, ventes, datetime.now(UTC)).written == len(ventes)


def files(lab: Lab) -> dict[str, bytes]:
    """Ce que contient le dossier d'export."""
    return {path.name: path.read_bytes() for path in lab.exports.iterdir()}


@pytest.fixture
def former_lab(stack: None, tmp_path: Path) -> Iterator[FormerLab]:
    """Un exercice 3 de la version d'avant."""
    lab = FormerLab(tmp_path)
    yield lab
    lab.close()


def test_reads_are_safe_whatever_the_uri_says(lab: Lab) -> None:
    """MONGO_URI préfère un secondaire et des lectures locales : sur le fil, l'export n'en fait rien."""
    store(expected(30))
    port = setting("PORT_MONGO")
    with MongoWire(int(port)) as wire:
        uri = mongo_uri().replace(f":{port}/", f":{wire.port}/")
        uri += "&readPreference=secondaryPreferred&readConcernLevel=local"
        lab.run("schedule_export", "--once", env={"MONGO_URI": uri})
    reads = [command for command in wire.commands if {"find", "aggregate", "count"} & command.keys()]
    assert reads
    assert {str(command.get("readConcern")) for command in reads} == {"{'level': 'majority'}"}
    assert not [command for command in reads if "secondary" in str(command.get("$readPreference"))]


def test_a_hidden_sale_is_waited_for(lab: Lab) -> None:
    """Une vente que MongoDB ne montre pas : son lot n'est pas écrit, les autres le sont ; revenue, il l'est, entier."""
    ventes = expected(30)
    store(ventes[:20])
    hidden = lab.mongo.ventes.find_one_and_delete({"_id": ventes[7].id}) or {}
    store(ventes[20:])
    said = lab.run("schedule_export", "--once", "--lot-size", "20")
    assert "Lot 1 : MongoDB a 19 de ses 20 ventes" in said
    assert lab.in_files() == ids(ventes[20:])
    lab.mongo.ventes.insert_one(hidden)
    assert "20 ventes exportées" in lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(ventes)


def test_a_stricter_validator_blocks_nothing(lab: Lab) -> None:
    """Un champ devient obligatoire : les ventes déjà écrites s'exportent, celles d'un essai mort comprises."""
    ventes = expected(30)
    store(ventes)
    lab.mongo.arrivages.update_many({}, {"$set": {"etat": "abandonné"}, "$unset": {"lot": ""}})
    strict = {"$jsonSchema": {"bsonType": "object", "required": ["magasin"]}}
    lab.mongo.command("collMod", "ventes", validator=strict, validationLevel="strict")
    assert "30 ventes exportées" in lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(ventes)


def test_orphans_are_taken_in(lab: Lab) -> None:
    """Un essai resté ouvert, dont plus personne ne relira les messages : ses ventes sont reprises, une fois."""
    store(expected(20))
    before = datetime.now(UTC) - timedelta(minutes=1)
    change = {"$set": {"etat": "ouvert", "ouvert": before}, "$unset": {"lot": "", "ventes": ""}}
    lab.mongo.arrivages.update_many({}, change)
    lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(expected(20))
    assert "Rien de nouveau" in lab.run("schedule_export", "--once")


def test_foreign_documents_are_told_and_left(lab: Lab) -> None:
    """Documents d'un autre programme : une vraie vente s'exporte ; demi-centime, millisecondes, flottant sont dits."""
    store(expected(3))
    good = lab.mongo.ventes.find_one({}, {"arrivage": 0}) or {}
    lab.mongo.command("collMod", "ventes", validator={})
    bad: dict[str, dict[str, object]] = {
        "demi": {"montant": Decimal128("10.555")},
        "milli": {"date_vente": datetime(2025, 1, 1, 10, 0, 0, 123_000)},
        "flottant": {"montant": 12.5},
        "nan": {"montant": Decimal128("NaN")},
    }
    lab.mongo.ventes.insert_many([good | {"_id": "bon"}, *(good | {"_id": id} | change for id, change in bad.items())])
    for options in (["--once"], ["--once", "--full"]):
        said = lab.run("schedule_export", *options)
        assert "4 documents de MongoDB ne s'exportent pas" in said
        assert lab.in_files() == ids(expected(3)) + Counter(["bon"])
    full = (lab.exports / "ventes_data.csv").read_text(encoding="utf-8")
    assert len(full.splitlines()) == 5
    assert not list(lab.exports.glob(".*"))


def test_a_pass_ends_while_sales_arrive(lab: Lab) -> None:
    """Vingt ventes toutes les dix millisecondes : le passage écrit ce qui était là, et finit."""
    ventes, over = expected(20_000), threading.Event()
    store(ventes[:20])

    def arrive() -> None:
        with open_client() as client:
            for start in count(20, 20):
                if over.wait(0.01) or start >= len(ventes):
                    break
                write(open_database(client), ventes[start : start + 20], datetime.now(UTC))

    thread = threading.Thread(target=arrive)
    thread.start()
    try:
        said = lab.run("schedule_export", "--once", timeout=60)
    finally:
        over.set()
        thread.join()
    assert said.count("ventes exportées") == 1
    lab.run("schedule_export", "--once")
    assert lab.in_files() == lab.in_mongo()


def test_a_lost_lot_is_made_again(lab: Lab) -> None:
    """--lot refait le fichier et le manifeste perdus, octet pour octet ; un lot changé ou absent est refusé."""
    store(expected(30))
    lab.run("schedule_export", "--once")
    before = files(lab)
    for path in lab.exports.iterdir():
        path.unlink()
    assert "refait octet pour octet" in lab.run("schedule_export", "--lot", "1")
    assert files(lab) == before
    assert "Le lot 2 n'existe pas" in lab.run("schedule_export", "--lot", "2", code=1)
    lab.mongo.ventes.update_one({"_id": expected(1)[0].id}, {"$set": {"produit": "Autre"}})
    assert "ses ventes ont changé" in lab.run("schedule_export", "--lot", "1", code=1)
    assert files(lab) == before


def test_lost_lots_are_made_again(lab: Lab) -> None:
    """--since refait tous les lots depuis une date ; un lot changé ou effacé est dit, et n'arrête pas les autres."""
    for start in range(0, 30, 10):
        store(expected(30)[start : start + 10])
        lab.run("schedule_export", "--once")
    before = files(lab)
    lab.mongo.lots_export.update_one({"_id": 1}, {"$set": {"ouvert": datetime.now(UTC) - timedelta(days=2)}})
    first = {name for name in before if name.startswith("ventes_000001")}
    for path in lab.exports.iterdir():
        path.unlink()
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    lab.run("schedule_export", "--since", yesterday)
    assert files(lab) == {name: content for name, content in before.items() if name not in first}
    lab.mongo.ventes.delete_one({"_id": expected(11)[10].id})
    assert "1 lots sur 3 n'ont pas pu être refaits" in lab.run("schedule_export", "--since", "2026-01-01", code=1)
    assert files(lab) == before
    assert "rien à refaire" in lab.run("schedule_export", "--since", "2999-01-01", code=1)
    assert "n'est pas une date" in lab.run("schedule_export", "--since", "hier", code=2)


def test_old_loaded_files_are_compressed_and_forgotten(lab: Lab) -> None:
    """pg.py --keep : ce qui est chargé et vieux se compresse, l'export oublie ces lots ; rien d'autre ne change."""
    ventes = expected(40)
    for start in (0, 10, 20):
        store(ventes[start : start + 10])
        lab.run("schedule_export", "--once")
    before = files(lab)
    first, second, third = sorted(name for name in before if name.endswith(".csv"))
    for name in (first, second):  # le troisième est trop jeune
        os.utime((lab.exports / name).with_suffix(".json"), (0, 0))
    lab.run("pg", str(lab.exports / first))
    assert "1 fichiers chargés" in lab.run("pg", str(lab.exports / first), "--keep", "1d")  # le second n'est pas chargé
    assert (lab.exports / second).exists()
    assert "1 fichiers chargés" in lab.run("pg", "--keep", "1d")
    assert files(lab).keys() == before.keys() - {first, second} | {f"{first}.gz", f"{second}.gz"}
    assert gzip.decompress((lab.exports / f"{second}.gz").read_bytes()) == before[second]

    store(ventes[30:])
    assert "Lot 2 oublié" in lab.run("schedule_export", "--once")
    assert {arrivage["lot"] for arrivage in lab.mongo.arrivages.find()} == {3, 4}
    assert "est oublié" in lab.run("schedule_export", "--lot", "1", code=1)
    lab.run("schedule_export", "--once", "--lot-size", "10")
    lab.run("pg", "--keep", "1d")
    assert lab.in_postgres()[0] == 40
    lab.produce(40)
    lab.consume(40)  # les mêmes messages relus : rien n'est exporté deux fois
    assert "Rien de nouveau" in lab.run("schedule_export", "--once")
    (lab.exports / third).unlink()
    lab.run("schedule_export", "--lot", "3")
    assert files(lab)[third] == before[third]
    assert "Tout est égal" in lab.reconcile(40)
    there = files(lab)
    assert "et eux seuls" in lab.run("rebuild")  # ce qui est compressé est à sa place
    assert files(lab) == there
    assert "pas un âge" in lab.run("pg", "--keep", "30", code=2)


def test_another_folder_is_told(lab: Lab, tmp_path: Path) -> None:
    """Un export qui continue ailleurs que le précédent le dit."""
    store(expected(10))
    lab.run("schedule_export", "--once")
    store(expected(20)[10:])
    said = lab.run("schedule_export", "--once", "--export-dir", str(tmp_path / "ailleurs"))
    assert f"Le lot 1 est dans {lab.mongo.lots_export.find_one({'_id': 1})['dossier']}" in said  # type: ignore[index]
    assert "--lot 1" in said


def test_lot_size_is_bounded(lab: Lab) -> None:
    """Une taille de lot dont le document déborderait est une mauvaise option."""
    assert "100000 au plus" in lab.run("schedule_export", "--once", "--lot-size", "100001", code=2)


def test_a_collection_of_the_former_version_goes_on(former_lab: FormerLab) -> None:
    """Ventes marquées, ventes à marquer, lot ouvert au milieu : chaque vente est dans un fichier et un seul."""
    lab, ventes = former_lab, expected(300)
    lab.produce(100)
    lab.consume(100)
    lab.run("schedule_export", "--once")
    first = files(lab)
    lab.produce(200)  # cent de plus, et les cent premières de nouveau
    lab.consume(200)
    with Killer(lab.folder, "schedule_export", lab.env) as killer:
        life = killer.live("--once", "--lot-size", "60", point=f"{AFTER} mongo.insert_one")
        assert life.killed, life.text
    lab.mongo.ventes.update_one({"_id": ventes[150].id}, {"$set": {"lot_export": 2}})  # une vente déjà marquée
    opened = set((lab.mongo.lots_export.find_one({"_id": 2}) or {})["ventes"])
    lab.mongo.ventes.update_many({"lot_export": 2, "_id": {"$nin": list(opened)}}, {"$set": {"lot_export": 0}})

    lab.upgrade()
    lab.produce(300)
    lab.run("schedule_export", "--once", "--lot-size", "60")  # avant même le consommateur
    lab.consume(300)
    lab.run("schedule_export", "--once")
    assert lab.in_files() == ids(ventes)
    assert first.items() <= files(lab).items()
    for manifest in lab.exports.glob("*.json"):
        facts = json.loads(manifest.read_bytes())
        assert hashlib.sha256((lab.exports / facts["fichier"]).read_bytes()).hexdigest() == facts["sha256"]
    for name in first:
        (lab.exports / name).unlink()
    assert "refait octet pour octet" in lab.run("schedule_export", "--lot", "1")
    assert first.items() <= files(lab).items()
    lab.run("pg")
    assert "Tout est égal" in lab.reconcile(300)
