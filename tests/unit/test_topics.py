"""L'identité d'un topic : ce qui ne se demande plus quand le contrôleur du cluster est mort."""

import socket
from typing import Any

from commun import topics
from commun.topics import Identity
from tests.models.cluster import Answer, Named

import pytest
from confluent_kafka import KafkaError, KafkaException


class Admin:
    """Un client dont le seul broker est à ce port ; ``asked`` : combien de fois on lui a demandé l'identité."""

    def __init__(self, port: int) -> None:
        self.asked, self.fault = 0, KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self.host, self.port = "127.0.0.1", port
        self.brokers = {2: self}

    def list_topics(self, *_: Any) -> "Admin":
        """Le cluster."""
        return self

    def describe_topics(self, *_: Any, **__: Any) -> dict[str, Answer]:
        """Sans réponse la première fois."""
        self.asked += 1
        return {"t": Answer(Named("neuf"), self.fault if self.asked == 1 else None)}


def test_a_dead_controller_is_not_sought_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Une réponse a manqué : plus de demande tant qu'un broker refuse la connexion."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))  # pris, mais personne n'y écoute
        admin = Admin(port.getsockname()[1])
        monkeypatch.setattr(topics, "connect", lambda *_: admin)
        identity = Identity({}, "t")
        for _ in range(3):
            with pytest.raises(KafkaException):
                identity()
        assert admin.asked == 1
        port.listen()
        assert identity() == "neuf"
