"""Ligne de commande : options en français, arrêt propre, codes de sortie, journal."""

import argparse
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, NoReturn

from commun import INTERRUPTED, PipelineError, systems

log = logging.getLogger("pipeline")

PORT_MAX = 65_535
LEVELS = ("debug", "info", "warning", "error")
LEVEL = "info"
NUMBER_MAX = 1e12  # au-delà, ni une durée ni un nombre de messages n'a de sens
SLICE_SECONDS = 0.05  # un arrêt demandé pendant une attente est vu au bout de ce temps, sous Windows aussi

# Ce qu'un fichier peut contenir, et qu'un terminal exécuterait au lieu de l'afficher , ou qui le retourne.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "\\t", 10: "\\n", 13: "\\r"}
_CONTROL |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

# argparse ne parle qu'anglais : ses phrases, et les nôtres.
_FRENCH = (
    (r"unrecognized arguments: (.*)", r"option ou argument inconnu : \1"),
    (r"the following arguments are required: (.*)", r"il manque : \1"),
    (r"argument (.*): expected one argument", r"\1 attend une valeur"),
    (r"argument (.*): expected at least one argument", r"\1 attend au moins une valeur"),
    (r"argument (.*): ignored explicit argument (.*)", r"\1 n'attend pas de valeur (reçu : \2)"),
    (r"argument (.*): not allowed with argument (.*)", r"\1 et \2 ne vont pas ensemble"),
    (r"argument (.*): invalid choice: (.*) \(choose from (.*)\)", r"\1 : \2 n'est pas un choix possible (\3)"),
    (r"argument (.*): invalid \w+ value: (.*)", r"\1 : \2 n'est pas une valeur possible"),
    (r"argument (.*?): (.*)", r"\1 : \2"),
)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Garde la mise en page de la docstring et dit « Usage : »."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, "Usage : " if prefix is None else prefix)


class Parser(argparse.ArgumentParser):
    """Analyseur dont l'aide et les erreurs sont en français.

    ``doc`` est la docstring du script : elle devient le texte de ``--help``.
    Une mauvaise option termine le script avec le code 2.
    """

    def __init__(self, doc: str | None = None, **kwargs: Any) -> None:
        super().__init__(
            description=(doc or "").strip(), formatter_class=_Formatter, add_help=False, allow_abbrev=False, **kwargs
        )
        self._positionals.title, self._optionals.title = "Arguments ", "Options "
        self.add_argument("-h", "--help", action="help", help="affiche cette aide")

    def option(self, name: str, *, help: str, env: str | None = None, default: Any = None, **kwargs: Any) -> None:
        """Ajoute une option dont la valeur par défaut peut venir de la variable d'environnement ``env``."""
        notes = []
        if env:
            notes.append(f"variable {env}")
            default = os.environ.get(env) or default
        if default not in (None, [], {}) and kwargs.get("action") is None:
            notes.append(f"défaut : {default}")
        text = help + (f" [{' ; '.join(notes)}]" if notes else "")
        self.add_argument(name, default=default, help=text.replace("%", "%%"), **kwargs)

    def parse(self, argv: Sequence[str] | None, *, any_level: bool = False) -> argparse.Namespace:
        """Lit les options, puis ouvre le journal au niveau demandé par ``--log-level``.

        ``any_level`` : une variable LOG_LEVEL qui n'est pas un niveau vaut « info », au lieu d'être refusée. C'est
        pour qui doit marcher quoi qu'il y ait dans ce terminal.
        """
        self.option(
            "--log-level", env="LOG_LEVEL", default=LEVEL, type=str.lower, choices=LEVELS,
            help="détail du journal, écrit sur la sortie d'erreur",
        )  # fmt: skip
        self.option("--log-format", choices=("text", "json"), default="text",
                    help="journal en phrases, ou un objet JSON par ligne")  # fmt: skip
        args = self.parse_args(argv)
        if args.log_level not in LEVELS:  # argparse ne compare pas une valeur par défaut aux choix
            if not any_level:
                self.error(f"LOG_LEVEL={args.log_level} : ce n'est pas un niveau ({', '.join(LEVELS)})")
            args.log_level = LEVEL
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines() if args.log_format == "json" else TextLines())
        logging.basicConfig(level=args.log_level.upper(), handlers=[handler])
        for library in ("pymongo", "schedule", "faker"):
            logging.getLogger(library).setLevel(logging.WARNING)
        for name, value in vars(args).items():
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"{name.replace('_', '-')} : une valeur vide ne désigne rien")
        return args

    def error(self, message: str) -> NoReturn:
        """Dit en français ce qui ne va pas dans la ligne de commande et termine avec le code 2."""
        for pattern, sentence in _FRENCH:
            if match := re.fullmatch(pattern, message):
                message = match.expand(sentence)
                break
        self.exit(2, f"{self.prog} : {message}. Voyez « {self.prog} --help ».\n")


