"""The errors of long-form transcription as the paper's tables: by set and metric (Table 19), and averaged (Table 8).

Knows results and Markdown; measuring is `long_form.py`'s.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

from hf_distil_whisper.evaluation.measured import SetScore
from hf_distil_whisper.evaluation.scoring import EvaluationResult

Results = Mapping[str, Mapping[str, EvaluationResult]]


def _rate(name: str, result: EvaluationResult | SetScore) -> float:
    return 100 * getattr(result.errors, name) if result.errors.num_words else math.nan


METRICS: dict[str, Callable[[EvaluationResult | SetScore], float]] = {
    "5-Dup.": lambda result: result.repeated_5grams,
    "IER": partial(_rate, "ier"),
    "SER": partial(_rate, "ser"),
    "DER": partial(_rate, "der"),
    "WER": partial(_rate, "wer"),
}
"""Columns of Table 8 → repeated 5-grams as a number, rates in %: not a number where no row has a reference."""


def long_form_table(results: Results) -> str:
    """Table 19: every metric of every set by model, and the macro average where there are several sets.

    Args:
        results (`Mapping`): of [`evaluate_long_form`] by set, then by model.

    Returns:
        `str`: Markdown; rates in %, "-" where a set, or one of those of an average, has no references or was not
            heard by a model.
    """
    models = _models(results)
    lines = [_row(["Dataset", "Metric", *models]), "|---|---|" + "---:|" * len(models)]
    groups: dict[str, Results] = {name: {name: of_set} for name, of_set in results.items()}
    if len(results) > 1:
        groups["Average"] = results
    for group, sets in groups.items():
        for place, metric in enumerate(METRICS):
            cells = [_cell(sets, model, metric) for model in models]
            lines.append(_row([group if place == 0 else "", metric, *cells]))
    return "\n".join(lines)


def long_form_summary(results: Results) -> str:
    """Table 8: every metric of every model, macro-averaged over the sets.

    Args:
        results (`Mapping`): of [`evaluate_long_form`] by set, then by model.

    Returns:
        `str`: Markdown, as [`long_form_table`].
    """
    lines = [_row(["Model", *METRICS]), "|---|" + "---:|" * len(METRICS)]
    for model in _models(results):
        lines.append(_row([model, *(_cell(results, model, metric) for metric in METRICS)]))
    return "\n".join(lines)


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(model for by_model in results.values() for model in by_model))


def _cell(sets: Results, model: str, metric: str) -> str:
    if any(model not in by_model for by_model in sets.values()):
        return "-"
    mean = sum(METRICS[metric](by_model[model]) for by_model in sets.values()) / len(sets)
    return shown(metric, mean)


def shown(metric: str, value: float) -> str:
    """A figure of `METRICS` as it is printed.

    Args:
        metric (`str`): its name.
        value (`float`): or a mean of several; "-" for one that is not a number.
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if metric == "5-Dup." else f"{value:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
