"""Des entrées abîmées au hasard, à chaque porte : une erreur prévue, ou une réponse ; jamais rien d'autre.

``make fuzz`` en essaie un million. Une porte est une fonction qui lit ce qu'un autre a écrit : fichier, message,
option. Chaque entrée est un exemple juste, où le hasard ôte, répète, change et ajoute des octets.
"""

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from unicodedata import category
from unittest import mock

from commun import PipelineError, cli, csv_header, csv_rows, dead_letters, group_positions, settings
from exercice1 import dead_letters as letters1
from exercice1 import display
from exercice1.fingerprint import Mark, Saved
from exercice1.reading import Format
from exercice2 import dead_letters as letters2
from exercice2 import kafka_monitor, transactions
from exercice2.fenetres import published
from exercice3 import confirmations, lots, rows, ventes
from exercice3 import dead_letters as letters3
from exercice3.verification import point

NOW, LOCAL_NOW = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2)
CHUNK = 2000  # entrées par tâche
ODD = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b'""', b"\r", b"\n", b"\\", b"\x1b[2J", b"\xc2\x85",
    "\u202e".encode(), "é".encode(), b"\xed\xa0\x80", b"\\ud800", b"null", b"true", b"NaN", b"-Infinity", b"1e999",
    b"1e308", b"-1", b"0", b"9" * 30, b"9" * 5000, b"[" * 2000, b"{", b"}", b",", b";", b":", b"sep=;\n", b"0001-01-01",
)  # fmt: skip
VENTE = (
    b'{"id": "0000002a-00000001", "produit": "P", "region": "R", "montant": 1.50, "date_vente": "2025-01-01 10:00:00"}'
)
TRANSACTION = transactions.to_json(next(transactions.generate(1, datetime(2026, 1, 1, tzinfo=UTC), 10.0)))
CSV = b'id,produit,montant\n1,"a ""b"", c",1.5\n2,"d\ne",2\n'
MANIFEST = b'{"fichier": "ventes_000001_x.csv", "lignes": 3, "sha256": "ab"}'
CONFIRMED = b'{"graine": 1, "de": 1, "jusque": 10, "corrections": 0}'
LETTER = b'{"valeur": "{}", "lettre": "abc", "raison": "r", "topic": "t", "partition": 0, "offset": 3}\n'
SAVED = Saved(3, (Mark(20, 1, False, "ab"),), (), ("id", "produit"), ",").encode()


def spoil(dice: random.Random, sample: bytes) -> bytes:
    """Un exemple, abîmé ; assez peu, le plus souvent, pour passer les premiers contrôles."""
    data = bytearray(sample)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice((1, 1, 2, 8, 40)))
        match dice.randrange(5):
            case 0:
                del data[at:end]
            case 1:
                data[at:at] = data[at:end]
            case 2:
                data[at:end] = dice.randbytes(end - at)
            case 3:
                data[at:at] = dice.choice(ODD)
            case 4:
                data[at:end] = dice.choice(ODD)
    return bytes(data)


# --- Les portes ---


def read_csv(data: bytes) -> None:
    """Un fichier CSV, en deux morceaux : rien n'est sauté, chaque enregistrement est une ligne ou un refus."""
    if (header := csv_header.read_header(data, csv_header.Options(), final=True)) is None:
        return
    parser = Format().parser(header, csv_rows.Place(header.size, header.lines))
    half = header.size + (len(data) - header.size) // 2
    taken = b"".join(
        parser.feed(part, final=last).taken for part, last in ((data[header.size : half], False), (data[half:], True))
    )
    if not data.startswith(data[: header.size] + taken):
        raise AssertionError("des octets ne sont plus dans l'ordre")


def read_manifest(data: bytes) -> None:
    """Le manifeste d'un lot."""
    path = _scratch() / "ventes_000001_x.csv"
    path.with_suffix(".json").write_bytes(data)
    lots.read_manifest(path)


def read_lot(data: bytes) -> None:
    """Le fichier d'un lot, tel que COPY le lira : chaque ligne rendue a le même nombre de champs."""
    found = rows.Rows(data.splitlines(keepends=True))
    while found.read():
        pass


def read_letters(data: bytes) -> None:
    """Un fichier de lettres réparées, renvoyées par chaque exercice."""
    path = _scratch() / "lettres.jsonl"
    path.write_bytes(data)
    for _, letter in dead_letters.read_lines(path):
        for again in (letters1.again, letters2.again, letters3.again):
            with suppress(ValueError):  # la lettre reste à réparer
                again(letter)


