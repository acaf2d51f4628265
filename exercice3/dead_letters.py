"""Montre ce qui n'est pas passé, lettres mortes et lignes rejetées par PostgreSQL, et renvoie ce qui est réparé.

    python dead_letters.py --summary             combien restent, par raison
    python dead_letters.py > lettres.jsonl       une ligne JSON par lettre ou par rejet : origine, raison, octets
    python dead_letters.py --resend lettres.jsonl
    python dead_letters.py --done lettres.jsonl  les classe sans rien renvoyer

Pour réparer, corrigez « valeur ». Une ligne rejetée par PostgreSQL (« file » et « line ») est déjà dans MongoDB,
où rien ne se récrit : remplacez-la par la vente en JSON, corrigée, avec une « version » plus grande.
Garantit : rien n'est renvoyé qui ne soit maintenant une vente valide ; toutes le sont, en une transaction
Kafka, ou aucune ; la même commande, relancée, n'en renvoie aucune deux fois.
Ensuite : consumer.py traite ce qui est renvoyé, comme le reste. L'outil est dans commun/dead_letters.py.
"""

from collections.abc import Iterator
from datetime import datetime

from commun import START_HINT, PipelineError
from commun.cli import run
from commun.contracts import SALE, header
from commun.dead_letters import Exercise, Line, Ready, main, named
from commun.settings import postgres_dsn
from exercice3.ventes import InvalidVente, parse, to_json

import psycopg2

TOPIC = "ventes-stream"


def again(letter: Line) -> Ready:
    """Le message d'une vente réparée."""
    vente = parse(letter["valeur"].encode(), datetime.now())  # noqa: DTZ005 - heure locale, comme date_vente
    if "line" in letter and vente.version == 1:
        raise InvalidVente("une vente déjà dans MongoDB se corrige sous une « version » plus grande (2, 3…)")
    return vente.id, to_json(vente), [header(SALE)]


def rejects() -> Iterator[Line]:
    """Les lignes que PostgreSQL a rejetées."""
    try:
        connection = psycopg2.connect(**postgres_dsn(), connect_timeout=5, client_encoding="UTF8")
    except psycopg2.OperationalError as error:
        raise PipelineError(f"PostgreSQL ne répond pas : {START_HINT}.") from error
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('ventes_rejets') IS NOT NULL")
            if cursor.fetchone() == (True,):
                cursor.execute(
                    "SELECT fichier, ligne, raison, contenu, rejete_le FROM ventes_rejets ORDER BY rejete_le, 1, 2"
                )
                for file, line, reason, content, when in cursor.fetchall():
                    headers = {"file": file, "line": str(line), "reason": reason, "time": when.isoformat()}
                    yield named(headers, content.encode())
    finally:
        connection.close()


EXERCISE = Exercise(__doc__, TOPIC, "VENTES_TOPIC", again, rejects)

if __name__ == "__main__":
    run(lambda: main(EXERCISE))
