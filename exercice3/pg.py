"""Charge dans PostgreSQL (table ventes) les fichiers CSV terminés par schedule_export.py.

    python pg.py                   charge ce qui est nouveau, puis s'arrête
    python pg.py --watch           continue : un passage toutes les 5 secondes
    python pg.py ventes_data.csv   charge ce fichier-là
    python pg.py --keep 30d        compresse ensuite les fichiers chargés, écrits depuis plus de 30 jours

Garantit : un fichier chargé deux fois, à moitié écrit, ou chargé par deux programmes à la
fois ne change rien ; la table n'est jamais remplacée, les vues et les connexions ouvertes
de Tableau restent valables. Les ventes d'un fichier, ses rejets et son inscription dans
ventes_chargements sont une seule transaction. Une ligne refusée va dans ventes_rejets, et
les autres sont chargées. De plusieurs versions d'une vente, la plus grande reste, quel que
soit l'ordre des fichiers.
Ne garantit pas : que deux fichiers différents qui contiennent la même version s'accordent ;
le dernier chargé l'emporte.
Ensuite : ouvrez Tableau, ou psql avec le rôle tableau. Les tables sont posées par schema.py,
les lignes jugées par load.sql.
"""

import argparse
import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from commun.cli import Parser, Stop, age, positive, run
from commun.metrics import Durations, Measures, metrics_option, serve_metrics
from commun.settings import export_dir
from commun.systems import reason
from exercice3.lots import BadFile, Manifest, open_file, read_manifest
from exercice3.pending import archive_loaded, pending
from exercice3.postgres import Unreachable, explain, first_line, is_gone, open_postgres, say
from exercice3.rows import Rows
from exercice3.schema import sql

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import encodings

log = logging.getLogger("pipeline")

EVERY_SECONDS = 5.0
KEEP_SECONDS = 3600.0  # entre deux regards de --watch sur les vieux fichiers
BUSY_SECONDS = 0.2
LOAD_LOCK = 7_305_809
CREATE_STAGING = """
    CREATE TEMPORARY TABLE IF NOT EXISTS tampon (
        ligne bigint, id text, produit text, region text, montant text, date_vente text, version text, annulee text,
        rejet text, contenu text
    ) ON COMMIT DELETE ROWS
"""
# FORCE_NOT_NULL : un champ vide est un texte vide, pas un NULL ; load.sql le jugera.
COPY = """
    COPY tampon FROM STDIN WITH (FORMAT csv, FORCE_NOT_NULL
        (id, produit, region, montant, date_vente, version, annulee, rejet, contenu))
"""
REGISTER = """
    INSERT INTO ventes_chargements (fichier, sha256, lignes) VALUES (%(fichier)s, %(sha256)s, %(lignes)s)
    ON CONFLICT DO NOTHING
"""
REJECT = """
    INSERT INTO ventes_rejets (fichier, sha256, ligne, raison, contenu)
    SELECT %(fichier)s, %(sha256)s, ligne, %(raison)s, concat_ws(',', id, produit, region, montant, date_vente)
    FROM tampon WHERE ligne = %(de)s;
    UPDATE ventes_chargements SET rejetees = rejetees + 1 WHERE fichier = %(fichier)s AND sha256 = %(sha256)s
    RETURNING nouvelles, modifiees, rejetees
"""
# Classes d'erreur de PostgreSQL : la valeur d'une ligne, une contrainte, une limite, un déclencheur.
ROW_REFUSED = ("22", "23", "54", "P0")


class Busy(Exception):
    """Un autre programme charge ce fichier en ce moment."""


def load(connection: Connection, manifest: Manifest) -> bool:
    """Charge un fichier en une transaction ; faux s'il l'était déjà.

    Lève BadFile, sans rien changer, si le fichier n'est pas celui du manifeste ; Busy si un autre le charge.
    """
    names: dict[str, Any] = {"fichier": manifest.fichier, "sha256": manifest.sha256, "lignes": manifest.lignes}
    with connection, connection.cursor() as cursor, open_file(manifest) as file:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", (LOAD_LOCK, manifest.fichier))
        if cursor.fetchone() != (True,):
            raise Busy
        cursor.execute(REGISTER, names)
        if not cursor.rowcount:
            return False
        cursor.execute(CREATE_STAGING)
        server = connection.info.parameter_status("server_encoding") or "UTF8"
        rows = Rows(file, None if server in ("UTF8", "SQL_ASCII") else encodings.get(server))
        cursor.copy_expert(COPY, cast(TextIO, rows))  # psycopg2 n'appelle que read
        if rows.damage:
            raise BadFile(f"fichier illisible ({rows.damage})")
        if (rows.lines, rows.digest.hexdigest()) != (manifest.lignes, manifest.sha256):
            raise BadFile(f"{rows.lines} lignes lues pour {manifest.lignes} annoncées, ou contenu différent")
        new, changed, rejected = write(cursor, names, 1, rows.last)
    log.info(
        "%s : %d lignes, %d nouvelles, %d modifiées, %d rejetées.", manifest.fichier, rows.lines, new, changed, rejected
    )
    return True


