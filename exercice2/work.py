"""Le travail de consumer_resilient.py sur une transaction. Remplacez-le par le vôtre : --work MODULE:FONCTION.

Une telle fonction reçoit une Transaction et rend les champs à lui ajouter. Elle peut prendre son temps : le
membre reste dans son groupe. Elle lève TransientError si un nouvel essai peut réussir (un service
ne répond pas), InvalidTransaction si la transaction est à refuser pour de bon.
"""

import argparse
import importlib
import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from confluent_kafka import Message

from exercice2.transactions import InvalidTransaction, Transaction, enrich, parse, to_json

__all__ = ["Outcome", "TransientError", "Work", "do_work", "enrich", "flaky", "load_work", "slow"]

Work = Callable[[Transaction], dict[str, object]]


class TransientError(Exception):
    """Le travail a échoué, mais un nouvel essai peut réussir ; le texte dit pourquoi, en une phrase."""


class Outcome(NamedTuple):
    """Ce que le travail a donné pour un message : une sortie, un refus (``reason``), ou un essai raté (``retry``)."""

    message: Message
    key: str = ""
    output: bytes | None = None
    reason: str | None = None
    retry: str | None = None


def do_work(work: Work, messages: list[Message], now: datetime, go_on: Callable[[], bool]) -> list[Outcome]:
    """Le travail de messages d'une même partition, dans l'ordre ; s'arrête au premier essai raté, ou à ``go_on``."""
    outcomes: list[Outcome] = []
    for message in messages:
        if not go_on():
            break
        try:
            transaction = parse(message.value(), now)
            outcomes.append(Outcome(message, transaction.compte, to_json(transaction, **work(transaction))))
        except InvalidTransaction as error:
            outcomes.append(Outcome(message, reason=str(error)))
        except TransientError as error:
            outcomes.append(Outcome(message, retry=str(error)))
            break
        except Exception as error:
            outcomes.append(Outcome(message, reason=f"{type(error).__name__} : {error}"))
    return outcomes


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
