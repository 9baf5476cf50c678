"""Tables and files of an evaluation: text for a terminal, `results.json`, rows, worst utterances, Tables 8 and 19."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jiwer
from pyarrow.parquet import write_table

from hf_distil_whisper.evaluation.evaluate import COUNTS, KINDS, EvaluationResult
from hf_distil_whisper.evaluation.significance import (
    EffectiveRobustness,
    compare_results,
    confidence_interval,
    macro_average,
    micro_average,
    robustness_by_model,
    robustness_text,
)
from hf_distil_whisper.metrics import WordErrors


def worst_utterances(result: EvaluationResult, k: int = 10) -> list[str]:
    """The rows with the most errors as text: id, number of errors, WER, and both normalised texts aligned.

    Sorted by the number of errors, since a rate would put every one-word utterance with one error first; among equal
    numbers the higher rate comes first. Rows without an error or a reference are left out.

    Args:
        result (`EvaluationResult`): from [`evaluate_model`] or [`evaluate_long_form`].
        k (`int`, *optional*, defaults to 10): number of rows at most.

    Raises:
        ValueError: if `k` is not positive.
    """
    if k < 1:
        raise ValueError(f"worst_utterances: expected k >= 1, got {k}.")
    wrong = [(row["substitutions"] + row["deletions"] + row["insertions"], row) for row in result.rows if row["wer"]]
    texts = []
    for errors, row in sorted(wrong, key=lambda pair: (-pair[0], -pair[1]["wer"]))[:k]:
        pair = row["normalized_reference"], row["normalized_prediction"]
        if result.unit == "character":
            output = jiwer.process_characters(*("".join(text.split()) for text in pair))
        else:
            output = jiwer.process_words(*pair)
        lines = jiwer.visualize_alignment(output, show_measures=False, line_width=_WIDTH)
        aligned = lines.split("\n", 2)[2].strip("\n")  # without jiwer's heading "=== SENTENCE 1 ==="
        texts.append(f"{row['id']}: {errors} error{'' if errors == 1 else 's'}, WER {row['wer']:.1%}\n{aligned}")
    return texts


Results = Mapping[str, Mapping[str, EvaluationResult]]
"""By set, then by model."""


def _rate(name: str, result: Any) -> float:
    return 100 * getattr(result.errors, name) if result.errors.num_words else math.nan


METRICS: dict[str, Callable[[Any], float]] = {
    "5-Dup.": lambda result: result.repeated_5grams,
    "IER": partial(_rate, "ier"),
    "SER": partial(_rate, "ser"),
    "DER": partial(_rate, "der"),
    "WER": partial(_rate, "wer"),
}
"""Columns of Table 8: a count of repeated 5-grams, and rates in %, NaN where no row has a reference."""


def long_form_table(results: Results) -> str:
    """Table 19 as Markdown: every metric of every set by model, and the macro average of several sets.

    Rates are in %; "-" where a set, or one set of an average, has no references or was not scored for a model.
    """
    models = _models(results)
    lines = [_row(["Dataset", "Metric", *models]), "|---|---|" + "---:|" * len(models)]
    groups: dict[str, Results] = {name: {name: of_set} for name, of_set in results.items()}
    if len(results) > 1:
        groups["Average"] = results
    for group, sets in groups.items():
        for metric in METRICS:
            cells = [_cell(sets, model, metric) for model in models]
            lines.append(_row([group if metric == next(iter(METRICS)) else "", metric, *cells]))
    return "\n".join(lines)


def long_form_summary(results: Results) -> str:
    """Table 8 as Markdown: every metric of every model, macro-averaged over the sets."""
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
    """A value of `METRICS`, or a mean of several, as it is printed; "-" for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if metric == "5-Dup." else f"{value:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


TEACHER = "teacher"
"""Name of the model that all others are compared with."""

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION = "in distribution", "out of distribution"
LONG_FORM, LONG_FORM_OUTSIDE = "long form", "long form out of distribution"
"""Groups of evaluation sets."""

