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
        self._total = total
        self._done = done
        self._first = done
        self._begin = time.monotonic()
        self._logged = self._begin
        # The first steps come with the end of compilation, until when the bar stands still.
        super().__init__(enabled, total=total, initial=done, unit="step", desc="compiling")

    def advance(self, elbo: np.ndarray) -> None:
        """Move by the steps of these estimates, (n,) or (n, R)."""
        self._done += len(elbo)
        is_due = self._is_log_due()
        if self._bar is None and not is_due:
            return
        text = _smoothed(elbo)
        if self._bar is not None:
            self._bar.set_description_str(refresh=False)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(len(elbo))
        if is_due:
            self._log(text)

    def _is_log_due(self) -> bool:
        is_moving = self._done > self._first  # a run that was over takes no step
        if not (is_moving and logger.isEnabledFor(logging.INFO)):
            return False
        return time.monotonic() - self._logged >= _LOG_SECONDS or self._done == self._total

    def _log(self, text: str) -> None:
        self._logged = time.monotonic()
        rate = (self._done - self._first) / (self._logged - self._begin)
        seconds_left = (self._total - self._done) / rate
        line = "step %d of %d: %s, %.3g steps/s, %.0f s left"
        logger.info(line, self._done, self._total, text, rate, seconds_left)


def _smoothed(elbo: np.ndarray) -> str:
    """The mean of the last hundred estimates, of several starts the best one's."""
    recent = np.atleast_2d(elbo[-100:].T)
    finite = [start[np.isfinite(start)] for start in recent]
    means = [start.mean() for start in finite if start.size]
    return f"ELBO {max(means):.6g}" if means else "ELBO not finite"


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
