"""À quoi l'on reconnaît un fichier déjà lu : son inode, et des empreintes de son contenu ; ce qu'on en retient."""

import hashlib
import os
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from commun.csv_header import Header
from commun.exactly_once import read_position

import msgspec

WINDOW_BYTES = 4096  # octets comptés dans une empreinte, au début du fichier et avant la place
PAST_FILES = 8
NAMES_BYTES = 524_288  # les noms de colonnes sont dans la position, dont Kafka refuserait un message de plus d'1 Mo

Identity = tuple[int, int]  # périphérique, inode


class Mark(NamedTuple):
    """Une place du fichier (octets, lignes, au milieu d'une ligne) et l'empreinte de ce qui la précède.

    Rien ne la précède, ou des octets nuls : l'empreinte est vide, et ne prouve rien.
    """

    offset: int
    lines: int
    torn: bool
    digest: str


class Past(NamedTuple):
    """Un fichier que ce nom a désigné avant, et où sa lecture en est. ``bare`` : il n'a pas d'en-tête à lui."""

    inode: int
    mark: Mark
    bare: bool = False


@dataclass(frozen=True)
class Saved:
    """Ce qu'il faut retenir d'un fichier pour en reprendre la lecture : c'est le message du topic des positions.

    ``bare`` : le fichier n'a pas d'en-tête, celui du fichier d'avant (``names``, ``delimiter``, ``encoding``,
    ``spaced``) sert encore.
    ``real`` : le chemin du fichier lu, liens symboliques suivis ; ``mtime`` : sa date, en nanosecondes.
    """

    inode: int | None = None
    marks: tuple[Mark, ...] = ()
    past: tuple[Past, ...] = ()
    names: tuple[str, ...] = ()
    delimiter: str = ""
    bare: bool = False
    real: str = ""
    mtime: int = 0
    encoding: str = ""
    spaced: bool = False

    def header(self, encoding: str) -> Header | None:
        """L'en-tête retenu, ou None ; ``encoding`` : celui d'une position qui ne le dit pas."""
        if not self.names:
            return None
        return Header(self.names, self.delimiter, encoding=self.encoding or encoding, spaced=self.spaced)

    def under(self, header: Header) -> "Saved":
        """La même position, et cet en-tête."""
        names = {"names": header.names, "delimiter": header.delimiter}
        return replace(self, **names, encoding=header.encoding, spaced=header.spaced)  # type: ignore[arg-type]

    def encode(self) -> bytes:
        """Le message du topic des positions."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(value: bytes) -> "Saved":
        """Le retour ; lève PipelineError si ce n'en est pas une."""
        return read_position(value, Saved)


def too_many_names(header: Header) -> bool:
    """Vrai si la position d'un fichier de cet en-tête pourrait ne pas tenir dans un message."""
    return len(msgspec.json.encode(header.names)) > NAMES_BYTES


def digest(head: bytes, window: bytes) -> str:
    """Empreinte d'une place : les premiers octets du fichier, et ceux qui la précèdent."""
    return hashlib.blake2b(head + b"\0" + window, digest_size=8).hexdigest()


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """``size`` octets à partir de ``offset`` ; moins à la fin du fichier."""
    file.seek(offset)
    return file.read(size)


def windows(file: BinaryIO, offset: int) -> tuple[bytes, bytes]:
    """Ce que compte l'empreinte d'une place : les premiers octets, et ceux qui la précèdent."""
    size = min(WINDOW_BYTES, offset)
    return read_at(file, 0, size), read_at(file, offset - size, size)


def matches(file: BinaryIO, mark: Mark) -> bool:
    """Vrai si le contenu de ``file`` est encore celui que ``mark`` a vu ; faux si elle n'en a rien vu."""
    return bool(mark.digest) and digest(*windows(file, mark.offset)) == mark.digest


def still_true(file: BinaryIO, marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    """Ceux de ``marks`` jusqu'au dernier qui est encore vrai dans ``file``."""
    for count in range(len(marks), 0, -1):
        if matches(file, marks[count - 1]):
            return marks[:count]
    return ()


def identity_of(stat: os.stat_result) -> Identity:
    """Ce qui désigne un fichier sur cette machine, quel que soit son nom : deux disques ont les mêmes inodes."""
    return stat.st_dev, stat.st_ino
