"""The progress of a study as a table, and why cells have failed."""

from __future__ import annotations

from collections import Counter

from regzoo_tools.study.cells import Cell, cells_of, is_locked, lock_of, outdated, read_facts
from regzoo_tools.study.description import Study
from regzoo_tools.study.scheduling import submitted_cells

#: States of a cell, in the order of the table.
STATES = ("done", "running", "submitted", "waiting", "interrupted", "failed", "skipped", "outdated")


def states(study: Study) -> dict[Cell, str]:
    """The state of each cell.

    ``interrupted`` cells were started, but nobody works on them; ``outdated`` cells were made with other settings, code
    or data; ``skipped`` cells need a tool that is not installed.
    """
    queued = submitted_cells(study)
    return {cell: _state(study, cell, queued) for cell in cells_of(study)}


def _state(study: Study, cell: Cell, queued: set[str]) -> str:
    facts = read_facts(study, cell)
    if is_locked(lock_of(study, cell)):
        return "running"
    if cell.name in queued:
        return "submitted"
    if facts and outdated(study, cell, facts):
        return "outdated"
    status = str(facts.get("status", "waiting"))
    return "interrupted" if status == "running" else status


def status_text(study: Study) -> str:
    """A table, a line per method and a column per state; then the failed cells with the last lines of their logs."""
    found = states(study)
    used = [state for state in STATES if state in found.values()]
    counts = {name: Counter(state for cell, state in found.items() if cell.method == name) for name in study.methods}
    rows = [["method", *used], *([name, *(str(count[state]) for state in used)] for name, count in counts.items())]
    rows.append(["all", *(str(sum(count[state] for count in counts.values())) for state in used)])
    width = max(len(row[0]) for row in rows)
    lines = [row[0].ljust(width) + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows]
    reasons = []
    for cell, state in found.items():
        if state in ("failed", "skipped"):
            error = str(read_facts(study, cell)["error"]).replace("\n", "\n    ")
            reasons.append(f"{cell.name}: {state}: {error}")
        elif state == "outdated":
            changed = ", ".join(outdated(study, cell, read_facts(study, cell)))
            reasons.append(f"{cell.name}: was made with other {changed}; regzoo study run --redo runs it again")
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])