def read_env(data: bytes) -> None:
    """Le fichier .env."""
    (_scratch() / ".env").write_bytes(data)
    with mock.patch.object(settings, "ROOT", _scratch()):
        settings.defaults.__wrapped__()


BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def show(data: bytes) -> None:
    """Un message quelconque dans la console : rien n'y commande le terminal."""
    record = display.read(data, {"clé": data[:20]})
    display.as_json(record)
    lines = display.Table().lines([record])
    if any(category(character) == "Cc" or character in BIDI for line in lines for character in line):
        raise AssertionError("un caractère de commande")


def options(data: bytes) -> None:
    """Les valeurs d'options."""
    text = data.decode("utf-8", "surrogateescape")
    for convert in (
        cli.port, cli.positive(), cli.positive(float), cli.age, cli.moment, group_positions.reset_option,
        group_positions.offsets_option, published.alert_option,
        kafka_monitor.milliseconds, kafka_monitor.milliseconds_or_zero, kafka_monitor._slide,
    ):  # fmt: skip
        with suppress(argparse.ArgumentTypeError):
            convert(text)


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


Door = tuple[tuple[bytes, ...], Callable[[bytes], object], tuple[type[Exception], ...]]
DOORS: dict[str, Door] = {
    "fichier CSV": ((CSV, CSV.replace(b",", b";"), CSV.decode().encode("utf-16")), read_csv, (csv_header.HeaderError,)),
    "message de vente": ((VENTE,), lambda data: ventes.parse(data, LOCAL_NOW), (ventes.InvalidVente,)),
    "message de transaction": (
        (TRANSACTION,), lambda data: transactions.parse(data, NOW), (transactions.InvalidTransaction,),
    ),
    "manifeste": ((MANIFEST,), read_manifest, (lots.BadFile,)),
    "fichier d'un lot": (
        (b"id,produit,region,montant,date_vente\na,P,R,1.00,2025-01-01 10:00:00\n",), read_lot, (lots.BadFile,),
    ),
    "lettres réparées": ((LETTER, LETTER * 2), read_letters, (PipelineError,)),
    ".env": ((b"PORT_MONGO=27018\n# note\nMONGO_PASSWORD='a b'\n",), read_env, (PipelineError,)),
    "console": ((VENTE, CSV, b'{"a": {"b": [1, "\\n"]}}'), show, ()),
    "options": (
        (b"12", b"1.5", b"30d", b"2026-01-31T08:00Z", b"0:1500,3:12", b"montant_total > 10000", b"8083"), options, (),
    ),
    "position d'un fichier": ((SAVED,), Saved.decode, (PipelineError,)),
    "confirmations": (
        (CONFIRMED,), lambda data: confirmations.read_promises([data]), (),
    ),
    "point de contrôle": ((b'{"version": 1, "lot": 3}',), point.read_point, ()),
}  # fmt: skip


def batch(task: tuple[str, int, int]) -> tuple[str, int, list[str]]:
    """``count`` entrées d'une porte ; ce qui n'était pas prévu."""
    door, seed, count = task
    samples, enter, expected = DOORS[door]
    dice, found = random.Random(f"{door} {seed}"), []
    for _ in range(count):
        data = spoil(dice, dice.choice(samples))
        try:
            enter(data)
        except expected:
            continue
        except Exception as error:
            found.append(f"{door} : {data[:300]!r}\n  {type(error).__name__} : {str(error)[:200]}")
    return door, count, found


def tasks(count: int) -> Iterator[tuple[str, int, int]]:
    """``count`` entrées, partagées entre les portes."""
    each = -(-count // len(DOORS))
    for door in DOORS:
        for start in range(0, each, CHUNK):
            yield door, start, min(CHUNK, each - start)


def main() -> int:
    """« NOMBRE » d'entrées ; 1 si une seule n'a pas eu de réponse prévue."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with ProcessPoolExecutor() as pool:
        for door, count, found in pool.map(batch, tasks(int(sys.argv[1]))):
            counts[door] += count
            faults += found
    for door, count in counts.items():
        print(f"{door:<28}{cli.french_number(count):>12}")
    print(*faults[:12], sep="\n")
    print(f"{counts.total()} entrées, {len(faults)} fautes.")
    return bool(faults)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
