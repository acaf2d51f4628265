"""Surveille des fichiers CSV et envoie chaque ligne nouvelle dans Kafka (topic csv-topic), en JSON.

    python producer.py                        le fichier d'exemple, sans fin ; Ctrl-C pour arrêter
    python producer.py releves.csv --once     ce qui est dans ce fichier, puis s'arrête
    python producer.py dossier 'logs/*.csv'   plusieurs fichiers, les nouveaux aussi

Garantit : chaque ligne est une fois dans Kafka, dans l'ordre du fichier, pour qui lit en
read_committed, quoi qu'il arrive à ce script ou à Kafka : les lignes et la position atteinte
sont écrites dans une même transaction. Une ligne à moitié écrite attend d'être finie. Ce qui
n'est pas du CSV va dans csv-topic-dlq, octets compris, avec le fichier, la ligne et la raison.
Ne garantit pas : qu'une ligne déjà envoyée ne repart pas si vous la modifiez, elle ou une ligne
qui la précède : c'est une ligne nouvelle. Deux chemins différents vers un même fichier sont deux
fichiers.
Ensuite : consumer.py montre ce topic. Le découpage du CSV est dans csv_tail.py, la vie d'un
fichier (rotation, remplacement…) dans follow.py, l'envoi dans exactly_once.py.
"""

import argparse
import glob
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka.cimpl import NewTopic

from commun.cli import Parser, Stop, french_number, positive, run
from commun.errors import PipelineError
from commun.kafka import client_config, ensure_topics
from commun.transaction import POSITIONS_CONFIG, Positions, Stopped
from exercice1 import csv_tail
from exercice1.csv_tail import Options
from exercice1.exactly_once import CsvSource, Fenced, load_saved
from exercice1.follow import Saved, identities, inherited, unreadable

log = logging.getLogger("pipeline")

TOPIC = "csv-topic"
SAMPLE = Path(__file__).resolve().parent / "data" / "ventes.csv"
PARTITIONS = 3
REPLICATION_FACTOR = 3
MESSAGE_BYTES = 33_554_432  # une ligne de 4 Mo, même si chaque octet prend six caractères en JSON
POLL_SECONDS = 0.02  # entre deux regards ; enchaînées sans pause, deux transactions se gênent
SCAN_SECONDS = 0.5  # entre deux recherches de fichiers nouveaux
REPORT_SECONDS = 1.0
TOPIC_CONFIG = {"retention.ms": "-1", "max.message.bytes": str(MESSAGE_BYTES)}  # rien ne s'efface au bout de sept jours

PRODUCER_CONFIG = {
    "acks": "all",  # confirmé = écrit sur toutes les copies synchronisées (deux au moins)
    "enable.idempotence": True,  # un renvoi après une coupure ne crée ni doublon ni désordre
    "transaction.timeout.ms": 20_000,  # tué net et pas relancé, il ne bloque pas les lecteurs plus longtemps
    "message.max.bytes": MESSAGE_BYTES,
    "partitioner": "murmur2_random",  # le même choix de partition que les clients Java
    "compression.type": "lz4",
    "linger.ms": 20,  # 20 ms d'attente font des lots ; la fin d'une transaction n'attend pas
    "batch.size": 1_000_000,
    "queue.buffering.max.kbytes": 131_072,  # borne la mémoire ; file pleine, on ralentit
    "delivery.report.only.error": True,  # la transaction confirme tout d'un coup
}
GUARANTEED = ("acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms", "delivery.report.only.error")


