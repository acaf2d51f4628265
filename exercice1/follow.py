"""Suit un fichier par son nom, à travers tout ce qui peut lui arriver : rotation, troncature, remplacement, retour.

Rien n'est demandé au noyau : le fichier est regardé plusieurs fois par seconde (inotify se tait
sur un montage de conteneur ou un système de fichiers en réseau). Ce qu'on en reconnaît :

- l'inode dit si le nom désigne toujours le même fichier ;
- la taille et la date disent s'il a changé ; une date de moins de deux secondes ne dit rien, car certains
  systèmes de fichiers ne comptent qu'en secondes : le contenu est alors comparé ;
- un repère (Mark) dit si c'est encore le même contenu : l'empreinte des premiers octets du fichier
  et de ceux qui précèdent une place. Des repères sont gardés à plusieurs places, plus serrés vers la
  fin : un fichier modifié est repris juste avant la modification.

Un fichier que son nom ne désigne plus est encore lu pendant ``rotate_wait`` : qui y écrivait peut finir.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import BinaryIO

from commun.csv_header import Header, HeaderError
from commun.csv_rows import Place
from commun.systems import reason
from exercice1.changes import TICK_SECONDS, Checked, Settling, signature
from exercice1.fingerprint import PAST_FILES, Identity, Mark, Past, Saved, identity_of, matches, still_true
from exercice1.former import UNREAD, Known, Others, Search, known_in, same_bytes
from exercice1.reading import Format, OpenCsv, Rows, open_regular

log = logging.getLogger("pipeline")

MISSING_SECONDS = 0.25  # un fichier absent est cherché moins souvent
HINT_SECONDS = 2.0  # une dernière ligne inachevée depuis ce temps mérite une explication
ROTATE_WAIT = 5.0  # secondes pendant lesquelles un fichier renommé est encore lu


@dataclass
class Left:
    """Un fichier que le nom ne désigne plus, lu encore jusqu'à ``until``."""

    file: OpenCsv
    until: float


