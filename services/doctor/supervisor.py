"""Le superviseur de la pile sans Docker : est-il là, et entend-il ? psutil le trouve, s'il est là."""

import importlib
from collections.abc import Sequence
from contextlib import suppress

from commun import PipelineError
from services.doctor.report import Check, Finding, ok, warning


def judge_supervisor(pid: int | None, orphans: Sequence[int], *, frozen: bool) -> list[Finding]:
    """Quelqu'un surveille-t-il les serveurs ? ``pid`` : None s'il n'existe pas ; ``orphans`` : ce qui tourne sans lui.

    Les serveurs, eux, répondent : les scripts n'en souffrent pas.
    """
    if pid is None:
        if not orphans:
            return []  # rien ne tourne ici, ou les serveurs sont ceux de Docker
        numbers = ", ".join(map(str, orphans))
        return [
            warning(
                "superviseur",
                f"des processus de cette pile tournent sans lui (pid {numbers}) : « stop », « kill » et « restart » ne "
                "les connaissent plus",
                "« make services » les remplace, « make stop » les arrête.",
            )
        ]
    if frozen:
        return [
            warning(
                "superviseur",
                f"supervisord (pid {pid}) est gelé : il ne voit plus mourir les serveurs et n'en démarre plus",
                "« make services » ou « make status » le réveille.",
            )
        ]
    return [ok("superviseur", f"supervisord (pid {pid}) surveille les serveurs")]


def supervisor() -> list[Finding]:
    """Le superviseur de la pile de ce dossier, sans rien lui demander : gelé, il ne répondrait pas."""
    with suppress(ImportError, PipelineError):  # pas de paquets, pas de pile ; un réglage faux se dit à sa ligne
        supervise = importlib.import_module("services.supervise")
        own = supervise.Supervisor(importlib.import_module("services.stack").Stack())
        if process := own.process():
            return judge_supervisor(process.pid, [], frozen=supervise.is_frozen(process.pid))
        return judge_supervisor(None, [orphan.pid for orphan in own.orphans()], frozen=False)
    return []


CHECKS: dict[str, Check] = {"superviseur": supervisor}