def printable(text: str) -> str:
    """Ce texte, sur une ligne qu'un terminal peut afficher : un caractère de commande y est écrit, et non exécuté."""
    return text.translate(_CONTROL)


class TextLines(logging.Formatter):
    """--log-format text : l'heure et la phrase, en une ligne ; un nom de colonne ou de fichier peut tout contenir."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """La ligne, sans la trace qui la suit."""
        return printable(super().formatMessage(record))


class JsonLines(logging.Formatter):
    """--log-format json : un objet par ligne, que lit une machine."""

    def format(self, record: logging.LogRecord) -> str:
        """Instant (UTC), niveau, phrase."""
        instant = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": instant, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["detail"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def port(text: str) -> int:
    """Type d'option : un numéro de port."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} n'est pas un port, entre 1 et {PORT_MAX}")
    return int(text)


def positive(kind: Callable[[str], Any] = int, *, zero: bool = False) -> Callable[[str], Any]:
    """Type d'option : un nombre de type ``kind``, strictement positif (ou nul si ``zero``), borné."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not (0 < value < NUMBER_MAX or (zero and value == 0)):
            kinds = "positif ou nul" if zero else "positif"
            raise argparse.ArgumentTypeError(f"{text!r} n'est pas un nombre {kinds}, inférieur à mille milliards")
        return value

    return convert


def age(text: str) -> timedelta:
    """Type d'option : un âge, en jours ou en heures, « 30d », « 12h »."""
    if not (match := re.fullmatch(r"(\d{1,5})([dh])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} n'est pas un âge, « 30d » (jours) ou « 12h » (heures)")
    return timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})


def moment(text: str) -> datetime:
    """Type d'option : un instant, dit en heure locale, « AAAA-MM-JJ » ou « AAAA-MM-JJ HH:MM » ; rendu en UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} n'est pas une date, AAAA-MM-JJ ou « AAAA-MM-JJ HH:MM »") from None


class Stop:
    """Demande d'arrêt : Ctrl-C ou SIGTERM (Windows : Ctrl-Pause) lève le drapeau, le script finit ce qui est en vol.

    Un second Ctrl-C n'attend plus et interrompt le script.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in systems.stop_signals():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ask(self) -> None:
        """Lève le drapeau."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Attend au plus ``seconds`` secondes ; vrai si l'arrêt est demandé.

        Sans ``threading.Event`` : le signal interrompt ce fil, parfois quand il en tient le verrou, et l'attendrait
        pour toujours.
        """
        deadline = time.monotonic() + seconds
        while not self._asked and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
        return self._asked


class NeverStopped(Stop):
    """Un arrêt que personne ne demande : les signaux restent à qui appelle."""

    def __init__(self) -> None:
        self._asked = False


class Stopped(Exception):
    """L'arrêt est demandé et Kafka ne répond pas."""

    def __str__(self) -> str:
        return "Arrêt sans réponse de Kafka : ce qui n'est pas validé sera refait au prochain démarrage."


def run(main: Callable[[], int]) -> NoReturn:
    """Exécute ``main`` et termine le processus : 0 réussi ou arrêté, 1 empêché, 2 mauvais usage."""
    systems.use_utf8()
    try:
        code = main()
        sys.stdout.flush()
    except PipelineError as error:
        code = _failed(str(error), error.code)
    except Stopped as stopped:
        code = _failed(str(stopped))
    except KeyboardInterrupt:
        code = _failed(INTERRUPTED)
    except Exception as error:
        if systems.is_broken_pipe(error):
            # « | head » a fermé le tube : ce n'est pas une erreur, et plus rien n'est à écrire.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        said = systems.reason(error) if isinstance(error, OSError) else error
        code = _failed(
            f"Erreur imprévue : {said} ({type(error).__name__}). Relancez avec « --log-level debug » pour le détail."
        )
    sys.exit(code)


def _failed(sentence: str, code: int = 1) -> int:
    if any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        log.error("%s", sentence)
    else:
        print(*map(printable, sentence.split("\n")), sep="\n", file=sys.stderr)
    log.debug("Détail :", exc_info=True)
    return code


def duration(seconds: float) -> str:
    """Une durée, lisible : 45 s, 12 min, 3 h 05, 2 j."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} j"
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60:02d}"


def french_number(value: float | int, decimals: int = 0) -> str:
    """Nombre à la française : ``french_number(12345.6, 2)`` donne ``12 345,60``."""
    return f"{value:,.{decimals}f}".replace(",", " ").replace(".", ",")
