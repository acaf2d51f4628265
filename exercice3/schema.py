"""Le schéma de PostgreSQL : posé une fois, et de nouveau quand un de ses fichiers a changé ou qu'un objet manque.

La table schema_version retient l'empreinte de chaque fichier posé. À jour, pg.py ne demande donc aucun verrou, et n'a
besoin d'aucun droit de créer. Chaque fichier part de n'importe quelle version d'avant.
"""

import hashlib
import logging
from pathlib import Path

from commun import PipelineError

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).parent
SCHEMA_LOCK = 7_305_808  # un seul programme à la fois applique le schéma
READABLE = [
    "ventes", "ventes_par_heure", "ventes_par_jour", "ventes_analyse", "ventes_par_periode", "ventes_par_region",
    "ventes_par_produit", "ventes_palmares",
]  # fmt: skip
# Les fichiers, dans l'ordre, et ce qui dit que leurs objets sont là.
STEPS = {
    "schema": "SELECT count(to_regclass(nom)) = 4 "
    "FROM unnest(ARRAY['ventes', 'ventes_chargements', 'ventes_rejets', 'ventes_suivi']) AS nom",
    "sums": "SELECT count(*) = 4 FROM pg_trigger WHERE tgrelid = to_regclass('ventes') AND NOT tgisinternal "
    "AND tgname IN ('ventes_ajoutees', 'ventes_modifiees', 'ventes_effacees', 'ventes_videes')",
    "views": "SELECT count(to_regclass(nom)) = 8 FROM unnest(%s) AS nom",
    "rights": "SELECT count(*) = 1 FROM pg_roles WHERE rolname = 'tableau' AND NOT EXISTS ("
    "SELECT FROM unnest(%s) AS nom WHERE NOT has_table_privilege(rolname, to_regclass(nom), 'SELECT'))",
}
VERSIONS = """
    CREATE TABLE IF NOT EXISTS schema_version (
        etape text PRIMARY KEY, empreinte text NOT NULL, applique_le timestamptz NOT NULL DEFAULT now()
    );
    COMMENT ON TABLE schema_version IS 'Version de chaque fichier du schéma : pg.py n''y touche que si elle a changé'
"""
RECORD = """
    INSERT INTO schema_version (etape, empreinte) VALUES (%s, %s)
    ON CONFLICT (etape) DO UPDATE SET empreinte = excluded.empreinte, applique_le = now()
"""
NAME_TAKEN = (
    psycopg2.errors.DuplicateTable, psycopg2.errors.WrongObjectType, psycopg2.errors.InvalidTableDefinition,
    psycopg2.errors.DuplicateFunction, psycopg2.errors.InvalidFunctionDefinition,
)  # fmt: skip
# Les classes d'erreur qui ne viennent pas du schéma : connexion, verrou, droits, ressources, arrêt du serveur.
_ELSEWHERE = ("08", "25", "40", "53", "55", "57", "58")


def sql(name: str) -> str:
    """Contenu d'un fichier .sql de ce dossier."""
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def mark(name: str) -> str:
    """Empreinte d'un fichier .sql."""
    return hashlib.sha256(sql(name).encode()).hexdigest()[:12]


def apply_schema(connection: Connection) -> None:
    """Pose ce qui manque ou a changé ; rien à faire, ne demande aucun verrou.

    Lève PipelineError si la base ne peut pas le recevoir.
    """
    try:
        with connection, connection.cursor() as cursor:
            if not any(_stale(cursor, step) for step in STEPS):
                return
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
            _apply(cursor)
    except psycopg2.Error as error:
        if error.pgcode is None or error.pgcode.startswith(_ELSEWHERE):
            raise
        reason = str(error).splitlines()[0]
        raise PipelineError(
            f"Cette base ne peut pas recevoir le schéma des ventes ({reason}) : un autre objet y porte peut-être ce "
            "nom, ou ce compte n'en a pas le droit. Choisissez une base avec PGDATABASE, ou lancez pg.py une fois "
            "avec son propriétaire."
        ) from error
    for notice in connection.notices:
        if "tableau" in notice:
            log.warning("PostgreSQL : %s", notice.strip())


def _stale(cursor: Cursor, step: str) -> bool:
    """Vrai si ce fichier a changé depuis qu'il a été posé, ou si un de ses objets manque."""
    cursor.execute("SELECT to_regclass('schema_version') IS NOT NULL")
    if cursor.fetchone() != (True,):
        return True
    cursor.execute("SELECT empreinte FROM schema_version WHERE etape = %s", (step,))
    if cursor.fetchone() != (mark(step),):
        return True
    cursor.execute(STEPS[step], (READABLE,) if "%s" in STEPS[step] else None)
    return cursor.fetchone() != (True,)


def _apply(cursor: Cursor) -> None:
    """Les fichiers, dans l'ordre : en refaire un peut en défaire un suivant."""
    if _stale(cursor, "schema"):
        cursor.execute(VERSIONS)
        _pose(cursor, "schema")
    cursor.execute("SAVEPOINT tableaux")
    try:
        for step in ("sums", "views"):
            if _stale(cursor, step):
                _pose(cursor, step)
    except NAME_TAKEN as error:  # les ventes se chargent quand même
        cursor.execute("ROLLBACK TO tableaux")
        reason = str(error).splitlines()[0]
        log.warning("Vues des tableaux de bord non posées, un de vos objets en porte le nom (%s).", reason)
    if _stale(cursor, "rights"):
        _pose(cursor, "rights")


def _pose(cursor: Cursor, step: str) -> None:
    cursor.execute(sql(step))
    cursor.execute(RECORD, (step, mark(step)))
