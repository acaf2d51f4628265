"""Un constat, la recherche des constats en parallèle, leur affichage. Bibliothèque standard seulement."""

import importlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from commun import PipelineError

T = TypeVar("T")
OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "problem", "unknown"
WORDS = {OK: "ok", WARNING: "attention", PROBLEM: "problème", UNKNOWN: "inconnu"}
COLOURS = {OK: "32", WARNING: "33", PROBLEM: "31", UNKNOWN: "35"}
CHECK_SECONDS = 10.0  # au-delà, un contrôle est dit « inconnu » ; une machine chargée se tait souvent cinq secondes
AHEAD_SECONDS = 30.0  # écart de deux horloges au-delà duquel ce n'est plus le hasard


@dataclass(frozen=True)
class Finding:
    """Un constat : ce qui a été contrôlé, son état, une phrase, et le remède s'il en faut un."""

    check: str
    state: str
    message: str
    cure: str = ""


Check = Callable[[], Iterable[Finding]]


def ok(check: str, message: str) -> Finding:
    """Rien à redire."""
    return Finding(check, OK, message)


def warning(check: str, message: str, cure: str = "") -> Finding:
    """Une surprise possible, qui n'arrête pas les scripts."""
    return Finding(check, WARNING, message, cure)


def problem(check: str, message: str, cure: str) -> Finding:
    """Ce qui arrêterait les scripts, ou l'un d'eux."""
    return Finding(check, PROBLEM, message, cure)


def unknown(check: str, message: str, cure: str = "") -> Finding:
    """Ce qui n'a pas pu être regardé, et pourquoi."""
    return Finding(check, UNKNOWN, message, cure)


def refusal(check: str, sentence: str) -> Finding:
    """Ce qui arrêterait un script : « ce qui est arrivé : quoi faire. » devient un problème et son remède.

    Le remède est parfois une seconde phrase.
    """
    happened, _, cure = sentence.rpartition(". " if ". " in sentence else " : ")
    if not happened:
        return problem(check, sentence, "Corrigez cela, puis relancez « doctor ».")
    return problem(check, happened, f"{cure[:1].upper()}{cure[1:].rstrip('.')}.")


class Notes:
    """Tout ce qu'un contrôle a à redire, dans l'ordre."""

    def __init__(self, check: str) -> None:
        self.check = check
        self.found: list[Finding] = []

    def add(self, state: str, message: str, cure: str = "") -> None:
        """Un constat de plus."""
        self.found.append(Finding(self.check, state, message, cure))

    def warning(self, message: str, cure: str = "") -> None:
        """Un avertissement de plus."""
        self.add(WARNING, message, cure)

    def problem(self, message: str, cure: str) -> None:
        """Un problème de plus."""
        self.add(PROBLEM, message, cure)

    def or_ok(self, message: str) -> list[Finding]:
        """Ce qu'il y a à redire, sinon ``message``."""
        return self.found or [ok(self.check, message)]


def load(module: str) -> dict[str, Check]:
    """Les contrôles de ``services.doctor.<module>`` ; s'il ne s'importe pas, un seul, qui dit pourquoi."""
    try:
        checks: dict[str, Check] = importlib.import_module(f"services.doctor.{module}").CHECKS
        return checks
    except ImportError as error:
        lack = Finding(
            module, UNKNOWN, f"pas regardé : il manque un paquet ({error.name or error})", "Voyez la ligne « paquets »."
        )
        return {module: lambda: [lack]}


def examine(checks: dict[str, Check], seconds: float = CHECK_SECONDS) -> list[Finding]:
    """Tous les constats, dans l'ordre des contrôles. Ne lève rien, n'attend pas plus de ``seconds`` secondes."""
    found: dict[str, list[Finding]] = {}

    def one(name: str, check: Check) -> None:
        try:
            found[name] = list(check())
        except PipelineError as error:
            found[name] = [refusal(name, str(error))]
        except Exception as error:  # un contrôle qui se trompe n'empêche pas les autres
            reason = " ".join(str(error).split()) or "sans message"
            found[name] = [Finding(name, UNKNOWN, f"contrôle impossible : {reason} ({type(error).__name__})")]

    together(one, checks, seconds)
    late = f"pas de réponse en {seconds:g} s"
    return [finding for name in checks for finding in found.get(name, [Finding(name, UNKNOWN, late)])]


def together(job: Callable[[str, T], None], wanted: Mapping[str, T], seconds: float) -> None:
    """``job`` pour chaque nom, en même temps ; n'attend pas plus de ``seconds`` secondes ceux qui tardent."""
    threads = [threading.Thread(target=job, args=pair, daemon=True) for pair in wanted.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def as_json(findings: Sequence[Finding]) -> str:
    """La liste des constats : check, state (ok, warning, problem ou unknown), message, cure."""
    return json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2)


def as_text(findings: Sequence[Finding], *, colour: bool) -> str:
    """Un constat par ligne, son remède en dessous, et les comptes à la fin."""
    lines = []
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        word = f"{WORDS[finding.state]:<9}"
        word = f"\033[{COLOURS[finding.state]}m{word}\033[0m" if colour else word
        lines.append(f"{word} {finding.check:<{width}}  {finding.message}")
        if finding.cure:
            lines.append(f"{'':<9} {'':<{width}}  → {finding.cure}")
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """« 1 problème, 2 avertissements, rien d'inconnu. »"""
    count = Counter(finding.state for finding in findings)

    def several(number: int, word: str) -> str:
        return f"{number} {word}{'s' if number > 1 else ''}"

    parts = [several(count[PROBLEM], "problème"), several(count[WARNING], "avertissement")]
    parts += [several(count[UNKNOWN], "contrôle") + " sans réponse"] if count[UNKNOWN] else []
    nothing = "rien de ce qui a été regardé n'arrêterait les scripts"
    verdict = "quelque chose arrêterait les scripts, ou l'un d'eux" if count[PROBLEM] else nothing
    return f"{', '.join(parts)} : {verdict}."
