"""Charge dans PostgreSQL (table ventes) les fichiers CSV terminés par schedule_export.py.

    python pg.py                   charge ce qui est nouveau, puis s'arrête
    python pg.py --watch           continue : un passage toutes les 5 secondes
    python pg.py ventes_data.csv   charge ce fichier-là

Garantit : un fichier chargé deux fois, à moitié écrit, ou chargé par deux programmes à la
fois ne change rien ; la table n'est jamais remplacée, les vues et les connexions ouvertes
de Tableau restent valables. Les ventes d'un fichier, ses rejets et son inscription dans
ventes_chargements sont une seule transaction. Une ligne refusée va dans ventes_rejets.
Ne garantit pas : que deux fichiers différents qui contiennent la même vente s'accordent ;
le dernier chargé l'emporte.
Ensuite : ouvrez Tableau, ou psql avec le rôle tableau.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from commun.cli import Parser, Stop, positive, run
from commun.errors import START_HINT, PipelineError
from commun.settings import export_dir, postgres_dsn
from exercice3.rows import BadFile, Rows

log = logging.getLogger("pipeline")

FOLDER = Path(__file__).parent
LOTS = "ventes_[0-9]*.json"  # les manifestes des lots, sans celui de l'historique complet
EVERY_SECONDS = 5.0
SCHEMA_LOCK = 7_305_808  # un seul programme à la fois applique le schéma
CREATE_STAGING = """
    CREATE TEMPORARY TABLE tampon (ligne bigint, id text, produit text, region text, montant text, date_vente text)
    ON COMMIT DROP
"""
# FORCE_NOT_NULL : un champ vide est un texte vide, pas un NULL ; load.sql le jugera.
COPY = "COPY tampon FROM STDIN WITH (FORMAT csv, FORCE_NOT_NULL (id, produit, region, montant, date_vente))"
HAS_SUMS = "SELECT FROM pg_trigger WHERE tgrelid = 'ventes'::regclass AND tgname = 'ventes_videes'"
VIEWS_VERSION = """
    SELECT obj_description('ventes_compter'::regproc, 'pg_proc') WHERE to_regclass('ventes_analyse') IS NOT NULL
"""
NAME_TAKEN = (
    psycopg2.errors.DuplicateTable, psycopg2.errors.WrongObjectType, psycopg2.errors.InvalidTableDefinition,
    psycopg2.errors.DuplicateFunction, psycopg2.errors.InvalidFunctionDefinition,
)  # fmt: skip
REGISTER = """
    INSERT INTO ventes_chargements (fichier, sha256, lignes) VALUES (%(fichier)s, %(sha256)s, %(lignes)s)
    ON CONFLICT DO NOTHING
"""
REJECT = """
    INSERT INTO ventes_rejets (fichier, sha256, ligne, raison, contenu)
    VALUES (%(fichier)s, %(sha256)s, %(ligne)s, %(raison)s, %(contenu)s)
"""


@dataclass
class Manifest:
    """Ce que l'export promet d'un fichier : son nom, son nombre de lignes, sa somme SHA-256."""

    path: Path
    fichier: str
    lignes: int
    sha256: str


def apply_schema(connection: Connection) -> None:
    """Crée ce qui manque : tables, sommes et vues des tableaux de bord, droits du rôle tableau."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        cursor.execute(sql("schema"))
        cursor.execute("SAVEPOINT tableaux")
        try:
            apply_views(cursor)
        except NAME_TAKEN as error:  # les ventes se chargent quand même
            cursor.execute("ROLLBACK TO tableaux")
            reason = str(error).splitlines()[0]
            log.warning("Vues des tableaux de bord non posées, un de vos objets en porte le nom (%s).", reason)
        cursor.execute(sql("rights"))
    for notice in connection.notices:
        if "tableau" in notice:
            log.warning("PostgreSQL : %s", notice.strip())


def apply_views(cursor: Cursor) -> None:
    """Pose les sommes si la table ventes ne les a pas, et les vues si elles manquent ou si leur fichier a changé."""
    cursor.execute(HAS_SUMS)
    if cursor.fetchone() is None:
        cursor.execute(sql("sums"))
    views = sql("views")
    version = hashlib.sha256(views.encode()).hexdigest()[:12]
    cursor.execute(VIEWS_VERSION)
    if cursor.fetchone() != (version,):
        cursor.execute(views)
        cursor.execute("COMMENT ON FUNCTION ventes_compter IS %s", (version,))


