"""Le travail de consumer_resilient.py sur une transaction. Remplacez-le par le vôtre : --work MODULE:FONCTION.

Une fonction reçoit une Transaction et rend les champs à lui ajouter. Elle peut prendre son temps : le
membre reste dans son groupe. Elle lève TransientError si un nouvel essai peut réussir (un service
ne répond pas), InvalidTransaction si la transaction est à refuser pour de bon.
"""

import random
import time

from exercice2.transactions import Transaction, enrich

__all__ = ["TransientError", "enrich", "flaky", "slow"]


class TransientError(Exception):
    """Le travail a échoué, mais un nouvel essai peut réussir ; le texte dit pourquoi, en une phrase."""


def flaky(transaction: Transaction) -> dict[str, object]:
    """``enrich``, qui échoue une fois sur vingt : pour voir les nouveaux essais."""
    if random.random() < 0.05:  # noqa: S311 - une panne d'exercice
        raise TransientError("le service d'enrichissement ne répond pas")
    return enrich(transaction)


def slow(transaction: Transaction) -> dict[str, object]:
    """``enrich``, en une seconde : pour voir un travail lent garder sa place dans le groupe."""
    time.sleep(1)
    return enrich(transaction)
