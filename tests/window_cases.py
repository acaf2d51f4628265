"""Les cas de fenêtres des autres moteurs, ramenés à une même forme : des événements, des watermarks, des résultats.

    python -m tests.window_cases DOSSIER     récrit tests/data/window_cases.json à partir des cas d'origine

Chaque moteur a ses règles (quand une fenêtre se ferme, début négatif ou non) ; elles deviennent ici des
watermarks : celui de Kafka Streams, « temps du flux moins grâce », se lit « watermark = temps - grâce - 1 ».
Un cas : id, source, kind (hop, trailing), size, slide, offset, at_zero (les débuts négatifs sont à taire),
steps. Un pas : {"event": [clé, valeur, instant]}, {"watermark": W, "final": lignes ou null}, {"current":
lignes} (l'état des fenêtres ouvertes que l'événement touche), {"late": nombre d'événements refusés}.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CASES = Path(__file__).resolve().parent / "data" / "window_cases.json"
END = 1 << 60  # un watermark après tout
UNITS = {"ms": 1, "s": 1000, "min": 60_000}
FIELDS = ("key", "start", "end", "count", "sum", "min", "max", "tag")

Case = dict[str, Any]
Row = dict[str, Any]


def load(folder: Path) -> list[Case]:
    """Les cas d'un dossier de fichiers d'origine."""
    return [case for path in sorted(folder.glob("*.json")) for case in convert(json.loads(path.read_text("utf-8")))]


def convert(raw: Case) -> list[Case]:
    """Un fichier d'origine, en un ou plusieurs cas."""
    engine = raw["id"].split("_")[0]
    base = {"id": raw["id"], "source": raw["source"], "kind": "hop", "slide": 0, "offset": 0, "at_zero": False}
    match raw["kind"]:
        case "hopping_assignment":
            return [base | _assignment(raw["id"], number, case) for number, case in enumerate(raw["cases"])]
        case "over_range":
            return [base | _over(raw)]
        case "sliding_event_aligned":
            return [base | case for case in _sliding(raw)]
    if engine == "spark":
        return [base | _spark(raw["id"], number, case) for number, case in enumerate(raw["cases"])]
    return [base | _hopping(raw, engine)]


def _assignment(name: str, number: int, case: Case) -> Case:
    if "timestamps" in case:
        instants, size, slide, offset = case["timestamps"], case["size"], case["advance"], case["offset"]
        final = [{"start": w["start"], "end": w["end"], "count": len(w["timestamps"])} for w in case["expected"]]
    else:
        instants, offset = [int(case["ts_s_from_align"] * 1000)], 0
        size, slide = case["size_s"] * 1000, case["advance_s"] * 1000
        starts = [window * slide for window in case["window_ids"]]
        final = [{"start": start, "end": start + size, "count": 1} for start in starts]
    steps = [*({"event": ["k", 1, instant]} for instant in instants), {"watermark": END, "final": final}]
    return {"id": f"{name}_{number}", "size": size, "slide": slide, "offset": offset, "steps": steps}


def _spark(name: str, number: int, case: Case) -> Case:
    day = case["input_ts"][0].split()[0]
    rows = [
        {"start": _instant(row.get("start") or f"{day} {row['start_s']}"),
         "end": _instant(row.get("end") or f"{day} {row['end_s']}"), "count": row["count"]}
        for row in case["expected"]
    ]  # fmt: skip
    steps = [{"event": ["k", 1, _instant(text)]} for text in case["input_ts"]]
    size, slide = _duration(case["size"]), _duration(case["advance"])
    return {
        "id": f"{name}_{number}",
        "size": size,
        "slide": slide,
        "steps": [*steps, {"watermark": END, "final": rows}],
    }


