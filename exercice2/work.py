"""Le travail de consumer_resilient.py sur une transaction. Remplacez-le par le vôtre : --work MODULE:FONCTION.

Une telle fonction reçoit une Transaction et rend les champs à lui ajouter. Elle peut prendre son temps : le
membre reste dans son groupe. Elle lève TransientError si un nouvel essai peut réussir (un service
ne répond pas), InvalidTransaction si la transaction est à refuser pour de bon. Toute autre erreur est une
erreur de la fonction, pas de la transaction.
"""

import argparse
import importlib
import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from exercice2.transactions import InvalidTransaction, Transaction, enrich, parse, to_json

from confluent_kafka import Message

__all__ = ["Done", "TransientError", "Work", "do_work", "enrich", "flaky", "load_work", "slow"]

Work = Callable[[Transaction], dict[str, object]]

ON_ERROR = ("stop", "retry", "dead-letter")
OUTPUT_BYTES = 1_000_000  # ce qu'un topic accepte, sans réglage


class TransientError(Exception):
    """Le travail a échoué, mais un nouvel essai peut réussir ; le texte dit pourquoi, en une phrase."""


class Done(NamedTuple):
    """Le travail d'un message : une sortie, un refus (``reason``), un essai raté (``retry``), une erreur du travail."""

    message: Message
    key: str = ""
    output: bytes | None = None
    reason: str | None = None
    retry: str | None = None
    mistake: str | None = None


def do_work(work: Work, messages: list[Message], now: datetime, go_on: Callable[[], bool]) -> list[Done]:
    """Le travail de messages d'une même partition, dans l'ordre ; s'arrête au premier essai raté, ou à ``go_on``."""
    found: list[Done] = []
    for message in messages:
        if not go_on():
            break
        found.append(_do(work, message, now))
        if found[-1].retry or found[-1].mistake:
            break
    return found


def _do(work: Work, message: Message, now: datetime) -> Done:
    try:
        transaction = parse(message.value(), now)
        output = to_json(transaction, **work(transaction))
    except InvalidTransaction as error:
        return Done(message, reason=str(error))
    except TransientError as error:
        return Done(message, retry=str(error))
    except Exception as error:
        return Done(message, mistake=f"{type(error).__name__} : {error}")
    if len(output) > OUTPUT_BYTES:
        return Done(message, mistake=f"une sortie de {len(output)} octets, plus que {OUTPUT_BYTES}")
    return Done(message, transaction.compte, output)


def load_work(text: str) -> Work:
    """Type d'option : la fonction que désigne ``MODULE:FONCTION``."""
    module, _, name = text.partition(":")
    try:
        work: Work = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} : écrivez MODULE:FONCTION ({error})") from None
    return work


# --- Deux travaux d'exercice ---


def flaky(transaction: Transaction) -> dict[str, object]:
    """``enrich``, qui échoue une fois sur vingt : pour voir les nouveaux essais."""
    if random.random() < 0.05:  # noqa: S311 - une panne d'exercice
        raise TransientError("le service d'enrichissement ne répond pas")
    return enrich(transaction)


def slow(transaction: Transaction) -> dict[str, object]:
    """``enrich``, en une seconde : pour voir un travail lent garder sa place dans le groupe."""
    time.sleep(1)
    return enrich(transaction)
