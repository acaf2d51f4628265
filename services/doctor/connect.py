"""Kafka Connect : répond-il, sait-il lire un fichier, ses connecteurs marchent-ils ?"""

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.doctor.env_file import value
from services.doctor.report import Check, Finding, Notes, warning


def judge_connect(status: int | None, plugins: Sequence[str], failed: Mapping[str, str], port: str) -> list[Finding]:
    """Connect répond-il, sait-il lire un fichier, ses connecteurs marchent-ils ? ``status`` : None s'il se tait."""
    if status is None:
        return [
            warning(
                "Connect",
                f"Kafka Connect ne répond pas sur localhost:{port} ; exercice1/producer.py s'en passe",
                "« make services » ou « docker-compose up -d », si vous en avez besoin.",
            )
        ]
    if status != 200:
        return [
            warning(
                "Connect",
                f"le port {port} répond {status} : Connect démarre encore, ou un autre programme y écoute",
                "Attendez dix secondes, puis recommencez.",
            )
        ]
    notes = Notes("Connect")
    if not any(name.endswith("FileStreamSourceConnector") for name in plugins):
        notes.warning(
            "n'a pas le greffon FileStreamSource, que connector.json demande : l'inscription serait refusée (400)",
            "Mettez connect-file-*.jar dans un dossier de plugin.path, et redémarrez Connect.",
        )
    for name, reason in failed.items():
        notes.warning(
            f"le connecteur {name} s'est arrêté : {reason}",
            f"Corrigez la cause, puis « curl -X POST localhost:{port}/connectors/{name}/restart?includeTasks=true ».",
        )
    return notes.or_ok(f"répond sur localhost:{port}, avec le greffon FileStreamSource")


def failures(connectors: Mapping[str, Any]) -> dict[str, str]:
    """Connecteur → première ligne de sa panne, de GET /connectors?expand=status."""
    found = {}
    for name, about in connectors.items():
        for part in (about["status"]["connector"], *about["status"]["tasks"]):
            if part.get("state") == "FAILED":
                found[name] = (part.get("trace") or "sans explication").splitlines()[0]
    return found


def get(port: str, path: str) -> tuple[int | None, Any]:
    """Code et contenu de la réponse de Connect ; (None, None) s'il se tait."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=6)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null") if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None, None
    finally:
        connection.close()


def connect_worker() -> list[Finding]:
    """Kafka Connect, sur cette machine."""
    port = value("PORT_CONNECT")
    status, plugins = get(port, "/connector-plugins")
    _, connectors = get(port, "/connectors?expand=status") if status == 200 else (None, None)
    return judge_connect(
        status, [plugin.get("class", "") for plugin in plugins or ()], failures(connectors or {}), port
    )


CHECKS: dict[str, Check] = {"Connect": connect_worker}
