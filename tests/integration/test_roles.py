"""roles.sql devant un vrai PostgreSQL : ce qu'il refuse avant d'avoir rien créé."""

import os
import subprocess

from commun.settings import setting
from services.stack import CONFIG, Stack
from tests.lab import Lab

import pytest

NEW = {
    "PIPELINE_USER": "essai_roles", "PIPELINE_PASSWORD": "p",
    "PIPELINE_DATABASE": "essai_roles", "TABLEAU_PASSWORD": "t",
}  # fmt: skip


@pytest.mark.parametrize(
    "foreign",
    [
        {"PIPELINE_USER": "postgres"},
        {"PIPELINE_USER": "tableau"},
        {"PIPELINE_DATABASE": "postgres"},
        {"PIPELINE_PASSWORD": ""},
        {"TABLEAU_PASSWORD": ""},
    ],
    ids=str,
)
def test_foreign_settings_are_refused(lab: Lab, foreign: dict[str, str]) -> None:
    """Une variable d'un autre projet, restée dans le terminal, est refusée en une phrase, et rien n'est créé."""
    done = subprocess.run(
        [Stack().postgres_bin / "psql", "-X", "-q", "-h", "localhost", "-U", setting("POSTGRES_USER"),
         "-d", "postgres", "-f", CONFIG / "roles.sql"],
        env=os.environ | NEW | foreign | {"PGPORT": setting("PGPORT"), "PGPASSWORD": setting("POSTGRES_PASSWORD")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "unset PIPELINE_USER" in done.stderr
    assert lab.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'essai_roles'") == [(0,)]
