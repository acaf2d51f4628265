"""Quels lots d'un dossier restent à charger, sans relire tout l'historique ; lesquels, vieux, se compressent."""

import time
from datetime import timedelta
from pathlib import Path

from exercice3.lots import BadFile, archive, manifests, number_of, read_manifest

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

FOLLOW = """
    INSERT INTO ventes_suivi (dossier, lot, vu_jusque) VALUES (%s, %s, %s)
    ON CONFLICT (dossier) DO UPDATE SET lot = excluded.lot, vu_jusque = excluded.vu_jusque
"""


def pending(connection: Connection, folder: Path) -> list[Path]:
    """Manifestes des lots à charger, dans l'ordre, dont ceux récrits sous leur nom depuis leur chargement.

    Tous les lots jusqu'au dernier chargé sans trou, écrits avant le dernier regard, ne sont pas relus.
    """
    place = str(folder.resolve())
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT lot, vu_jusque FROM ventes_suivi WHERE dossier = %s", (place,))
        lot, seen = before = cursor.fetchone() or (0, 0)
        stamps = {path: path.stat().st_mtime_ns for path in manifests(folder)}
        fresh = [path for path, stamp in stamps.items() if number_of(path) > lot or stamp >= seen]
        loaded = _loaded(cursor, fresh)
        left = [path for path in fresh if not _is_loaded(path, loaded)]
        waiting = {number_of(path) for path in left}
        done = {number_of(path) for path in fresh} - waiting
        while lot + 1 in done:
            lot += 1
        if not left:
            seen = max(stamps.values(), default=0)
        if (lot, seen) != before:
            cursor.execute(FOLLOW, (place, lot, seen))
    return left


def archive_loaded(connection: Connection, folder: Path, keep: timedelta) -> int:
    """Compresse les fichiers chargés, écrits depuis plus de ``keep`` ; renvoie leur nombre. Lève OSError."""
    limit = time.time() - keep.total_seconds()
    old = [path for path in manifests(folder) if path.with_suffix(".csv").exists() and path.stat().st_mtime < limit]
    with connection, connection.cursor() as cursor:
        loaded = _loaded(cursor, old)
    done = [path.with_suffix(".csv") for path in old if _is_loaded(path, loaded)]
    for path in done:
        archive(path)
    return len(done)


def _loaded(cursor: Cursor, paths: list[Path]) -> set[tuple[str, str]]:
    """Ceux de ces fichiers qui ont été chargés, avec leur somme."""
    names = [path.with_suffix(".csv").name for path in paths]
    cursor.execute("SELECT fichier, sha256 FROM ventes_chargements WHERE fichier = ANY(%s)", (names,))
    return set(cursor.fetchall())


def _is_loaded(path: Path, loaded: set[tuple[str, str]]) -> bool:
    try:
        manifest = read_manifest(path)
    except BadFile:  # on le dira en le chargeant
        return False
    return (manifest.fichier, manifest.sha256) in loaded
