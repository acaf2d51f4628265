"""L'envoi des fichiers suivis : leurs lignes, et la position de chacun, dans une même transaction Kafka."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from commun import Aborted, PipelineError
from commun.cli import Stop, french_number
from commun.exactly_once import Positions
from commun.kafka import Headers, dead_letter_headers
from commun.metrics import Durations, Measures
from exercice1.files import Files
from exercice1.fingerprint import Saved
from exercice1.follow import Follower
from exercice1.reading import Rows

log = logging.getLogger("pipeline")

TRANSACTION_SECONDS = 0.5  # une transaction dure au plus ce temps : ce qu'un gros fichier fait attendre à ses lecteurs
DETAILED_REJECTS = 5  # refus détaillés dans le journal, par morceau de fichier


@dataclass
class Counts:
    """Lignes et lettres mortes d'un fichier."""

    sent: int = 0
    rejected: int = 0

    def add(self, other: "Counts") -> None:
        """Compte aussi ceux de ``other``."""
        self.sent += other.sent
        self.rejected += other.rejected

    def __str__(self) -> str:
        return f"Lignes envoyées : {french_number(self.sent)}, lettres mortes : {french_number(self.rejected)}"


class Sender:
    """Envoie ce qui est nouveau dans des fichiers.

    ``total``, ``counts`` : les lignes et les lettres mortes confirmées, en tout et de chaque fichier.
    """

    def __init__(self, files: Files, positions: Positions, topic: str, stop: Stop) -> None:
        self.files, self.positions, self.topic, self.stop = files, positions, topic, stop
        self.producer = positions.producer
        self.total, self.counts = Counts(), dict[Path, Counts]()
        self.clock: Callable[[], float] = time.monotonic
        self.batches = Durations()

    def scan(self, *, anew: bool) -> None:
        """Prend en charge les fichiers nouveaux. ``anew`` : ceux-là repartent de leur début."""
        if not (new := self.files.new()):
            return
        known = _by_path(self.positions.take([os.fsencode(path) for path in new]))
        mine = {path: None for path in new if os.fsencode(path) in self.positions.mine}
        followed = mine.keys() | self.files.followers.keys()
        # --from-start : ce qui a été lu sous un autre nom repart aussi.
        self.files.elsewhere = {} if anew else {path: known[path] for path in known.keys() - followed}
        self.files.add(mine, known, self.clock(), anew=anew)
        self._lose(path for path in new if path not in mine)
        if anew:
            self._start_again(list(mine))

    def _start_again(self, paths: list[Path]) -> None:
        """--from-start : la position de ces fichiers redevient leur début, avant que rien n'en parte."""
        try:
            for path in paths:
                self.positions.write(os.fsencode(path), Saved().encode())
            self.producer.commit()
        except Aborted as error:
            self._recover(error)
            self._start_again([path for path in paths if path in self.files.followers])
            for path in paths:
                if path in self.files.followers:
                    self.files.followers[path].rewind(Saved())

    def send(self, *, final: bool = False) -> bool:
        """Une transaction : ce qui est nouveau dans les fichiers ; faux si tous ont été regardés, et n'avaient rien."""
        start, touched = self.clock(), dict[Follower, Counts]()

        def over() -> bool:
            return bool(self.stop) or self.clock() - start > TRANSACTION_SECONDS

        try:
            for follower in self.files.turn(start):
                while chunk := follower.read(self.clock(), final=final):
                    counts = touched.setdefault(follower, Counts())
                    self.files.active(follower, start)
                    self._send_rows(follower.path, chunk)
                    counts.add(Counts(len(chunk.values), len(chunk.rejected)))
                    if over():
                        break
                if over() or self.files.full(len(touched), self.clock()):
                    break
            self._commit(touched)
            if touched:
                self.batches.add(self.clock() - start)
        except Aborted as error:
            self._recover(error)
        return bool(touched) or self.files.interrupted

    def _commit(self, touched: dict[Follower, Counts]) -> None:
        """La position de chaque fichier, puis la validation."""
        if not touched:
            self.producer.poll()
            return
        saved = {follower: follower.snapshot() for follower in touched}
        for follower, place in saved.items():
            self.positions.write(os.fsencode(follower.path), place.encode())
        self.producer.commit()
        for follower, place in saved.items():
            follower.confirm(place)
            for known in (self.total, self.counts.setdefault(follower.path, Counts())):
                known.add(touched[follower])
        self.files.rest(self.clock())

    def _send_rows(self, path: Path, chunk: Rows) -> None:
        # Une clé par fichier : une partition, donc l'ordre du fichier.
        name, key = os.fsencode(path), os.fsencode(path.name)
        file_header = ("source.file", name)

        def messages() -> Iterator[tuple[bytes, bytes | None, Headers]]:
            for line, (value, row_key) in zip(chunk.numbers, chunk.values, strict=True):
                yield value, key if row_key is None else row_key, [file_header, ("source.line", b"%d" % line)]

        if chunk.values:
            self.producer.write_all(self.topic, messages())
        for number, (line, raw, why) in enumerate(chunk.rejected):
            if number < DETAILED_REJECTS:
                log.warning("Lettre morte (%s, ligne %d) : %s", path.name, line, why)
            headers = dead_letter_headers(why, topic=self.topic, file=name, line=line)
            self.producer.write(f"{self.topic}-dlq", raw, key, headers)
        if len(chunk.rejected) > DETAILED_REJECTS:
            log.warning("… et %d autres lettres mortes dans ce morceau.", len(chunk.rejected) - DETAILED_REJECTS)

    def measures(self) -> Measures:
        """Pour --metrics-port."""
        commits, aborts = self.producer.commits, self.producer.aborts
        return Measures(self.total.sent, commits=commits, aborts=aborts, batches=self.batches)

    # --- Après un refus : la position écrite dans Kafka fait foi ---

    def _recover(self, error: Aborted) -> None:
        """Annule la transaction ; la lecture de chaque fichier reprend à sa position confirmée.

        De ceux aussi dont rien n'était lu : l'un a pu tourner la page parce qu'un autre lisait sa copie.
        """
        log.info("Transaction annulée (%s) : je reprends à la dernière position confirmée.", error)
        lost, positions = self.positions.recover()
        self._lose(Path(os.fsdecode(source)) for source in lost)
        for follower in self.files.followers.values():
            value = None if positions is None else positions.get(os.fsencode(follower.path))
            follower.rewind(follower.saved if value is None else Saved.decode(value))

    def _lose(self, paths: Iterator[Path]) -> None:
        for path in paths:
            log.warning("Un autre producer.py suit maintenant %s : je le lui laisse.", path)
            self.files.lose(path)
        if self.files.lost and not self.files.followers:
            raise PipelineError("Plus aucun fichier à suivre : je m'arrête.")

    def close(self) -> None:
        """Ferme les fichiers, et annule ce qui serait encore en vol."""
        self.files.close()
        self.positions.close()


def _by_path(positions: Mapping[bytes, bytes]) -> dict[Path, Saved]:
    return {Path(os.fsdecode(source)): Saved.decode(value) for source, value in positions.items()}
