"""L'envoi d'un fichier exactement une fois : ses lignes et la position atteinte dans une même transaction.

1. dans le topic des positions, le producteur s'annonce : désormais, ce fichier est à lui ;
2. ``init_transactions`` annule ce qu'un producteur précédent du même fichier avait laissé en vol, et
   lui interdit d'écrire ;
3. la position est relue : elle dit exactement ce qui est parti ;
4. chaque transaction écrit des lignes et la position qui les suit : les deux sont lisibles, ou aucune.

Après une panne de Kafka comme après un ``kill -9``, on repart de 2.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from commun.errors import PipelineError
from commun.kafka import Headers, dead_letter_headers
from commun.transaction import (
    CALL_SECONDS,
    FENCED,
    HOPELESS,
    Positions,
    Stopped,
    commit,
    open_producer,
)
from exercice1.csv_tail import Chunk, Options
from exercice1.follow import Follower, Saved

log = logging.getLogger("pipeline")

TRANSACTION_SECONDS = 0.5  # une transaction dure au plus ce temps : ce qu'un gros fichier fait attendre à ses lecteurs
DETAILED_REJECTS = 5  # refus détaillés dans le journal, par morceau de fichier


class Fenced(Exception):
    """Un autre producer.py suit maintenant ce fichier."""


def load_saved(positions: Positions) -> dict[str, Saved]:
    """Dernière place confirmée de chaque fichier, par chemin."""
    return {path: msgspec.json.decode(value, type=Saved) for path, value in positions.load().items()}


class CsvSource:
    """Un fichier et son producteur.

    L'identifiant de transaction est le topic et le chemin du fichier : un second producteur sur
    le même fichier prend la place du premier, dont les transactions sont alors refusées.
    """

    def __init__(self, path: Path, topic: str, options: Options, positions: Positions) -> None:
        self.path, self.topic, self.positions, self.stop = path, topic, positions, positions.stop
        self.sent = self.rejected = 0
        self.follower = Follower(path, options)
        self._config = positions.config | {"transactional.id": f"{topic}:{path}", "on_delivery": self._on_refusal}
        self._refusal: KafkaError | None = None
        self._file_header: tuple[str, str | bytes | None] = ("source.file", os.fsencode(path))
        self._key = os.fsencode(path.name)  # une clé par fichier : une partition, donc l'ordre du fichier
        self._producer = open_producer(self._config, self.stop)

    def close(self) -> None:
        """Ferme le fichier ; une transaction encore ouverte est annulée, pour ne pas faire attendre les lecteurs."""
        self.follower.close()
        with suppress(KafkaException):  # d'ordinaire, il n'y en a pas
            self._producer.abort_transaction(CALL_SECONDS)

    # --- Une transaction : des lignes, et la position qui les suit ---

    def send(self, now: float, *, final: bool = False) -> bool:
        """Envoie ce qui est nouveau dans le fichier, en une transaction ; faux s'il n'y avait rien."""
        chunk = self.follower.read(now, final=final)
        if chunk is None:
            self._producer.poll(0)
            return False
        try:
            self._write(chunk, final)
        except KafkaException as error:
            self.start(self._recover(error.args[0]) or Saved())
        return True

    def _write(self, chunk: Chunk | None, final: bool = False) -> None:
        self._producer.begin_transaction()
        sent, rejected, start = 0, 0, time.monotonic()
        while chunk:
            self._send_rows(chunk)
            sent, rejected = sent + len(chunk.rows), rejected + len(chunk.rejected)
            late = time.monotonic() - start > TRANSACTION_SECONDS
            chunk = None if late or self.stop else self.follower.read(time.monotonic(), final=final)
        saved = self.follower.snapshot(self.positions.session)
        self._send_one(self.positions.topic, msgspec.json.encode(saved), str(self.path).encode(), None)
        commit(self._producer, self.stop)
        self.follower.confirm(saved)
        self.sent, self.rejected = self.sent + sent, self.rejected + rejected

    def _send_rows(self, chunk: Chunk) -> None:
        produce, topic, file_key, file_header = self._producer.produce, self.topic, self._key, self._file_header
        for line, value, row_key in chunk.rows:
            key = file_key if row_key is None else row_key
            headers: Headers = [file_header, ("source.line", b"%d" % line)]
            try:
                produce(topic, value, key, headers=headers)
            except BufferError:
                self._send_one(topic, value, key, headers)
        for number, (line, raw, reason) in enumerate(chunk.rejected):
            if number < DETAILED_REJECTS:
                log.warning("Lettre morte (%s, ligne %d) : %s", self.path.name, line, reason)
            origin = dead_letter_headers(reason, topic=topic, file=self.path, line=line)
            self._send_one(f"{topic}-dlq", raw, file_key, origin)
        if len(chunk.rejected) > DETAILED_REJECTS:
            log.warning("… et %d autres lettres mortes dans ce morceau.", len(chunk.rejected) - DETAILED_REJECTS)

    def _send_one(self, topic: str, value: bytes, key: bytes, headers: Headers | None) -> None:
        """Confie un message au client Kafka ; file pleine, attend qu'elle se vide."""
        while True:
            try:
                return self._producer.produce(topic, value, key, headers=headers)
            except BufferError:
                if self.stop:
                    raise Stopped from None
                self._producer.poll(0.05)

    # --- Reprendre après un refus : la position écrite dans Kafka fait foi ---

    def start(self, saved: Saved, *, anew: bool = False) -> None:
        """Commence après ``saved``, qu'une transaction sans ligne retient.

        Refusée, c'est la position confirmée qui fait foi : un autre producteur a pu avancer entre notre
        lecture et notre transaction. ``anew`` (--from-start) : seule une position de cette exécution compte.
        Lève Fenced si un autre producteur suit déjà ce fichier, Stopped si l'arrêt vient avant Kafka.
        """
        while True:
            self.follower.rewind(saved)
            try:
                return self._write(None)
            except KafkaException as error:
                confirmed = self._recover(error.args[0])
                if confirmed and not (anew and confirmed.session != self.positions.session):
                    saved = confirmed

    def _recover(self, error: KafkaError) -> Saved | None:
        """Un producteur neuf, et la position confirmée, s'il y en a une : ce qui était en vol est annulé."""
        if self._refusal:
            raise PipelineError(
                f"Kafka refuse une ligne de {self.path} : {self._refusal.str()}. Sa position n'avance pas."
            )
        if error.code() in FENCED and not self.positions.is_mine(str(self.path)):
            raise Fenced
        log.info("Transaction annulée (%s) : je reprends %s à la position confirmée.", error.name(), self.path)
        self._producer.purge()
        self._producer = open_producer(self._config, self.stop)
        return load_saved(self.positions).get(str(self.path))

    def _on_refusal(self, error: KafkaError | None, _: Message) -> None:
        if error is not None and error.code() in HOPELESS:
            self._refusal = error
