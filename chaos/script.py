"""Un script des exercices, qu'on peut tuer, geler et relancer."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from commun import PipelineError
from commun.cli import Stop
from commun.kafka import admin_config, client_config
from commun.settings import ROOT
from commun.topics import read_topic

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

END_SECONDS = 120.0


class Trial(NamedTuple):
    """Ce qu'un essai partage : le hasard des pannes, l'arrêt, le dossier des journaux, les ventes par seconde."""

    dice: random.Random
    stop: Stop
    logs: Path
    rate: float


class NotDoneError(Exception):
    """La panne voulue n'a pas eu lieu."""


class Script:
    """Un script en marche ; ce qu'il dit va dans ``log_path``."""

    def __init__(self, log_path: Path, script: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.log_path, self.path, self.options = log_path, ROOT / script, list(options)
        self.env = os.environ | (env or {})
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, self.path.name, *self.options]
        with self.log_path.open("ab") as file:
            return subprocess.Popen(command, cwd=self.path.parent, env=self.env, stdout=file, stderr=file)

    def refuse_dead(self) -> None:
        """Lève PipelineError s'il s'est arrêté de lui-même : ce n'est pas une panne qu'on lui a faite."""
        if (code := self.process.poll()) is not None:
            raise PipelineError(f"{self.path.name} s'est arrêté de lui-même (code {code}) : lisez {self.log_path}.")

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Le relance, tué."""
        self.process = self._start()

    def kill_then_restart(self, stop: Stop, seconds: float) -> None:
        """Tué, puis relancé ``seconds`` plus tard."""
        self.kill()
        stop.wait(seconds)
        self.restart()

    def freeze_then_wake(self, stop: Stop, seconds: float) -> None:
        """Gelé ``seconds``, puis réveillé."""
        self.process.send_signal(signal.SIGSTOP)
        stop.wait(seconds)
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Arrêt propre, qui doit finir par le code 0. Lève PipelineError sinon."""
        self.refuse_dead()
        self.process.terminate()
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise PipelineError(f"{self.path.name} est sourd à l'arrêt : lisez {self.log_path}.") from None
        if code:
            raise PipelineError(f"{self.path.name} s'est arrêté avec le code {code} : lisez {self.log_path}.")


def services(*command: str) -> None:
    """« python -m services … », pour casser et réparer.

    Lève NotDoneError si une panne n'a pas eu lieu, PipelineError si une réparation échoue.
    """
    words = [sys.executable, "-m", "services", *command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise PipelineError(why) if command[0] in ("up", "restart", "resume") else NotDoneError(why)


def written(topic: str) -> int:
    """Messages écrits dans un topic depuis sa création ; -1 si Kafka ne le dit pas."""
    consumer = Consumer(admin_config(client_config({})) | {"group.id": topic})
    try:
        partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        return sum(consumer.get_watermark_offsets(TopicPartition(topic, number), 5)[1] for number in partitions)
    except KafkaException:
        return -1
    finally:
        consumer.close()


def messages(topic: str) -> Iterator[Message]:
    """Messages d'un topic, lisibles en read_committed, dans l'ordre de chaque partition."""
    config = client_config({})
    partitions = AdminClient(admin_config(config)).list_topics(topic, timeout=30).topics[topic].partitions
    return read_topic(config, topic, partitions)