SHORT_FORMS, LONG_FORMS = (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION), (LONG_FORM, LONG_FORM_OUTSIDE)
"""Groups of recordings of one window, and of long recordings."""

ALL_SHORT, ALL_LONG = "short form", "long form, all sets"
"""Names of averages over two groups."""

_COMPARED = ("difference", "interval", "p_value", "paired", "unpaired")
"""Fields of a [`Comparison`] that are stored."""

_WORST = 20
_WIDTH = 110
"""Characters of a line of aligned texts."""
_HEAD = (
    f"{'WER %':>8}{'(95 %)':>17}{'CER %':>8}{'S %':>7}{'D %':>7}{'I %':>7}{'as written %':>14}{'5-Dup.':>8}{'RTF':>9}"
)


def summarise_results(results: Results, groups: Mapping[str, str] | None = None) -> dict[str, dict[str, dict]]:
    """Counts and rates by set and model: the content of `results.json`.

    See [`result_summary`]; `group` is the set's, `against_teacher` compares a model with the teacher on the
    utterances that were scored for both.
    """
    summary: dict[str, dict[str, dict]] = {}
    for dataset, by_model in results.items():
        summary[dataset] = {}
        for model, result in by_model.items():
            row = summary[dataset][model] = result_summary(result)
            if groups is not None:
                row["group"] = groups[dataset]
            if model != TEACHER and TEACHER in by_model:
                one = compare_results(result, by_model[TEACHER])
                row["against_teacher"] = one and {name: getattr(one, name) for name in _COMPARED}
    return summary


def results_table(results: Results, groups: Mapping[str, str] | None = None, reference: str | None = None) -> str:
    """Rates in percent by set and model, as text for a terminal.

    WER with its 95 % interval, CER, the substitutions, deletions and insertions of the WER, the WER without a
    normaliser ("as written"), repeated 5-grams ("5-Dup." of Table 8) and the real-time factor; below, the paired
    test of each model against the teacher.

    Args:
        results (`Mapping`): [`EvaluationResult`] by set, then by model.
        groups (`Mapping[str, str]`, *optional*): group of each set, a heading above its sets; adds averages.
        reference (`str`, *optional*): a set in distribution; adds [`robustness_text`], or the reason for its absence.
    """
    summary = summarise_results(results, groups)
    names = [name for by_model in summary.values() for name in by_model]
    wide, narrow = max(8, *map(len, summary)) + 2, max(8, *map(len, names)) + 2
    lines = [f"{'set':{wide}}{'model':{narrow}}{_HEAD}"]
    group, tests = None, []
    for dataset, by_model in summary.items():
        for model, row in by_model.items():
            if row.get("group") != group:
                group = row["group"]
                lines.append(f"{group}:")
            lines.append(f"{dataset:{wide}}{model:{narrow}}{_cells(row)}")
            if "against_teacher" in row:
                tests.append(f"  {dataset}: {model} {_test(row['against_teacher'])}")
    lines += left_out_text(results).splitlines()
    lines += non_speech_text(results).splitlines()
    if groups is not None:
        lines += averages_text(results, groups).splitlines()
    if any(row["unit"] == "character" for by_model in summary.values() for row in by_model.values()):
        lines.append("(*) of characters")
    if tests:
        lines += ["WER minus the teacher's, on the same utterances (paired bootstrap):", *tests]
    if groups is not None and reference is not None:
        table_6 = robustness(results, groups, reference)
        missing = f"no effective robustness: {reference}, or every set out of distribution, has no references"
        lines += ["", robustness_text(table_6, TEACHER) if table_6 else missing]
    return "\n".join(lines)