class Follower:
    """La lecture d'un fichier désigné par son nom.

    ``read`` rend ce qui est nouveau ; ``confirm`` dit ensuite que Kafka l'a, ``rewind`` que non.
    ``saved`` : ce que Kafka sait de ce fichier ; sans rien, la lecture commence au début.
    """

    def __init__(self, path: Path, form: Format, saved: Saved | None = None, others: Others | None = None) -> None:
        self.path, self.form, self.others = path, form, others or Others()
        self.rotate_wait = ROTATE_WAIT
        self.once = False  # ne lit que ce qui est là au premier regard
        self.wall: Callable[[], float] = time.time
        self.saved = saved or Saved()
        self.past = self.saved.past
        self.refused: str | None = None  # pourquoi ce fichier n'est pas lu
        self._search = Search(self)
        self._current: OpenCsv | None = None
        self._left: list[Left] = []
        self._limit: int | None = None
        self._checked, self._settling = Checked(), Settling()
        self.since = self.saved.mtime  # sa dernière date sous notre nom : ce qui est né depuis n'est pas lu
        self._unconfirmed = False
        self._fresh = True  # rien n'a encore été cherché depuis le démarrage
        self._searched: Identity | None = None  # le fichier vide devant lequel on a cherché les rotations manquées
        self._grown_at = self._retry_at = self._wake_at = 0.0
        self._gone_at: float | None = None  # depuis quand notre nom ne désigne plus rien
        self._asleep: tuple[int, ...] = ()  # le fichier, quand il a été fermé faute de nouvelles
        self._said = ""

    # --- Ce qu'on en sait de dehors ---

    @property
    def inode(self) -> int | None:
        """Inode du fichier en cours de lecture, ou du dernier qui l'a été."""
        return self._current.inode if self._current else self.saved.inode

    @property
    def reading(self) -> set[Identity]:
        """Les fichiers ouverts."""
        return {file.identity for file in self._files}

    @property
    def _files(self) -> list[OpenCsv]:
        return [item.file for item in self._left] + ([self._current] if self._current else [])

    def known(self, inode: int) -> Iterator[Known]:
        """Ce qui a été lu sous ce numéro."""
        yield from known_in(self.saved, inode)
        for past in self.past:
            if past.inode == inode:
                yield (past.mark,), past.bare
        for file in self._files:
            if file.inode == inode:
                yield tuple(file.marks), file.bare

    def has_left(self) -> bool:
        """Vrai si le fichier d'avant est encore lu, sous un autre nom."""
        return any(item.file.inode == self.saved.inode for item in self._left)

    @property
    def header(self) -> Header | None:
        """Le dernier en-tête lu sous ce nom."""
        if self._current and self._current.header:
            return self._current.header
        return self.saved.header(self.form.options.encoding) or self.others.header_of(self.path)

    @property
    def marks(self) -> Sequence[Mark]:
        """Les repères du fichier en cours de lecture, ou du dernier qui l'a été."""
        if self._current:
            return self._current.marks
        left = [item.file.marks for item in self._left if item.file.inode == self.saved.inode]
        return left[0] if left else self.saved.marks

    @property
    def bare(self) -> bool:
        """Vrai si le fichier suivi n'a pas d'en-tête à lui."""
        return self._current.bare if self._current else self.saved.bare

    @property
    def settling(self) -> bool:
        """Vrai pendant qu'on attend qu'un fichier réécrit ne bouge plus."""
        return self._settling.waiting

    @property
    def idle(self) -> bool:
        """Vrai si rien n'est en vol, ni attendu bientôt."""
        return not (self._unconfirmed or self.settling or self._left or self._gone_at)

    def release(self, identity: Identity) -> bool:
        """Cède un fichier quitté dont tout est lu ; faux s'il en reste, ou si c'est celui que notre nom désigne."""
        for item in self._left:
            if item.file.identity == identity and not self._unconfirmed:
                size = os.fstat(item.file.file.fileno()).st_size
                if item.file.whole(size) and not item.file.pending:  # sinon, une annulation l'a rembobiné
                    self._forget(item)
                    return True
        return False

    def holds(self, file: BinaryIO) -> bool:
        """Vrai si le fichier lu ici contient tout ce qui est dans ``file``, dont on a déjà lu des lignes."""
        if not self._current or len(self._current.marks) < 2 or not matches(file, self._current.marks[-1]):
            return False
        size = os.fstat(file.fileno()).st_size
        mark = self._current.marks[-1]
        return matches(self._current.file, mark) and same_bytes(file, self._current.file, mark.offset, size)

    def rows_in(self, file: BinaryIO) -> Known:
        """Jusqu'où ``file`` est ce qui a été lu sous ce nom ; rien s'ils n'ont que l'en-tête en commun."""
        if len(kept := still_true(file, tuple(self.marks))) > 1:
            return kept, self.bare
        for past in self.past:
            if past.mark.lines > 1 and matches(file, past.mark):
                return (past.mark,), past.bare
        return (), False

    # --- Lire ---

    def read(self, now: float, *, final: bool = False) -> Rows | None:
        """Le morceau suivant, ou None s'il n'y a rien de nouveau. ``now`` : une horloge monotone, en secondes.

        ``final`` : le fichier est pris pour terminé, sa dernière ligne inachevée est rendue aussi.
        """
        try:
            if self._current is None:
                self._open(now)
            chunk = self._read_left(now, final)
            current = self._current
            # La fin d'une ligne de l'ancien fichier est attendue avant de lire le nouveau.
            if chunk is None and current is not None and not any(item.file.pending for item in self._left):
                chunk = self._read_on(current, now, final)
                quiet = not self._checked.disturbed and not self._unconfirmed
                if chunk is None and quiet and self._current is current:
                    self._look_at_name(current, now)
            return chunk or self._new_place()
        except OSError as error:
            self._say(f"{self.path} ne peut pas être lu ({reason(error)}) : j'attends.", logging.WARNING)
            if not self._unconfirmed and self._current:
                self._current.file.close()
                self._current = None
            return None

    def _new_place(self) -> Rows | None:
        """Passer à un autre fichier, ou revenir en arrière, est déjà une nouvelle à retenir, même sans ligne."""
        if self._unconfirmed or self._is_saved():
            return None
        self._unconfirmed = True
        mark = self._current.marks[-1] if self._current and self._current.marks else None
        return Rows(Place(mark.offset, mark.lines, mark.torn) if mark else Place())

    def _is_saved(self) -> bool:
        """Vrai si Kafka sait où nous en sommes."""
        marks = self._current.marks[-1:] if self._current else []
        known = not marks or (self.inode == self.saved.inode and marks == list(self.saved.marks[-1:]))
        return known and self._all_past() == self.saved.past

    def snapshot(self) -> Saved:
        """Où en est la lecture : à écrire avec les lignes qui viennent d'être lues."""
        current, saved, header = self._current, self.saved, self.header
        real = _storable(os.path.realpath(self.path)) if current else saved.real
        place = Saved(self.inode, tuple(self.marks), self._all_past(), bare=self.bare, real=real, mtime=self.since)
        return place.under(header) if header else place

    def _all_past(self) -> tuple[Past, ...]:
        """Les fichiers quittés, ceux qu'on lit encore compris."""
        left = [Past(item.file.inode, (item.file.marks or [UNREAD])[-1], item.file.bare) for item in self._left]
        inodes = {item.inode for item in left}
        return (*(item for item in self.past if item.inode not in inodes), *left)[-PAST_FILES - len(left) :]

    def confirm(self, saved: Saved) -> None:
        """Ce qui a été lu est dans Kafka, avec la position ``saved``."""
        self.saved, self.past, self._unconfirmed = saved, saved.past, False

    def rewind(self, saved: Saved) -> None:
        """Ce qui a été lu n'est pas dans Kafka, qui en est à ``saved`` : la lecture reprend là.

        Les fichiers restent ouverts : effacés entre-temps, ils sont encore lisibles.
        """
        places: dict[int, Known] = {past.inode: ((past.mark,), past.bare) for past in saved.past}
        if saved.inode is not None:
            places[saved.inode] = saved.marks, saved.bare
        current, left = self._current, self._left
        opened = [*left, *([Left(current, self._grown_at + self.rotate_wait)] if current else [])]
        self._current, self._left = None, []
        for item in opened:
            marks, bare = places.get(item.file.inode, ((), False))
            mine = current is item.file and saved.inode in (None, item.file.inode)
            start = item.file.start
            further = bool(start and marks) and start[-1].offset > marks[-1].offset  # un autre nom l'avait lu plus loin
            if not marks or further or not (mine or matches(item.file.file, marks[-1])):
                marks, bare = start, item.file.bare and bool(start)  # pas encore lu quand ``saved`` l'était
            if mine:
                self._follow(item.file.again(marks, bare=bare))
            elif current is item.file and self._names(item.file):
                item.file.file.close()  # il sera rouvert sous son nom
            else:
                self._left.append(Left(item.file.again(marks, bare=bare), item.until))
        self.saved, self.past, self._unconfirmed, self.since = saved, saved.past, False, saved.mtime

    def _names(self, file: OpenCsv) -> bool:
        """Vrai si notre nom désigne ce fichier."""
        try:
            return identity_of(os.stat(self.path)) == file.identity
        except OSError:
            return False

    def close(self) -> None:
        """Ferme les fichiers ; la lecture suivante les rouvrira."""
        for file in self._files:
            file.file.close()
        self._current, self._left, self._settling.waiting = None, [], False

    def sleep(self, now: float) -> None:
        """Ferme le fichier, si tout en est lu et confirmé ; il sera rouvert dès qu'il change."""
        if self._current and self.idle and self._is_saved() and self._names(self._current):
            stat = os.fstat(self._current.file.fileno())
            if signature(stat) == self._checked.seen and (self.refused or self._current.at_end(stat.st_size)):
                self.close()
                # Si sa date ne dit encore rien, son contenu est comparé une fois de plus.
                self._asleep, self._wake_at = signature(stat), inf if self._checked.sure else now + TICK_SECONDS

    # --- Le fichier ouvert ---

    def _read_left(self, now: float, final: bool) -> Rows | None:
        """La suite des fichiers que le nom ne désigne plus, du plus ancien au plus récent."""
        for item in list(self._left):
            done = final or self.once or now >= item.until
            try:
                chunk = item.file.next_chunk(final=done)
            except (HeaderError, OSError) as error:
                why = reason(error) if isinstance(error, OSError) else error
                log.error("Un ancien %s n'est pas lu : %s.", self.path, why)
                chunk, done = None, True
            if chunk:
                self._unconfirmed = True
                if chunk.taken:
                    item.until = max(item.until, now + self.rotate_wait)
                if done and not chunk.taken.rstrip(b"\0").endswith((b"\n", b"\r")) and chunk.values:
                    log.info("Un ancien %s finit sans fin de ligne : elle est prise pour finie.", self.path)
                return chunk
            if done and not self._unconfirmed:
                self._forget(item)
        return None

    def _forget(self, item: Left) -> None:
        """Un fichier quitté est lu jusqu'au bout : il est fermé, et sa place retenue."""
        if left := len(item.file.pending):
            log.warning("Un ancien %s finit au milieu d'un caractère : %d octets n'en sont pas lus.", self.path, left)
        if not self._current and item.file.inode == self.saved.inode and item.file.marks:
            self.saved = self.snapshot()
        self._left.remove(item)
        self._drop(item.file)

    def _read_on(self, current: OpenCsv, now: float, final: bool) -> Rows | None:
        """La suite du fichier ouvert, après avoir vérifié que ce qui précède n'a pas changé."""
        stat = os.fstat(current.file.fileno())
        if self._checked.doubtful(stat):
            moved = signature(stat) != self._checked.seen
            self._checked.note(stat, self.wall(), same=current.same_content())
            if self._checked.disturbed:
                if not self._unconfirmed and self._settling.over(now, stat):
                    self._restart(current.file, current.marks, "a changé" if stat.st_size else "a été vidé", now)
                return None
            self._settling.waiting = False
            if moved:
                self.refused = None
                if self._names(current):  # sinon, on écrit dans un fichier renommé
                    self.since = max(self.since, stat.st_mtime_ns)
        if self.refused:
            return None
        if self.once and self._limit is None:
            self._limit = stat.st_size
        known = current.parser is not None
        try:
            chunk = current.next_chunk(final=final, limit=self._limit)
        except HeaderError as error:
            self.refused = f"{self.path} n'est pas lu : {error}."
            self._say(self.refused, logging.ERROR)
            return None
        if current.parser and not known:
            self._announce(current)
        if chunk:
            self._grown_at, self._unconfirmed = now, True
        return chunk

    def _announce(self, current: OpenCsv) -> None:
        names, delimiter = current.parser.header.names, current.parser.header.delimiter  # type: ignore[union-attr]
        if current.bare:
            log.warning("%s n'a pas d'en-tête : celui d'avant (%s) sert encore.", self.path, ", ".join(names))
        elif current.header_changed:
            log.warning("%s : son en-tête a changé ; si c'était une ligne, « --on-header-change row ».", self.path)
        log.info("%s : colonnes %s ; séparateur %r.", self.path, ", ".join(names), delimiter)

    # --- Quel fichier ce nom désigne-t-il ? ---

    def _open(self, now: float) -> None:
        """Ouvre le fichier à suivre, et ceux qu'il a été avant, s'il en reste à lire."""
        if now < self._retry_at:
            return
        if self._asleep:
            with suppress(OSError):
                if signature(os.stat(self.path)) == self._asleep and now < self._wake_at:
                    return
            self._asleep = ()
        if self._fresh:
            self._fresh = False
            for left in self._search.left():
                self._leave(left, now)
        file = open_regular(self.path)
        if file is None:
            self._settling.waiting = False
            if old := self._search.current():
                self._leave(old, now)
            self._retry_at = now + MISSING_SECONDS
            new = self.saved.inode is None
            absent = "n'existe pas encore : je l'attends" if new else "n'est plus là : j'attends son retour"
            return self._say(f"{self.path} {absent}.")
        if not self._take(file, now) and (not self._current or self._current.file is not file):
            file.close()
        return None

    def _take(self, file: BinaryIO, now: float) -> bool:
        """Suit ``file``, que notre nom désigne ; faux s'il faut attendre."""
        stat, marks = os.fstat(file.fileno()), self.saved.marks
        if not self.others.available(identity_of(stat), self):
            self._say(f"{self.path} est déjà lu sous un autre nom : j'attends.")
            return False
        same, bare = stat.st_ino == self.saved.inode, self.saved.bare
        other = self.saved.inode is not None and not same
        old = self._search.current() if other else None
        continued = bool(marks) and matches(file, marks[-1]) and (len(marks) > 1 or same)
        continued = continued and not (other and self.has_left())  # c'est déjà jugé : l'ancien est lu d'abord
        if old and continued:  # gardé à côté, par un éditeur ou un export cumulatif : le nouveau l'a-t-il en entier ?
            continued = same_bytes(file, old.file, marks[-1].offset, os.fstat(old.file.fileno()).st_size)
        if old and continued:
            self._drop(old)
        elif old:
            self._say(f"{self.path} a été renommé : j'en lis d'abord la fin.")
            self._leave(old, now)
        if continued and same:
            marks, bare = self._search.already_read(file)  # un autre nom a pu le lire plus loin
        if not continued:
            seen = ((), False) if same else self._seen_elsewhere(file)
            if seen is None:
                return False
            known, bare = seen
            if other and not known and not stat.st_size and self._searched != identity_of(stat):
                self._searched = identity_of(stat)
                self._leave_missed(file, now, most=PAST_FILES)  # plus, on ne pourrait retenir où en est chacun
            if (marks or other) and not known and (not stat.st_size or not self._settling.over(now, stat)):
                return False
            if other:
                self._leave_missed(file, now)
            if (marks or other) and not known:
                before = () if self.has_left() else marks
                self._retain_former(stat.st_ino)
                self._restart(file, before, "a changé pendant que je ne le lisais pas", now)
                return True
            marks = known
        self._retain_former(stat.st_ino)
        self._grown_at = now
        self._follow(OpenCsv(file, self.form, marks, self.header, bare))
        return True

    def _retain_former(self, inode: int) -> None:
        """Passe à un fichier de ce numéro : un autre nom peut tenir l'ancien, sans avoir encore dit où il en est."""
        if self.saved.inode not in (None, inode) and not self.has_left():
            self._retain(self.saved.inode or 0, self.saved.marks, bare=self.saved.bare)

    def _seen_elsewhere(self, file: BinaryIO) -> Known | None:
        """Jusqu'où ce fichier, ou celui dont il est la copie, a déjà été lu ; None : il faut attendre pour le dire."""
        known = self._search.already_read(file)
        return known if known[0] else self.others.copied(self.path, file)

    def _look_at_name(self, current: OpenCsv, now: float) -> None:
        """Le fichier ouvert n'a rien de nouveau : son nom en désigne-t-il un autre ?"""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            self._settling.waiting = False
            self._say(f"{self.path} n'est plus là : j'attends son retour.")
            self._gone_at = self._gone_at or now
            if now - max(self._gone_at, self._grown_at) > self.rotate_wait:
                self._leave(current, now - self.rotate_wait)
                self._current, self._retry_at = None, now + MISSING_SECONDS
            return
        self._gone_at = None
        if identity_of(stat) == current.identity:
            self._settling.waiting = False
            waiting = current.pending or (not current.marks and stat.st_size)
            if waiting and now - self._grown_at > HINT_SECONDS and not self.settling and not self.refused:
                self._say(current.hint(self.path))
            return
        new = open_regular(self.path)
        if new is not None and not self._change_file(current, new, now):
            new.close()

    def _change_file(self, current: OpenCsv, new: BinaryIO, now: float) -> bool:
        """Passe à ``new``, que le nom désigne maintenant ; faux s'il faut attendre."""
        stat, renamed = os.fstat(new.fileno()), os.fstat(current.file.fileno()).st_nlink > 0
        if not self.others.available(identity_of(stat), self):
            return False
        if len(current.marks) > 1 and current.continues_in(new, strictly=renamed):
            log.info("%s a été remplacé, et commence comme avant : je continue.", self.path)
            self._drop(current)
            self._follow(OpenCsv(new, self.form, current.marks, current.header, current.bare))
            return True
        back = next((item for item in self._left if item.file.identity == identity_of(stat)), None)
        seen = (tuple(back.file.marks), back.file.bare) if back else self._seen_elsewhere(new)
        if seen is None:
            return False
        known, bare = seen
        if back or known:
            if back:
                self._left.remove(back)
                back.file.file.close()
            self._leave(current, now)
            self._follow(OpenCsv(new, self.form, known, current.header, bare))
            return True
        if not stat.st_size or not self._settling.over(now, stat):
            return False
        kept = () if renamed else still_true(new, tuple(current.marks))
        if len(kept) > 1:  # un éditeur l'a remplacé : ce qui était inachevé n'est plus
            self._drop(current)
        else:
            self._leave(current, now)
            self._leave_missed(new, now)
        self._restart(new, kept, "est un autre fichier", now)
        return True

    def _leave_missed(self, new: BinaryIO, now: float, *, since: int | None = None, most: int | None = None) -> None:
        """Les rotations manquées sont lues avant ``new``."""
        for missed in self._search.missed(new, since=since, most=most):
            self._leave(missed, now)

    def _leave(self, file: OpenCsv, now: float) -> None:
        self._left.append(Left(file, now + self.rotate_wait))

    def _drop(self, file: OpenCsv) -> None:
        """Ferme un fichier, et retient sa place."""
        self._retain(file.inode, file.marks, bare=file.bare)
        file.file.close()

    def _retain(self, inode: int, marks: Sequence[Mark], *, bare: bool) -> None:
        """Retient jusqu'où un fichier quitté a été lu."""
        if marks:
            kept = [past for past in self.past if past.inode != inode]
            self.past = (*kept, Past(inode, marks[-1], bare))[-PAST_FILES:]

    def _restart(self, file: BinaryIO, marks: Sequence[Mark], what: str, now: float) -> None:
        """Reprend ``file`` après le dernier repère qui y est encore vrai, ou à son début."""
        kept = still_true(file, tuple(marks))
        header, bare = self.header, self.bare
        same = os.fstat(file.fileno()).st_ino == self.inode
        if same and len(kept) < 2 and marks:
            if copy := self._search.copy(marks):
                log.info("%s a été copié, puis vidé : je lis d'abord la fin de la copie.", self.path)
                self._left.append(Left(OpenCsv(copy, self.form, marks, header, bare), now))
                self._leave_missed(file, now, since=os.fstat(copy.fileno()).st_mtime_ns)  # copié et vidé plusieurs fois
            elif len(marks) > 1:
                log.warning(
                    "%s a été vidé ou réécrit : ce qui a pu y être écrit après la ligne %d, et que je n'avais pas lu, "
                    "n'y est plus.", self.path, marks[-1].lines,
                )  # fmt: skip
        where = f"à la ligne {kept[-1].lines + 1}" if kept else "à son début"
        log.warning("%s %s : j'en reprends la lecture %s.", self.path, what, where)
        self._follow(OpenCsv(file, self.form, kept, header, bare and bool(kept)))

    def _follow(self, current: OpenCsv) -> None:
        before = self._current
        if before and before.file is not current.file and all(item.file is not before for item in self._left):
            before.file.close()
        self._current, self._checked, self.refused, self._said = current, Checked(), None, ""
        self._settling.waiting, self._gone_at = False, None

    def _say(self, sentence: str, level: int = logging.INFO) -> None:
        """Dit une chose, sans la répéter tant que rien d'autre n'est dit."""
        if sentence != self._said:
            self._said = sentence
            log.log(level, "%s", sentence)


def _storable(path: str) -> str:
    """Un chemin que JSON sait porter ; vide sinon (un nom qui n'est pas en UTF-8)."""
    return path if os.fsencode(path).decode("utf-8", "ignore") == path else ""
