"""Ce que MongoDB et PostgreSQL ont en commun quand ils refusent : un compte changé, une horloge, une phrase."""

from collections.abc import Sequence
from dataclasses import dataclass

from commun import START_HINT
from commun.cli import duration
from services.doctor.report import AHEAD_SECONDS, WARNING, Finding

START = f"{START_HINT[0].upper()}{START_HINT[1:]}."


@dataclass(frozen=True)
class Login:
    """À quel serveur et sous quel compte on a frappé."""

    where: str
    user: str
    local: bool  # le serveur de .env
    exported: Sequence[str]  # les variables de ce terminal qui changent cette connexion, voir env_file
    spare: Sequence[str] = ()  # les variables de .env d'un compte dont les scripts se passent


def restart(service: str) -> str:
    """Le remède d'un serveur de la pile locale qui tient son port sans répondre."""
    return f"« python -m services restart {service} » ou « docker-compose restart {service} »."


def cure(login: Login, own: str, foreign: str) -> str:
    """Le remède : ``foreign`` pour un serveur d'ailleurs, ``own`` pour celui de .env.

    Mais si ce terminal change la connexion, c'est la seule chose à défaire : sans cela, le serveur irait peut-être
    bien, et un autre remède le casserait.
    """
    if not login.local:
        return foreign
    if login.exported:
        return (
            f"« unset {' '.join(login.exported)} » : ce qui est exporté l'emporte sur .env, puis relancez « doctor »."
        )
    return own


def changed(variables: Sequence[str]) -> str:
    """Le remède d'un mot de passe refusé : le compte date du premier démarrage, ``variables`` ont changé depuis."""
    return (
        f"Remettez dans .env {' et '.join(variables)} du premier démarrage, ou repartez de zéro, données comprises "
        "(« make reset » ou « docker-compose down -v »)."
    )


def judge_time(check: str, ahead: float) -> list[Finding]:
    """L'horloge du serveur et celle d'ici."""
    if abs(ahead) <= AHEAD_SECONDS:
        return []
    word = "avance" if ahead > 0 else "retarde"
    return [
        Finding(
            check,
            WARNING,
            f"son horloge {word} de {duration(abs(ahead))} sur celle d'ici",
            "Mettez les deux machines à l'heure (NTP).",
        )
    ]


def first_line(text: str) -> str:
    """Première ligne d'une phrase d'erreur, sans ce que le client y répète."""
    return (text.strip().splitlines() or ["sans explication"])[0].split(", Timeout:")[0].split(", full error:")[0]
