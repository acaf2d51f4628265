"""Apache Flink sur la pile locale : un JobManager, qui est le job des fenêtres, et un ou deux TaskManagers.

Ils ne démarrent que si on les demande (« python -m services flink »). Le second TaskManager attend
« python -m services restart taskmanager2 » : le job s'étend alors sur lui.
"""

import os
import shutil
from pathlib import Path

from commun.settings import ROOT
from services.stack import CONFIG, CONTROLLER_OFFSET, JOBMANAGER, TASKMANAGERS, Service, Stack

# Ce que Flink demande à Java 21, dans le module java.base.
_OPENED = ("lang", "net", "io", "nio", "lang.reflect", "text", "time", "util", "util.concurrent",
           "util.concurrent.atomic", "util.concurrent.locks")  # fmt: skip
OPENS = tuple(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED)
# Les calculs, eux, gagnent à être compilés jusqu'au bout.
TASKMANAGER_OPTIONS = ("-Xmx768m", "-XX:TieredStopAtLevel=4")
JOBMANAGER_CLASS = "org.apache.flink.container.entrypoint.StandaloneApplicationClusterEntryPoint"
TASKMANAGER_CLASS = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
JOB = ROOT / "exercice2" / "flink"
VARIABLES = ("TRANSACTIONS_TOPIC", "TRANSACTIONS_FENETRES_FLINK", "FLINK_BY")


class Flink:
    """Un Flink : un dossier, un port, et le dossier de son job ; par défaut, ceux de la pile et de l'exercice 2."""

    def __init__(self, stack: Stack, home: Path | None = None, port: int | None = None, job: Path = JOB) -> None:
        self.stack, self.job = stack, job
        self.home = home or stack.data / "flink"
        self.port = port or stack.ports[JOBMANAGER]

    def write_config(self, **own: str) -> None:
        """Écrit la configuration : services/config/flink.yaml, les ports, les dossiers, et ``own``."""
        settings = {
            "rest.port": self.port,
            "jobmanager.rpc.port": self.port + CONTROLLER_OFFSET,
            **own,
        }
        (self.home / "tmp").mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}: {value}\n" for name, value in settings.items())
        text = (CONFIG / "flink.yaml").read_text(encoding="utf-8")
        (self.home / "config.yaml").write_text(f"{text}\n# Propre à la pile locale\n{lines}", encoding="utf-8")

    def services(self, classpath: str) -> list[Service]:
        """Le JobManager et les deux TaskManagers."""
        environment = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)} | {
            "FLINK_CONF_DIR": self._relative_home,
            "FLINK_STATE": f"{self._relative_home}/state",
            "KAFKA_BOOTSTRAP_SERVERS": self.stack.brokers,
        }
        start = ["bash", str(self.job / "start-job.sh")]
        job = [*start, *self.stack.java(classpath, *OPENS, JOBMANAGER_CLASS, *self._options(JOBMANAGER))]
        services = [Service(JOBMANAGER, job, self.port, "PORT_FLINK", environment=environment)]
        for number, name in enumerate(TASKMANAGERS, start=1):
            port = self.port + CONTROLLER_OFFSET + number
            own = ["-D", f"taskmanager.rpc.port={port}", "-D", f"taskmanager.resource-id={name}"]
            options = [*OPENS, *TASKMANAGER_OPTIONS, TASKMANAGER_CLASS, *self._options(name), *own]
            services.append(Service(name, self.stack.java(classpath, *options), port, "PORT_FLINK"))
        return services

    def _options(self, name: str) -> list[str]:
        return ["--configDir", self._relative_home, "-D", f"io.tmp.dirs={Path(self._relative_home, 'tmp', name)}"]

    @property
    def _relative_home(self) -> str:
        """Vu du dossier des données, d'où ces commandes partent : Flink couperait un chemin à sa première virgule."""
        return os.path.relpath(self.home, self.stack.data)

    def clear(self, name: str) -> None:
        """Efface les fichiers provisoires de ``name``, qui ne tourne pas : un ``kill -9`` les laisse."""
        shutil.rmtree(self.home / "tmp" / name, ignore_errors=True)
