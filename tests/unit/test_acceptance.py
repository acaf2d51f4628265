"""La recette : le rapport qu'elle écrit ne remplace jamais un fichier de quelqu'un."""

from pathlib import Path

from commun import PipelineError
from services.acceptance import Report

import pytest


def test_only_a_former_report_is_replaced(tmp_path: Path) -> None:
    """Rien, un fichier vide, un rapport précédent : écrits ; tout autre fichier : une phrase, et il reste entier."""
    path = tmp_path / "rapport.txt"
    for beginning in (None, "", None):
        if beginning is not None:
            path.write_text(beginning, encoding="utf-8")
        Report(path).write("=== Une étape")
        assert path.read_text(encoding="utf-8").count("=== Une étape") == 1
    for precious in ("Ma thèse", path.read_text(encoding="utf-8")[1:], "==="):
        path.write_text(precious, encoding="utf-8")
        with pytest.raises(PipelineError, match=r"rapport\.txt existe déjà.* donnez un autre --output"):
            Report(path)
        assert path.read_text(encoding="utf-8") == precious


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """Un dossier à la place du fichier : une phrase."""
    with pytest.raises(PipelineError, match="Impossible d'écrire"):
        Report(tmp_path)
