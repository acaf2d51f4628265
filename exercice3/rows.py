"""Les lignes d'un fichier CSV de ventes, dans la forme que COPY attend. Logique pure, mémoire bornée."""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator

from exercice3.lots import BadFile
from exercice3.ventes import FIELDS, VERSION_FIELDS

csv.field_size_limit(16 * 1024 * 1024)
WITH_VERSIONS = [*FIELDS, *VERSION_FIELDS]
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # octet nul, ou octet qui n'est pas de l'UTF-8


class Rows:
    """Flux de lecture d'un CSV pour COPY : numérote les lignes, et dit lesquelles n'ont pas la bonne forme.

    ``read`` rend du CSV prêt pour le tampon : numéro de ligne, les champs, puis, pour une ligne écartée, la raison et
    le contenu. ``lines`` et ``digest`` disent ensuite ce qui a été lu. Rien n'est gardé en mémoire. ``codec`` :
    l'encodage de la base, si ce n'est pas UTF-8.
    """

    def __init__(self, file: Iterable[bytes], codec: str | None = None) -> None:
        self.digest = hashlib.sha256()
        self.lines = 0
        self._codec = codec
        self._source = csv.reader(self._text(file))
        self._rows = self._numbered()

    @property
    def last(self) -> int:
        """Numéro de la dernière ligne lue."""
        return self._source.line_num

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

    def _numbered(self) -> Iterator[list[str | int]]:
        try:
            header = next(self._source, [])
        except csv.Error as error:
            raise BadFile(f"CSV illisible : {error}") from error
        if header not in (list(FIELDS), WITH_VERSIONS):
            raise BadFile(f"l'en-tête attendu est « {','.join(FIELDS)} »")
        first = [] if header == WITH_VERSIONS else ["1", "false"]  # un fichier sans versions n'a que des premières
        while True:
            number = self._source.line_num + 1
            try:
                row = next(self._source)
            except StopIteration:
                return
            except csv.Error as error:
                self.lines += 1
                yield self._rejected(number, f"CSV illisible : {error}", "")
                continue
            self.lines += 1
            text = "".join(row)
            if len(row) != len(header):
                yield self._rejected(number, f"{len(row)} champs au lieu de {len(header)}", ",".join(row))
            elif _UNSTORABLE.search(text):
                yield self._rejected(number, "octet nul ou texte qui n'est pas en UTF-8", ",".join(row))
            elif self._codec and not _fits(text, self._codec):
                yield self._rejected(number, f"caractère que la base ne sait pas écrire ({self._codec})", ",".join(row))
            else:
                yield [number, *row, *first, "", ""]

    def _rejected(self, number: int, reason: str, content: str) -> list[str | int]:
        raw = content.replace("\0", "\\x00").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        codec = self._codec or "utf-8"
        kept = raw.encode(codec, "backslashreplace").decode(codec)
        return [number, *[""] * len(WITH_VERSIONS), reason, kept]


def _fits(text: str, codec: str) -> bool:
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


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
