"""Draws in a table: moments, quantiles and their errors for each scalar entry, by NumPy in double
precision.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minisvi.posterior.weighted import Entry, entries, normalised, quantiles_of_entry
from minisvi.tools.names import entry_name, named_leaves
from minisvi.tools.types import Draw

COLUMNS = ("mean", "sd", "5%", "50%", "95%", "ESS", "error")
PROBABILITIES = np.array([0.05, 0.5, 0.95])
LONGEST = 60  # rows that `str` shows


@dataclass(frozen=True)
class Summary:
    """A table with a row for each scalar entry of theta, named `mu`, `effects[0]` or
    `net.kernel[0, 2]`. Print it.

    - `mean`, `sd`, `5%`, `50%`, `95%` are those of the weighted draws.
    - `ESS` is the number of independent draws that would give the mean as well: the variance over
      the squared standard error of the mean. With unequal weights each entry has its own, which may
      exceed the number of draws.
    - `error` is the standard error of the mean or of the sd, whichever is larger, in sds.

    An entry that is constant has an error of zero, and the ESS of the weights, 1 / sum_s w_s^2.

    Of a fit, `unreached` names the moments that its verdict says these draws do not give, and the
    last line of the table is about them.
    """

    rows: dict[str, dict[str, float]]
    unreached: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> dict[str, float]:
        """The row of one entry: `summary["effects[0]"]["5%"]` is a number of it. KeyError for a
        name that no entry has.
        """
        if name not in self.rows:
            names = ", ".join(_cut(list(self.rows), 10, "..."))
            raise KeyError(f"no entry `{name}` in the summary: expected one of {names}")
        return self.rows[name]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """All rows as a dict, from the name of an entry to its columns, which are floats."""
        return {name: dict(row) for name, row in self.rows.items()}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, whose index is the names of the entries. ImportError without
        pandas.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("`to_dataframe` needs pandas: pip install pandas") from None
        columns = list(COLUMNS)
        return pandas.DataFrame.from_dict(self.rows, orient="index", columns=columns)

    def __str__(self) -> str:
        """The table with its columns aligned. Of more than 60 rows it shows the first and the last
        30.
        """
        table = [["", *COLUMNS]]
        for name, row in self.rows.items():
            table.append([name, *_texts(row)])
        widths = [max(map(len, column)) for column in zip(*table)]
        header, *lines = [_line(texts, widths) for texts in table]
        left_out = f"... {len(lines) - LONGEST} rows are left out; `as_dict()` has them ..."
        shown = [header, *_cut(lines, LONGEST, left_out)]
        if self.unreached:
            shown.append("not given by these draws: " + ", ".join(self.unreached))
        return "\n".join(shown)


def summarise(theta: Draw, log_weights: Any) -> Summary:
    """The summary of draws of theta, each leaf (S, ...), with log weights (S,). A draw of weight
    zero never counts.
    """
    weights = normalised(log_weights)
    rows = {}
    for name, leaf in named_leaves(theta).items():
        indices = np.ndindex(leaf.shape[1:])
        for index, entry in zip(indices, entries(leaf, weights), strict=True):
            rows[entry_name(name, index)] = _row(entry)
    return Summary(rows)


def _row(entry: Entry) -> dict[str, float]:
    error = np.maximum(entry.mean_error(), entry.sd_error())
    quantiles = quantiles_of_entry(entry.x, entry.weights, PROBABILITIES)
    values = [entry.mean, entry.sd, *quantiles, _ess(entry), error]
    return dict(zip(COLUMNS, map(float, values), strict=True))


@np.errstate(divide="ignore")  # the error of a mean may be below the floats' square root
def _ess(entry: Entry) -> np.floating:
    """That of the mean, or that of the weights for a constant, whose mean has no error."""
    if entry.sd == 0:
        return 1 / np.sum(entry.weights**2)
    return np.divide(1.0, entry.mean_error() ** 2)


def _texts(row: dict[str, float]) -> list[str]:
    *values, ess, error = row.values()
    return [*_numbers(values, row["sd"]), f"{ess:.0f}", f"{error:.3f}"]


def _numbers(values: list[float], sd: float) -> list[str]:
    """Values with as many decimals as give the sd three significant digits; with powers of ten if
    these are too many.
    """
    largest = max(map(abs, values))
    if not (sd > 0 and math.isfinite(largest)):
        return [f"{value:.6g}" for value in values]
    decimals = 2 - math.floor(math.log10(sd))
    if decimals <= 6 and largest < 1e7:
        shown = max(decimals, 0)
        return [f"{value:z.{shown}f}" for value in values]
    digits = min(decimals + math.floor(math.log10(largest)), 15)
    return [f"{value:.{digits}e}" for value in values]


def _line(texts: list[str], widths: list[int]) -> str:
    name = texts[0].ljust(widths[0])
    numbers = [text.rjust(width) for text, width in zip(texts[1:], widths[1:])]
    return "  ".join([name, *numbers])


def _cut(items: list[str], most: int, left_out: str) -> list[str]:
    """At most so many items, from both ends, and between them `left_out`, which stands for the
    others.
    """
    if len(items) <= most:
        return items
    half = most // 2
    return [*items[:half], left_out, *items[-half:]]
