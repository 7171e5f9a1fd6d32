"""What a person sees and does while a fit runs: a progress bar, and Ctrl-C."""

import logging
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np

logger = logging.getLogger("minisvi")
_LOG_SECONDS = 10.0


class _Bar:
    """tqdm's bar, if it is wanted and tqdm is installed."""

    def __init__(self, enabled: bool, **options: Any) -> None:
        self._bar = None
        if enabled:
            with suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Progress(_Bar):
    """Steps, their rate, the smoothed ELBO and the time left: in a bar, and every ten seconds in
    the log, at level INFO.
    """

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._total, self._done, self._first = total, done, done
        self._begin = self._logged = time.monotonic()
        super().__init__(enabled, total=total, initial=done, unit="step")

    def advance(self, elbo: np.ndarray) -> None:
        """Move by the steps of these estimates, (n,) or (n, R); show the mean of the last hundred,
        the best start's.
        """
        self._done += len(elbo)
        now = time.monotonic()
        due = (
            logger.isEnabledFor(logging.INFO) and self._done > self._first
        )  # one that was over takes no step
        due = due and (now - self._logged >= _LOG_SECONDS or self._done == self._total)
        if self._bar is None and not due:
            return
        recent = np.atleast_2d(elbo[-100:].T)
        means = [start[np.isfinite(start)].mean() for start in recent if np.isfinite(start).any()]
        text = f"ELBO {max(means):.6g}" if means else "ELBO not finite"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(len(elbo))
        if due:
            self._logged, rate = now, (self._done - self._first) / (now - self._begin)
            left = (self._total - self._done) / rate
            logger.info(
                "step %d of %d: %s, %.3g steps/s, %.0f s left",
                self._done,
                self._total,
                text,
                rate,
                left,
            )


class StageDisplay(_Bar):
    """One line with the stage of a longer work, and above it what the former ones came to."""

    def __init__(self, enabled: bool) -> None:
        super().__init__(enabled, bar_format="{desc} [{elapsed}]", leave=False)

    def begin(self, name: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(name)

    def end(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
