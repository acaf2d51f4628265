"""Les mêmes vies que lives.py, devant un vrai Kafka : lecteurs tués en pleine transaction, barrés, remplacés.

``python -m tests.models.kafka_lives 100`` en vit cent sur la pile locale (« make services »).
"""

import json
import sys
import uuid
from dataclasses import dataclass

from commun.exactly_once import POSITIONS_CONFIG, Positions, open_producer
from commun.kafka import admin_config, client_config, ensure_topics
from commun.topics import read_topic
from exercice1.files import Files
from exercice1.reading import Format
from exercice1.sending import Sender
from tests.models.lives import Life, NoStop, run

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic


class KilledError(BaseException):
    """Le lecteur est tué à cet instant."""


@dataclass
class KafkaLife(Life):
    """Une vie dont le topic, les positions et les transactions sont vrais."""

    kills: int = 0  # lecteurs tués entre l'envoi et la validation
    bars: int = 0  # fois où Kafka a annulé la transaction d'un lecteur vivant

    def __post_init__(self) -> None:
        self.topic = f"vies-{uuid.uuid4().hex[:8]}"
        self.config = client_config({})
        self.topics = [self.topic, f"{self.topic}-dlq", f"{self.topic}-positions"]
        rows, letters, positions = self.topics
        ensure_topics(
            self.config,
            NewTopic(rows, 1, 3),
            NewTopic(letters, 1, 3),
            NewTopic(positions, 1, 3, config=POSITIONS_CONFIG),
        )
        super().__post_init__()

    def new_reader(self) -> Sender:
        """Un processus neuf : il s'annonce, et barre celui d'avant."""
        positions = Positions(self.config, self.topic, NoStop())  # type: ignore[arg-type]
        sender = Sender(Files(self.names, Format()), positions, self.topic, NoStop())  # type: ignore[arg-type]
        sender.clock = lambda: self.now
        return sender

    def send(self, *, fail: bool) -> None:
        """Une transaction du lecteur ; ``fail`` : Kafka l'annule, une fois sur quatre."""
        if fail and self.dice.random() < 1 / 4:
            self.bars += 1
            open_producer(self.config | {"transactional.id": self.reader.producer.name}, NoStop())  # type: ignore[arg-type]
        self.reader.send()

    def kill(self) -> None:
        """Tué net : une fois sur deux, ses lignes sont envoyées et sa transaction reste ouverte."""

        def die() -> None:
            raise KilledError

        if self.dice.random() < 1 / 2:
            self.scan()
            self.reader.producer.commit = die  # type: ignore[method-assign]
            try:
                self.reader.send()
            except KilledError:
                self.kills += 1
        super().kill()

    def count(self) -> None:
        """Ce que lit un consommateur read_committed."""
        messages = read_topic(self.config, self.topic, [0])
        self.kafka.rows = [json.loads(message.value() or b"") for message in messages]
        self.kafka.letters = [message.value() or b"" for message in read_topic(self.config, self.topics[1], [0])]
        super().count()

    def close(self) -> None:
        """Efface ses topics."""
        super().close()
        admin = AdminClient(admin_config(self.config))
        for done in admin.delete_topics(self.topics).values():
            done.result(20)


def main() -> int:
    """« NOMBRE [PREMIÈRE GRAINE] » : vit ces vies ; 1 s'il y a une faute."""
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    faults = kills = bars = rows = 0
    for seed in range(first, first + count):
        life, fault = run(seed, KafkaLife)
        assert isinstance(life, KafkaLife)
        kills, bars, rows = kills + life.kills, bars + life.bars, rows + len(life.kafka.rows)
        if fault:
            faults += 1
            print(fault, flush=True)
    print(
        f"{count} vies sur Kafka, {rows} lignes, {kills} morts en pleine transaction, {bars} barrés, {faults} fautes."
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
