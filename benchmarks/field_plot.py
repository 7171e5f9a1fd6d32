"""The picture of field.py: error against seconds, one point a cell."""

from pathlib import Path
from typing import Any

from field_table import error

Cell = dict[str, Any]

COLOURS = {
    "minisvi": "#d62728",
    "NumPyro": "#1f77b4",
    "BlackJAX": "#2ca02c",
    "TFP": "#ff7f0e",
    "FlowJAX": "#9467bd",
    "Pyro": "#8c564b",
    "PyMC": "#7f7f7f",
    "pymc-extras": "#17becf",
}
VERDICTS = {"good": "*", "bulk good, tails unverified": "P", "not trusted": "X"}
SMALLEST_ERROR = 1e-3  # below it draws say nothing


def plot(cells: list[Cell], path: Path) -> None:
    """Both axes are logarithmic. `minisvi.fit` is drawn large, and its marker is its verdict."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [cell for cell in cells if cell["status"] == "ok" and error(cell) < float("inf")]
    figure, axes = pyplot.subplots(figsize=(9.5, 5.5))
    for library, colour in COLOURS.items():
        others = [c for c in shown if c["library"] == library and c["engine"] != "minisvi.fit"]
        sampled = [c for c in others if c["engine"].endswith("NUTS")]
        fitted = [c for c in others if not c["engine"].endswith("NUTS")]
        scatter(axes, fitted, library, colour, marker="o", s=22, alpha=0.6)
        scatter(axes, sampled, f"{library} NUTS", colour, marker="s", s=26, alpha=0.8)
    for verdict, marker in VERDICTS.items():
        judged = [c for c in shown if c["engine"] == "minisvi.fit" and c["said"] == verdict]
        style = {"s": 150, "edgecolors": "black", "linewidths": 0.7, "zorder": 3}
        scatter(axes, judged, f"minisvi.fit: {verdict}", COLOURS["minisvi"], marker, **style)
    axes.set(xscale="log", yscale="log", xlabel="seconds of a first call, compilation included")
    axes.set_ylabel("error of means and sds, in posterior sds (root mean square)")
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def scatter(
    axes: Any, cells: list[Cell], label: str, colour: str, marker: str, **style: Any
) -> None:
    if cells:
        errors = [max(error(cell), SMALLEST_ERROR) for cell in cells]
        seconds = [float(cell["seconds"]) for cell in cells]
        axes.scatter(seconds, errors, label=label, color=colour, marker=marker, **style)
