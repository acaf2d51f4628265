"""Les données : ce qui n'est pas passé, et ce qui attend alors que rien ne le fait avancer."""

from commun.dead_letters import SUFFIX
from services.data import State, ago, number, read_state, silent
from services.doctor.report import Check, Finding, Notes, unknown

STATE_SECONDS = 9.0  # un contrôle en a dix
STALE_SECONDS = 600.0  # un export ou un chargement plus vieux, alors que quelque chose l'attend, n'a plus lieu


def judge_data(state: State) -> list[Finding]:
    """Lettres mortes, lignes rejetées, ventes et lots que rien ne fait plus avancer."""
    notes = Notes("données")
    for name, count in state["kafka"].get("lettres_mortes", {}).items():
        if count:
            notes.warning(
                f"{name} : {number(count)} lettres mortes à traiter",
                f"« python dead_letters.py --topic {name.removesuffix(SUFFIX)} --summary », dans l'exercice, dit "
                "pourquoi.",
            )
    if rejects := state["postgresql"].get("rejets"):
        notes.warning(
            f"PostgreSQL a rejeté {number(rejects)} lignes", "« python dead_letters.py », dans exercice3, les montre."
        )
    late = (
        (state["mongodb"].get("a_exporter"), state["mongodb"].get("dernier_export"), "ventes attendent l'export",
         "python schedule_export.py"),
        (state["fichiers"]["a_charger"], state["postgresql"].get("dernier_chargement"), "lots attendent le chargement",
         "python pg.py"),
    )  # fmt: skip
    for waiting, age, what, command in late:
        if waiting and (age is None or age > STALE_SECONDS):
            notes.warning(f"{number(waiting)} {what} ; le dernier : {ago(age)}", f"Lancez « {command} ».")
    if not notes.found and (mute := silent(state)):
        return [unknown("données", f"sans réponse de {', '.join(mute)}")]
    return notes.or_ok("rien à réparer, rien n'attend depuis longtemps")


def data() -> list[Finding]:
    """L'état des données de la pile."""
    return judge_data(read_state(STATE_SECONDS))


CHECKS: dict[str, Check] = {"données": data}
