"""Les noms que les fichiers prennent en tournant : v.csv devient v.csv.1, v.csv-20261127, v-2026-11-27.csv…"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".Z", ".7z")
_YEAR_FIRST = re.compile(r"[.\-_](19|20)\d\d([.\-_]?(0[1-9]|1[0-2]))([.\-_T]?\d\d)*")
_START = re.compile(r"[.\-_]\d")
_TURN = re.compile(r"[.\-_]\d[\d.\-_T:]*?(\.[A-Za-z]\w*)?")  # un numéro ou une date, puis l'extension s'il l'a gardée


def is_compressed(name: str) -> bool:
    """Vrai si c'est le nom d'un fichier compressé : une rotation ancienne, déjà lue quand elle ne l'était pas."""
    return name.endswith(COMPRESSED)


def is_backup(name: str) -> bool:
    """Vrai si c'est le nom que donne un éditeur à ce qu'il garde ou prépare à côté."""
    return name.endswith(("~", ".swp", ".bak")) or name.startswith((".#", "#"))


def _turns(name: str) -> Iterator[tuple[str, str]]:
    """Ce que ``name`` peut être devenu en tournant : le nom d'avant, et ce qui lui a été ajouté."""
    if name.endswith(".old"):
        yield name.removesuffix(".old"), ".old"
    for start in _START.finditer(name):
        if turn := _TURN.fullmatch(name, start.start()):
            yield name[: start.start()] + (turn[1] or ""), turn[0].removesuffix(turn[1] or "")


def origins(name: str) -> set[str]:
    """Les noms dont ``name`` peut être ce qu'ils deviennent en tournant."""
    return {origin for origin, _ in _turns(name)} - {"", name}


def _turned_into(name: str, base: str) -> list[str]:
    """Ce qui a été ajouté à ``base``."""
    return [added for origin, added in _turns(name) if origin == base]


def styles(name: str, base: str) -> set[str]:
    """Comment ``base`` est devenu ``name`` : la même chose pour v.csv.1 et v.csv.12, une autre pour v.csv-20261127."""
    added = _turned_into(name, base)
    return {re.sub(r"\d+", lambda run: "1" if len(run[0]) < 4 else "0" * len(run[0]), text) for text in added}


def in_order(entries: Iterable[os.DirEntry[str]], oldest: str, base: str) -> list[os.DirEntry[str]]:
    """Des rotations de ``base``, la plus ancienne d'abord ; ``oldest`` : le nom de celle d'avant elles, ou vide.

    Leurs noms disent leur ordre : une date qui commence par l'année monte, un numéro monte ou descend à partir de celui
    d'``oldest``. La date de leur contenu, quand on y écrit encore, en dit un autre.
    """
    found = list(entries)
    style, after = styles(oldest, base), {_numbers(entry.name) > _numbers(oldest) for entry in found}
    if oldest and all(styles(entry.name, base) == style for entry in found):
        if all(_YEAR_FIRST.match(text) for text in _turned_into(oldest, base)):
            return sorted(found, key=lambda entry: _numbers(entry.name))
        if len(after) == 1 and not any("00" in text for text in style):
            return sorted(found, key=lambda entry: _numbers(entry.name), reverse=not after.pop())
    return sorted(found, key=lambda entry: entry.stat().st_mtime_ns)


def _numbers(name: str) -> list[int]:
    return [int(text) for text in re.findall(r"\d+", name)]


def turned(name: str, base: str) -> bool:
    """Vrai si ``name`` est un nom que prend ``base`` en tournant, extension gardée ou non."""
    return base in origins(name)


def appended(name: str, base: str) -> bool:
    """Vrai si ``name`` est ``base`` suivi d'un numéro ou d'une date : personne ne nomme ainsi un autre fichier."""
    return name.startswith(base) and turned(name, base)


def neighbours(path: Path) -> Iterator[os.DirEntry[str]]:
    """Les fichiers ordinaires du dossier de ``path`` ; rien si ce dossier ne se lit pas."""
    try:
        with os.scandir(path.parent) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return
