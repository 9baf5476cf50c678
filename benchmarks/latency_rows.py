"""What `latency_grid.py` has measured: one row for each model and setting, and the tables that they make."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class LatencyRow:
    """One model at one batch size, with one attention implementation and one cache.

    Args:
        model (`str`): its name.
        attn_implementation (`str`): "sdpa", "eager" or "flash_attention_2".
        cache (`str`): of keys and values, "dynamic" or "static".
        batch_size (`int`): windows per pass.
        timestamps (`bool`): whether it predicted timestamps.
        seconds (`tuple[float, ...]`): of work on all recordings, one entry per repetition.
        audio_seconds (`float`): true length of the recordings: neither padding nor the overlap of chunks.
        num_recordings (`int`): that could be read.
        num_windows (`int`): that they made.
        num_tokens (`int`): generated, over all windows.
        parameters (`int`): of the model.
        peak_bytes (`int`, *optional*): weights, and the most memory that a pass took beside them: on a GPU what torch
            allocated, on a CPU what a process of its own held, which generates as many tokens as the longest window.
        relative_latency (`float`, *optional*): how many times faster than the teacher in the same setting.
    """

    model: str
    attn_implementation: str
    cache: str
    batch_size: int
    timestamps: bool
    seconds: tuple[float, ...]
    audio_seconds: float
    num_recordings: int
    num_windows: int
    num_tokens: int
    parameters: int
    peak_bytes: int | None = None
    relative_latency: float | None = None

    @property
    def median(self) -> float:
        """Seconds of work on all recordings, median over the repetitions."""
        return statistics.median(self.seconds)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster."""
        return self.median / self.audio_seconds

    @property
    def inverse_rtf(self) -> float:
        """Seconds of audio per second of work."""
        return self.audio_seconds / self.median

    @property
    def tokens_per_second(self) -> float:
        """Over all windows of a batch together."""
        return self.num_tokens / self.median


def rtf_table(rows: Sequence[LatencyRow]) -> str:
    """Real-time factors in 10⁻³ by model, attention, cache and batch size, as Markdown in the layout of Table 24.

    Args:
        rows (`Sequence[LatencyRow]`): from [`latency_grid`].
    """
    settings = list(dict.fromkeys((row.attn_implementation, row.cache) for row in rows))
    batch_sizes = list(dict.fromkeys(row.batch_size for row in rows))
    found = {(row.model, row.attn_implementation, row.cache, row.batch_size): row for row in rows}
    columns = list(product(settings, batch_sizes))
    names = [
        f"{attention}{', static cache' if cache == 'static' else ''}, batch {size}"
        for (attention, cache), size in columns
    ]
    lines = ["| RTF / 10⁻³ | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for model in dict.fromkeys(row.model for row in rows):
        cells = [f"{1000 * found[model, *setting, size].rtf:.1f}" for setting, size in columns]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def latency_table(rows: Sequence[LatencyRow]) -> str:
    """All that was measured, a line each, as Markdown; the columns of Tables 5 and 12 among them.

    Args:
        rows (`Sequence[LatencyRow]`): from [`latency_grid`].
    """
    head = [
        "Model", "Params / M", "batch", "attention", "cache", "timestamps", "seconds", "RTF / 10⁻³", "times real time",
        "tokens/s", "peak memory / MB", "Rel. Latency",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        cells = [
            row.model, f"{row.parameters / 1e6:.1f}", str(row.batch_size), row.attn_implementation, row.cache,
            "yes" if row.timestamps else "no", f"{row.median:.2f}", f"{1000 * row.rtf:.1f}",
            f"{row.inverse_rtf:.1f}", f"{row.tokens_per_second:.0f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
            "-" if row.relative_latency is None else f"{row.relative_latency:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
