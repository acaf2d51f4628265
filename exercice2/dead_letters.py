"""Montre les lettres mortes de transactions-topic-dlq, et renvoie celles qui sont réparées.

    python dead_letters.py                       une ligne JSON par lettre : origine, raison, octets
    python dead_letters.py --summary             combien restent, par raison
    python dead_letters.py > lettres.jsonl       … à réparer dans un éditeur : corrigez « valeur »
    python dead_letters.py --resend lettres.jsonl
    python dead_letters.py --done lettres.jsonl  les classe sans rien renvoyer

Garantit : une lettre n'est renvoyée que si elle est maintenant une transaction valide ; toutes le sont, en
une transaction Kafka, ou aucune ; la même commande, relancée, n'en renvoie aucune deux fois.
Ensuite : consumer_resilient.py traite ce qui est renvoyé, comme le reste. L'outil est dans
commun/dead_letters.py.
"""

import csv
from datetime import UTC, datetime

from commun.cli import run
from commun.contracts import TRANSACTION, header
from commun.dead_letters import Exercise, Line, Ready, main
from exercice2.topic import TOPIC
from exercice2.transactions import FIELDS, InvalidTransaction, Transaction, from_fields, parse, to_json


def again(letter: Line) -> Ready:
    """Le message d'une transaction réparée, sous la clé de son compte."""
    transaction = read_again(letter, datetime.now(UTC))
    return transaction.compte, to_json(transaction), [header(TRANSACTION)]


def read_again(letter: Line, now: datetime) -> Transaction:
    """La transaction d'une lettre : un message, ou une ligne de CSV si elle vient d'un fichier."""
    value = letter["valeur"]
    if "line" not in letter or value.lstrip().startswith("{"):
        return parse(value.encode(), now)
    try:
        rows = csv.reader([value], delimiter=";" if value.count(";") > value.count(",") else ",", strict=True)
        cells = next(rows, [])
    except csv.Error as error:
        raise InvalidTransaction(f"CSV illisible : {error}") from error
    if len(cells) != len(FIELDS):
        raise InvalidTransaction(f"{len(cells)} champs au lieu de {len(FIELDS)} ({', '.join(FIELDS)})")
    return from_fields(dict(zip(FIELDS, cells, strict=True)), now)


EXERCISE = Exercise(__doc__, TOPIC, "TRANSACTIONS_TOPIC", again)

if __name__ == "__main__":
    run(lambda: main(EXERCISE))
