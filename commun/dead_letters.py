"""Les lettres mortes d'un exercice : les voir, les compter, renvoyer les réparées, classer les autres.

Une lettre se reconnaît à son origine (dlq.partition et dlq.offset, ou dlq.file et dlq.line) et à ses octets : répétée
après une coupure, c'est la même. Renvoyée ou classée, elle a sa marque dans « <topic>-dlq-traitees », un topic
compacté, dans la transaction Kafka même du renvoi : la même commande, relancée, n'envoie rien deux fois. Un seul
outil à la fois par topic : le second prend la place du premier, qui n'envoie alors rien.
"""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commun import START_HINT, Aborted, PipelineError
from commun.cli import Parser, Stop, Stopped
from commun.exactly_once import TransactionalProducer
from commun.kafka import Config, Headers, admin_config, client_config, connect, ensure_topics, kafka_options
from commun.topics import read_topic

from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

SUFFIX, MARKS_SUFFIX = "-dlq", "-dlq-traitees"
BROKERS_CHOICE = -1  # le nombre de copies que donne le cluster
MARKS_CONFIG = {"cleanup.policy": "compact"}
RESENT, CLOSED = "renvoyée", "classée"
NOT_THE_ORIGIN = ("reason", "time", "truncated", "contrat")
PRODUCER_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "transaction.timeout.ms": 60_000,  # toutes les lettres d'un fichier sont dans une transaction
    "message.timeout.ms": 60_000,
    "partitioner": "murmur2_random",  # comme les producteurs : une clé, une partition
    "compression.type": "lz4",
}
GUARANTEED = (
    "acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms", "message.timeout.ms", "partitioner",
)  # fmt: skip

Line = dict[str, Any]  # une lettre, telle qu'elle est montrée puis relue : origine, raison, « lettre », « valeur »
Ready = tuple[str | bytes | None, bytes, Headers]  # clé, valeur, en-têtes d'un message à renvoyer


class BadLetter(ValueError):
    """Cette lettre ne peut pas être renvoyée ; le texte dit pourquoi."""


@dataclass
class Exercise:
    """Ce qu'un exercice a de propre : son topic, et comment une lettre réparée redevient un message.

    ``again`` lève ValueError, avec la raison, si la lettre n'est pas réparée. ``others`` : des refus qui ne sont pas
    dans Kafka, dans la même forme.
    """

    doc: str
    topic: str
    env: str
    again: Callable[[Line], Ready]
    others: Callable[[], Iterable[Line]] = field(default=lambda: ())


# --- Une lettre ---


def as_line(message: Message) -> Line:
    """Une lettre en JSON : ses en-têtes ``dlq.…`` sans ce préfixe, et sa valeur (octets illisibles échappés)."""
    headers = {
        name.removeprefix("dlq."): value.decode("utf-8", "replace")
        for name, value in dict(message.headers() or []).items()
        if name.startswith("dlq.") and isinstance(value, bytes)
    }
    key = message.key()
    more = {"cle": key.decode("utf-8", "backslashreplace")} if isinstance(key, bytes) else {}
    return named(headers | more, message.value() or b"")


def named(headers: Line, value: bytes) -> Line:
    """La même, avec le nom (« lettre ») auquel on la reconnaîtra."""
    origin = sorted((name, text) for name, text in headers.items() if name not in NOT_THE_ORIGIN)
    name = hashlib.sha256(json.dumps(origin).encode() + value).hexdigest()[:12]
    return headers | {"lettre": name, "valeur": value.decode("utf-8", "backslashreplace")}


def name_of(letter: Line) -> str:
    """Le nom d'une lettre relue ; de celle que quelqu'un a écrite lui-même, un nom tiré de ses octets."""
    return str(letter.get("lettre") or named({}, letter["valeur"].encode())["lettre"])


def read_lines(path: Path) -> list[tuple[int, Line]]:
    """Les lettres d'un fichier, et leur ligne. Lève PipelineError s'il n'en est pas un."""
    found, seen = [], dict[str, str]()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # « splitlines » coupe aussi dans les textes (U+2028…)
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"Impossible de lire {path} : {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            letter = json.loads(line)
            if not isinstance(letter, dict) or not isinstance(letter["valeur"], str):
                raise TypeError
            name = name_of(letter)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PipelineError(f"{path}, ligne {number} : ce n'est pas une lettre. Rien n'est renvoyé.") from error
        if seen.setdefault(name, letter["valeur"]) != letter["valeur"]:
            raise PipelineError(
                f"{path}, ligne {number} : cette lettre y est deux fois, autrement. Rien n'est renvoyé."
            )
        found.append((number, letter))
    return found


def repaired(path: Path, again: Callable[[Line], Ready], topic: str) -> list[tuple[str, Ready]]:
    """Nom et message de chaque lettre du fichier ; PipelineError à la première qui n'est pas valide."""
    found = []
    for number, letter in read_lines(path):
        try:
            if letter.get("topic", topic) != topic:
                raise BadLetter(f"cette lettre vient de {letter['topic']}, pas de {topic}")
            found.append((name_of(letter), again(letter)))
        except ValueError as error:
            raise PipelineError(f"{path}, ligne {number} : {error}. Rien n'est renvoyé.") from error
    return found


