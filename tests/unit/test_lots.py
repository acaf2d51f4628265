"""Le fichier d'un lot, et l'horloge de l'export, sans serveur."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from commun import PipelineError
from commun.cli import Stop
from commun.settings import exported_files
from exercice3 import lots, schedule_export
from exercice3.collection import open_client
from exercice3.lot_content import to_csv

import pytest
import schedule

ROWS = [("b", "P", "R", "1.00", "d", "1", "false"), ("a", "P", "R", "2.00", "d", "1", "false")]


def test_a_failed_write_leaves_no_draft(tmp_path: Path) -> None:
    """Le disque se remplit au milieu du fichier : rien n'en reste, et l'ancien est intact."""
    path = tmp_path / "ventes_000001_00000000.csv"
    lots.write(path, [to_csv(ROWS)])
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}

    def full() -> Iterator[lots.Part]:
        yield to_csv(ROWS)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        lots.write(path, full())
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before


def test_the_same_sales_give_the_same_bytes() -> None:
    """L'ordre d'arrivée ne compte pas ; les versions se suivent comme des nombres."""
    assert to_csv(ROWS) == to_csv(reversed(ROWS))
    assert to_csv(ROWS)[0].startswith(b"id,produit,region,montant,date_vente\na,P,R,2.00,d\n")
    versions = [("a", "P", "R", "1", "d", version, "false") for version in ("10", "9", "1")]
    assert [line.split(",")[5] for line in to_csv(versions)[0].decode().split()[1:]] == ["1", "9", "10"]


def test_lots_are_listed_in_order(tmp_path: Path) -> None:
    """Le millionième lot vient après les autres ; ventes_data n'est pas un lot."""
    for name in ("ventes_1000000_aa", "ventes_999999_bb", "ventes_000002", "ventes_data"):
        (tmp_path / f"{name}.json").touch()
    names = [path.stem for path in lots.manifests(tmp_path)]
    assert names == ["ventes_000002", "ventes_999999_bb", "ventes_1000000_aa"]


def test_reset_knows_what_the_export_writes(tmp_path: Path) -> None:
    """« make reset » efface ce que l'export écrit, et rien d'autre : lots, historique, brouillons d'un export tué."""
    lots.write(tmp_path / lots.name_of(12, ["a", "b"]), [to_csv(ROWS)])
    lots.write(tmp_path / lots.FULL_NAME, [to_csv(ROWS)])
    lots.write(tmp_path / lots.name_of(11, ["z"]), [to_csv(ROWS)])
    lots.archive(tmp_path / lots.name_of(11, ["z"]))
    (tmp_path / f".{lots.name_of(13, ['c'])}.0123abcd.tmp").touch()
    (tmp_path / "ventes_mars.csv").touch()
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in exported_files(tmp_path)} == {
        "ventes_mars.csv"
    }


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"fichier": "x.csv", "lignes": 1, "sha256": "0"}', '{"fichier": "ventes_1.csv", "lignes": "1"}',
     '{"fichier": "ventes_1.csv", "lignes": 1.5, "sha256": "0"}'],
)  # fmt: skip
def test_a_senseless_manifest_is_one_sentence(tmp_path: Path, content: str) -> None:
    """Tronqué, d'un autre fichier, sans nombre : « manifeste illisible », et rien d'autre."""
    (tmp_path / "ventes_1.json").write_text(content)
    with pytest.raises(lots.BadFile, match="manifeste illisible"):
        lots.read_manifest(tmp_path / "ventes_1.csv")


class ThreePasses(Stop):
    """Demande l'arrêt au troisième passage."""

    def __init__(self) -> None:
        self.passes = self.waits = 0

    def __bool__(self) -> bool:
        return self.passes >= 3

    def wait(self, seconds: float) -> bool:
        """Une attente de plus."""
        self.waits += 1
        assert self.waits < 300, "l'export attend que l'heure revienne"
        time.sleep(min(seconds, 0.01))
        return bool(self)


def test_winter_time_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """L'heure de la machine recule d'une heure à chaque attente : l'export ne l'attend pas."""
    stop = ThreePasses()

    class Wall(datetime):
        """L'horloge de la machine."""

        @classmethod
        def now(cls, tz: object = None) -> "Wall":
            return cls(2026, 10, 25, 3) + timedelta(seconds=time.monotonic(), hours=-stop.waits)

    def job() -> None:
        stop.passes += 1

    monkeypatch.setattr(schedule, "datetime", SimpleNamespace(datetime=Wall, timedelta=timedelta))
    schedule_export.every(0.001, job, stop)
    assert stop.passes == 3


def test_no_piece_of_a_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un « / » dans le mot de passe de MONGO_URI : la phrase dit comment l'écrire, sans le montrer."""
    monkeypatch.setenv("MONGO_URI", "mongodb://u:motde/passe@localhost:27017/ventes_db")
    with pytest.raises(PipelineError, match="%2F") as caught:
        open_client()
    assert "passe@" not in str(caught.value)
    assert "motde" not in str(caught.value)
