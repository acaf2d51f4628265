"""Le Makefile, sur un .venv de théâtre ; ce que services et doctor disent d'un terminal ou d'une installation."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from commun.settings import ROOT
from services import missing_packages
from services.__main__ import parse
from services.doctor.environment import judge_project
from services.doctor.report import OK, PROBLEM
from services.doctor.variables import judge_variables

import pytest

# Une doublure de python : dit où elle est lancée, avec quoi ; « venv » et « pip » laissent ce que les vrais laissent.
PYTHON = """#!/bin/sh
echo "$(pwd -P) : $*"
packages=.venv/lib/python3.11/site-packages
case "$*" in
  "-m venv "*) mkdir -p .venv/bin $packages; cp "$0" .venv/bin/python ;;
  "-m pip "*-r\\ requirements.txt*) pwd -P > $packages/_editable_impl_streaming_data_pipeline.pth ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Un projet installé par « make install », dans un dossier au nom difficile."""
    folder = tmp_path / "l'été #1 $x"
    shutil.copytree(ROOT / "services", folder / "services", ignore=lambda _, names: {*names} - {"requirements.txt"})
    (folder / "exercice3").mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    assert "-m venv .venv" in make(folder, "install").stdout
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """« make … » dans ce dossier, avec la doublure de python qui est à côté ; un lecteur anglais y lit ses phrases."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}  # ceux de « make test »
    return subprocess.run(
        ["make", f"PYTHON={folder.parent / 'python'}", *arguments],
        cwd=folder, env=kept | {"LC_ALL": "C"} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_installed_project_is_not_installed_again(project: Path) -> None:
    """Rien à faire la seconde fois, d'un lien vers le dossier non plus."""
    link = project.parent / "lien"
    link.symlink_to(project)
    for folder in (project, link):
        assert "Nothing to be done" in make(folder, "install").stdout
    assert f"{project}/exercice3 : reconcile.py" in make(project, "reconcile").stdout


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_project_is_installed_again(project: Path, copied: bool) -> None:
    """Déplacé, ou copié, avec son .venv : « reconcile » le dit, « install » refait l'environnement, une fois."""
    place = project.parent / "autre part"
    (project / ".venv" / "bin" / "pip").touch()  # il porte l'ancien chemin
    (shutil.copytree if copied else shutil.move)(project, place)
    refused = make(place, "reconcile")
    assert (refused.returncode, "« make install » refait .venv" in refused.stderr, refused.stdout) == (2, True, "")
    assert "Le projet a changé de dossier" in make(place, "install").stdout
    assert not (place / ".venv" / "bin" / "pip").exists()
    assert "Nothing to be done" in make(place, "install").stdout
    assert f"{place}/exercice3 : reconcile.py" in make(place, "reconcile").stdout
    assert (project / ".venv" / "bin" / "pip").exists() == copied


def test_the_environment_of_another_copy_is_left_alone(project: Path) -> None:
    """Un .venv qui n'est qu'un lien vers celui d'une autre copie : le lien est remplacé, l'autre reste entière."""
    place = project.parent / "autre part"
    shutil.copytree(project, place, ignore=shutil.ignore_patterns(".venv"))
    (place / ".venv").symlink_to(project / ".venv")
    assert "Le projet a changé de dossier" in make(place, "install").stdout
    assert "Nothing to be done" in make(project, "install").stdout


def test_an_unfinished_installation_is_resumed(project: Path) -> None:
    """Ce que pip note en dernier manque : « make install » recommence."""
    (note,) = (project / ".venv").glob("lib/*/*/*.pth")
    note.unlink()
    assert "-m pip install" in make(project, "install").stdout
    assert "Nothing to be done" in make(project, "install").stdout


def test_what_pip_notes() -> None:
    """Le fichier que le Makefile cherche est bien celui que pip écrit, et il y note ce dossier."""
    (note,) = Path(sysconfig.get_path("purelib")).glob("*streaming_data_pipeline.pth")
    assert str(ROOT) in note.read_text(encoding="utf-8").splitlines()
    assert f"/{note.name.replace('_editable_impl_', '*')}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_cdpath_leads_nowhere_else(project: Path) -> None:
    """CDPATH exporté, où une autre copie a aussi un dossier exercice3."""
    (project.parent / "autre" / "exercice3").mkdir(parents=True)
    done = make(project, "reconcile", CDPATH=str(project.parent / "autre"))
    assert f"{project}/exercice3 : reconcile.py" in done.stdout


def test_psql(project: Path) -> None:
    """« make psql » ouvre une console ; SQL=… y va tel quel, guillemets compris."""
    assert make(project, "psql").stdout == f"{project} : -m services.psql\n"
    query = """SELECT 'l''été' AS "x y" """
    assert make(project, "psql", f"SQL={query}").stdout == f"{project} : -m services.psql --command {query}\n"
    assert make(project, "psql", SQL=query).stdout == f"{project} : -m services.psql --command {query}\n"


def test_doctor_after_a_move() -> None:
    """Dans un .venv déplacé, qui ne s'active plus : « make install », et non pip dans un autre Python."""
    moved = judge_project(None, ROOT, ours=True)
    assert (moved.state, "make install" in moved.cure, "pip install" in moved.cure) == (PROBLEM, True, False)
    assert "pip install -e ." in judge_project(None, ROOT).cure


@pytest.mark.parametrize("text", ["trace", "zz"])
def test_a_foreign_log_level_stops_no_server(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """LOG_LEVEL d'un autre programme : « down » et « doctor » marchent, et doctor le dit."""
    monkeypatch.setenv("LOG_LEVEL", text)
    assert parse(["down"]).log_level == "info"
    (finding,) = judge_variables({"LOG_LEVEL": text}, {})
    assert (finding.state, f"LOG_LEVEL={text}" in finding.message) == (PROBLEM, True)
    assert "unset LOG_LEVEL" in finding.cure
    assert [finding.state for finding in judge_variables({"LOG_LEVEL": "DEBUG"}, {})] == [OK]


def test_an_unfinished_installation_is_not_one_to_activate() -> None:
    """Installation interrompue : dans le .venv du projet, activer ne changerait rien ; ailleurs, c'est le remède."""
    inside = missing_packages(["psutil"], ROOT / ".venv")
    assert ("(psutil)" in inside, "make install" in inside, "activez" in inside) == (True, True, False)
    outside = missing_packages(["psutil"], Path("/usr"))
    assert ("make install" in outside, "source .venv/bin/activate" in outside) == (False, True)
