"""Les jars des serveurs sans Docker, sont-ils là ? Rien n'est téléchargé. Bibliothèque standard seulement."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.doctor.env_file import ROOT
from services.doctor.report import Check, Finding, ok, warning

KAFKA, FLINK = "kafka", "flink"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Jars:
    """Ceux d'une liste figée : combien il en faut, combien sont là, et leur poids en octets."""

    wanted: int
    found: int
    size: int

    def __str__(self) -> str:
        if not self.found:
            return f"aucun des {self.wanted} fichiers"
        count = f"{self.found} fichiers" + (f" sur {self.wanted}" if self.found < self.wanted else "")
        return f"{count}, {self.size / MEGABYTE:.0f} Mo"


def cache() -> Path:
    """Le dossier de Maven où ils vont."""
    return Path(os.environ.get("M2_REPO") or "~/.m2/repository").expanduser()


def jar_path(folder: Path, coordinates: str) -> Path:
    """Où Maven range « groupe:nom:version » dans ``folder``."""
    group, name, version = coordinates.split(":")
    return folder.joinpath(*group.split("."), name, version, f"{name}-{version}.jar")


def jars_facts(folder: Path, name: str) -> Jars:
    """Ceux de ``name``.lock qui sont dans ``folder`` ; leur contenu, c'est « up » qui le vérifie."""
    lines = (ROOT / "services" / "jars" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    paths = [jar_path(folder, line.split()[1]) for line in lines if not line.startswith("#")]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    found = [size for size in sizes if size]
    return Jars(len(paths), len(found), sum(found))


def judge_jars(jars: Mapping[str, Jars], folder: Path) -> Finding:
    """Ceux de Kafka manquent-ils ? Ceux de Flink ne viennent qu'à la demande."""
    kafka, flink = jars[KAFKA], jars[FLINK]
    later = " (« make flink » les télécharge)" if flink.found < flink.wanted else ""
    text = f"Kafka : {kafka} ; Flink : {flink}{later} ; dans {folder}"
    if kafka.found == kafka.wanted:
        return ok("jars", text)
    return warning(
        "jars",
        text,
        "« make services » télécharge ce qui manque de Maven Central (rien à faire avec Docker). Si cela échoue : "
        "derrière un proxy, « export HTTPS_PROXY=http://machine:port » ; s'il ouvre le TLS (« certificate verify "
        "failed »), « export REQUESTS_CA_BUNDLE=… », le certificat de votre entreprise.",
    )


def look() -> list[Finding]:
    """Les jars de Kafka et de Flink."""
    if os.name == "nt":  # les serveurs sans Docker n'y tournent pas
        return []
    folder = cache()
    return [judge_jars({name: jars_facts(folder, name) for name in (KAFKA, FLINK)}, folder)]


CHECKS: dict[str, Check] = {"jars": look}
