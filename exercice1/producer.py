"""Surveille des fichiers CSV et envoie chaque ligne nouvelle dans Kafka (topic csv-topic), en JSON.

    python producer.py                        le fichier d'exemple, sans fin ; Ctrl-C pour arrêter
    python producer.py releves.csv --once     ce qui est dans ce fichier, puis s'arrête
    python producer.py dossier 'logs/*.csv'   plusieurs fichiers, les nouveaux aussi

Garantit : chaque ligne est une fois dans Kafka, dans l'ordre du fichier, pour qui lit en
read_committed, quoi qu'il arrive à ce script ou à Kafka : les lignes et la position atteinte
sont écrites dans une même transaction. Une ligne à moitié écrite attend d'être finie. Ce qui
n'est pas du CSV va dans csv-topic-dlq, octets compris, avec le fichier, la ligne et la raison.
Ne garantit pas : qu'une ligne déjà envoyée ne repart pas si vous la modifiez, elle ou une ligne
qui la précède : c'est une ligne nouvelle. Deux producer.py à la fois, sur deux
chemins du même fichier, l'envoient tous deux.
Ensuite : consumer.py montre ce topic. Le découpage du CSV est dans csv_header.py, la vie d'un
fichier (rotation, remplacement…) dans follow.py, l'envoi dans exactly_once.py.
"""

import argparse
import codecs
import csv
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from commun import PipelineError, csv_header
from commun.cli import Parser, Stop, french_number, positive, run
from commun.csv_header import HeaderError, Options
from commun.exactly_once import POSITIONS_CONFIG, Positions, refuse_several_partitions
from commun.kafka import client_config, ensure_topics, kafka_options
from commun.metrics import metrics_option, serve_metrics
from commun.systems import reason, write_out
from exercice1 import json_rows
from exercice1.files import Files
from exercice1.follow import ROTATE_WAIT
from exercice1.progress import Progress
from exercice1.reading import Format, OpenCsv, Rows, open_regular
from exercice1.sending import Counts, Sender
from exercice1.topic import MESSAGE_BYTES, PARTITIONS, REPLICATION_FACTOR, TOPIC, TOPIC_CONFIG

from confluent_kafka.cimpl import NewTopic

log = logging.getLogger("pipeline")

SAMPLE = Path(__file__).resolve().parent / "data" / "ventes.csv"
POLL_SECONDS = 0.02  # entre deux regards ; enchaînées sans pause, deux transactions se gênent
SCAN_SECONDS = 0.5  # entre deux recherches de fichiers nouveaux
REPORT_SECONDS = 1.0

PRODUCER_CONFIG = {
    "acks": "all",  # confirmé = écrit sur toutes les copies synchronisées (deux au moins)
    "enable.idempotence": True,  # un renvoi après une coupure ne crée ni doublon ni désordre
    "transaction.timeout.ms": 20_000,  # tué net et pas relancé, il ne bloque pas les lecteurs plus longtemps
    "message.max.bytes": MESSAGE_BYTES,
    "partitioner": "murmur2_random",  # une clé, une partition, donc un ordre ; le même choix que les clients Java
    "compression.type": "lz4",
    "linger.ms": 20,  # 20 ms d'attente font des lots ; la fin d'une transaction n'attend pas
    "batch.size": 1_000_000,
    "queue.buffering.max.kbytes": 131_072,  # borne la mémoire ; file pleine, on ralentit
    "delivery.report.only.error": True,  # la transaction confirme tout d'un coup
}
GUARANTEED = (
    "acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms", "delivery.report.only.error",
    "partitioner",
)  # fmt: skip


def watch(sender: Sender, stop: Stop, *, anew: bool, progress: Progress | None) -> None:
    """Sans fin : ce qui est nouveau part, puis on attend un peu."""
    scan_at = report_at = 0.0
    reported = Counts()
    while not stop:
        now = time.monotonic()
        if now >= scan_at:
            sender.scan(anew=anew and not scan_at)  # un fichier trouvé plus tard a pu être lu sous un autre nom
            scan_at = now + SCAN_SECONDS
        sender.send()
        if sender.total != reported and now >= report_at:
            reported, report_at = replace(sender.total), now + REPORT_SECONDS
            log.info("%s.", sender.total)
        if progress and now >= progress.next_at:
            progress.show(now)
        stop.wait(POLL_SECONDS)


