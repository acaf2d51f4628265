"""Réglages : l'environnement d'abord, le fichier .env de la pile locale ensuite.

Aucune adresse et aucun mot de passe n'est écrit dans un script : ils viennent
d'ici. Pour un autre serveur, posez la variable dans l'environnement.
"""

import io
import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from commun import PipelineError

from dotenv.parser import parse_stream

ROOT = Path(__file__).resolve().parent.parent
LIBPQ = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
LOCAL_HOST = "localhost"
_SAME_HOST = (LOCAL_HOST, "127.0.0.1", "::1")
# Ce que vaut une variable de libpq qui n'est pas posée. Les noms de .env ne sont pas ceux de libpq : un PGUSER ou un
# PGPORT qui traîne dans un terminal ne règle ni docker-compose ni « python -m services ».
LOCAL_NAMES = {
    "PGPORT": "PORT_POSTGRES", "PGDATABASE": "PIPELINE_DATABASE", "PGUSER": "PIPELINE_USER",
    "PGPASSWORD": "PIPELINE_PASSWORD",
}  # fmt: skip
# Variables qui envoient les scripts ailleurs que sur la pile locale.
_ELSEWHERE = (
    "MONGO_URI", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_METADATA_BROKER_LIST", "PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT",
    "PGDATABASE",
)  # fmt: skip
_LOT = r"ventes_(?:\d{6,}_[0-9a-f]{8}|data)\.(?:csv|csv\.gz|json)"
_EXPORTED = re.compile(rf"{_LOT}|\.{_LOT}\.[0-9a-f]{{8}}\.tmp")


@cache
def defaults() -> dict[str, str]:
    """Contenu de .env, le fichier que docker-compose lit aussi."""
    path = ROOT / ".env"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} n'est pas en UTF-8 : enregistrez-le dans cet encodage.") from error
    except OSError as error:
        raise PipelineError(
            f"Ce compte ne peut pas lire {path} ({error.strerror}) : rendez-le lisible (« chmod 644 .env »)."
        ) from error
    found = {}
    for name, value, original, unreadable in parse_stream(io.StringIO(text)):
        if unreadable:
            blank = original.string[: -len(original.string.lstrip())]
            line = original.line + blank.count("\n")
            raise PipelineError(
                f"La ligne {line} de {path} n'est ni « NOM=valeur » ni un commentaire : "
                "corrigez-la, ou mettez un « # » devant."
            )
        if name is not None:
            found[name] = value or ""
    return found


def setting(name: str) -> str:
    """Valeur de la variable ``name`` : environnement, sinon .env.

    Lève PipelineError si elle n'est ni dans l'un ni dans l'autre.
    """
    if name == "PGHOST":
        return os.environ.get(name) or LOCAL_HOST
    if name in LOCAL_NAMES:
        return os.environ.get(name) or setting(LOCAL_NAMES[name])
    value = os.environ.get(name) or defaults().get(name)
    if not value:
        raise PipelineError(
            f"La variable {name} n'a pas de valeur : posez-la dans l'environnement ou dans {ROOT / '.env'}."
        )
    return value


def elsewhere() -> list[str]:
    """Variables de l'environnement qui mènent les scripts à d'autres serveurs que ceux de la pile locale."""
    return [name for name in _ELSEWHERE if os.environ.get(name) and not _is_local(name)]


def _is_local(name: str) -> bool:
    """Vrai si cette variable, posée, désigne pourtant la pile locale."""
    if name == "PGHOST":
        return not _is_foreign(setting(name))
    return name in LOCAL_NAMES and setting(name) == setting(LOCAL_NAMES[name])


def _is_foreign(host: str) -> bool:
    return host not in _SAME_HOST


def refuse_elsewhere(*, any_server: bool) -> None:
    """Lève PipelineError si des ventes inventées partiraient ailleurs que sur la pile locale sans qu'on l'ait voulu."""
    if (names := elsewhere()) and not any_server:
        raise PipelineError(
            "Les ventes inventées ne vont qu'à la pile locale, et l'environnement mène ailleurs "
            f"({', '.join(names)}) : retirez ces variables, ou ajoutez --any-server."
        )


def data_folder() -> Path:
    """Dossier de la pile locale : ``SERVICES_DATA``, vu de la racine du projet, sinon ``.data``."""
    return Path(os.path.abspath(ROOT / (os.environ.get("SERVICES_DATA") or ".data")))


def export_dir() -> Path:
    """Dossier des fichiers exportés : ``EXPORT_DIR``, sinon celui de la pile. Deux piles ne le partagent jamais."""
    return Path(os.environ.get("EXPORT_DIR") or data_folder() / "exports")


def exported_files(folder: Path) -> list[Path]:
    """Ce que schedule_export.py écrit dans ``folder``, et rien d'autre : fichiers de ventes, manifestes, brouillons."""
    if folder.is_symlink() or not folder.is_dir():  # derrière un lien, ce dossier est à quelqu'un d'autre
        return []
    return sorted(path for path in folder.iterdir() if _EXPORTED.fullmatch(path.name) and path.is_file())


def bootstrap_servers() -> str:
    """Adresses des brokers : ``KAFKA_BOOTSTRAP_SERVERS``, sinon les trois ports de la pile locale."""
    ports = (setting(f"PORT_KAFKA{node}") for node in (1, 2, 3))
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or ",".join(f"{LOCAL_HOST}:{port}" for port in ports)


def bad_uri(error: Exception) -> str:
    """La phrase d'une MONGO_URI que pymongo refuse, sans ce qu'il en cite : un bout de mot de passe peut-être."""
    why = re.sub(r"['\"].*['\"]", "…", str(error))
    return f"MONGO_URI ne convient pas : {why} ; dans un mot de passe, « @ » s'écrit %40, « / » %2F, « : » %3A."


def mongo_uri() -> str:
    """Adresse de MongoDB : ``MONGO_URI``, sinon le compte des scripts sur la pile locale."""
    if uri := os.environ.get("MONGO_URI"):
        return uri
    user, password, database = (quote_plus(setting(f"MONGO_{part}")) for part in ("USER", "PASSWORD", "DATABASE"))
    return f"mongodb://{user}:{password}@{LOCAL_HOST}:{setting('PORT_MONGO')}/{database}?authSource={database}"


def postgres_dsn(*, reader: bool = False, host: str | None = None) -> dict[str, Any]:
    """Paramètres de connexion pour psycopg2 : les variables ``PG*`` de libpq, complétées par .env.

    ``reader`` : avec le rôle tableau et ``TABLEAU_PASSWORD``, au lieu du propriétaire de la base ;
    ``host`` : ce serveur-là, au lieu de ``PGHOST``.

    libpq lit lui-même les autres variables (``PGSSLMODE``, ``PGSERVICE``, ``PGPASSFILE``…). Si
    ``PGSERVICE`` est posée, c'est lui qui décide de tout et .env n'ajoute rien. Dès que le
    serveur n'est pas celui de la pile locale, le mot de passe de .env ne lui est pas envoyé.
    """
    if os.environ.get("PGSERVICE") == "":
        raise PipelineError("PGSERVICE est posée, mais vide : retirez-la (« unset PGSERVICE »).")
    names = LIBPQ | ({"password": "TABLEAU_PASSWORD"} if reader else {})
    foreign = _is_foreign(host or setting("PGHOST"))
    found = {
        key: setting(name)
        for key, name in ({} if "PGSERVICE" in os.environ else names).items()
        if not (foreign and key == "password" and name not in os.environ)
    }
    return found | ({"user": "tableau"} if reader else {}) | ({"host": host} if host else {})