class Watch:
    """Les fichiers suivis : ceux que désignent les noms, dossiers et motifs de la ligne de commande."""

    def __init__(self, config: dict[str, Any], args: argparse.Namespace, stop: Stop) -> None:
        self.args = args
        self.positions = Positions(config, f"{args.topic}-positions", stop)
        self.sources: dict[Path, CsvSource] = {}
        self.fenced: set[Path] = set()
        self.unreadable: dict[Path, str] = {}  # ceux qui sont là mais ne s'ouvrent pas, et pourquoi

    def scan(self) -> None:
        """Prend en charge les fichiers nouveaux, à la place que Kafka a retenue."""
        followed = {source.follower.identity for source in self.sources.values()}
        new = [
            path
            for path in find(self.args.files)
            # Un fichier renommé est encore lu sous son ancien nom : on attend qu'il ne le soit plus.
            if path not in self.sources and path not in self.fenced and not followed & identities(path)
        ]
        new = [path for path in new if self._opens(path)]
        if not new:
            return
        self.positions.claim(*map(str, new))
        sources = {path: CsvSource(path, self.args.topic, self.args.options, self.positions) for path in new}
        # Relues après init_transactions : plus personne d'autre n'écrit les positions de ces fichiers.
        known = load_saved(self.positions)
        others = [*(source.follower.saved for source in self.sources.values()), *known.values()]
        for path, source in sources.items():
            self.sources[path] = source
            anew = self.args.from_start
            saved = Saved() if anew else known.get(str(path)) or inherited(path, others)
            self._unless_fenced(path, partial(source.start, saved, anew=anew))

    def _opens(self, path: Path) -> bool:
        """Vrai si ``path`` s'ouvre ou n'existe pas encore ; sinon il attend, et c'est dit une fois."""
        reason = unreadable(path)
        if reason is None:
            self.unreadable.pop(path, None)
        elif self.unreadable.get(path) != reason:
            self.unreadable[path] = reason
            log.warning("%s J'attends.", reason)
        return reason is None

    def _unless_fenced(self, path: Path, action: Callable[[], object]) -> bool:
        try:
            return bool(action())
        except Fenced:
            log.warning("Un autre producer.py suit maintenant %s : je le lui laisse.", path)
            self.fenced.add(path)
            self.sources.pop(path).close()
            if not self.sources:
                raise PipelineError("Plus aucun fichier à suivre : je m'arrête.") from None
            return False

    def send(self, *, final: bool = False) -> bool:
        """Un tour de tous les fichiers ; faux si aucun n'avait rien de nouveau."""
        return any(
            [
                self._unless_fenced(path, partial(source.send, time.monotonic(), final=final))
                for path, source in list(self.sources.items())
            ]
        )

    def close(self) -> None:
        """Ferme les fichiers, et annule ce qui serait encore en vol."""
        for source in self.sources.values():
            source.close()

    @property
    def settling(self) -> bool:
        """Vrai si un fichier est en train d'être réécrit."""
        return any(source.follower.settling for source in self.sources.values())

    @property
    def counts(self) -> tuple[int, int]:
        """Lignes envoyées, lettres mortes."""
        sources = self.sources.values()
        return sum(source.sent for source in sources), sum(source.rejected for source in sources)

    @property
    def unread(self) -> list[str]:
        """Pourquoi certains fichiers ne sont pas lus, une phrase par fichier."""
        followers = [source.follower for source in self.sources.values()]
        refused = [f.refused or f"{f.path} n'existe pas." for f in followers if f.refused or f.inode is None]
        return [*self.unreadable.values(), *refused]


def find(names: Sequence[str]) -> list[Path]:
    """Chemins absolus que désignent des noms : un fichier même absent, les .csv d'un dossier, un motif."""
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            paths += sorted(path.glob("*.csv"))
        elif glob.has_magic(name) and not path.exists():
            paths += sorted(Path(found) for found in glob.glob(name))
        else:
            paths.append(path)
    return list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))


def watch(watched: Watch, stop: Stop) -> None:
    """Sans fin : ce qui est nouveau part, puis on attend un peu."""
    scan_at = report_at = 0.0
    reported = (0, 0)
    while not stop:
        now = time.monotonic()
        if now >= scan_at:
            watched.scan()
            scan_at = now + SCAN_SECONDS
        watched.send()
        if watched.counts != reported and now >= report_at:
            reported, report_at = watched.counts, now + REPORT_SECONDS
            log.info("Lignes envoyées : %s, lettres mortes : %s.", *map(french_number, reported))
        stop.wait(POLL_SECONDS)


