"""« Reconstruire », dans la fiche de l'exercice 3 : chaque perte, ses commandes, et tout est égal ensuite."""

import re
import shlex
import shutil
from collections.abc import Callable
from typing import Any

from commun.settings import ROOT
from exercice3.lots import number_of
from tests.lab import Lab

import pytest

SHEET = (ROOT / "exercice3" / "README.md").read_text(encoding="utf-8")
COLLECTIONS = ("ventes", "arrivages", "lots_export")
YESTERDAY, TODAY = 30, 70


def commands(case: str) -> list[list[str]]:
    """Les commandes de la fiche pour ce cas."""
    (block,) = re.findall(rf"^#### {case}\n.*?^```bash\ncd exercice3\n(.*?)^```", SHEET, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


Dump = dict[str, list[dict[str, Any]]]


class Shop:
    """Un pipeline d'hier et d'aujourd'hui, et de quoi le perdre."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run(YESTERDAY)
        self.mongo: Dump = {name: list(lab.mongo[name].find()) for name in COLLECTIONS}
        self.loaded = [name for (name,) in lab.sql("SELECT fichier FROM ventes_chargements")]
        self.run(TODAY)

    def run(self, count: int) -> None:
        """Tout jusqu'à PostgreSQL, en plusieurs lots."""
        self.lab.produce(count)
        self.lab.run("consumer", "--idle-timeout", "3")
        self.lab.run("schedule_export", "--once")
        self.lab.run("pg")

    def lose_mongodb(self, kept: Dump | None = None) -> None:
        """MongoDB est vide, ou comme hier."""
        for name in COLLECTIONS:
            self.lab.mongo[name].delete_many({})
            if kept and kept[name]:
                self.lab.mongo[name].insert_many(kept[name])

    def restore_mongodb(self) -> None:
        """MongoDB est comme hier."""
        self.lose_mongodb(self.mongo)

    def lose_files(self) -> None:
        """Le dossier a disparu."""
        shutil.rmtree(self.lab.exports)

    def restore_files(self) -> None:
        """Le dossier est comme hier."""
        for path in self.lab.exports.glob("ventes_*"):
            if number_of(path) > 1:
                path.unlink()

    def lose_postgres(self) -> None:
        """Les tables ont disparu."""
        self.lab.sql("DROP TABLE ventes, ventes_chargements, ventes_rejets, ventes_suivi, ventes_par_jour, "
                     "ventes_par_heure, schema_version CASCADE; DROP FUNCTION IF EXISTS ventes_compter, "
                     "ventes_oublier CASCADE")  # fmt: skip

    def restore_postgres(self) -> None:
        """La base est comme hier."""
        self.lab.sql("DELETE FROM ventes WHERE charge_le IN (SELECT charge_le FROM ventes_chargements WHERE NOT "
                     "fichier = ANY(%s))", self.loaded)  # fmt: skip
        self.lab.sql("DELETE FROM ventes_chargements WHERE NOT fichier = ANY(%s)", self.loaded)
        self.lab.sql("UPDATE ventes_suivi SET lot = %s, vu_jusque = 0", len(self.loaded))


CASES: dict[str, Callable[[Shop], None]] = {
    "MongoDB est perdu": Shop.lose_mongodb,
    "MongoDB est revenu à hier": Shop.restore_mongodb,
    "Les fichiers exportés sont perdus": Shop.lose_files,
    "Les fichiers exportés sont revenus à hier": Shop.restore_files,
    "PostgreSQL est perdu": Shop.lose_postgres,
    "PostgreSQL est revenu à hier": Shop.restore_postgres,
}


@pytest.mark.timeout(600)
def test_every_loss_is_rebuilt(lab: Lab) -> None:
    """L'une après l'autre, sur le même pipeline : la perte se voit, les commandes de la fiche rendent tout égal."""
    shop = Shop(lab)
    assert "Tout est égal" in lab.reconcile(TODAY)
    for case, lose in CASES.items():
        before = {path.name: path.read_bytes() for path in lab.exports.glob("ventes_*")}
        lose(shop)
        assert "Tout est égal" not in lab.run("reconcile", "--full", "--wait", "0.1", code=1), case
        for name, *options in commands(case):
            lab.run(name.removesuffix(".py"), *options)
        assert "Tout est égal" in lab.reconcile(TODAY), case
        if "fichiers" in case:  # octet pour octet
            assert {path.name: path.read_bytes() for path in lab.exports.glob("ventes_*")} == before


def test_a_lot_without_its_sales_is_said(lab: Lab) -> None:
    """Fichier perdu, ventes perdues : le lot est nommé, les autres sont refaits, code 1 ; --dry-run ne fait rien."""
    lab.produce(20)
    lab.consume(10)
    lab.run("schedule_export", "--once")
    lab.consume(10)
    lab.run("schedule_export", "--once")
    shutil.rmtree(lab.exports)
    lab.mongo.ventes.delete_one({"arrivage": (lab.mongo.arrivages.find_one({"lot": 1}) or {})["_id"]})
    assert "Lot 2 : à refaire" in lab.run("rebuild", "--dry-run")
    assert not lab.exports.exists()
    said = lab.run("rebuild", code=1)
    assert "Le lot 1 ne peut pas être refait" in said
    assert "1 lots n'ont pas pu être refaits" in said
    assert len(list(lab.exports.glob("*.csv"))) == 1