def left_out_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Number of rows of each set that are in no rate, and why; an empty text if there are none."""
    lines = []
    for dataset, by_model in results.items():
        counts = {name: (one.unreadable_rows, one.empty_references) for name, one in by_model.items()}
        for unread, empty in dict.fromkeys(counts.values()):
            models = [name for name, pair in counts.items() if pair == (unread, empty)]
            which = "" if len(models) == len(counts) else f", {', '.join(models)}"
            parts = [f"{unread} could not be read"] * (unread > 0) + [f"{empty} without a reference"] * (empty > 0)
            if parts:
                lines.append(f"  {dataset}{which}: {', '.join(parts)}")
    head = ["rows left out of the rates:"] if lines else []
    return "\n".join([*head, *lines])


def non_speech_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Words that each model writes where nothing is spoken (reference `""`); an empty text without such rows."""
    lines = []
    for dataset, by_model in results.items():
        for model, one in by_model.items():
            silent = one.non_speech
            if silent.rows:
                lines.append(
                    f"  {dataset}: {model} {silent.words_per_minute:.1f} per minute, on {silent.share:.0%} of "
                    f"{silent.rows} rows"
                )
    head = ['words written where nothing is spoken (reference ""):'] if lines else []
    return "\n".join([*head, *lines])


def averages(results: Results, groups: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Average WER of each group with several sets whose references hold words (Tables 16 and 17).

    Returns:
        `dict`: group → model → `"macro"` (over sets) and `"micro"` (over all their words), fractions.
    """
    scored = [name for name, by_model in results.items() if all(one.errors.num_words for one in by_model.values())]
    kinds = {
        IN_DISTRIBUTION: (IN_DISTRIBUTION,),
        OUT_OF_DISTRIBUTION: (OUT_OF_DISTRIBUTION,),
        ALL_SHORT: SHORT_FORMS,
        LONG_FORM: (LONG_FORM,),
        LONG_FORM_OUTSIDE: (LONG_FORM_OUTSIDE,),
        ALL_LONG: LONG_FORMS,
    }
    if LONG_FORM_OUTSIDE not in groups.values():
        del kinds[ALL_LONG]
    averages: dict[str, dict[str, dict[str, float]]] = {}
    for kind, members in kinds.items():
        names = [name for name in scored if groups[name] in members]
        if len(names) > 1:
            averages[kind] = {
                model: {"macro": macro_average(errors), "micro": micro_average(errors)}
                for model, errors in _errors_by_model(results, names).items()
            }
    return averages


def averages_text(results: Results, groups: Mapping[str, str]) -> str:
    """[`averages`] in percent, a line for each group: over sets, and in brackets over all their words."""
    lines = []
    for kind, by_model in averages(results, groups).items():
        rates = [f"{model} {100 * mean['macro']:.2f} ({100 * mean['micro']:.2f})" for model, mean in by_model.items()]
        lines.append(f"  {kind}: {', '.join(rates)}")
    head = ["average WER % over sets (over all words):"] if lines else []
    return "\n".join([*head, *lines])


def robustness(results: Results, groups: Mapping[str, str], reference: str) -> dict[str, EffectiveRobustness]:
    """Every model beside the teacher on the reference set and on the sets out of distribution (Table 6)."""
    outside = [name for name, group in groups.items() if group == OUT_OF_DISTRIBUTION]
    return robustness_by_model(_errors_by_model(results, [reference, *outside]), TEACHER, reference, outside)


def save_results(
    results: Results, folder: str, groups: Mapping[str, str] | None = None, reference: str | None = None
) -> None:
    """Writes the results of an evaluation into a folder.

    `results.json` holds counts and rates, `<set>.<model>.parquet` the rows (columns of `ROW_FEATURES`; read it with
    `Dataset.from_parquet`), `<set>.<model>.worst.txt` the rows with the most errors, word by word. With `groups`,
    `averages.json` holds [`averages`] and Table 6 as fractions, and `long_form.md` Tables 8 and 19 where there are
    long recordings.

    Args:
        results (`Mapping`): [`EvaluationResult`] by set, then by model.
        folder (`str`): created if it is missing.
        groups (`Mapping[str, str]`, *optional*): group of each set.
        reference (`str`, *optional*): a set in distribution, for Table 6.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for dataset, by_model in results.items():
        for model, result in by_model.items():
            write_table(result.table().data.table, target / f"{dataset}.{model}.parquet")
            worst = "\n\n".join(worst_utterances(result, _WORST))
            (target / f"{dataset}.{model}.worst.txt").write_text(worst + "\n", encoding="utf-8")
    summary = summarise_results(results, groups)
    (target / "results.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if groups is None:
        return
    table_6 = {} if reference is None else robustness(results, groups, reference)
    means = {
        "averages": averages(results, groups),
        "robustness": {
            model: {
                "reference": one.reference,
                # Infinite where the teacher makes no errors; JSON has no infinity.
                "relative_error_rates": {
                    name: rate if math.isfinite(rate) else None for name, rate in one.relative_error_rates.items()
                },
                "effective_robustness": one.effective_robustness,
            }
            for model, one in table_6.items()
        },
    }
    (target / "averages.json").write_text(json.dumps(means, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    long_form = {name: results[name] for name in results if groups[name] in LONG_FORMS}
    if long_form:
        tables = f"{long_form_summary(long_form)}\n\n{long_form_table(long_form)}\n"
        (target / "long_form.md").write_text(tables, encoding="utf-8")


def _errors_by_model(results: Results, sets: Sequence[str]) -> dict[str, dict[str, WordErrors]]:
    by_model: dict[str, dict[str, WordErrors]] = {}
    for name in sets:
        for model, result in results[name].items():
            by_model.setdefault(model, {})[name] = result.errors
    return by_model


def result_summary(result: EvaluationResult) -> dict[str, Any]:
    """Counts and rates of one model on one set, for JSON: fractions, None where no row has a reference.

    Counts have the names of the columns of the rows.
    """
    scored = result.errors.num_words > 0
    counts = {prefix + kind: getattr(getattr(result, name), kind) for prefix, name in COUNTS.items() for kind in KINDS}
    return {
        "wer": result.wer if scored else None,
        "wer_interval": confidence_interval(result),
        "ser": result.errors.ser if scored else None,
        "der": result.errors.der if scored else None,
        "ier": result.errors.ier if scored else None,
        "cer": result.cer if scored else None,
        "orthographic_wer": result.orthographic_errors.wer if scored else None,
        "orthographic_cer": result.orthographic_character_errors.wer if scored else None,
        "unit": result.unit,
        **counts,
        "repeated_5grams": result.repeated_5grams,
        "rtf": result.rtf,
        "seconds": result.seconds,
        "wall_seconds": result.wall_seconds,
        "audio_seconds": result.audio_seconds,
        "rows": len(result.rows),
        "empty_references": result.empty_references,
        "unreadable_rows": result.unreadable_rows,
        "non_speech": None
        if not result.non_speech.rows
        else {
            **asdict(result.non_speech),
            "words_per_minute": result.non_speech.words_per_minute,
            "share": result.non_speech.share,
        },
    }


def _cells(row: Mapping[str, Any]) -> str:
    speed = f"{row['repeated_5grams']:8}{row['rtf']:9.4f}"
    if row["wer"] is None:
        return f"{'-':>8}{'no reference':>17}{'-':>8}{'-':>7}{'-':>7}{'-':>7}{'-':>14}{speed}"
    star = "*" if row["unit"] == "character" else ""
    interval = "one row"
    if row["wer_interval"] is not None:
        low, high = row["wer_interval"]
        interval = f"({100 * low:.2f}-{100 * high:.2f})"
    parts = "".join(f"{100 * row[name]:7.2f}" for name in ("ser", "der", "ier"))
    rate = f"{100 * row['wer']:.2f}{star}"
    return f"{rate:>8}{interval:>17}{100 * row['cer']:8.2f}{parts}{100 * row['orthographic_wer']:14.2f}{speed}"


def _test(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return "cannot be compared: no utterance was scored for both"
    low, high = comparison["interval"]
    left_out = f", {comparison['unpaired']} left out that only one was scored on" if comparison["unpaired"] else ""
    paired = comparison["paired"]
    return (
        f"{100 * comparison['difference']:+.2f} % (95 %: {100 * low:+.2f} to {100 * high:+.2f}), "
        f"p = {comparison['p_value']:.3f}, {paired} utterance{'s' if paired > 1 else ''}{left_out}"
    )
