"""Les fichiers suivis : ceux que désignent les noms, dossiers et motifs, qui lit quoi, et lesquels restent ouverts."""

import glob
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from commun.csv_header import Header
from commun.systems import reason
from exercice1 import rotation
from exercice1.fingerprint import Identity, Saved, identity_of, still_true
from exercice1.follow import ROTATE_WAIT, Follower
from exercice1.former import Known, Others, known_in
from exercice1.reading import Format, open_regular

log = logging.getLogger("pipeline")

OPEN_FILES = 64  # au-delà, ceux qui sont lus jusqu'au bout sont fermés
QUIET_SECONDS = 10.0  # un fichier qui n'a pas bougé depuis ce temps est regardé avec les autres, par tournées…
SHARE = 0.05  # … qui ne prennent pas plus que cette part d'un processeur…
TOUR_SECONDS = 1.0  # … et ne se font jamais attendre plus longtemps


class Files(Others):
    """Les fichiers suivis, et ce que l'on sait de chacun (voir former.Others)."""

    def __init__(
        self, names: Sequence[str], form: Format, *, rotate_wait: float = ROTATE_WAIT, once: bool = False,
        open_files: int = OPEN_FILES,
    ) -> None:  # fmt: skip
        self.names, self.form, self.rotate_wait, self.once, self.open_files = names, form, rotate_wait, once, open_files
        self.followers: dict[Path, Follower] = {}
        self.lost: set[Path] = set()  # ceux qu'un autre producer.py suit maintenant
        self.unreadable: dict[Path, str] = {}  # ceux qui sont là mais ne s'ouvrent pas, et pourquoi
        self.elsewhere: dict[Path, Saved] = {}  # positions de fichiers que l'on ne suit pas
        self._set_aside: set[Path] = set()  # dossiers, tubes, fichiers compressés : dits une fois
        self._active_at: dict[Path, float] = {}
        self._open: set[Path] = set()  # ceux qui tiennent un fichier ouvert
        self._lively: set[Path] = set()  # ceux qui ont bougé il y a peu
        self.interrupted = False  # la dernière tournée n'est pas allée au bout
        self.stopwatch: Callable[[], float] = time.perf_counter  # ce que coûte une tournée
        self._tour_at = 0.0
        self._next = 0

    # --- Ce que désignent les noms ---

    def find(self) -> list[Path]:
        """Chemins absolus : un fichier même absent, les .csv d'un dossier, ce que donne un motif."""
        paths: dict[Path, None] = {}
        for name in self.names:
            path = Path(os.path.abspath(name))
            if os.path.isdir(path):  # Path.is_dir lèverait, si ce compte n'a pas le droit d'y aller
                found = self._in_folder(path)
            elif glob.has_magic(name) and not os.path.exists(path):
                found = sorted(Path(os.path.abspath(match)) for match in glob.glob(name))
            else:
                paths[path] = None
                continue
            paths |= dict.fromkeys(path for path in found if path in self.followers or self._is_file(path))
        return list(paths)

    def _in_folder(self, folder: Path) -> list[Path]:
        """Les .csv d'un dossier, et leurs archives et sauvegardes, qui seront écartées ; un dossier fermé est dit."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._say_unreadable(folder, error)
            return []
        self.unreadable.pop(folder, None)
        odd = [name for name in names if rotation.is_compressed(name) or rotation.is_backup(name)]
        wanted = (name for name in names if name.lower().endswith(".csv") or (name in odd and ".csv" in name.lower()))
        return [folder / name for name in wanted if not name.startswith(".")]

    def _say_unreadable(self, path: Path, error: OSError) -> None:
        why = f"{path} ne peut pas être lu ({reason(error)})."
        if self.unreadable.get(path) != why:
            self.unreadable[path] = why
            log.warning("%s J'attends.", why)

    def _is_file(self, path: Path) -> bool:
        """Faux, et c'est dit une fois, pour ce qu'un motif désigne et qui n'est pas un CSV à lire."""
        if rotation.is_compressed(path.name):
            why = "est compressé, et n'est jamais lu ; ses lignes sont parties s'il a été suivi avant de l'être"
        elif rotation.is_backup(path.name):
            why = "est la sauvegarde d'un éditeur"
        elif os.path.isdir(path):
            why = "est un dossier, pas un fichier"
        elif os.path.exists(path) and not os.path.isfile(path):
            why = "n'est pas un fichier ordinaire"
        else:
            return True
        if path not in self._set_aside:
            self._set_aside.add(path)
            log.warning("%s %s : je le laisse.", path, why)
        return False

    def new(self) -> list[Path]:
        """Les fichiers à prendre en charge maintenant."""
        for path in [path for path, one in self.followers.items() if one.inode is None and os.path.isdir(path)]:
            self._forget(path)  # on attendait un fichier, c'est un dossier qui vient
        paths = [path for path in self.find() if path not in self.followers and path not in self.lost]
        return [path for path in paths if self._opens(path)]

    def _opens(self, path: Path) -> bool:
        """Vrai si ``path`` s'ouvre ou n'existe pas encore ; sinon il attend, et c'est dit une fois."""
        try:
            file = open_regular(path)
        except OSError as error:
            self._say_unreadable(path, error)
            return False
        self.unreadable.pop(path, None)
        if file is None:
            return True
        with file:  # renommé, il est encore lu sous son ancien nom : on attend qu'il ne le soit plus
            return self.available(identity_of(os.fstat(file.fileno())), None) and self.copied(path, file) is not None

    def _origins(self, path: Path) -> list[Follower]:
        """Les fichiers suivis dont ``path`` porte le nom, tourné."""
        return [self.followers[origin] for origin in _origin_paths(path) if origin in self.followers]

    # --- Les suivre ---

    def add(self, paths: Iterable[Path], positions: Mapping[Path, Saved], now: float, *, anew: bool) -> None:
        """Suit ces fichiers, à la position que Kafka a retenue ; ``anew`` : au début."""
        for path in paths:
            follower = Follower(path, self.form, Saved() if anew else positions.get(path), self)
            follower.rotate_wait, follower.once = self.rotate_wait, self.once
            self.followers[path] = follower
            self._active_at[path] = now
            self._lively.add(path)

    def lose(self, path: Path) -> None:
        """Un autre producer.py suit maintenant ce fichier."""
        self.lost.add(path)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        if follower := self.followers.pop(path, None):  # sinon, il a été pris avant d'être à nous
            follower.close()
        for known in (self._open, self._lively):
            known.discard(path)
        self._active_at.pop(path, None)

    def turn(self, now: float) -> Iterator[Follower]:
        """Les fichiers à regarder maintenant : ceux qui ont bougé il y a peu, et tous, de temps en temps."""
        everyone, began = self.once or now >= self._tour_at, self.stopwatch()
        paths = list(self.followers if everyone else self._lively)
        first, self._next, self.interrupted = self._next, 0, True
        for number in range(len(paths)):
            at = (first + number) % len(paths)
            self._next = (at + 1) % len(paths)  # une tournée interrompue reprendra après lui
            follower = self.followers[paths[at]]
            try:
                yield follower
            finally:  # la tournée a pu être interrompue là
                (self._open.add if follower.reading else self._open.discard)(paths[at])
        self._next, self.interrupted = 0, False
        if everyone:
            self._tour_at = now + min(TOUR_SECONDS, (self.stopwatch() - began) / SHARE)
            recent = {path for path, at in self._active_at.items() if now - at < QUIET_SECONDS}
            self._lively = recent | {path for path in self._open if not self.followers[path].idle}

    def active(self, follower: Follower, now: float) -> None:
        """Ce fichier a quelque chose de nouveau."""
        self._active_at[follower.path] = now
        self._lively.add(follower.path)
        self._open.add(follower.path)

    def full(self, unconfirmed: int, now: float) -> bool:
        """Vrai si trop de fichiers sont ouverts, faute d'avoir validé ce qui est lu de ``unconfirmed`` d'entre eux."""
        self.rest(now)
        return len(self._open) > self.open_files and unconfirmed > self.open_files // 2

    def rest(self, now: float) -> None:
        """S'il y a trop de fichiers ouverts, ferme ceux qui sont lus jusqu'au bout, les plus calmes d'abord."""
        crowded = len(self._open) > self.open_files
        for path in sorted(self._open, key=self._active_at.__getitem__) if crowded else ():
            if len(self._open) <= self.open_files // 2:
                break
            self.followers[path].sleep(now)  # sauf s'il a grandi depuis : au suivant
            if not self.followers[path].reading:
                self._open.discard(path)

    def close(self) -> None:
        """Ferme tous les fichiers."""
        for follower in self.followers.values():
            follower.close()

    @property
    def settling(self) -> bool:
        """Vrai si un fichier est en train d'être réécrit."""
        return any(follower.settling for follower in self.followers.values())

    @property
    def unread(self) -> list[str]:
        """Pourquoi certains fichiers ne sont pas lus, une phrase par fichier."""
        refused = [
            follower.refused or f"{follower.path} n'existe pas."
            for follower in self.followers.values()
            if follower.refused or not os.path.exists(follower.path)
        ]
        return [*self.unreadable.values(), *refused]

    # --- Qui lit quoi (former.Others) ---

    def available(self, identity: Identity, asking: Follower | None) -> bool:
        """Vrai si ``asking`` peut lire ce fichier : nul autre ne le lit, ou il le lui cède."""
        others = [self.followers[path] for path in self._open]
        return all(other.release(identity) for other in others if other is not asking and identity in other.reading)

    def known(self, inode: int) -> Iterator[Known]:
        """Tout ce qui a été lu sous ce numéro, sous n'importe quel nom."""
        for saved in self.elsewhere.values():
            yield from known_in(saved, inode)
        for follower in self.followers.values():
            yield from follower.known(inode)

    def copied(self, path: Path, file: BinaryIO) -> Known | None:
        """Jusqu'où ``file``, qui a le nom ``path``, est la copie d'un fichier lu (copytruncate).

        None : c'en est une, et l'original est encore entier, ou vient de changer : elle n'a rien de plus à dire.
        """
        for origin in self._origins(path):
            if origin.settling or origin.holds(file):
                return None
            if (known := origin.rows_in(file))[0]:
                log.info("%s est la copie de ce que j'ai lu dans %s : j'en lis la suite.", path, origin.path)
                return known
        for saved in self._former_origins(path):
            if len(kept := still_true(file, saved.marks)) > 1:
                return kept, saved.bare
        return (), False

    def header_of(self, path: Path) -> Header | None:
        """L'en-tête du fichier suivi dont ``path`` porte le nom, tourné."""
        followed = [origin.header for origin in self._origins(path)]
        former = [saved.header(self.form.options.encoding) for saved in self._former_origins(path)]
        return next((header for header in (*followed, *former) if header), None)

    def _former_origins(self, path: Path) -> list[Saved]:
        """Ce que Kafka a retenu de fichiers dont ``path`` porte le nom, tourné, et qui ne sont plus là."""
        return [self.elsewhere[origin] for origin in _origin_paths(path) if origin in self.elsewhere]


def _origin_paths(path: Path) -> list[Path]:
    """Les chemins dont ``path`` est sûrement ce qu'ils deviennent en tournant : v.csv, s'il est v.csv.1.

    v_2.csv, lui, peut être un autre fichier que v.csv.
    """
    return [path.with_name(name) for name in sorted(rotation.origins(path.name)) if rotation.appended(path.name, name)]
