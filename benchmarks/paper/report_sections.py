"""The sections of a report: tables in the layouts of the paper, each with its picture.

Knows measured figures and how they are shown; nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import (
    wer_over_latency,
    wer_over_snr,
)
from hf_distil_whisper.evaluation.results import METRICS, SetScore, left_out_text, shown
from hf_distil_whisper.evaluation.significance import SetAverages, robustness_by_model, robustness_text, set_averages
from hf_distil_whisper.metrics import WordErrors
from latency_rows import (
    LatencyRow,
    latency_table,
    rtf_table,
)
from long_form_algorithms import (
    AlgorithmRow,
    algorithm_table,
)
from report import (
    Section,
    markdown_table,
)

Scores = Mapping[str, Mapping[str, SetScore]]
"""Model → set → score."""


def front_section(
    scores: Scores, speed: Mapping[str, float], outside: Sequence[str], baseline: str, folder: str | Path
) -> Section:
    """Word error rate over latency (Table 5): what is bought with how much time.

    Args:
        scores (`Scores`): short form.
        speed (`Mapping[str, float]`): of each model, times as fast as the baseline at batch size 1.
        outside (`Sequence[str]`): the sets out of distribution; all sets where there are none.
        baseline (`str`): name of a model.
        folder (`str` or `Path`): for the picture.
    """
    line = "OOD Average" if outside else "Average"
    rates = {name: 100 * _averages(by_set, outside).macro[line] for name, by_set in scores.items()}
    over = "average out of distribution" if outside else "average of all sets"
    wer_over_latency({name: (speed[name], rates[name]) for name in scores}, baseline, over, Path(folder, "front.svg"))
    rows = {name: {f"WER, {over} / %": f"{rates[name]:.1f}", "times as fast": f"{speed[name]:.2f}"} for name in scores}
    caption = f"Word error rate, {over}, over the speed relative to {baseline}"
    return Section("Word error rate over latency", markdown_table("model", rows), "front.svg", caption)


def short_form_section(scores: Scores, outside: Sequence[str], baseline: str, reference: str | None) -> Section:
    """Word error rates by set with their averages (Table 16), and how they change out of distribution (Table 6).

    Args:
        scores (`Scores`): short form.
        outside (`Sequence[str]`): the sets out of distribution.
        baseline (`str`): what relative error rates refer to.
        reference (`str`, *optional*): the set in distribution that effective robustness refers to; None leaves it out.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, by_set in scores.items():
        for data, score in by_set.items():
            around = (
                "" if score.interval is None else " [{:.1f}, {:.1f}]".format(*(100 * end for end in score.interval))
            )
            rows.setdefault(data, {})[name] = f"{100 * score.errors.wer:.1f}{around}"
        means = _averages(by_set, outside)
        for kind, mean in means.macro.items():
            rows.setdefault(kind, {})[name] = f"{100 * mean:.1f} ({100 * means.micro[kind]:.1f})"
    parts = [
        "Word error rate / %, with 95 % bootstrap intervals; averages over sets, in brackets over all their words.",
        markdown_table("set", rows),
        "Words, substitutions, deletions and insertions; real-time factor of the batches.",
        _counts_table(scores),
        *_left_out(scores),
    ]
    if reference is not None:
        errors = {name: {data: one.errors for data, one in by_set.items()} for name, by_set in scores.items()}
        found = robustness_by_model(errors, baseline, reference, outside)
        parts += [f"Relative error rates against {baseline}:", robustness_text(found, baseline)] if found else []
    return Section("Short form", "\n\n".join(parts))


