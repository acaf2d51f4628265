"""Des travaux d'essai pour consumer_resilient.py (--work tests.works:…)."""

import signal
import sys
import time
from collections import Counter

from exercice2.transactions import Transaction, enrich
from exercice2.work import TransientError

_tries: Counter[str] = Counter()


def fails_twice(transaction: Transaction) -> dict[str, object]:
    """Réussit au troisième essai d'une transaction sur dix."""
    _tries[transaction.id] += 1
    if transaction.id.endswith("0") and _tries[transaction.id] < 3:
        raise TransientError("pas encore")
    return enrich(transaction)


def never(transaction: Transaction) -> dict[str, object]:
    """Ne réussit jamais."""
    raise TransientError("jamais")


def mistaken(transaction: Transaction) -> dict[str, object]:
    """Se trompe."""
    return {"moyenne": 1 / 0}


def very_slow(transaction: Transaction) -> dict[str, object]:
    """Dure plus qu'une session (6 s) et qu'une transaction Kafka (10 s)."""
    time.sleep(12)
    return enrich(transaction)


def blocked(transaction: Transaction) -> dict[str, object]:
    """Ne rend jamais la main."""
    print("je suis bloqué", file=sys.stderr, flush=True)
    while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        time.sleep(0.05)
    print("un premier Ctrl-C est venu", file=sys.stderr, flush=True)
    time.sleep(3600)
    return {}