def sql(name: str) -> str:
    """Contenu d'un fichier .sql de ce dossier."""
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Manifeste d'un fichier CSV ; lève BadFile s'il n'existe pas ou n'a pas de sens."""
    try:
        data = json.loads(path.with_suffix(".json").read_bytes())
        return Manifest(path.with_suffix(".csv"), data["fichier"], int(data["lignes"]), data["sha256"])
    except FileNotFoundError:
        raise BadFile(f"pas de manifeste {path.with_suffix('.json').name} : le fichier n'est pas terminé") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"manifeste illisible ({error})") from error


def load(connection: Connection, manifest: Manifest) -> bool:
    """Charge un fichier en une transaction ; faux s'il l'était déjà.

    Lève BadFile, sans rien changer, si le fichier n'est pas celui du manifeste.
    """
    names: dict[str, Any] = {"fichier": manifest.fichier, "sha256": manifest.sha256, "lignes": manifest.lignes}
    with connection, connection.cursor() as cursor, open_file(manifest.path) as file:
        # L'inscription d'abord : un second programme attend ici la fin du premier, puis n'a plus rien à faire.
        cursor.execute(REGISTER, names)
        if not cursor.rowcount:
            return False
        cursor.execute(CREATE_STAGING)
        rows = Rows(file)
        cursor.copy_expert(COPY, cast(TextIO, rows))  # psycopg2 n'appelle que read
        if (rows.lines, rows.digest.hexdigest()) != (manifest.lignes, manifest.sha256):
            raise BadFile(f"{rows.lines} lignes lues pour {manifest.lignes} annoncées, ou contenu différent")
        write(cursor, names, rows)
    return True


def write(cursor: Cursor, names: dict[str, Any], rows: Rows) -> None:
    """Passe du tampon à la table, range les rejets et le dit en une ligne."""
    for ligne, raison, contenu in rows.rejects:
        cursor.execute(REJECT, names | {"ligne": ligne, "raison": raison, "contenu": contenu})
    cursor.execute("ANALYZE tampon")
    cursor.execute(sql("load"), names | {"rejetees": len(rows.rejects)})
    new, changed, rejected = cursor.fetchone() or (0, 0, 0)
    log.info(
        "%s : %d lignes, %d nouvelles, %d modifiées, %d rejetées.", names["fichier"], rows.lines, new, changed, rejected
    )


def open_file(path: Path) -> BinaryIO:
    """Ouvre le CSV ; lève BadFile s'il manque."""
    try:
        return path.open("rb")
    except OSError as error:
        raise BadFile(f"fichier illisible ({error.strerror})") from error


def pending(connection: Connection, folder: Path) -> list[Path]:
    """Manifestes des lots qui ne sont pas encore inscrits, dans l'ordre des lots."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT fichier FROM ventes_chargements")
        loaded = {name for (name,) in cursor}
    return [path for path in sorted(folder.glob(LOTS)) if path.with_suffix(".csv").name not in loaded]


def load_all(connection: Connection, args: argparse.Namespace, stop: Stop, said: set[str]) -> int:
    """Charge tout ce qui est nouveau ; renvoie le nombre de fichiers mis de côté.

    ``said`` retient les phrases déjà dites : --watch ne les répète pas à chaque passage.
    """
    bad = 0
    for path in args.files or pending(connection, args.export_dir):
        if stop:
            break
        try:
            if not load(connection, read_manifest(path)) and args.files:
                log.info("%s : déjà chargé, rien à faire.", path.name)
        except (BadFile, psycopg2.DataError, psycopg2.IntegrityError) as error:
            bad += 1
            sentence = f"{path.with_suffix('.csv').name} n'est pas chargé : {error}."
            if sentence not in said:
                log.warning(sentence)
                said.add(sentence)
    return bad


def watch(args: argparse.Namespace, stop: Stop) -> None:
    """Un passage toutes les ``--every`` secondes ; PostgreSQL absent, attend son retour et le dit une fois."""
    connection, down = None, False
    said: set[str] = set()
    while not stop:
        try:
            connection = connection or open_postgres()
            load_all(connection, args, stop, said)
            if down:
                log.info("PostgreSQL répond de nouveau.")
            down = False
        except (PipelineError, psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if not down:
                log.warning("PostgreSQL ne répond plus (%s) : j'attends, rien n'est perdu.", type(error).__name__)
            connection, down = None, True
        stop.wait(args.every)
    if connection:
        connection.close()


def open_postgres() -> Connection:
    """Connexion à PostgreSQL, schéma en place ; PipelineError si elle est impossible."""
    try:
        connection: Connection = psycopg2.connect(**postgres_dsn(), connect_timeout=5, application_name="pg.py")
    except psycopg2.OperationalError as error:
        raise PipelineError(
            f"PostgreSQL ne répond pas ou refuse la connexion ({str(error).strip().splitlines()[0]}) : "
            f"{START_HINT}, ou vérifiez les variables PG…."
        ) from error
    apply_schema(connection)
    return connection


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="fichier", help="fichiers à charger, au lieu du dossier")
    parser.option(
        "--export-dir", env="EXPORT_DIR", type=Path, default=export_dir(), help="dossier des fichiers exportés"
    )
    parser.option("--watch", action="store_true", help="continue à charger ce qui arrive")
    parser.option(
        "--every", type=positive(float), default=EVERY_SECONDS, help="secondes entre deux passages de --watch"
    )
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    if args.watch:
        watch(args, stop)
        return 0
    connection = open_postgres()
    try:
        bad = load_all(connection, args, stop, set())
    except psycopg2.OperationalError as error:
        raise PipelineError("PostgreSQL s'est arrêté pendant le chargement : relancez, rien n'est doublé.") from error
    finally:
        connection.close()
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
