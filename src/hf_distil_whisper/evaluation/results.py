"""What an evaluation leaves behind: the table for a terminal, `results.json`, the rows and the worst of them.

Knows results by set and model; percentages are made here, everything else is counts and fractions.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow.parquet import write_table

from hf_distil_whisper.evaluation.alignment import worst_utterances
from hf_distil_whisper.evaluation.long_form_tables import long_form_summary, long_form_table
from hf_distil_whisper.evaluation.measured import SetScore
from hf_distil_whisper.evaluation.robustness import (
    EffectiveRobustness,
    macro_average,
    micro_average,
    robustness_by_model,
    robustness_text,
)
from hf_distil_whisper.evaluation.scoring import COUNTS, KINDS, EvaluationResult
from hf_distil_whisper.evaluation.significance import compare_results, confidence_interval
from hf_distil_whisper.metrics import WordErrors

Results = Mapping[str, Mapping[str, EvaluationResult]]
"""By set, then by model."""

TEACHER = "teacher"
"""The model that all others are tested against."""

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION = "in distribution", "out of distribution"
LONG_FORM, LONG_FORM_OUTSIDE = "long form", "long form out of distribution"
"""What a set may be."""

SHORT_FORMS, LONG_FORMS = (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION), (LONG_FORM, LONG_FORM_OUTSIDE)
"""What is heard in one window, and what in several."""

ALL_SHORT, ALL_LONG = "short form", "long form, all sets"
"""Averages over two kinds of sets."""

_WORST = 20
_HEAD = (
    f"{'WER %':>8}{'(95 %)':>17}{'CER %':>8}{'S %':>7}{'D %':>7}{'I %':>7}{'as written %':>14}{'5-Dup.':>8}{'RTF':>9}"
)


def summarise_results(results: Results, groups: Mapping[str, str] | None = None) -> dict[str, dict[str, dict]]:
    """Counts and rates by set and model, as they stand in `results.json`.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`, *optional*): what each set is, for example "out of distribution".

    Returns:
        `dict[str, dict[str, dict]]`: fractions, or None where no row has a reference. Counts are named like the
        columns of the rows. `against_teacher` compares a model with the teacher, on the utterances of both.
    """
    return {
        dataset: {
            model: result_summary(result)
            | ({} if groups is None else {"group": groups[dataset]})
            | ({} if model == TEACHER or TEACHER not in by_model else _against(result, by_model[TEACHER]))
            for model, result in by_model.items()
        }
        for dataset, by_model in results.items()
    }


def results_table(results: Results, groups: Mapping[str, str] | None = None, reference: str | None = None) -> str:
    """Rates in percent by set and model, as text for a terminal.

    WER with its interval of 95 %, CER, the parts of the WER (S, D, I), the WER of the texts as written, repeated
    5-grams ("5-Dup." of Table 8) and the real-time factor. Below, what the paired test says of each model and the
    teacher.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`, *optional*): what each set is; stands above the sets of a group, and their
            averages below.
        reference (`str`, *optional*): a set in distribution; adds [`robustness_text`], or says why there is none.
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
    if groups is not None:
        lines += averages_text(results, groups).splitlines()
    if any(row["unit"] == "character" for by_model in summary.values() for row in by_model.values()):
        lines.append("(*) of characters: the language puts no space between words")
    if tests:
        lines += ["WER minus the teacher's, on the same utterances (paired bootstrap):", *tests]
    if groups is not None and reference is not None:
        found = robustness(results, groups, reference)
        missing = f"no effective robustness: {reference}, or every set out of distribution, has no references"
        lines += ["", robustness_text(found, TEACHER) if found else missing]
    return "\n".join(lines)


def left_out_text(results: Mapping[str, Mapping[str, EvaluationResult | SetScore]]) -> str:
    """How many rows of each set are in no rate, and why; nothing where there are none.

    Args:
        results (`Mapping`): by set, then by model.
    """
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


