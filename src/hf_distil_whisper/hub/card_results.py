"""Scores on a model card: read from what `evaluate` or `report` left, as a table, as metadata, as `.eval_results`.

Knows rates by set; nothing is measured here, and nothing is said of a set that was not scored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_distil_whisper.evaluation.measured import score_from_json
from hf_distil_whisper.evaluation.results import LONG_FORM, LONG_FORMS, TEACHER
from hf_distil_whisper.hub.card_text import inline, is_hub_id

RESULTS, MEASURED = "results.json", "measured"
"""What an evaluation and a report leave in their folder."""

_TASK = "automatic-speech-recognition"


@dataclass(frozen=True)
class Evaluation:
    """A student's scores, and its teacher's on the same sets.

    Args:
        results (`Mapping[str, float]`): WER by set, a fraction.
        teacher_results (`Mapping[str, float]`): the teacher's.
        groups (`Mapping[str, str]`): what a set is: "in distribution", "out of distribution", "long form", or "long
            form out of distribution".
        rtf (`tuple[float | None, float | None]`): seconds of work per second of short recordings: student, teacher.
        speed (`float`, *optional*): times as fast as the teacher, one recording at a time.
    """

    results: Mapping[str, float] = field(default_factory=dict)
    teacher_results: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    rtf: tuple[float | None, float | None] = (None, None)
    speed: float | None = None

    def merged(
        self,
        results: Mapping[str, float] | None,
        teacher_results: Mapping[str, float] | None,
        groups: Mapping[str, str] | None,
    ) -> "Evaluation":
        """The same with what is known besides; what is given wins."""
        return replace(
            self,
            results={**self.results, **(results or {})},
            teacher_results={**self.teacher_results, **(teacher_results or {})},
            groups={**self.groups, **(groups or {})},
        )


def read_evaluation(folder: str | Path, *, student: str | None = None, teacher: str = TEACHER) -> Evaluation:
    """Reads the scores that `hf-distil-whisper evaluate --output_dir` or `report` wrote.

    Args:
        folder (`str` or `Path`): the output folder of one of them.
        student (`str`, *optional*): its name there; by default `"model"` in an evaluation, `"student"` in a report.
        teacher (`str`, *optional*, defaults to `"teacher"`): its name there. It may be missing.

    Returns:
        [`Evaluation`]: sets without a reference, which have no rate, are left out. A report does not tell which of
            its short sets are out of distribution.

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if no set was scored for the student.
    """
    folder = Path(folder)
    if (folder / RESULTS).is_file():
        found = _of_evaluation(json.loads((folder / RESULTS).read_text(encoding="utf-8")), student or "model", teacher)
    elif (folder / MEASURED).is_dir():
        found = _of_report(folder / MEASURED, student or "student", teacher)
    else:
        raise FileNotFoundError(
            f"{folder}: expected the output folder of `hf-distil-whisper evaluate` ({RESULTS}) or `report` "
            f"({MEASURED}/), found neither. Run one of them with --output_dir, and name that folder."
        )
    if not found.results:
        raise ValueError(
            f"{folder}: no set was scored for {student or 'the student'!r}. Name it as it is there, or run `report` "
            "again if an earlier version made that folder."
        )
    return found


def comparison_rows(scores: Evaluation) -> list[tuple[str, str, str]]:
    """Rows of the table of student and teacher: what, the student's figure, the teacher's.

    Args:
        scores ([`Evaluation`]): may be empty.
    """
    rows = []
    for name in [*scores.results, *(name for name in scores.teacher_results if name not in scores.results)]:
        group = scores.groups.get(name)
        label = f"WER %, {name}" + (f" ({group})" if group else "")
        rows.append((label, _percent(scores.results.get(name)), _percent(scores.teacher_results.get(name))))
    if any(scores.rtf):
        figures = ["" if rtf is None else f"{rtf:.4f}" for rtf in scores.rtf]
        rows.append(("real-time factor, seconds of work per second of speech", figures[0], figures[1]))
    if scores.speed is not None:
        rows.append(("times as fast, one recording at a time", f"{scores.speed:.2f}", "1.00"))
    return rows


def eval_results(results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Entries of the `model-index` in the card's metadata.

    Args:
        results (`Mapping[str, float]`): WER by set.
        sources (`Mapping[str, Mapping]`): by set, its Hub data set as `path`, with `config`, `split` and `revision`
            where there are some. A set without one is named by its name alone.
    """
    found = []
    for name, wer in results.items():
        source = _hub_source(sources.get(name))
        found.append(
            EvalResult(
                task_type=_TASK,
                dataset_type=source.get("path") or inline(name),
                dataset_name=inline(name),
                dataset_config=source.get("config"),
                dataset_split=source.get("split"),
                dataset_revision=source.get("revision"),
                metric_type="wer",
                metric_name="WER",
                metric_value=round(100 * wer, 2),
            )
        )
    return found


