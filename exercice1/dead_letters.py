"""Montre les lettres mortes de csv-topic-dlq, et renvoie celles qui sont réparées.

    python dead_letters.py --summary             combien restent, par raison
    python dead_letters.py > lettres.jsonl       une ligne JSON par lettre : origine, raison, octets
    python dead_letters.py --resend lettres.jsonl
    python dead_letters.py --done lettres.jsonl  les classe sans rien renvoyer

Pour réparer, remplacez « valeur », la ligne du CSV, par l'objet JSON qu'elle aurait dû donner.
Garantit : une lettre n'est renvoyée que si c'est un objet JSON ; toutes le sont, en une transaction
Kafka, ou aucune ; la même commande, relancée, n'en renvoie aucune deux fois.
Ensuite : consumer.py affiche ce qui est renvoyé. L'outil est dans commun/dead_letters.py.
"""

import json

from commun.cli import run
from commun.dead_letters import Exercise, Line, Ready, main
from commun.kafka import Headers
from exercice1.topic import TOPIC


def again(letter: Line) -> Ready:
    """L'objet JSON d'une lettre réparée, sous la clé de son fichier."""
    try:
        value = json.loads(letter["valeur"], parse_constant=_refused)  # NaN et Infinity ne sont pas du JSON
    except (ValueError, RecursionError) as error:
        raise ValueError("« valeur » est encore la ligne du CSV : un objet JSON est attendu") from error
    if not isinstance(value, dict) or not value:
        raise ValueError("un objet JSON est attendu")
    origin = [("source.file", letter.get("file")), ("source.line", letter.get("line"))]
    headers: Headers = [(name, str(text).encode()) for name, text in origin if text is not None]
    return letter.get("cle"), letter["valeur"].strip().encode(), headers  # tel que vous l'avez écrit


def _refused(word: str) -> None:
    raise ValueError(word)


EXERCISE = Exercise(__doc__, TOPIC, "CSV_TOPIC", again)

if __name__ == "__main__":
    run(lambda: main(EXERCISE))
