"""Le Makefile, sur un .venv de théâtre ; ce que services et doctor disent d'un terminal ou d'une installation."""

from pathlib import Path

import pytest

from commun.settings import ROOT
from services import missing_packages
from services.__main__ import parse
from services.doctor.report import OK, PROBLEM
from services.doctor.variables import judge_variables


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
