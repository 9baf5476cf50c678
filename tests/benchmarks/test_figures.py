"""Pictures: what is drawn is what was measured, and colours differ."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from figures import wer_by_cell, wer_over_latency, wer_over_snr

CURVES = {
    "white": {"teacher": {0.0: 0.3, 40.0: 0.1, -10.0: 0.9}, "student": {40.0: 0.11, 0.0: 0.4, -10.0: 1.2}},
    "pub": {"student": {40.0: 0.12, 0.0: 1.5}},
}


def test_curves_over_noise_are_those_of_figure_2_and_a_model_looks_the_same_in_every_panel(
    drawn: list[Figure], tmp_path: Path
) -> None:
    """Points in the order of a dictionary, or an axis from low to high, turn the curve around."""
    wer_over_snr(CURVES, tmp_path / "noise.png")
    (left, right), (legend,) = drawn[0].axes, drawn[0].legends
    assert [axes.get_title() for axes in (left, right)] == ["white noise", "pub noise"]
    first, second = left.lines
    assert first.get_xdata().tolist() == [40.0, 0.0, -10.0]
    assert first.get_ydata() == pytest.approx([10, 30, 90])
    assert second.get_ydata() == pytest.approx([11, 40, 120])
    assert left.get_xlim()[0] > left.get_xlim()[1]
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] == 0
    assert left.get_ylim()[1] > 150, "the second panel is cut off at the highest point of the first"
    assert left.get_xlabel() == right.get_xlabel() == "signal-to-noise ratio / dB"
    assert left.get_ylabel() == "word error rate / %"
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "student"]
    # With one legend for all panels, the first line of the second panel is not the first model.
    assert right.lines[0].get_color() == second.get_color() != first.get_color()
    assert right.lines[0].get_marker() == second.get_marker() != first.get_marker()


def test_cells_of_a_sweep_look_the_same_as_without_noise_beside_it(drawn: list[Figure], tmp_path: Path) -> None:
    """The curves in noise are another panel: on one axis they would flatten the averages."""
    lines = {"Average": {"frozen": [10.0, 12.0], "trained": [9.0, 9.0]}}
    noise = {"frozen": {10.0: 0.2, 0.0: 0.5}, "trained": {10.0: 0.3, 0.0: 0.9}}
    wer_by_cell(lines, "Encoder", tmp_path / "plain.svg")
    wer_by_cell(lines, "Encoder", tmp_path / "noisy.svg", noise)
    (plain,), (averages, curves) = drawn[0].axes, drawn[1].axes
    assert [axes.lines[0].get_ydata() for axes in (plain, averages)] == [pytest.approx([11.0, 9.0])] * 2
    assert [line.get_ydata() for line in curves.lines] == [pytest.approx([20, 50]), pytest.approx([30, 90])]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["frozen", "trained"]
    assert curves.get_xlim()[0] > curves.get_xlim()[1]


def test_the_front_joins_the_models_that_none_beats(drawn: list[Figure], tmp_path: Path) -> None:
    """A line through a model that is slower and worse than another would recommend it."""
    models = {"teacher": (1.0, 5.0), "student": (4.0, 6.0), "worse": (3.0, 9.0), "slower": (0.5, 5.0)}
    wer_over_latency(models, "teacher", "average of all sets", tmp_path / "front.svg")
    (axes,) = drawn[0].axes
    front, *points = axes.lines
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(4.0, 6.0), (1.0, 5.0)]
    assert [(point.get_xdata()[0], point.get_ydata()[0]) for point in points] == list(models.values())
    assert [text.get_text() for text in axes.texts] == list(models)
    assert axes.get_xlabel() == "relative latency: times as fast as teacher"
    assert axes.get_ylabel() == "word error rate, average of all sets / %"
    assert axes.get_ylim()[0] == 0
