"""Les lignes d'un fichier CSV de ventes, dans la forme que COPY attend. Logique pure, mémoire bornée."""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator

from exercice3.ventes import FIELDS

csv.field_size_limit(16 * 1024 * 1024)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # octet nul, ou octet qui n'est pas de l'UTF-8


class BadFile(Exception):
    """Le fichier n'est pas (encore) celui que décrit son manifeste."""


class Rows:
    """Flux de lecture d'un CSV pour COPY : numérote les lignes, écarte celles qui n'ont pas la bonne forme.

    ``read`` rend du CSV prêt pour le tampon ; ``lines`` et ``digest`` disent ensuite ce qui a été
    lu, ``rejects`` ce qui a été écarté : numéro de ligne, raison, contenu. Mémoire bornée.
    """

    def __init__(self, file: Iterable[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.lines = 0
        self.rejects: list[tuple[int, str, str]] = []
        self._source = csv.reader(self._text(file))
        self._rows = self._accepted()

    def read(self, size: int = -1) -> str:
        """Environ ``size`` caractères de CSV, une chaîne vide à la fin : ce que COPY demande."""
        sink = _Sink()
        write = csv.writer(sink).writerow
        for row in self._rows:
            write(row)
            if sink.length >= size > 0:
                break
        return sink.text()

    def _text(self, file: Iterable[bytes]) -> Iterator[str]:
        for line in file:
            self.digest.update(line)
            yield line.decode("utf-8", "surrogateescape")

    def _accepted(self) -> Iterator[list[str | int]]:
        header = next(self._source, None)
        if header != list(FIELDS):
            raise BadFile(f"l'en-tête attendu est « {','.join(FIELDS)} »")
        while True:
            number = self._source.line_num + 1
            try:
                row = next(self._source)
            except StopIteration:
                return
            except csv.Error as error:
                self.lines += 1
                self.rejects.append((number, f"CSV illisible : {error}", ""))
                continue
            self.lines += 1
            if len(row) != len(FIELDS):
                self._reject(number, f"{len(row)} champs au lieu de {len(FIELDS)}", row)
            elif _UNSTORABLE.search("".join(row)):
                self._reject(number, "octet nul ou texte qui n'est pas en UTF-8", row)
            else:
                yield [number, *row]

    def _reject(self, number: int, reason: str, row: list[str]) -> None:
        content = ",".join(row).replace("\0", "\\x00").encode("utf-8", "surrogateescape")
        self.rejects.append((number, reason, content.decode("utf-8", "backslashreplace")))


class _Sink:
    """Accumule ce que csv.writer écrit."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0

    def write(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def text(self) -> str:
        return "".join(self.parts)
