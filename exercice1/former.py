"""Retrouve, dans le dossier, ce que le fichier suivi a été : renommé, tourné plusieurs fois, copié puis vidé.

Un fichier est reconnu à son numéro (inode) et à son contenu (Mark), jamais à son nom seul ; son nom dit seulement s'il
peut être une rotation. N'est ouvert que ce que personne d'autre ne lit.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from commun.csv_header import Header
from exercice1 import rotation
from exercice1.fingerprint import Identity, Mark, Saved, identity_of, matches, still_true
from exercice1.reading import OpenCsv, open_regular

if TYPE_CHECKING:
    from exercice1.follow import Follower

log = logging.getLogger("pipeline")

UNREAD = Mark(0, 0, False, "")  # rien n'en est lu

Known = tuple[tuple[Mark, ...], bool]  # jusqu'où un fichier est lu ; vrai s'il n'a pas d'en-tête à lui


class Others:
    """Ce que l'on sait des autres fichiers suivis ; ici, aucun. Voir files.Files."""

    def available(self, identity: Identity, asking: "Follower") -> bool:
        """Vrai si ``asking`` peut lire ce fichier : nul autre ne le lit, ou il le lui cède."""
        return True

    def known(self, inode: int) -> Iterable[Known]:
        """Tout ce qui a été lu sous ce numéro, sous n'importe quel nom."""
        return ()

    def copied(self, path: Path, file: BinaryIO) -> Known | None:
        """Jusqu'où ``file``, qui a le nom ``path``, est la copie d'un fichier lu ; None : attendre pour le dire."""
        return (), False

    def header_of(self, path: Path) -> Header | None:
        """L'en-tête d'un fichier dont ``path`` porte le nom, tourné : le sien, s'il n'en a pas."""
        return None


