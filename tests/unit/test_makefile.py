"""Le Makefile, sur un .venv de théâtre ; ce que services et doctor disent d'un terminal ou d'une installation."""

import pytest

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