def long_form_section(scores: Scores, algorithms: Mapping[str, Sequence[AlgorithmRow]], baseline: str) -> Section:
    """Repetitions, insertions, substitutions and deletions on long recordings (Tables 8 and 19), both algorithms.

    Args:
        scores (`Scores`): long form.
        algorithms (`Mapping[str, Sequence[AlgorithmRow]]`): of [`compare_algorithms`], by set.
        baseline (`str`): what relative latencies refer to.
    """
    rows = {}
    for name, by_set in scores.items():
        for data, score in by_set.items():
            row = {metric: shown(metric, figure(score)) for metric, figure in METRICS.items()}
            rows[f"{name}, {data}"] = {**row, "RTF": f"{score.rtf:.3f}"}
    text = "Repeated 5-grams; insertion, substitution, deletion and word error rates / %; real-time factor. In chunks."
    parts = [
        text,
        markdown_table("model", rows),
        *_left_out(scores),
        "Both algorithms in turn, medians; WER / % averaged over sets (Table 7).",
    ]
    return Section("Long form", "\n\n".join([*parts, algorithm_table(algorithms, baseline)]))


def noise_section(noise: Mapping[str, Mapping[str, Mapping[float, WordErrors]]], folder: str | Path) -> Section:
    """Word error rate over the signal-to-noise ratio (Figure 2).

    Args:
        noise (`Mapping`): noise → model → ratio in dB → errors.
        folder (`str` or `Path`): for the picture.
    """
    curves = {
        kind: {name: {snr: errors.wer for snr, errors in by_snr.items()} for name, by_snr in models.items()}
        for kind, models in noise.items()
    }
    wer_over_snr(curves, Path(folder, "noise.svg"))
    rows = {
        f"{name}, {kind}": {f"{snr:g} dB": f"{100 * wer:.1f}" for snr, wer in by_snr.items()}
        for kind, models in curves.items()
        for name, by_snr in models.items()
    }
    text = f"Word error rate / % at each signal-to-noise ratio.\n\n{markdown_table('model', rows)}"
    return Section("Noise", text, "noise.svg", "Word error rate over the signal-to-noise ratio")


def latency_section(rows: Sequence[LatencyRow]) -> Section:
    """Real-time factors by batch size (Table 24), and all that was measured beside them.

    Args:
        rows (`Sequence[LatencyRow]`): of all models.
    """
    text = (
        "Batch size 1 hears the recordings one by one, larger batches the same speech in overlapping chunks of one "
        "window, where the first model predicts timestamps (appendix B.2). Medians, the models in turn."
    )
    return Section("Latency", "\n\n".join([text, rtf_table(rows), "All of it, line by line:", latency_table(rows)]))


def sweep_sections(folders: Sequence[str | Path], folder: str | Path) -> list[Section]:
    """The tables and pictures that `sweep` has left, copied beside the report.

    Args:
        folders (`Sequence[str | Path]`): of the sweeps.
        folder (`str` or `Path`): of the report.

    Raises:
        FileNotFoundError: if a folder holds no finished sweep.
    """
    sections = []
    for place in map(Path, folders):
        title, _, text = (place / "table.md").read_text(encoding="utf-8").partition("\n")
        picture = f"sweep-{place.name}.png"
        Path(folder, picture).write_bytes((place / "wer.png").read_bytes())
        sections.append(Section(title, text, picture, f"{title}: word error rates"))
    return sections


def _averages(by_set: Mapping[str, SetScore], outside: Sequence[str]) -> SetAverages:
    errors = {data: score.errors for data, score in by_set.items()}
    return set_averages(errors, [data for data in errors if data not in outside])


def _left_out(scores: Scores) -> list[str]:
    """What no rate knows of, as Markdown; nothing where there is nothing."""
    by_set: dict[str, dict[str, SetScore]] = {}
    for name, of_model in scores.items():
        for data, one in of_model.items():
            by_set.setdefault(data, {})[name] = one
    text = left_out_text(by_set)
    return [f"```\n{text}\n```"] if text else []


def _counts_table(scores: Scores) -> str:
    rows = {}
    for name, by_set in scores.items():
        for data, score in by_set.items():
            errors = score.errors
            counts = {"S": errors.substitutions, "D": errors.deletions, "I": errors.insertions}
            row = {key: f"{count:,}" for key, count in counts.items()}
            rows[f"{name}, {data}"] = {"words": f"{errors.num_words:,}", **row, "RTF": f"{score.rtf:.3f}"}
    return markdown_table("model", rows)
