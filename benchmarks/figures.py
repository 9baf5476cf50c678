"""The pictures of the benchmarks, as PNG or SVG: noise, sweeps, latency, chunks and draft lengths."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

OKABE_ITO = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "black": "#000000",
}
"""Colours that all common kinds of colour blindness tell apart (Okabe and Ito, 2008), in the order of use; without
their yellow, which is too light for lines on white."""

GREY = "#c9c9c9"
"""For what stays in the background."""

MARKERS = "osD^vPX*"
"""In the order of use; their number and that of the colours have no common divisor, so that 56 lines differ."""


def wer_over_snr(curves: Mapping[str, Mapping[str, Mapping[float, float]]], path: str | Path) -> None:
    """Word error rate over the signal-to-noise ratio: a panel for each noise, a line for each model (Figure 2)."""
    models = list(dict.fromkeys(model for by_model in curves.values() for model in by_model))
    if not models:
        raise ValueError("`curves`: expected word error rates by noise, model and ratio, got none.")
    figure = Figure(figsize=(2.5 + 4 * len(curves), 4), layout="constrained")
    lines: dict[str, Line2D] = {}
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (noise, by_model) in zip(panels, curves.items(), strict=True):
        lines |= _noise_panel(axes, noise, by_model, models)
    panels[0].set_ylim(bottom=0)  # last: it fixes the upper end of all panels too
    panels[0].set_ylabel("word error rate / %")
    # Beside the panels: curves that rise from one corner to the other leave no space for many names.
    figure.legend(lines.values(), lines, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by name, each name once."""
    looks = zip(cycle(OKABE_ITO.values()), cycle(MARKERS), strict=False)
    named = zip(dict.fromkeys(names), looks, strict=False)
    return {name: {"color": color, "marker": marker} for name, (color, marker) in named}


def _noise_panel(
    axes: Axes, noise: str, by_model: Mapping[str, Mapping[float, float]], models: Sequence[str]
) -> dict[str, Line2D]:
    """Draws the curves of one noise; returns their lines by model. `models` decides how each looks."""
    looks, lines = _looks(models), {}
    for model, rates in by_model.items():
        snrs = sorted(rates, reverse=True)
        (lines[model],) = axes.plot(snrs, [100 * rates[snr] for snr in snrs], **looks[model])
    axes.set_title(f"{noise} noise")
    axes.set_xlabel("signal-to-noise ratio / dB")
    axes.set_xticks(sorted({snr for rates in by_model.values() for snr in rates}))
    axes.invert_xaxis()
    _clear(axes, grid="both")
    return lines


def wer_by_cell(
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    heading: str,
    path: str | Path,
    white_noise: Mapping[str, Mapping[float, float]] | None = None,
) -> None:
    """Word error rates of the cells of a sweep: a line through the means, a dot for each seed."""
    figure = Figure(figsize=(13 if white_noise else 7, 3.5), layout="constrained")
    axes, *beside = figure.subplots(1, 2 if white_noise else 1, squeeze=False)[0]
    for kind, look in _looks(lines).items():
        cells = lines[kind]
        axes.plot(range(len(cells)), [sum(seeds) / len(seeds) for seeds in cells.values()], label=kind, **look)
        for x, seeds in enumerate(cells.values()):
            axes.plot([x] * len(seeds), seeds, color=look["color"], marker=".", linestyle="none", alpha=0.5)
    cells = next(iter(lines.values()))
    axes.set_xticks(range(len(cells)), list(cells))
    axes.set_xlabel(heading)
    _finish(axes, "word error rate / %")
    if white_noise:
        curves = _noise_panel(beside[0], "white", white_noise, list(cells))
        beside[0].set_ylim(bottom=0)
        beside[0].set_ylabel("word error rate / %")
        beside[0].legend(curves.values(), curves, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)


def wer_over_latency(models: Mapping[str, tuple[float, float]], baseline: str, wer: str, path: str | Path) -> None:
    """How much faster each model is, and how often it is wrong; a line joins those that none beats in both."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    front: list[tuple[float, float]] = []
    for speed, rate in sorted(models.values(), key=lambda point: (-point[0], point[1])):
        if not front or rate < front[-1][1]:
            front.append((speed, rate))
    axes.plot(*zip(*front, strict=True), color=GREY, linestyle="--", zorder=1, label="no other is faster and better")
    for name, look in _looks(models).items():
        axes.plot(*models[name], markersize=9, linestyle="none", zorder=2, **look)
        axes.annotate(name, models[name], xytext=(8, 6), textcoords="offset points")
    axes.margins(0.18)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"relative latency: times as fast as {baseline}")
    _finish(axes, f"word error rate, {wer} / %")
    figure.savefig(path, dpi=150)


def wer_over_chunks(
    rows: Mapping[str, Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]], path: str | Path
) -> None:
    """Word error rate of long-form transcription over length or overlap of its chunks: Table 23 as a picture."""
    columns = max(len(panels) for panels in rows.values())
    figure = Figure(figsize=(2.5 + 4 * columns, 3.5 * len(rows)), layout="constrained")
    drawn = figure.subplots(len(rows), columns, sharey=True, squeeze=False)
    for row, (heading, panels) in zip(drawn, rows.items(), strict=True):
        looks, lines = _looks([label for curves in panels.values() for label in curves]), {}
        for axes, (title, curves) in zip(row, panels.items(), strict=True):
            for label, points in curves.items():
                seconds, rates = zip(*sorted(points), strict=True)
                (lines[label],) = axes.plot(seconds, [100 * rate for rate in rates], **looks[label])
            axes.set_title(title)
            axes.set_xticks(sorted({seconds for points in curves.values() for seconds, _ in points}))
            axes.set_xlabel(heading)
            _clear(axes)
        row[0].set_ylabel("word error rate / %")
        row[-1].legend(
            [lines[label] for label in looks], looks, loc="upper left", bbox_to_anchor=(1, 1), frameon=False
        )
    drawn[0, 0].set_ylim(bottom=0)  # last: it fixes the upper end of all panels too
    figure.savefig(path, dpi=150)


def latency_over_draft_length(
    curves: Mapping[str, Mapping[int, float]], chosen: Mapping[str, float], path: str | Path
) -> None:
    """How much faster a model is with its assistant, over the tokens that are drafted at a time."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for label, look in _looks(curves).items():
        axes.plot(list(curves[label]), list(curves[label].values()), label=label, **look)
        axes.axhline(chosen[label], color=look["color"], linestyle="--", linewidth=1)
    axes.axhline(1, color=GREY)
    axes.set_xticks(sorted({length for ratios in curves.values() for length in ratios}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens drafted at a time; dashed: chosen by the acceptance")
    _finish(axes, "times as fast as the model alone")
    figure.savefig(path, dpi=150)


def _finish(axes: Axes, label: str) -> None:
    """What all pictures with lines and one panel have in common."""
    axes.set_ylabel(label)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    _clear(axes)


def _clear(axes: Axes, grid: Literal["both", "y"] = "y") -> None:
    axes.grid(axis=grid, color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
