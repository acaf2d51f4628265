"""Un réseau lent, coupé, ou dont une requête arrive trop tard, entre un producteur et les brokers."""

import argparse
import signal
import time
from collections import Counter

from chaos.network import Network
from commun.cli import NeverStopped
from commun.exactly_once import TransactionalProducer
from commun.kafka import client_config
from commun.settings import bootstrap_servers
from tests.lab import BankLab, create, generated, wait_until


def test_an_end_that_arrives_too_late(bank_lab: BankLab) -> None:
    """Une fin de transaction restée en route, redemandée, n'en valide pas une autre quand elle arrive enfin."""
    create(bank_lab.topic)
    with Network(bootstrap_servers()) as network:
        options = argparse.Namespace(bootstrap_servers=network.servers)
        written: list[bytes | None] = []
        config = {"transactional.id": bank_lab.topic, "on_delivery": lambda _, message: written.append(message.value())}
        producer = TransactionalProducer(client_config(config, (), options), NeverStopped())
        producer.write(bank_lab.topic, b"1")
        network.hold_end()
        producer.commit()
        assert network.held.is_set()
        producer.write(bank_lab.topic, b"2")

        def second_is_written() -> bool:
            producer.poll(0.1)
            return b"2" in written

        wait_until(second_is_written)
        network.release()
        wait_until(lambda: bool(network.answers))
        time.sleep(1)
        producer.abort()  # validée déjà, elle resterait ; et un lecteur n'attend plus sa fin
        seen = [message.value() for message in bank_lab.messages(bank_lab.topic)]
        assert set(network.ends) == {1}, "ce client sait distinguer deux fins : la fiche dit le contraire"
        assert seen == [b"1"], "validée par la fin de la précédente"
        producer.write(bank_lab.topic, b"3")
        producer.commit()
    assert [message.value() for message in bank_lab.messages(bank_lab.topic)] == [b"1", b"3"]


def test_slow_and_cut(bank_lab: BankLab) -> None:
    """Lent, coupé, une fin retardée : chaque transaction est sortie une fois."""
    with Network(bootstrap_servers()) as network:
        options = ("--generate", "--seed", "1", "--rate", "100", "--bootstrap-servers", network.servers)
        producer = bank_lab.start("producer_resilient", *options)

        def more() -> None:
            count = len(bank_lab.ids(bank_lab.topic))
            wait_until(lambda: len(bank_lab.ids(bank_lab.topic)) > count + 50, 60, lambda: producer.text)

        wait_until(lambda: "Envoi de" in producer.text, 60, lambda: producer.text)
        more()
        network.cut(2)
        more()
        network.seconds = 0.05
        more()
        network.hold_end()
        assert network.held.wait(60)
        more()
        network.release()
        network.seconds = 0.0
        more()
        assert producer.stop(signal.SIGINT) == 0
    found = Counter(bank_lab.ids(bank_lab.topic))
    assert found == generated(len(found))
