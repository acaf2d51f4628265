"""Suit un fichier par son nom, à travers tout ce qui peut lui arriver : rotation, troncature, remplacement, retour.

Rien n'est demandé au noyau : le fichier est regardé plusieurs fois par seconde (inotify se tait
sur un montage de conteneur ou un système de fichiers en réseau). Ce qu'on en reconnaît :

- l'inode dit si le nom désigne toujours le même fichier ;
- la taille et la date disent s'il a changé ;
- un repère (Mark) dit si c'est encore le même contenu : l'empreinte des premiers octets du fichier
  et de ceux qui précèdent une place. Des repères sont gardés à plusieurs places, plus serrés vers la
  fin : un fichier modifié est repris juste avant la modification.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from commun.systems import open_shared
from exercice1.csv_tail import Chunk, Header, HeaderError, Options, Place, RowParser, read_header

log = logging.getLogger("pipeline")

CHUNK_BYTES = 262_144  # lus d'un coup
WINDOW_BYTES = 4096  # octets comptés dans une empreinte, au début du fichier et avant la place
MARKS = 24
PAST_FILES = 8
SETTLE_SECONDS = 0.5  # un fichier réécrit est jugé quand il n'a plus bougé depuis ce temps…
SETTLE_MAX_SECONDS = 5.0  # … ou au plus tard après celui-ci
MISSING_SECONDS = 0.25  # un fichier absent est cherché moins souvent
HINT_SECONDS = 2.0  # une dernière ligne inachevée depuis ce temps mérite une explication


Identity = tuple[int | None, int | None]  # périphérique (None : inconnu), inode (None : aucun fichier)


class Mark(NamedTuple):
    """Une place du fichier (octets, lignes, au milieu d'une ligne) et l'empreinte de ce qui la précède."""

    offset: int
    lines: int
    torn: bool
    digest: str


@dataclass(frozen=True)
class Saved:
    """Ce qu'il faut retenir d'un fichier pour en reprendre la lecture : c'est le message du topic des positions.

    ``past`` : fichiers que ce nom a désignés avant, et où leur lecture s'est arrêtée.
    ``session`` : l'exécution de producer.py qui a écrit cette position.
    """

    inode: int | None = None
    marks: tuple[Mark, ...] = ()
    past: tuple[tuple[int, Mark], ...] = ()
    session: str = ""


def _digest(head: bytes, window: bytes) -> str:
    return hashlib.blake2b(head + b"\0" + window, digest_size=8).hexdigest()


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def matches(file: BinaryIO, mark: Mark) -> bool:
    """Vrai si le contenu de ``file`` est encore celui que ``mark`` a vu."""
    size = min(WINDOW_BYTES, mark.offset)
    return _digest(_read_at(file, 0, size), _read_at(file, mark.offset - size, size)) == mark.digest


class OpenCsv:
    """Un fichier CSV ouvert, lu à partir du dernier de ``marks``, ou de son début."""

    def __init__(self, file: BinaryIO, options: Options, marks: Iterable[Mark]) -> None:
        self.file, self.options, self.marks = file, options, list(marks)
        stat = os.fstat(file.fileno())
        self.inode, self.identity = stat.st_ino, (stat.st_dev, stat.st_ino)
        self.parser: RowParser | None = None  # None tant que l'en-tête n'est pas lu
        self._read_to = 0
        self._head = self._window = b""

    def next_chunk(self, *, final: bool = False) -> Chunk | None:
        """Le morceau suivant, ou None s'il n'y a rien de nouveau. Lève HeaderError.

        Un en-tête lu pour la première fois est déjà une nouvelle : un morceau sans ligne.
        """
        unknown = not self.marks
        parser = self.parser or self._start(final)
        if parser is None:
            return None
        if unknown:
            return Chunk(parser.place)
        data = _read_at(self.file, self._read_to, CHUNK_BYTES)
        if not data and not (final and parser.pending):
            return None
        self._read_to += len(data)
        chunk = parser.feed(data, final=final and len(data) < CHUNK_BYTES)
        self._remember(chunk)
        return chunk

    def same_content(self) -> bool:
        """Vrai si rien de ce qui est déjà lu n'a changé ; l'inachevé, s'il a changé, est relu."""
        if self.marks and not matches(self.file, self.marks[-1]):
            return False
        if self.parser is not None:
            tail = self.pending[-WINDOW_BYTES:]
            if _read_at(self.file, self._read_to - len(tail), len(tail)) != tail:
                self.parser = RowParser(self.parser.header, self.options, self.parser.place)
                self._read_to = self.parser.place.offset
        return True

    @property
    def pending(self) -> bytes:
        """Ce qui est lu, mais inachevé."""
        return self.parser.pending if self.parser else b""

    def continues_in(self, other: BinaryIO, *, strictly: bool) -> bool:
        """Vrai si ``other`` commence par tout ce qui est déjà lu ; l'inachevé ne compte que si ``strictly``."""
        if not self.marks or not matches(other, self.marks[-1]):
            return False
        pending = self.pending
        return not strictly or _read_at(other, self.marks[-1].offset, len(pending)) == pending

    def hint(self, path: Path) -> str:
        """Ce que l'inachevé attend, en une phrase."""
        line = self.marks[-1].lines + 1
        if self.pending.count(b'"') % 2:
            return f"{path} : un guillemet ouvert à la ligne {line} attend sa fin."
        return f"{path} : la ligne {line} n'a pas encore de fin de ligne (touche Entrée), elle attend."

    def _start(self, final: bool) -> RowParser | None:
        """Lit l'en-tête ; None s'il n'est pas encore là."""
        header, data = self._read_header(final)
        if header is None:
            return None
        if not self.marks:
            data = data[: header.size]
            self._head, self._window = data[:WINDOW_BYTES], data[-WINDOW_BYTES:]
            self.marks = [Mark(header.size, header.lines, False, _digest(self._head, self._window))]
        mark = self.marks[-1]
        if not self._head:
            size = min(WINDOW_BYTES, mark.offset)
            self._head, self._window = _read_at(self.file, 0, size), _read_at(self.file, mark.offset - size, size)
        self._read_to = mark.offset
        self.parser = RowParser(header, self.options, Place(mark.offset, mark.lines, mark.torn))
        return self.parser

    def _read_header(self, final: bool) -> tuple[Header | None, bytes]:
        encoding, delimiter, size = self.options.encoding, self.options.delimiter, CHUNK_BYTES
        while True:
            data = _read_at(self.file, 0, size)
            whole = len(data) < size
            header = read_header(data, encoding, delimiter, final=final and whole)
            if header or whole:
                return header, data
            if size > self.options.max_row_bytes:
                raise HeaderError(f"son en-tête n'est pas fini au bout de {size} octets")
            size *= 2

    def _remember(self, chunk: Chunk) -> None:
        """Ajoute les repères des derniers enregistrements de ``chunk``."""
        past = self._window + chunk.taken
        start = chunk.place.offset - len(past)
        self._head += chunk.taken[: WINDOW_BYTES - len(self._head)]
        known = self.marks[-1].offset
        for place in chunk.boundaries:
            if place.offset > known:
                end = place.offset - start
                digest = _digest(self._head[: place.offset], past[max(0, end - WINDOW_BYTES) : end])
                self.marks.append(Mark(place.offset, place.lines, place.torn, digest))
        self._window = past[-WINDOW_BYTES:]
        while len(self.marks) > MARKS:
            del self.marks[1 : MARKS // 2 : 2]


class Follower:
    """La lecture d'un fichier désigné par son nom.

    ``read`` rend ce qui est nouveau ; ``confirm`` dit ensuite que Kafka l'a, ``rewind`` que non.
    ``saved`` : ce que Kafka sait de ce fichier ; sans rien, la lecture commence au début.
    """

    def __init__(self, path: Path, options: Options, saved: Saved | None = None) -> None:
        self.path, self.options = path, options
        self.saved = saved or Saved()
        self.past = self.saved.past
        self.refused: str | None = None  # pourquoi ce fichier n'est pas lu
        self.settling = False  # vrai pendant qu'on attend qu'un fichier réécrit se calme
        self._current: OpenCsv | None = None
        self._mtime = 0  # date du fichier quand son contenu a été vérifié, en nanosecondes
        self._unconfirmed = False
        self._disturbed = False  # ce qui est déjà lu a changé
        self._grown_at = self._retry_at = self._unsettled_at = self._seen_at = 0.0
        self._seen: tuple[int, ...] = ()
        self._said = ""

    @property
    def inode(self) -> int | None:
        """Inode du fichier en cours de lecture, ou du dernier qui l'a été."""
        return self._current.inode if self._current else self.saved.inode

    @property
    def identity(self) -> Identity:
        """Ce même fichier, avec son périphérique s'il est ouvert : deux disques ont les mêmes numéros d'inode."""
        return self._current.identity if self._current else (None, self.saved.inode)

    def read(self, now: float, *, final: bool = False) -> Chunk | None:
        """Le morceau suivant, ou None s'il n'y a rien de nouveau. ``now`` : une horloge monotone, en secondes.

        ``final`` : le fichier est pris pour terminé, sa dernière ligne inachevée est rendue aussi.
        """
        try:
            current = self._current or self._open(now)
            if current is None:
                return None
            chunk = self._read_on(current, now, final)
            if chunk is None and not self._disturbed and not self._unconfirmed:
                chunk = self._look_at_name(current, now)
            return chunk or self._new_place()
        except OSError as error:
            self._say(f"{self.path} ne peut pas être lu ({error.strerror}) : j'attends.", logging.WARNING)
            if not self._unconfirmed:
                self.close()
            return None

    def _new_place(self) -> Chunk | None:
        """Passer à un autre fichier, ou revenir en arrière, est déjà une nouvelle à retenir, même sans ligne."""
        if self._unconfirmed or not self._current or not self._current.marks:
            return None
        mark = self._current.marks[-1]
        if self.inode == self.saved.inode and mark in self.saved.marks[-1:]:
            return None
        self._unconfirmed = True
        return Chunk(Place(mark.offset, mark.lines, mark.torn))

    def snapshot(self, session: str) -> Saved:
        """Où en est la lecture : à écrire avec les lignes qui viennent d'être lues."""
        marks = self._current.marks if self._current else self.saved.marks
        return Saved(self.inode, tuple(marks), self.past, session)

    def confirm(self, saved: Saved) -> None:
        """Ce qui a été lu est dans Kafka, avec la position ``saved``."""
        self.saved, self._unconfirmed = saved, False

    def rewind(self, saved: Saved) -> None:
        """Ce qui a été lu n'est pas dans Kafka, qui en est à ``saved`` : la lecture reprend là."""
        if self._current and saved.inode in (None, self._current.inode):
            # Le fichier reste ouvert : effacé entre-temps, il est encore lisible.
            self._follow(OpenCsv(self._current.file, self.options, saved.marks))
        else:
            self.close()
        self.saved, self.past, self._unconfirmed = saved, saved.past, False

    def close(self) -> None:
        """Ferme le fichier ; la lecture suivante le rouvrira."""
        if self._current:
            self._current.file.close()
        self._current = None

    def _read_on(self, current: OpenCsv, now: float, final: bool) -> Chunk | None:
        """La suite du fichier ouvert, après avoir vérifié que ce qui précède n'a pas changé."""
        stat = os.fstat(current.file.fileno())
        if stat.st_mtime_ns != self._mtime:
            self._disturbed = not current.same_content()
            if self._disturbed:
                if not self._unconfirmed and self._settled(now, stat):
                    self._restart(current.file, current.marks, "a changé" if stat.st_size else "a été vidé")
                return None
            self.settling, self._mtime, self.refused = False, stat.st_mtime_ns, None
        if self.refused:
            return None
        known = current.parser is not None
        try:
            chunk = current.next_chunk(final=final)
        except HeaderError as error:
            self.refused = f"{self.path} n'est pas lu : {error}."
            self._say(self.refused, logging.ERROR)
            return None
        if current.parser and not known:
            names, delimiter = current.parser.header.names, current.parser.header.delimiter
            log.info("%s : %d colonnes (%s), séparateur %r.", self.path, len(names), ", ".join(names), delimiter)
        if chunk:
            self._grown_at, self._unconfirmed = now, True
        return chunk

    # --- Quel fichier ce nom désigne-t-il ? ---

    def _open(self, now: float) -> OpenCsv | None:
        """Ouvre le fichier à suivre ; None s'il faut encore attendre."""
        if now < self._retry_at:
            return None
        marks, file = self.saved.marks, _open_file(self.path)
        inode = os.fstat(file.fileno()).st_ino if file else None
        if inode != self.saved.inode and marks and (renamed := self._find_renamed()):
            log.info("%s a été renommé : j'en lis d'abord la fin.", self.path)
            self._follow(OpenCsv(renamed, self.options, marks))
        elif file is None:
            self._retry_at = now + MISSING_SECONDS
            self._say(f"{self.path} n'existe pas encore : je l'attends.")
        elif not marks or matches(file, marks[-1]):
            self._grown_at = now
            return self._follow(OpenCsv(file, self.options, marks))
        elif self._settled(now, os.fstat(file.fileno())):
            return self._restart(file, marks, "a changé pendant que je ne le lisais pas")
        if file is not None:
            file.close()
        return self._current

    def _find_renamed(self) -> BinaryIO | None:
        """Le fichier que nous lisions, s'il est dans le dossier sous un autre nom."""
        with os.scandir(self.path.parent) as entries:
            same = [entry.path for entry in entries if entry.inode() == self.saved.inode and entry.is_file()]
        for path in same:
            if (file := _open_file(Path(path))) is not None:
                if matches(file, self.saved.marks[-1]):
                    return file
                file.close()
        return None

    def _look_at_name(self, current: OpenCsv, now: float) -> Chunk | None:
        """Le fichier ouvert n'a rien de nouveau : son nom en désigne-t-il un autre ?"""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            self.settling = False
            self._say(f"{self.path} n'est plus là : j'attends son retour.")
            return None
        if (stat.st_dev, stat.st_ino) == current.identity:
            if current.pending and now - self._grown_at > HINT_SECONDS and not self.settling:
                self._say(current.hint(self.path))
            return None
        return self._change_file(current, now)

    def _change_file(self, current: OpenCsv, now: float) -> Chunk | None:
        """Passe au fichier que le nom désigne maintenant, après avoir rendu l'inachevé de celui qu'on quitte."""
        new = _open_file(self.path)
        if new is None:
            return None
        stat, renamed = os.fstat(new.fileno()), os.fstat(current.file.fileno()).st_nlink > 0
        if current.continues_in(new, strictly=renamed):
            log.info("%s a été remplacé, et commence comme avant : je continue.", self.path)
            self._past(current)
            self._follow(OpenCsv(new, self.options, current.marks))
            return None
        if stat.st_size and self._settled(now, stat):
            if not current.pending:
                self._past(current)
                self._restart(new, () if renamed else current.marks, "est un autre fichier")
                return None
            self._unconfirmed = True
            chunk = current.next_chunk(final=True)
        else:
            chunk = None
        new.close()
        return chunk

    def _past(self, left: OpenCsv) -> None:
        if left.marks:
            self.past = (*self.past, (left.inode, left.marks[-1]))[-PAST_FILES:]

    def _settled(self, now: float, stat: os.stat_result) -> bool:
        """Vrai quand un fichier réécrit ne bouge plus : avant, on n'en verrait qu'une partie."""
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if not self.settling:
            self.settling, self._unsettled_at = True, now
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        self.settling = now - self._seen_at < SETTLE_SECONDS and now - self._unsettled_at < SETTLE_MAX_SECONDS
        return not self.settling

    def _restart(self, file: BinaryIO, marks: Iterable[Mark], what: str) -> OpenCsv:
        """Reprend ``file`` après le dernier repère qui y est encore vrai, ou à son début."""
        kept = list(marks)
        while kept and not matches(file, kept[-1]):
            kept.pop()
        where = f"à la ligne {kept[-1].lines + 1}" if kept else "à son début"
        log.warning("%s %s : j'en reprends la lecture %s.", self.path, what, where)
        return self._follow(OpenCsv(file, self.options, kept))

    def _follow(self, current: OpenCsv) -> OpenCsv:
        if self._current and self._current.file is not current.file:
            self._current.file.close()
        self._current, self._mtime, self.refused, self._said = current, 0, None, ""
        self.settling = self._disturbed = False
        return current

    def _say(self, sentence: str, level: int = logging.INFO) -> None:
        """Dit une chose, sans la répéter tant que rien d'autre n'est dit."""
        if sentence != self._said:
            self._said = sentence
            log.log(level, "%s", sentence)


def _open_file(path: Path) -> BinaryIO | None:
    try:
        return open_shared(path)
    except FileNotFoundError:
        return None


def identities(path: Path) -> set[Identity]:
    """Identité du fichier que ``path`` désigne, avec et sans son périphérique ; vide s'il n'existe pas."""
    try:
        stat = path.stat()
    except OSError:
        return set()
    return {(stat.st_dev, stat.st_ino), (None, stat.st_ino)}


def unreadable(path: Path) -> str | None:
    """Pourquoi ``path``, qui existe, ne se lit pas : ses droits, ou un programme qui le tient (Excel) ; sinon None."""
    try:
        file = _open_file(path)
    except OSError as error:
        return f"{path} ne peut pas être lu ({error.strerror})."
    if file is not None:
        file.close()
    return None


def inherited(path: Path, known: Iterable[Saved]) -> Saved:
    """Où commencer un fichier dont le nom est nouveau : après ce qui en a été lu sous un autre nom.

    Une position vide : il n'a jamais été lu.
    """
    file = _open_file(path)
    if file is None:
        return Saved()
    with file:
        number = os.fstat(file.fileno()).st_ino
        for saved in known:
            for old, marks in ((saved.inode, saved.marks), *((old, (mark,)) for old, mark in saved.past)):
                if old == number and marks and matches(file, marks[-1]):
                    return Saved(number, marks)
    return Saved()