def send_once(watched: Watch, stop: Stop) -> None:
    """--once : ce qui est là, la dernière ligne même sans fin de ligne. Lève PipelineError si un fichier manque."""
    watched.scan()
    while not stop and (watched.send() or watched.settling):
        if watched.settling:
            stop.wait(POLL_SECONDS)
    while not stop and watched.send(final=True):
        pass
    if watched.unread or not watched.sources:
        raise PipelineError(" ".join(watched.unread) or "Aucun fichier .csv à cet endroit.")


# --- Options ---


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} n'est pas un séparateur : un caractère, ou « tab »")
    return delimiter


def _encoding(text: str) -> str:
    try:
        if csv_tail.byte_compatible(text):
            return "utf-8" if csv_tail.is_utf8(text) else text
    except LookupError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} ne convient pas : UTF-8 ou un encodage d'un octet par caractère (cp1252, latin-1…)"
    )


def _types(text: str) -> dict[str, str]:
    types = dict(pair.strip().rpartition(":")[::2] for pair in text.split(","))
    if not all(types) or not set(types.values()) <= csv_tail.TYPES.keys():
        raise argparse.ArgumentTypeError(
            f"{text!r} : écrivez COLONNE:TYPE,… avec un type parmi {', '.join(csv_tail.TYPES)}"
        )
    return types


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    files = os.environ.get("CSV_FILES", str(SAMPLE)).split(os.pathsep)
    parser.add_argument(
        "files", nargs="*", default=files, metavar="FICHIER",
        help=f"fichiers, dossiers (leurs .csv) ou motifs [variable CSV_FILES, séparés par « {os.pathsep} » ; "
        "défaut : data/ventes.csv]",
    )  # fmt: skip
    parser.option("--topic", env="CSV_TOPIC", default=TOPIC, help="topic où écrire")
    parser.option("--bootstrap-servers", env="KAFKA_BOOTSTRAP_SERVERS", help="adresses des brokers")
    parser.option("--key", env="CSV_KEY", metavar="COLONNE",
                  help="colonne qui sert de clé ; sans elle, le nom du fichier, qui garde son ordre")  # fmt: skip
    parser.option("--delimiter", env="CSV_DELIMITER", type=_delimiter, metavar="CARACTÈRE",
                  help="séparateur ; sans cette option, « , », « ; », tabulation ou « | » est reconnu")  # fmt: skip
    parser.option("--encoding", env="CSV_ENCODING", default="utf-8", type=_encoding,
                  help="encodage des fichiers : utf-8 (avec ou sans BOM), cp1252, latin-1…")  # fmt: skip
    parser.option("--types", env="CSV_TYPES", type=_types, default={}, metavar="COLONNE:TYPE,…",
                  help=f"colonnes à convertir ({', '.join(csv_tail.TYPES)}) ; sinon du texte")  # fmt: skip
    parser.option("--max-row-bytes", env="CSV_MAX_ROW_BYTES", type=positive(), default=csv_tail.MAX_ROW_BYTES,
                  help="une ligne plus longue est une lettre morte")  # fmt: skip
    parser.option("--max-row-lines", env="CSV_MAX_ROW_LINES", type=positive(), default=csv_tail.MAX_ROW_LINES,
                  help="un guillemet ouvert depuis plus de lignes n'est jamais fermé")  # fmt: skip
    parser.option("--from-start", action="store_true", help="renvoie tout depuis le début des fichiers")
    parser.option("--once", action="store_true", help="envoie ce qui est là, puis s'arrête")
    args = parser.parse(argv)
    args.options = Options(args.encoding, args.delimiter, args.types, args.key, args.max_row_bytes, args.max_row_lines)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    stop = Stop()
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args.bootstrap_servers)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-dlq", 1, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-positions", 1, REPLICATION_FACTOR, config=POSITIONS_CONFIG),
    )
    log.info("Surveillance de %s, envoi dans %s.", ", ".join(args.files), args.topic)
    with closing(Watch(config, args, stop)) as watched:
        try:
            send_once(watched, stop) if args.once else watch(watched, stop)
        except Stopped:
            log.warning("Arrêt sans réponse de Kafka : ce qui n'est pas confirmé repartira au prochain démarrage.")
    log.info("Terminé. Lignes envoyées : %s, lettres mortes : %s.", *map(french_number, watched.counts))
    return 0


if __name__ == "__main__":
    run(main)
