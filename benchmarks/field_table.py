"""The table of field.py: a row a cell, what lost and what was skipped too."""

import math
from typing import Any

Cell = dict[str, Any]

HEADER = "| target | D | engine | gap | mean_err | sd_err | k-hat | cold | warm | it says |"
RULE = "|---|---:|---|" + "---:|" * 6 + "---|"


def table(cells: list[Cell]) -> str:
    """Markdown. The most accurate engine of each target is in bold; what was skipped comes after
    the table, for each reason.
    """
    rows = [HEADER, RULE]
    for group in by_target(cells):
        rows += rows_of(group)
    return "\n".join([*rows, "", *skipped(cells)])


def rows_of(group: list[Cell]) -> list[str]:
    shown = [cell for cell in group if cell["status"] != "skipped"]
    winner = best(shown)
    rows = []
    for position, cell in enumerate(shown):
        name = f"{cell['target']} {variant(cell)}".strip() if position == 0 else ""
        engine = f"**{cell['engine']}**" if cell is winner else cell["engine"]
        rows.append(row([name, str(cell.get("dim", "")), engine, *figures(cell)]))
    return rows


def row(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"


def by_target(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that may be compared: of one target, seed and precision."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["precision"], cell["seed"]), []).append(cell)
    return list(groups.values())


def variant(cell: Cell) -> str:
    marks = ["float32"] if cell["precision"] == "float32" else []
    if cell["seed"]:
        marks.append(f"seed {cell['seed']}")
    return ", ".join(marks)


def figures(cell: Cell) -> list[str]:
    if cell["status"] == "time limit":
        return [""] * 4 + [f"over {cell['limit_s']:.0f}", "", ""]
    if cell["status"] != "ok":
        return [""] * 6 + [f"failed: {cell['reason'][:60]}"]
    times = [seconds(cell.get("seconds")), seconds(cell.get("warm_seconds"))]
    return [nats(cell), *quality(cell), short(cell.get("k_hat")), *times, cell["said"]]


def quality(cell: Cell) -> list[str]:
    if "test_nll" in cell:
        return [f"NLL {cell['test_nll']:.4f}", f"AUC {cell['test_auc']:.4f}"]
    return [short(cell.get("mean_err")), short(cell.get("sd_err"))]


def nats(cell: Cell) -> str:
    """The gap, or the ELBO where the evidence is not known."""
    if "gap" in cell or "elbo" not in cell:
        return short(cell.get("gap"))
    return f"ELBO {float(cell['elbo']):.2f}"


def seconds(value: Any) -> str:
    if value is None:
        return ""
    return f"{float(value):.2f}" if float(value) < 1 else f"{float(value):.1f}"


def short(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def best(group: list[Cell]) -> Cell | None:
    """The most accurate one: by mean_err^2 + sd_err^2, or by test NLL where there is no truth."""
    known = [cell for cell in group if cell["status"] == "ok" and math.isfinite(loss(cell))]
    return min(known, key=loss, default=None)


def loss(cell: Cell) -> float:
    if "test_nll" in cell:
        return float(cell["test_nll"])
    return error(cell) ** 2


def error(cell: Cell) -> float:
    """Root mean square of both errors."""
    return math.hypot(float(cell.get("mean_err", "nan")), float(cell.get("sd_err", "nan")))


def skipped(cells: list[Cell]) -> list[str]:
    """A line for each reason: the engines, and the targets of each."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell["status"] == "skipped":
            engines = reasons.setdefault(cell["reason"], {})
            engines.setdefault(cell["engine"], []).append(cell["target"])
    return [f"- skipped, {reason}: {listed(engines)}." for reason, engines in reasons.items()]


def listed(engines: dict[str, list[str]]) -> str:
    """The engines that were skipped on the same targets, together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for engine, targets in engines.items():
        together.setdefault(tuple(targets), []).append(engine)
    parts = [f"{', '.join(names)} on {', '.join(where)}" for where, names in together.items()]
    return "; ".join(parts)