def send_once(sender: Sender, stop: Stop, *, anew: bool) -> None:
    """--once : ce qui est là, la dernière ligne même sans fin de ligne. Lève PipelineError si un fichier manque."""
    sender.scan(anew=anew)
    while not stop and (sender.send() or sender.files.settling):
        if sender.files.settling:
            stop.wait(POLL_SECONDS)
        sender.scan(anew=False)
    while not stop and sender.send(final=True):
        pass
    if not stop and (sender.files.unread or not sender.files.followers):
        raise PipelineError(" ".join(sender.files.unread) or "Aucun fichier .csv à cet endroit.")


def show(files: Files) -> int:
    """--dry-run : chaque ligne en JSON sur la sortie, chaque refus sur la sortie d'erreur.

    Lève PipelineError, à la fin, pour les fichiers qui ne peuvent pas être lus.
    """
    total, unread = Counts(), list[str]()
    for path in files.find():
        try:
            for chunk in chunks(path, files.form):
                total.add(Counts(len(chunk.values), len(chunk.rejected)))
                write_out(b"".join(value + b"\n" for value, _ in chunk.values))
                for line, _, why in chunk.rejected:
                    log.warning("Serait une lettre morte (%s, ligne %d) : %s", path.name, line, why)
        except HeaderError as error:
            unread.append(f"{path} n'est pas lu : {error}.")
    counts = map(french_number, (total.sent, total.rejected))
    log.info("Rien n'est envoyé. Lignes qui partiraient : %s, lettres mortes : %s.", *counts)
    if unread:
        raise PipelineError(" ".join(unread))
    return 0


def chunks(path: Path, form: Format) -> Iterator[Rows]:
    """Tout un fichier, morceau par morceau. Lève HeaderError s'il ne peut pas être lu."""
    try:
        opened = open_regular(path)
    except OSError as error:
        raise HeaderError(reason(error)) from error
    if opened is None:
        raise HeaderError("il n'existe pas")
    with opened:
        source = OpenCsv(opened, form)
        while chunk := source.next_chunk(final=True):
            yield chunk


# --- Options ---


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} n'est pas un séparateur : un caractère, ou « tab »")
    return delimiter


def _encoding(text: str) -> str:
    try:
        if csv_header.readable(text):
            return codecs.lookup(text).name.replace("utf-8-sig", "utf-8")
    except LookupError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} ne convient pas : UTF-8, UTF-16 ou un encodage d'un octet par caractère (cp1252, latin-1…)"
    )


def _cells(text: str) -> list[str]:
    """Ce que des virgules séparent ; une virgule entre guillemets ne sépare rien."""
    return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True), [])]


