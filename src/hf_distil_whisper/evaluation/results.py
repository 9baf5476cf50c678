"""What an evaluation leaves behind: the table for a terminal, `results.json`, the rows and the worst of them.

Knows results by set and model; percentages are made here, everything else is counts and fractions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow.parquet import write_table

from hf_distil_whisper.evaluation.alignment import worst_utterances
from hf_distil_whisper.evaluation.robustness import effective_robustness, macro_average, micro_average
from hf_distil_whisper.evaluation.scoring import COUNTS, KINDS, EvaluationResult
from hf_distil_whisper.evaluation.significance import compare_results, confidence_interval
from hf_distil_whisper.metrics import WordErrors

Results = Mapping[str, Mapping[str, EvaluationResult]]
"""By set, then by model."""

TEACHER = "teacher"
"""The model that all others are tested against."""

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, LONG_FORM = "in distribution", "out of distribution", "long form"
"""What a set may be."""

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
        reference (`str`, *optional*): a set in distribution; adds [`robustness_text`].
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
        lines += ["", robustness_text(results, groups, reference)]
    return "\n".join(lines)


def left_out_text(results: Results) -> str:
    """How many rows of each set are in no rate, and why; nothing where there are none.

    Args:
        results (`Mapping`): from [`run_evaluation`].
    """
    lines = []
    for dataset, by_model in results.items():
        counts = {name: (len(one.row_errors), one.empty_references) for name, one in by_model.items()}
        for unread, empty in dict.fromkeys(counts.values()):
            models = [name for name, pair in counts.items() if pair == (unread, empty)]
            which = "" if len(models) == len(counts) else f", {', '.join(models)}"
            parts = [f"{unread} could not be read"] * (unread > 0) + [f"{empty} without a reference"] * (empty > 0)
            if parts:
                lines.append(f"  {dataset}{which}: {', '.join(parts)}")
    head = ["rows left out of the rates:"] if lines else []
    return "\n".join([*head, *lines])


def averages_text(results: Results, groups: Mapping[str, str]) -> str:
    """Averages of the WER in percent by kind of set (Table 16): over sets, and in brackets over all their words.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.

    Returns:
        `str`: a line for each kind of which there are several sets, models beside each other; else nothing.
    """
    scored = [name for name, by_model in results.items() if all(one.errors.num_words for one in by_model.values())]
    kinds = {
        group: [name for name in scored if groups[name] == group] for group in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION)
    }
    kinds["short form"] = [name for members in kinds.values() for name in members]
    kinds[LONG_FORM] = [name for name in scored if groups[name] == LONG_FORM]
    lines = []
    for kind, members in kinds.items():
        if len(members) > 1:
            by_model: dict[str, dict[str, WordErrors]] = {}
            for name in members:
                for model, result in results[name].items():
                    by_model.setdefault(model, {})[name] = result.errors
            rates = [
                f"{model} {100 * macro_average(errors):.2f} ({100 * micro_average(errors):.2f})"
                for model, errors in by_model.items()
            ]
            lines.append(f"  {kind}: {', '.join(rates)}")
    head = ["average WER % over sets (over all words):"] if lines else []
    return "\n".join([*head, *lines])


def robustness_text(results: Results, groups: Mapping[str, str], reference: str) -> str:
    """Every model beside the teacher on the reference and on the sets out of distribution (Table 6), as Markdown.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.
        reference (`str`): a set in distribution.

    Raises:
        ValueError: as [`effective_robustness`].
    """
    sets = [reference, *(name for name, group in groups.items() if group == OUT_OF_DISTRIBUTION)]
    tables = []
    for model in results[reference]:
        if model != TEACHER:
            baseline, ours = ({name: results[name][one].errors for name in sets} for one in (TEACHER, model))
            found = effective_robustness(baseline, ours, reference)
            tables.append(
                f"{found.table(TEACHER, model)}\neffective robustness: {100 * found.effective_robustness:+.2f} %"
            )
    return "\n\n".join(tables)


def save_results(results: Results, folder: str, groups: Mapping[str, str] | None = None) -> None:
    """Writes what an evaluation found into a folder.

    `results.json` holds counts and rates, `<set>.<model>.parquet` the rows (columns of `ROW_FEATURES`; read it with
    `Dataset.from_parquet`), `<set>.<model>.worst.txt` the rows with the most errors, word by word.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        folder (`str`): made where it is missing.
        groups (`Mapping[str, str]`, *optional*): what each set is.
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
        "unreadable_rows": len(result.row_errors),
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