def eval_result_files(
    results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]], date: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Contents of `.eval_results/<file>.yaml`, for the sets that lie on the Hub: the others have no leaderboard.

    Args:
        results (`Mapping[str, float]`): WER by set.
        sources (`Mapping[str, Mapping]`): as in [`eval_results`].
        date (`str`, *optional*): of the evaluation, ISO 8601; by default the Hub takes that of the commit.

    Returns:
        `dict[str, list[dict]]`: by file name, one file a data set.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for name, wer in results.items():
        source = _hub_source(sources.get(name))
        if source:
            entry = EvalResultEntry(
                dataset_id=source["path"],
                task_id=source.get("config") or "default",
                value=round(100 * wer, 2),
                dataset_revision=source.get("revision"),
                date=date,
                notes=f"word error rate in %, split {source.get('split') or 'test'}, greedy, normalised text",
            )
            entries.setdefault(source["path"].replace("/", "--") + ".yaml", []).append(entry)
    return {file: eval_result_entries_to_yaml(found) for file, found in entries.items()}


def _of_evaluation(summary: Mapping[str, Mapping[str, dict]], student: str, teacher: str) -> Evaluation:
    rates: dict[str, dict[str, float]] = {student: {}, teacher: {}}
    groups, work = {}, {student: [0.0, 0.0], teacher: [0.0, 0.0]}
    for name, by_model in summary.items():
        for model in rates:
            row = by_model.get(model)
            if row is None or row["wer"] is None:
                continue
            rates[model][name] = row["wer"]
            if row.get("group"):
                groups[name] = row["group"]
            if row.get("group") not in LONG_FORMS:
                work[model][0] += row["seconds"]
                work[model][1] += row["audio_seconds"]
    rtf = [seconds / audio if audio else None for seconds, audio in (work[student], work[teacher])]
    return Evaluation(rates[student], rates[teacher], groups, (rtf[0], rtf[1]))


def _of_report(folder: Path, student: str, teacher: str) -> Evaluation:
    rates: dict[str, dict[str, float]] = {student: {}, teacher: {}}
    groups: dict[str, str] = {}
    figures = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    for model, found in rates.items():
        for kind in ("short form", LONG_FORM):
            # By the name in the file: that of the file itself cannot tell `student` from the begin of `student-large`.
            prefix = f"{kind}, {model}, "
            for figure in figures:
                if not figure.get("name", "").startswith(prefix):
                    continue
                score = score_from_json(figure["measured"])
                if score.errors.num_words:
                    name = figure["name"].removeprefix(prefix)
                    found[name] = score.errors.wer
                    groups |= {name: LONG_FORM} if kind == LONG_FORM else {}
    speed = None
    if (folder / "latency.json").is_file():
        rows = json.loads((folder / "latency.json").read_text(encoding="utf-8"))["measured"]
        alone = [row for row in rows if row["model"] == student and row["batch_size"] == 1]
        speed = alone[0]["relative_latency"] if alone and rows[0]["model"] == teacher else None
    return Evaluation(rates[student], rates[teacher], groups, speed=speed)


def _hub_source(source: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(source) if source and is_hub_id(str(source.get("path", ""))) else {}


def _percent(wer: float | None) -> str:
    return "" if wer is None else f"{100 * wer:.2f}"
