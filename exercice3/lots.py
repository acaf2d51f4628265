"""Le fichier d'un lot : son nom, ses octets, son manifeste ; l'écrire, le trouver, le lire.

Un fichier « ventes_000012_ab12cd34.csv » est terminé quand son manifeste, de même nom en « .json », existe : il donne
le nombre de lignes et la somme SHA-256. Chacun naît sous un nom caché, est forcé sur le disque, puis renommé : on ne
voit jamais un fichier à moitié écrit. Vieux, il se garde compressé, « .csv.gz », à côté de son manifeste.
"""

import contextlib
import gzip
import hashlib
import json
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from commun.systems import publish, reason

FULL_NAME = "ventes_data.csv"  # tout l'historique : ce n'est pas un lot
MANIFESTS = "ventes_[0-9]*.json"
DRAFTS = ".ventes_*.tmp"
DRAFT_SECONDS = 3600  # un brouillon plus vieux est celui d'un export tué

DAMAGED = (OSError, EOFError, zlib.error)  # ce que lève la lecture d'une archive, ou d'un disque, abîmés

Part = tuple[bytes, int]  # un morceau de fichier : ses octets, ses lignes


class BadFile(Exception):
    """Le fichier n'est pas (encore) celui que décrit son manifeste."""


@dataclass(frozen=True)
class Manifest:
    """Ce que l'export promet d'un fichier : son nom, son nombre de lignes, sa somme SHA-256."""

    path: Path
    fichier: str
    lignes: int
    sha256: str


def name_of(number: int, marks: Iterable[str]) -> str:
    """Nom du fichier d'un lot : son numéro, et l'empreinte de ce qu'il contient.

    Une base repartie de zéro, dont les numéros recommencent, n'écrase ainsi aucun ancien fichier.
    """
    stamp = hashlib.sha256("\n".join(sorted(marks)).encode()).hexdigest()[:8]
    return f"ventes_{number:06d}_{stamp}.csv"


def number_of(path: Path) -> int:
    """Numéro du lot d'un fichier ou d'un manifeste ; 0 pour un nom qui n'en a pas."""
    digits = path.name.split("_")[1] if path.name.count("_") > 1 else path.stem.partition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def manifests(folder: Path) -> list[Path]:
    """Manifestes des lots de ``folder``, dans l'ordre des lots."""
    return sorted(folder.glob(MANIFESTS), key=lambda path: (number_of(path), path.name))


def read_manifest(path: Path) -> Manifest:
    """Manifeste d'un fichier CSV ; lève BadFile s'il n'existe pas ou n'a pas de sens."""
    path = path.with_suffix(".json")
    try:
        data = json.loads(path.read_bytes())
        manifest = Manifest(path.with_suffix(".csv"), data["fichier"], data["lignes"], data["sha256"])
    except FileNotFoundError:
        if not path.with_suffix(".csv").exists():
            raise BadFile("ce fichier n'existe pas") from None
        raise BadFile(f"pas de manifeste {path.name} : le fichier n'est pas terminé") from None
    except OSError as error:
        raise BadFile(f"manifeste illisible ({reason(error)})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile(f"manifeste illisible ({error})") from error
    if manifest.fichier != manifest.path.name or type(manifest.lignes) is not int or type(manifest.sha256) is not str:
        raise BadFile("manifeste illisible (il ne décrit pas ce fichier)")
    return manifest


def open_file(manifest: Manifest) -> BinaryIO:
    """Ouvre le CSV d'un manifeste, compressé ou non ; lève BadFile s'il manque."""
    try:
        if not manifest.path.exists() and archived(manifest.path).exists():
            return cast(BinaryIO, gzip.open(archived(manifest.path), "rb"))
        return manifest.path.open("rb")
    except OSError as error:
        raise BadFile(f"fichier illisible ({reason(error)})") from error


def digest(content: bytes) -> str:
    """Somme SHA-256, telle que le manifeste la porte."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, parts: Iterable[Part]) -> dict[str, Any]:
    """Écrit un fichier, puis son manifeste, en dernier : lui seul dit « terminé ». Renvoie le manifeste."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, lines = hashlib.sha256(), 0
    with _draft(path) as file:
        for content, count in parts:
            file.write(content)
            digest.update(content)
            lines += count
        publish(file, path)
    manifest = {"fichier": path.name, "lignes": lines, "sha256": digest.hexdigest()}
    with _draft(path.with_suffix(".json")) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
        publish(file, path.with_suffix(".json"))
    return manifest


def archived(path: Path) -> Path:
    """Nom de ce fichier CSV, compressé."""
    return path.with_name(f"{path.name}.gz")


def archive(path: Path) -> None:
    """Compresse un fichier CSV : il n'est effacé qu'une fois l'autre sur le disque. Lève OSError."""
    with path.open("rb") as file, _draft(archived(path)) as draft:
        with gzip.GzipFile("", "wb", fileobj=draft, mtime=0) as compressed:
            shutil.copyfileobj(file, compressed)
        publish(draft, archived(path))
    path.unlink()


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """Le brouillon de ``path``, d'un nom caché que personne d'autre n'utilise ; effacé s'il n'est pas publié."""
    with path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp").open("xb") as file:
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()  # Windows n'efface pas un fichier ouvert
            with contextlib.suppress(OSError):
                Path(file.name).unlink(missing_ok=True)
            raise


def remove_old_drafts(folder: Path) -> None:
    """Efface les brouillons d'exports tués, vieux de plus d'une heure."""
    for old in folder.glob(DRAFTS):
        with contextlib.suppress(OSError):  # un autre export vient de le faire, ou y écrit
            if time.time() - old.stat().st_mtime > DRAFT_SECONDS:
                old.unlink()