def _hopping(raw: Case, engine: str) -> Case:
    params = raw["params"]
    size, slide = (params.get(f"{name}_ms") or _duration(params[name]) for name in ("size", "advance"))
    # Ce que le watermark vaut après un événement d'instant maximal t : t - delay ; sans délai, il est dans les pas.
    delay = {"ks": lambda: params["grace_ms"] + 1, "quix": lambda: params["grace_ms"] + 1}.get(engine, lambda: None)()
    if "rowtime - 1 s" in str(params.get("watermark")):
        delay = 1000
    steps: list[Case] = []
    highest = -END
    groups = raw.get("steps") or [{k: raw[k] for k in ("input", "expected_final_emitted")}]
    updates = list(raw.get("expected_updates", []))
    for group in groups:
        events = group.get("input") or ([group["event"]] if "event" in group else [])
        waiting: list[Row] = []
        for event in events:
            instant = _instant(event["ts"])
            steps.append({"event": [event.get("key", "k"), _number(event["value"]), instant]})
            current = group.get("updated") or _touched(updates, instant, event)
            if current:
                steps.append({"current": [_row(row) for row in current]})
            if delay is not None:
                highest = max(highest, instant)
                steps.append({"watermark": highest - delay, "final": None})
        for name in ("expected_final_emitted", "expired_final", "expected_final_emitted_since_restore", "expected"):
            waiting += [_row(row) for row in group.get(name, []) if row.get("sum", 0) is not None]
        if group.get("end_of_input") or (not delay and "watermark" not in group and events and "input" in group):
            steps.append({"watermark": END, "final": waiting})
        elif "watermark" in group:
            steps.append({"watermark": group["watermark"] - (engine == "scotty"), "final": waiting})
        elif "expired_final" in group or "expected_final_emitted" in group:
            steps.append({"watermark": None, "final": waiting})
        elif "event" in group and engine == "quix":
            steps.append({"watermark": None, "final": "any"})  # l'origine ne dit rien de ces premiers pas
    if "expected_late_dropped" in raw:
        steps.append({"late": raw["expected_late_dropped"]})
    return {"size": size, "slide": slide, "at_zero": engine in ("ks", "quix", "scotty"), "steps": steps}


def _touched(updates: list[Row], instant: int, event: Row) -> list[Row]:
    """Les mises à jour que l'événement a causées : les premières de la liste qui le contiennent."""
    found: list[Row] = []
    while updates and updates[0]["key"] == event["key"] and updates[0]["start"] <= instant < updates[0]["end"]:
        if found and updates[0]["start"] <= found[-1]["start"]:
            break
        found.append(updates.pop(0))
    return found


def _over(raw: Case) -> Case:
    steps: list[Case] = []
    for step in raw["steps"]:
        if event := step.get("event"):
            steps.append({"event": [event["key"], event["value"], event["ts"], event.get("tag")]})
        else:
            steps.append({"watermark": step.get("watermark", END), "final": None})
    rows = [
        {("end" if name == "ts" else name): value for name, value in row.items() if name != "value"}
        for row in raw["expected_rows_any_order"]
    ]
    return {"kind": "trailing", "size": raw["params"]["range_ms"], "steps": [*steps, {"all": rows}]}


def _sliding(raw: Case) -> list[Case]:
    """Fenêtres de Kafka Streams et de Quix : celles qui finissent à un événement sont les nôtres."""
    if "cases" not in raw:
        events: list[Row] = list(raw.get("input") or raw["input_multiset_any_order"])
        events += [raw["input_last"]] if "input_last" in raw else []
        instants = {event["ts"] for event in events}
        steps: list[Case] = [{"event": [event["key"], 1, event["ts"]]} for event in events]
        rows = [_row(row, "key", "end", "count") for row in raw["expected_windows_any_order"] if row["end"] in instants]
        steps += [{"watermark": END, "final": None}, {"has": rows}]
        return [{"kind": "trailing", "size": raw["params"]["size_ms"], "steps": steps}]
    return [case for raw_case in raw["cases"] if (case := _quix_sliding(raw_case))]


def _quix_sliding(case: Case) -> Case | None:
    size, grace = case["params"]["size_ms"], case["params"]["grace_ms"]
    steps: list[Case] = []
    highest = -END
    for step in case["steps"]:
        event = step["event"]
        if event["ts"] <= highest - grace - 1:
            return None  # en retard : Quix le compte encore dans des fenêtres plus récentes, Flink et nous le refusons
        highest = max(highest, event["ts"])
        rows = [
            {"end": row["end"], "count": len(row["value"])}
            for row in step["expired_final"]
            if row["end"] != event["ts"]
        ]
        steps += [{"event": [event["key"], 1, event["ts"]]}, {"watermark": highest - grace - 1, "final": rows}]
    return {"id": case["id"], "kind": "trailing", "size": size, "steps": steps}


def _row(row: Row, *names: str) -> Row:
    found = {name: row[name] for name in FIELDS if name in row and (not names or name in names)}
    if "elements" in row:
        found |= {"count": len(row["elements"])}
    return found | {name: _instant(found[name]) for name in ("start", "end") if name in found}


def _number(value: Any) -> int:
    return int(float(value)) if not isinstance(value, int) else value


def _duration(text: str) -> int:
    number, unit = text.split()
    return int(number) * UNITS[unit]


def _instant(value: Any) -> int:
    if isinstance(value, int):
        return value
    moment = datetime.fromisoformat(value).replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


if __name__ == "__main__":
    text = json.dumps(load(Path(sys.argv[1])), ensure_ascii=False, indent=1)
    CASES.write_text(text + "\n", encoding="utf-8")
