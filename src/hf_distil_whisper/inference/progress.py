"""How far a pass over recordings has come: rows, hours of audio, real-time factor and time left."""

import time

from transformers.utils import logging


class AudioProgress:
    """A progress bar over rows that also counts seconds of audio.

    Args:
        total (`int`, *optional*): rows; None where nobody knows.
        description (`str`): stands before the bar.
    """

    def __init__(self, total: int | None, description: str):
        self.bar = logging.tqdm(total=total, desc=description, unit="row")
        self.rows_per_window = 1.0
        """Rows that a window stands for: above 1 where utterances were joined."""
        self._total, self._shown = total, 0
        self._settled, self._open = 0, 0.0
        self._seconds, self._begin = 0.0, time.perf_counter()

    def update(self, windows: int, seconds: float) -> None:
        """Counts windows that are done, and the seconds of audio in them."""
        self._open += windows * self.rows_per_window
        self._seconds += seconds
        if self._seconds:
            factor = (time.perf_counter() - self._begin) / self._seconds
            self.bar.set_postfix_str(f"{self._seconds / 3600:.2f} h of audio, RTF {factor:.3f}", refresh=False)
        self._show()

    def settle(self, rows: int) -> None:
        """Counts rows as done, those among them whose windows were counted before only once."""
        self._settled, self._open = self._settled + rows, 0.0
        self._show()

    def skip(self, rows: int) -> None:
        """Counts rows that were done before: they tell nothing of the speed."""
        if not isinstance(self.bar, logging.EmptyTqdm):  # where progress bars are switched off
            self.bar.initial += rows
        self.settle(rows)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()

    def _show(self) -> None:
        done = self._settled + int(self._open)
        done = done if self._total is None else min(done, self._total)
        self.bar.update(done - self._shown)
        self._shown = done