def _types(text: str) -> dict[str, str]:
    pairs = [pair.rpartition(":")[::2] for pair in _cells(text)]
    types = dict(pairs)
    if not all(types) or len(types) < len(pairs) or not set(types.values()) <= json_rows.TYPES.keys():
        raise argparse.ArgumentTypeError(
            f"{text!r} : écrivez COLONNE:TYPE,… avec un type parmi {', '.join(json_rows.TYPES)}, chaque colonne une "
            "fois ; un nom qui a une virgule, entre guillemets : '\"Prix, EUR:decimal\",id:int'"
        )
    return types


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(_cells(text))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} : des noms différents, séparés par des virgules")
    return names


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options du script."""
    parser = Parser(__doc__)
    files = [name for name in os.environ.get("CSV_FILES", "").split(os.pathsep) if name] or [str(SAMPLE)]
    parser.add_argument(
        "files", nargs="*", default=files, metavar="FICHIER",
        help=f"fichiers, dossiers (leurs .csv) ou motifs [variable CSV_FILES, séparés par « {os.pathsep} » ; "
        "défaut : data/ventes.csv]",
    )  # fmt: skip
    parser.option("--topic", env="CSV_TOPIC", default=TOPIC, help="topic où écrire")
    kafka_options(parser)
    metrics_option(parser)
    parser.option("--key", env="CSV_KEY", metavar="COLONNE",
                  help="colonne qui sert de clé ; sans elle, le nom du fichier, qui garde son ordre")  # fmt: skip
    parser.option("--delimiter", env="CSV_DELIMITER", type=_delimiter, metavar="CARACTÈRE",
                  help="séparateur ; sans cette option, « , », « ; », tabulation ou « | » est reconnu")  # fmt: skip
    parser.option("--encoding", env="CSV_ENCODING", default="utf-8", type=_encoding,
                  help="encodage : utf-8 (une marque d'UTF-16 est reconnue), utf-16-le, cp1252, latin-1…")  # fmt: skip
    parser.option("--types", env="CSV_TYPES", type=_types, default={}, metavar="COLONNE:TYPE,…",
                  help=f"colonnes à convertir ({', '.join(json_rows.TYPES)}) ; sinon du texte")  # fmt: skip
    parser.option("--max-row-bytes", env="CSV_MAX_ROW_BYTES", type=positive(), default=csv_header.MAX_ROW_BYTES,
                  help="une ligne plus longue est une lettre morte")  # fmt: skip
    parser.option("--max-row-lines", env="CSV_MAX_ROW_LINES", type=positive(), default=csv_header.MAX_ROW_LINES,
                  help="un guillemet ouvert depuis plus de lignes n'est jamais fermé")  # fmt: skip
    parser.option("--columns", env="CSV_COLUMNS", type=_columns, default=(), metavar="NOM,…",
                  help="noms des colonnes de fichiers sans en-tête")  # fmt: skip
    parser.option("--no-header", action="store_true", help="fichiers sans en-tête : colonne_1, colonne_2…")
    parser.option("--on-header-change", choices=("auto", "header", "row", "refuse"), default="auto",
                  help="un fichier vidé ou remplacé commence autrement : auto (un en-tête, sauf s'il a l'air d'une "
                  "ligne), header, row (toujours une ligne) ou refuse")  # fmt: skip
    parser.option("--rotate-wait", type=positive(float, zero=True), default=ROTATE_WAIT,
                  help="secondes pendant lesquelles un fichier renommé est encore lu")  # fmt: skip
    parser.option("--dry-run", action="store_true",
                  help="sans Kafka : montre ce qui partirait, et pourquoi le reste serait refusé")  # fmt: skip
    parser.option("--progress", type=positive(float), metavar="S",
                  help="toutes les S secondes, où en est chaque fichier : table dans un terminal, sinon JSON",
                  )  # fmt: skip
    parser.option("--from-start", action="store_true", help="renvoie tout depuis le début des fichiers")
    parser.option("--once", action="store_true", help="envoie ce qui est là, puis s'arrête")
    args = parser.parse(argv)
    if args.progress and (args.once or args.dry_run):
        parser.error("--progress ne va ni avec --once, ni avec --dry-run")
    options = Options(
        args.encoding, args.delimiter, args.columns, args.no_header, args.max_row_bytes, args.max_row_lines
    )
    args.form = Format(options, args.types, args.key, args.on_header_change)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Point d'entrée."""
    args = parse_options(argv)
    files = Files(args.files, args.form, rotate_wait=args.rotate_wait, once=args.once)
    if args.dry_run:
        return show(files)
    stop = Stop()
    config = client_config(PRODUCER_CONFIG, GUARANTEED, args)
    ensure_topics(
        config,
        NewTopic(args.topic, PARTITIONS, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-dlq", 1, REPLICATION_FACTOR, config=TOPIC_CONFIG),
        NewTopic(f"{args.topic}-positions", 1, REPLICATION_FACTOR, config=POSITIONS_CONFIG),
    )
    refuse_several_partitions(config, args.topic)
    log.info("Surveillance de %s, envoi dans %s.", ", ".join(args.files), args.topic)
    with closing(Sender(files, Positions(config, args.topic, stop), args.topic, stop)) as sender:
        serve_metrics(args.metrics_port, sender.measures)
        if args.once:
            send_once(sender, stop, anew=args.from_start)
        else:
            watch(sender, stop, anew=args.from_start, progress=args.progress and Progress(sender, args.progress))
    log.info("Terminé. %s.", sender.total)
    return 0


if __name__ == "__main__":
    run(main)