def write(cursor: Cursor, names: dict[str, Any], first: int, last: int) -> tuple[int, int, int]:
    """Passe ces lignes du tampon à la table, ou aux rejets ; renvoie les nouvelles, modifiées, rejetées jusqu'ici.

    Une ligne que PostgreSQL refuse, quelle qu'en soit la raison, ne retient pas les autres : la moitié des lignes à la
    fois, on la trouve.
    """
    cursor.execute("SAVEPOINT moitie")
    try:
        cursor.execute(sql("load"), names | {"de": first, "a": last})
        found = cursor.fetchone() or (0, 0, 0)
        cursor.execute("RELEASE SAVEPOINT moitie")
        return found
    except psycopg2.Error as error:
        if not (error.pgcode or "").startswith(ROW_REFUSED):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT moitie")
        if first == last:
            cursor.execute(REJECT, names | {"de": first, "raison": f"refusée par PostgreSQL : {first_line(error)}"})
            return cursor.fetchone() or (0, 0, 0)
    middle = (first + last) // 2
    write(cursor, names, first, middle)
    return write(cursor, names, middle + 1, last)


def load_all(connection: Connection, args: argparse.Namespace, stop: Stop, said: set[str]) -> tuple[int, int]:
    """Charge tout ce qui est nouveau ; renvoie les nombres de fichiers chargés, et mis de côté.

    ``said`` retient les phrases déjà dites : --watch ne les répète pas à chaque passage.
    """
    good = bad = 0
    queue = deque(args.files or pending(connection, args.export_dir))
    busy = 0
    while queue and not stop:
        path = queue.popleft()
        try:
            if load(connection, read_manifest(path)):
                good, busy = good + 1, 0
            elif args.files:
                log.info("%s : déjà chargé, rien à faire.", path.name)
        except Busy:  # aux suivants : on y reviendra, pour le voir chargé
            queue.append(path)
            busy += 1
            if busy >= len(queue):  # il n'y a plus que ceux-là
                stop.wait(BUSY_SECONDS)
                busy = 0
        except psycopg2.errors.DeadlockDetected:  # deux chargements s'attendaient : PostgreSQL a annulé celui-ci
            queue.append(path)
        except psycopg2.errors.LockNotAvailable:
            queue.append(path)
            say(said, "Une transaction ouverte par un autre programme retient la table ventes : j'attends sa fin.")
        except (BadFile, psycopg2.Error) as error:
            if isinstance(error, psycopg2.Error) and not (error.pgcode or "").startswith(ROW_REFUSED):
                raise
            bad += 1
            say(said, f"{path.with_suffix('.csv').name} n'est pas chargé : {error}.")
    return good, bad


def archive_old(connection: Connection, args: argparse.Namespace) -> None:
    """--keep ; un disque plein ou fermé se dit, et ne retient aucun chargement."""
    try:
        if args.keep is not None and (count := archive_loaded(connection, args.export_dir, args.keep)):
            log.info("%d fichiers chargés, et assez vieux, sont maintenant compressés (.csv.gz).", count)
    except OSError as error:
        log.warning("Compression impossible dans %s (%s), elle sera reprise.", args.export_dir, reason(error))


def watch(args: argparse.Namespace, stop: Stop) -> None:
    """Un passage toutes les ``--every`` secondes ; PostgreSQL absent, attend son retour et le dit une fois."""
    connection, down, archive_due = None, False, time.monotonic()
    said: set[str] = set()
    done = Measures(0, batches=Durations())
    serve_metrics(args.metrics_port, lambda: done)
    while not stop:
        try:
            connection = connection or open_postgres(stop)
            start = time.monotonic()
            good, _ = load_all(connection, args, stop, said)
            done.add(good, time.monotonic() - start)
            if time.monotonic() >= archive_due:
                archive_old(connection, args)
                archive_due = time.monotonic() + KEEP_SECONDS
            if down:
                log.info("PostgreSQL répond de nouveau.")
            down = False
        except (Unreachable, psycopg2.Error) as error:
            if isinstance(error, psycopg2.Error) and not is_gone(error):
                say(said, str(explain(error)))
            elif not down:
                log.warning("PostgreSQL ne répond plus (%s) : j'attends, rien n'est perdu.", type(error).__name__)
                down = True
            if connection and connection.closed:
                connection = None
        stop.wait(args.every)
    if connection:
        connection.close()


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
    parser.option(
        "--keep", type=age, help="compresse les fichiers chargés, écrits depuis plus de 30d (jours) ou 12h (heures)"
    )
    metrics_option(parser)
    args = parser.parse(argv)
    if args.metrics_port and not args.watch:
        parser.error("--metrics-port va avec --watch")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse(argv)
    stop = Stop()
    if args.watch:
        watch(args, stop)
        return 0
    connection = open_postgres(stop)
    try:
        good, bad = load_all(connection, args, stop, set())
        archive_old(connection, args)
    except psycopg2.Error as error:
        raise explain(error) from error
    finally:
        connection.close()
    if not (good or bad or stop or args.files):
        if args.export_dir.is_dir():
            log.info("Rien de nouveau à charger dans %s.", args.export_dir)
        else:
            log.info("%s n'existe pas : schedule_export.py n'y a encore rien exporté.", args.export_dir)
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