# --- Les topics ---


class Letters:
    """Les lettres d'un topic, et les marques de celles qui sont traitées."""

    def __init__(self, config: Config, topic: str, stop: Stop) -> None:
        self.config, self.topic, self.stop = config, topic, stop
        self.marks_topic = topic + MARKS_SUFFIX

    def _messages(self, topic: str) -> Iterator[Message]:
        try:
            known = connect(AdminClient, admin_config(self.config)).list_topics(timeout=10).topics
        except KafkaException as error:
            servers = self.config["bootstrap.servers"]
            raise PipelineError(f"Kafka ne répond pas sur {servers} : {START_HINT}.") from error
        return read_topic(self.config, topic, known[topic].partitions if topic in known else [], self.stop)

    def marks(self) -> dict[str, str]:
        """Ce qui est fait de chaque lettre traitée."""
        return {
            (message.key() or b"").decode(): (message.value() or b"").decode()
            for message in self._messages(self.marks_topic)
        }

    def read(self) -> Iterator[Line]:
        """Les lettres, chacune une fois, dans l'ordre."""
        seen = set[str]()
        for message in self._messages(self.topic + SUFFIX):
            line = as_line(message)
            if line["lettre"] not in seen:
                seen.add(line["lettre"])
                yield line

    def settle(self, ready: Sequence[tuple[str, Ready | None]]) -> int:
        """Renvoie ces lettres (None : les classe), et les marque, en une transaction ; renvoie combien.

        Celles qui ont déjà leur marque sont passées. Lève PipelineError si Kafka ne confirme pas : rien n'est fait.
        """
        ensure_topics(self.config, NewTopic(self.marks_topic, 1, BROKERS_CHOICE, config=MARKS_CONFIG))
        try:
            identity = {"transactional.id": f"dead-letters-{self.topic}"}
            # D'abord : ce qu'un autre outil avait en vol est annulé, les marques ne bougent plus.
            with closing(TransactionalProducer(self.config | identity, self.stop)) as producer:
                marks = self.marks()
                left = {name: message for name, message in ready if name not in marks}
                for name, message in left.items():
                    if message:
                        key, value, headers = message
                        producer.write(self.topic, value, key, headers)
                    producer.write(self.marks_topic, (RESENT if message else CLOSED).encode(), name)
                if left:
                    producer.commit()
        except (Stopped, Aborted) as error:
            raise PipelineError("Kafka n'a pas confirmé : rien n'est renvoyé. Relancez la même commande.") from error
        return len(left)


# --- La commande ---


def parse_options(exercise: Exercise, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options, les mêmes dans les trois exercices."""
    parser = Parser(exercise.doc)
    parser.option("--topic", env=exercise.env, default=exercise.topic, help="topic dont on lit les lettres mortes")
    kafka_options(parser)
    parser.option("--summary", action="store_true", help="combien restent, par raison")
    parser.option("--reason", metavar="TEXTE", help="seulement les lettres dont la raison contient ce texte")
    parser.option("--all", action="store_true", help="aussi les lettres traitées, avec ce qui en a été fait")
    parser.option("--resend", type=Path, metavar="FICHIER", help="renvoie les lettres réparées de ce fichier")
    parser.option("--done", type=Path, metavar="FICHIER", help="classe les lettres de ce fichier sans les renvoyer")
    args = parser.parse(argv)
    if args.resend and args.done:
        parser.error("--resend et --done : l'un ou l'autre")
    return args


def main(exercise: Exercise, argv: Sequence[str] | None = None) -> int:
    """Point d'entrée d'un dead_letters.py."""
    args = parse_options(exercise, argv)
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    letters = Letters(config, args.topic, Stop())
    if args.resend or args.done:
        ready: list[tuple[str, Ready | None]] = []
        if args.resend:
            ready += repaired(args.resend, exercise.again, args.topic)
        if args.done:
            ready += [(name_of(letter), None) for _, letter in read_lines(args.done)]
        count = letters.settle(ready)
        what = f"renvoyées dans {args.topic}" if args.resend else "classées"
        log.info("%d lettres %s, %d déjà traitées.", count, what, len(ready) - count)
        return 0
    marks = letters.marks()
    wanted = [
        line | ({"traitee": marks[line["lettre"]]} if line["lettre"] in marks else {})
        for line in (*letters.read(), *exercise.others())
        if (args.all or line["lettre"] not in marks) and (args.reason or "") in line.get("reason", "")
    ]
    if args.summary:
        show_summary(wanted, args.topic)
    else:
        for line in wanted:
            print(json.dumps(line, ensure_ascii=False))
        if not wanted:
            log.info("Aucune lettre morte à traiter dans %s%s.", args.topic, SUFFIX)
    return 0


def show_summary(lines: Sequence[Line], topic: str) -> None:
    """Les lettres par raison, les plus nombreuses d'abord."""
    reasons = Counter(line.get("reason", "sans raison") for line in lines)
    for reason, count in reasons.most_common():
        print(f"{count:>8}  {reason}")
    print(f"{len(lines):>8}  lettres de {topic} à traiter")