class Search:
    """Les fichiers que le nom suivi par ``reader`` a désignés, ouverts là où leur lecture reprend."""

    def __init__(self, reader: "Follower") -> None:
        self.reader, self.others = reader, reader.others

    def already_read(self, file: BinaryIO) -> Known:
        """Jusqu'où ce fichier a déjà été lu, sous n'importe quel nom ; rien s'il ne l'a jamais été."""
        inode = os.fstat(file.fileno()).st_ino
        everything = (*self.reader.known(inode), *self.others.known(inode))
        true = [known for known in everything if known[0] and matches(file, known[0][-1])]
        return max(true, key=lambda known: known[0][-1].offset, default=((), False))

    def current(self) -> OpenCsv | None:
        """Notre nom désigne un autre fichier, ou rien : celui que nous lisions, s'il n'est pas déjà retrouvé."""
        saved = self.reader.saved
        if not saved.marks or saved.inode is None or self.reader.has_left():
            return None
        file = self._find(saved.inode, saved.marks[-1], bare=saved.bare)
        if file is None:
            return None
        marks, bare = self.already_read(file)  # un autre nom a pu le lire plus loin
        return self._open(file, marks, bare)

    def left(self) -> Iterator[OpenCsv]:
        """Les fichiers quittés, où quelqu'un a pu écrire depuis."""
        for past in self.reader.past:
            if past.inode != self.reader.saved.inode and (file := self._find(past.inode, past.mark, bare=past.bare)):
                furthest, _ = self.already_read(file)  # un autre nom a pu le lire depuis
                start = furthest[-1].offset if furthest else 0
                if start == past.mark.offset < os.fstat(file.fileno()).st_size:
                    yield self._open(file, furthest, past.bare)
                else:
                    file.close()

    def missed(self, new: BinaryIO, *, since: int | None = None, most: int | None = None) -> list[OpenCsv]:
        """Plusieurs rotations d'un coup : les fichiers nés et renommés entre celui que nous lisions et ``new``.

        Le plus ancien d'abord. ``since`` : nés depuis cette date, en nanosecondes ; ``most`` : rien s'il y en a plus.
        """
        real, since = self._folders()[0], since or self.reader.since
        entries = [entry for entry in rotation.neighbours(real) if entry.inode() != os.fstat(new.fileno()).st_ino]
        ours = next((entry.name for entry in entries if entry.inode() == self.reader.inode), "")
        by_stem = rotation.turned(ours, real.name) and not rotation.appended(ours, real.name)
        style = rotation.styles(ours, real.name)  # v-20261127.csv : ses pareils seulement, car v_2.csv est autre chose

        def is_turn(name: str) -> bool:
            return bool(rotation.styles(name, real.name) & style) if by_stem else rotation.appended(name, real.name)

        born = [entry for entry in entries if is_turn(entry.name) and since and entry.stat().st_mtime_ns >= since]
        found = dict[os.DirEntry[str], OpenCsv]()
        for entry in born:
            if file := self._free(entry.path):
                start, bare = self.already_read(file)
                if not start:
                    start, bare = self._copied_from(file)
                whole = start and start[-1].offset >= os.fstat(file.fileno()).st_size
                if whole or _archive_of(new, file):
                    file.close()
                else:
                    found[entry] = self._open(file, start, bare)
        if most is not None and len(found) > most:
            for missed in found.values():
                missed.file.close()
            return []
        for entry in (turns := rotation.in_order(found, ours, real.name)):
            log.info("%s est né pendant que je lisais %s : je le lis d'abord.", entry.path, self.reader.path)
        return [found[entry] for entry in turns]

    def copy(self, marks: Sequence[Mark]) -> BinaryIO | None:
        """La copie que l'on a faite de notre fichier avant de le vider (logrotate, copytruncate)."""
        real, since = self._folders()[0], self.reader.since
        turned = [entry for entry in rotation.neighbours(real) if rotation.turned(entry.name, real.name)]
        for entry in sorted(turned, key=lambda entry: -entry.stat().st_mtime_ns):
            if entry.stat().st_mtime_ns >= since and (file := self._free(entry.path)):
                if not self.already_read(file)[0] and matches(file, marks[-1]):
                    return file
                file.close()
        return None

    def _open(self, file: BinaryIO, marks: Sequence[Mark], bare: bool) -> OpenCsv:
        return OpenCsv(file, self.reader.form, marks, self.reader.header, bare)

    def _folders(self) -> list[Path]:
        """Les vrais chemins de ce nom, liens suivis : où il mène, et où il menait."""
        paths = (os.path.realpath(self.reader.path), self.reader.saved.real)
        return list(dict.fromkeys(Path(path) for path in paths if path))

    def _find(self, inode: int, mark: Mark, *, bare: bool) -> BinaryIO | None:
        """Le fichier de ce numéro et de ce contenu, s'il est dans le dossier sous un autre nom.

        N'en a-t-on lu que l'en-tête, ou rien, ce contenu ne prouve rien : il faut que ce nom soit celui d'une rotation.
        """
        for real in self._folders():
            for entry in rotation.neighbours(real):
                sure = mark.lines > (not bare) or rotation.turned(entry.name, real.name)
                if Path(entry.path) != real and entry.inode() == inode and sure and (file := self._free(entry.path)):
                    if mark == UNREAD or matches(file, mark):
                        return file
                    file.close()
        return None

    def _free(self, path: str) -> BinaryIO | None:
        """Ouvre ce fichier, si personne ne le lit, ni un autre ni nous."""
        try:
            file = open_regular(path)
        except OSError:
            return None
        if file is not None:
            identity = identity_of(os.fstat(file.fileno()))
            if identity not in self.reader.reading and self.others.available(identity, self.reader):
                return file
            file.close()
        return None

    def _copied_from(self, file: BinaryIO) -> Known:
        """Jusqu'où ``file`` est une copie de ce que nous avons lu."""
        sources = (self.reader.marks, self.reader.saved.marks)
        kept = max((still_true(file, tuple(marks)) for marks in sources), key=len)
        return (kept, self.reader.bare) if len(kept) > 1 else ((), False)


def known_in(saved: Saved, inode: int) -> Iterator[Known]:
    """Ce qu'une position dit du fichier de ce numéro."""
    if saved.inode == inode:
        yield saved.marks, saved.bare
    for past in saved.past:
        if past.inode == inode:
            yield (past.mark,), past.bare


def same_bytes(one: BinaryIO, other: BinaryIO, start: int, end: int) -> bool:
    """Vrai si ces octets des deux fichiers sont les mêmes."""
    one.seek(start)
    other.seek(start)
    while start < end:
        mine, its = (file.read(min(1 << 20, end - start)) for file in (one, other))
        if mine != its or not mine:
            return False
        start += len(mine)
    return True


def _archive_of(new: BinaryIO, file: BinaryIO) -> bool:
    """Vrai si ``file`` est le début de ``new``, et a plus d'une ligne."""
    file.seek(0)
    file.readline()
    return bool(file.read(1)) and same_bytes(file, new, 0, os.fstat(file.fileno()).st_size)
