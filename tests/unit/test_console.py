"""Les options et les attentes de exercice1/consumer.py, sans Kafka."""

from unittest import mock

from exercice1 import consumer

import pytest
from confluent_kafka import TopicPartition


def test_joining_the_group_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """--idle-timeout compte à partir des premières partitions, ou du dernier message montré."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    reading, group = consumer.Reading(mock.Mock(), False, apart=False), mock.Mock()
    now = 60.0
    assert not reading.idle(2)
    reading.on_assign(group, [TopicPartition("t", 0)])
    now = 61.0
    assert not reading.idle(2)
    reading.remember(group, [mock.Mock(topic=lambda: "t", partition=lambda: 0, offset=lambda: 7)])
    now = 62.5
    assert not reading.idle(2)
    now = 64.0
    assert reading.idle(2)
