"""Un fichier CSV ouvert : ce qu'il refuse, et ce qu'il dit attendre."""

from pathlib import Path

from commun.csv_header import HeaderError, Options
from exercice1.fingerprint import NAMES_BYTES
from exercice1.reading import Format, OpenCsv

import pytest

COLUMNS = Options(columns=("id", "ville"))


def test_too_many_names(tmp_path: Path) -> None:
    """Les noms sont dans la position du fichier : trop longs, il est refusé, au lieu de Kafka qui arrêterait tout."""
    path = tmp_path / "large.csv"
    fitting = NAMES_BYTES // 104  # en JSON, guillemets et virgule compris, un nom en prend 103
    for count, refused in ((fitting, False), (fitting + 60, True)):
        path.write_text(",".join(f"{number:0100}" for number in range(count)) + "\n", encoding="utf-8")
        with path.open("rb") as file:
            source = OpenCsv(file, Format())
            if refused:
                with pytest.raises(HeaderError, match=f"{count} colonnes font plus de {NAMES_BYTES} octets"):
                    source.next_chunk()
            else:
                assert source.next_chunk() is not None


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("id,ville", Options(), "son en-tête n'a pas encore de fin de ligne (touche Entrée), il attend."),
        ("Produit;Prix (TTC, EUR)\n", Options(), "sa première ligne de données dira quel est son séparateur"),
        ('id,"t\n', Options(), "un guillemet ouvert dans son en-tête attend sa fin."),
        ("\n\n", Options(), "il n'a pas encore d'en-tête."),
        ("sep=;\n", Options(), "il n'a pas encore d'en-tête."),
        ("1,Bre", COLUMNS, "sa première ligne n'a pas encore de fin de ligne (touche Entrée), elle attend."),
        ("\n", COLUMNS, "il n'a pas encore de ligne."),
        ("id,ville\n1,Bre", Options(), "la ligne 2 n'a pas encore de fin de ligne (touche Entrée), elle attend."),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_is_awaited(tmp_path: Path, text: str, options: Options, said: str, encoding: str) -> None:
    """Un fichier dont rien ne part encore dit ce qu'il attend, et rien d'autre."""
    path = tmp_path / "f.csv"
    path.write_text(text, encoding=encoding)
    with path.open("rb") as file:
        source = OpenCsv(file, Format(options))
        while source.next_chunk():
            pass
        assert source.hint(path).startswith(f"{path} : {said}")
