"""Every picture that the library draws: numbers in, a PNG out. Knows no models and no data sets."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def wer_histogram(hours: Sequence[float], threshold: float, path: str | Path) -> None:
    """Hours of audio over the word error rate of their pseudo-labels, with the threshold of the filter.

    Args:
        hours (`Sequence[float]`): in bins of equal width from 0 to 100 %; the last one holds all of 100 % and more.
        threshold (`float`): λ as a fraction.
        path (`str` or `Path`): of the PNG.
    """
    width = 100 / (len(hours) - 1)
    left = [width * place for place in range(len(hours))]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    kept = [start + width <= 100 * threshold + 1e-6 for start in left]
    axes.bar(
        left, hours, width=0.92 * width, align="edge", color=["#2a6f97" if inside else "#c9c9c9" for inside in kept]
    )
    axes.axvline(100 * threshold, color="#c1121f", label=f"λ = {threshold:.0%}")
    ticks = [*range(0, 100, 20), 100]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), "≥ 100"])
    axes.set_xlabel("word error rate of the pseudo-label / %")
    axes.set_ylabel("hours of audio")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