def averages(results: Results, groups: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Averages of the WER by kind of set (Tables 16 and 17), of sets whose references hold words.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.

    Returns:
        `dict`: kind → model → `"macro"` (over sets) and `"micro"` (over all their words), fractions; the kinds of
            which there are several sets.
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
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, members in kinds.items():
        names = [name for name in scored if groups[name] in members]
        if len(names) > 1:
            found[kind] = {
                model: {"macro": macro_average(errors), "micro": micro_average(errors)}
                for model, errors in _errors_by_model(results, names).items()
            }
    return found


def averages_text(results: Results, groups: Mapping[str, str]) -> str:
    """[`averages`] in percent: over sets, and in brackets over all their words.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.

    Returns:
        `str`: a line for each kind of which there are several sets, models beside each other; else nothing.
    """
    lines = []
    for kind, by_model in averages(results, groups).items():
        rates = [f"{model} {100 * mean['macro']:.2f} ({100 * mean['micro']:.2f})" for model, mean in by_model.items()]
        lines.append(f"  {kind}: {', '.join(rates)}")
    head = ["average WER % over sets (over all words):"] if lines else []
    return "\n".join([*head, *lines])


def robustness(results: Results, groups: Mapping[str, str], reference: str) -> dict[str, EffectiveRobustness]:
    """Every model beside the teacher on the reference and on the sets out of distribution (Table 6).

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.
        reference (`str`): a set in distribution.

    Returns:
        `dict[str, EffectiveRobustness]`: of [`robustness_by_model`].
    """
    outside = [name for name, group in groups.items() if group == OUT_OF_DISTRIBUTION]
    return robustness_by_model(_errors_by_model(results, [reference, *outside]), TEACHER, reference, outside)


def save_results(
    results: Results, folder: str, groups: Mapping[str, str] | None = None, reference: str | None = None
) -> None:
    """Writes what an evaluation found into a folder.

    `results.json` holds counts and rates, `<set>.<model>.parquet` the rows (columns of `ROW_FEATURES`; read it with
    `Dataset.from_parquet`), `<set>.<model>.worst.txt` the rows with the most errors, word by word. With `groups`,
    `averages.json` holds [`averages`] and Table 6 as fractions, and `long_form.md` Tables 8 and 19 where there are
    long recordings.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        folder (`str`): made where it is missing.
        groups (`Mapping[str, str]`, *optional*): what each set is.
        reference (`str`, *optional*): a set in distribution, for Table 6.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for dataset, by_model in results.items():
        for model, result in by_model.items():
            write_table(result.table().data.table, target / f"{dataset}.{model}.parquet")
            worst = [utterance.text() for utterance in worst_utterances(result, _WORST)]
            (target / f"{dataset}.{model}.worst.txt").write_text("\n\n".join(worst) + "\n", encoding="utf-8")
    summary = summarise_results(results, groups)
    (target / "results.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if groups is None:
        return
    means = {"averages": averages(results, groups), "robustness": _robustness_summary(results, groups, reference)}
    (target / "averages.json").write_text(json.dumps(means, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    long_form = {name: results[name] for name in results if groups[name] in LONG_FORMS}
    if long_form:
        tables = f"{long_form_summary(long_form)}\n\n{long_form_table(long_form)}\n"
        (target / "long_form.md").write_text(tables, encoding="utf-8")


def _robustness_summary(results: Results, groups: Mapping[str, str], reference: str | None) -> dict[str, Any]:
    found = {} if reference is None else robustness(results, groups, reference)
    return {
        model: {
            "reference": one.reference,
            # Infinite where the teacher makes no errors, which JSON does not know.
            "relative_error_rates": {
                name: rate if math.isfinite(rate) else None for name, rate in one.relative_error_rates.items()
            },
            "effective_robustness": one.effective_robustness,
        }
        for model, one in found.items()
    }


def _errors_by_model(results: Results, sets: Sequence[str]) -> dict[str, dict[str, WordErrors]]:
    found: dict[str, dict[str, WordErrors]] = {}
    for name in sets:
        for model, result in results[name].items():
            found.setdefault(model, {})[name] = result.errors
    return found


def result_summary(result: EvaluationResult) -> dict[str, Any]:
    """Counts and rates of one model on one set, as JSON can hold them.

    Args:
        result (`EvaluationResult`): of any evaluation.

    Returns:
        `dict[str, Any]`: fractions, or None where no row has a reference. Counts are named like the columns of the
        rows.
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
    }


def _against(result: EvaluationResult, teacher: EvaluationResult) -> dict[str, dict[str, Any] | None]:
    found = compare_results(result, teacher)
    if found is None:
        return {"against_teacher": None}
    return {
        "against_teacher": {
            "difference": found.difference,
            "interval": found.interval,
            "p_value": found.p_value,
            "paired": found.paired,
            "unpaired": found.unpaired,
        }
    }


def _cells(row: Mapping[str, Any]) -> str:
    speed = f"{row['repeated_5grams']:8}{row['rtf']:9.4f}"
    if row["wer"] is None:
        return f"{'-':>8}{'no reference':>17}{'-':>8}{'-':>7}{'-':>7}{'-':>7}{'-':>14}{speed}"
    star = "*" if row["unit"] == "character" else ""
    interval = "one row" if row["wer_interval"] is None else _percent(*row["wer_interval"])
    parts = "".join(f"{100 * row[name]:7.2f}" for name in ("ser", "der", "ier"))
    rate = f"{100 * row['wer']:.2f}{star}"
    return f"{rate:>8}{interval:>17}{100 * row['cer']:8.2f}{parts}{100 * row['orthographic_wer']:14.2f}{speed}"


def _percent(low: float, high: float) -> str:
    return f"({100 * low:.2f}-{100 * high:.2f})"


def _test(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "cannot be compared: no utterance was scored for both"
    low, high = found["interval"]
    left_out = f", {found['unpaired']} left out that only one was scored on" if found["unpaired"] else ""
    return (
        f"{100 * found['difference']:+.2f} % (95 %: {100 * low:+.2f} to {100 * high:+.2f}), "
        f"p = {found['p_value']:.3f}, {found['paired']} utterance{'s' if found['paired'] > 1 else ''}{left_out}"
    )
