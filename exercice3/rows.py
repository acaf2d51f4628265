"""Les lignes d'un fichier CSV de ventes, dans la forme que COPY attend. Logique pure, mémoire bornée."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from commun.systems import reason
from exercice3.lots import DAMAGED, BadFile
from exercice3.ventes import FIELDS, VERSION_FIELDS

csv.field_size_limit(16 * 1024 * 1024)
WITH_VERSIONS = [*FIELDS, *VERSION_FIELDS]
BLOCK_BYTES = 65_536
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # octet nul, ou octet qui n'est pas de l'UTF-8
_ODD = re.compile(b'["\r\0]')  # ce qui demande un lecteur de CSV


class Rows:
    """Flux de lecture d'un CSV pour COPY : numérote les lignes, et dit lesquelles n'ont pas la bonne forme.

    ``read`` rend du CSV prêt pour le tampon : numéro de ligne, les champs, puis, pour une ligne écartée, la raison et
    le contenu. ``lines``, ``last`` (numéro de la dernière ligne) et ``digest`` disent ensuite ce qui a été lu,
    ``damage`` ce qui a interrompu la lecture. Un bloc de BLOCK_BYTES, et la ligne qui le finit, est en mémoire.
    ``codec`` : l'encodage de la base, si ce n'est pas UTF-8.
    """

    def __init__(self, file: Iterable[bytes], codec: str | None = None) -> None:
        self.digest = hashlib.sha256()
        self.lines = self.last = 0
        self.damage = ""
        self._codec = codec
        self._source = self._hashed(file)
        self._blocks = self._read()

    def read(self, size: int = -1) -> str:
        """Le bloc suivant, une chaîne vide à la fin : ce que COPY demande ; ``size`` n'y change rien."""
        return next(self._blocks, "")

    def _hashed(self, file: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for line in file:
                self.digest.update(line)
                yield line
        except DAMAGED as error:  # COPY cacherait cette erreur derrière la sienne
            self.damage = reason(error) if isinstance(error, OSError) else str(error)

    def _read(self) -> Iterator[str]:
        header = self._header()
        # Un fichier sans versions n'a que des premières.
        end = [*([] if header == WITH_VERSIONS else ["1", "false"]), "", ""]
        while lines := self._block():
            if (text := self._plain(lines, len(header) - 1)) is not None:
                tail = "," + ",".join(end) + "\n"
                yield "".join([f"{number},{line}{tail}" for number, line in enumerate(text, self.last + 1)])
                self.lines += len(lines)
                self.last += len(lines)
            else:
                sink = io.StringIO(newline="")
                csv.writer(sink, lineterminator="\n").writerows(self._one_by_one(lines, len(header), end))
                yield sink.getvalue()

    def _header(self) -> list[str]:
        reader = csv.reader(map(_text, self._source))
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise BadFile(f"CSV illisible : {error}") from error
        if header not in (list(FIELDS), WITH_VERSIONS):
            raise BadFile(f"l'en-tête attendu est « {','.join(FIELDS)} »")
        self.last = reader.line_num
        return header

    def _block(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        for line in self._source:
            lines.append(line)
            size += len(line)
            if size >= BLOCK_BYTES:
                break
        return lines

    def _plain(self, lines: list[bytes], commas: int) -> list[str] | None:
        """Ces lignes, si toutes se lisent sans lecteur de CSV : ni guillemet, ni rien d'étrange, tous leurs champs."""
        content = b"".join(lines)
        if _ODD.search(content) or not content.endswith(b"\n") or {line.count(b",") for line in lines} != {commas}:
            return None
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return None
        return text.split("\n")[:-1] if self._fits(text) else None

    def _one_by_one(self, lines: list[bytes], width: int, end: list[str]) -> Iterator[list[str | int]]:
        """Les mêmes, une à une ; un guillemet ouvert dans la dernière continue plus loin dans le fichier."""
        reader, before = csv.reader(map(_text, chain(lines, self._source))), self.last
        while reader.line_num < len(lines):
            number = before + reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._rejected(number, f"CSV illisible : {error}", "")
            else:
                text = "".join(row)
                if len(row) != width:
                    yield self._rejected(number, f"{len(row)} champs au lieu de {width}", ",".join(row))
                elif _UNSTORABLE.search(text):
                    yield self._rejected(number, "octet nul ou texte qui n'est pas en UTF-8", ",".join(row))
                elif not self._fits(text):
                    reason = f"caractère que la base ne sait pas écrire ({self._codec})"
                    yield self._rejected(number, reason, ",".join(row))
                else:
                    yield [number, *row, *end]
            self.lines += 1
            self.last = before + reader.line_num

    def _rejected(self, number: int, reason: str, content: str) -> list[str | int]:
        raw = content.replace("\0", "\\x00").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        codec = self._codec or "utf-8"
        kept = raw.encode(codec, "backslashreplace").decode(codec)
        return [number, *[""] * len(WITH_VERSIONS), reason, kept]

    def _fits(self, text: str) -> bool:
        try:
            text.encode(self._codec or "utf-8")
        except UnicodeEncodeError:
            return False
        return True


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")
