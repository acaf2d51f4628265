"""La version d'avant de l'exercice 3, tirée de git : elle remplit des bases que celle-ci doit reprendre."""

import io
import subprocess
import tarfile
from pathlib import Path

from commun.settings import ROOT
from tests.lab import Lab

import pytest

COMMIT = "7c00561"


class FormerLab(Lab):
    """Un exercice 3 dont les scripts sont ceux d'avant, jusqu'à ``upgrade``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sql("DROP TABLE IF EXISTS schema_version")  # elle ne la connaissait pas
        command = ["git", "archive", COMMIT, "commun", "exercice3", ".env"]
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"git n'a pas l'historique jusqu'à {COMMIT}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
            content.extractall(folder / "avant", filter="data")
        self._now = self.folder, self.env
        self.folder, self.env = folder / "avant" / "exercice3", self.env | {"PYTHONPATH": str(folder / "avant")}

    def upgrade(self) -> None:
        """Les scripts sont désormais ceux d'aujourd'hui."""
        self.folder, self.env = self._now
