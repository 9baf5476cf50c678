"""One page of tables and pictures about a set of models: short form, long form, noise, latency, sweeps.

    python benchmarks/paper/report.py configs/reports/quickstart.yaml --sweeps runs/sweeps/*

Writes `report.md`, `report.html`, which holds its pictures, and `results.json`, which a model card reads, and stores
every figure in `measured`: what was measured with the same models, rows and settings, and on the same machine where it
is a time, is not measured again. Tables 5 to 8, 16, 17, 19 and 24, Figure 2. Cost: about 40 minutes on two CPU cores.
"""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from algorithms import AlgorithmRow, compare_algorithms
from hf_distil_whisper import WordErrors, evaluate_long_form, evaluate_model, parse_arguments, run_script
from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.cli.config import DataSource, InputError, as_sources, parse_yaml, setting, source_setting
from hf_distil_whisper.evaluation.evaluate import NonSpeech
from hf_distil_whisper.evaluation.noise import check_snrs, evaluate_in_noise
from hf_distil_whisper.evaluation.results import IN_DISTRIBUTION, LONG_FORM, OUT_OF_DISTRIBUTION
from noise import load_noises
from report_sections import (
    Scores,
    Section,
    SetScore,
    front_section,
    latency_section,
    long_form_section,
    noise_section,
    set_score,
    short_form_section,
    sweep_section,
    write_report,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))
from inputs import LoadedModel, ScoringArguments, check_flags, list_setting, load_scored_models, load_sets, ready
from latency import LatencyRow, latency_grid
from tables import machine, save_json


@dataclass
class ReportArguments(ScoringArguments):
    """A report, usually a YAML file in `configs/reports`."""

    title: str = setting("Report", "Of the page.")
    models: dict[str, Any] | str | None = setting(
        None, "{name: Hub name or folder}; the first is what the others are compared with, so usually the teacher."
    )
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Short recordings in distribution.")
    ood_datasets: dict[str, DataSource] | str | None = source_setting("Short recordings out of distribution.")
    long_form_datasets: dict[str, DataSource] | str | None = source_setting("Long recordings.")
    reference: str | None = setting(None, "Set in distribution that effective robustness refers to (Table 6).")
    noises: list[str] = list_setting([], "`white`, `babble`, or recordings of noise, added to the first set.")
    babble_dataset: DataSource | str | None = source_setting("Recordings of other speakers, mixed to the babble.")
    snrs: list[float] = list_setting([40.0, 20.0, 10.0, 5.0, 0.0, -10.0], "Ratios in dB.")
    batch_sizes: list[int] = list_setting([1, 4, 16], "Of the latency.")
    latency_samples: int = setting(256, "Recordings of the first set that are timed.")
    sweeps: list[str] = list_setting([], "Folders that `sweep.py` has written.")
    notes: str | None = setting(None, "Markdown file with the conclusions, at the end of the page.")
    output_dir: str | None = setting(None, "Folder of the page, its pictures and figures.")
    batch_size: int = setting(16, "Recordings or chunks in one pass, where time is not the point.")

    def __post_init__(self) -> None:
        self.models = parse_yaml(self.models) if isinstance(self.models, str) else self.models or {}
        if not isinstance(self.models, dict):
            raise InputError(f"models: expected a mapping of names to Hub names or folders, got {self.models!r}")
        for name in ("eval_datasets", "ood_datasets", "long_form_datasets"):
            setattr(self, name, as_sources(getattr(self, name), name))
        if set(self.eval_datasets) & set(self.ood_datasets):
            raise InputError("ood_datasets: a set of that name is also in eval_datasets")
        if self.reference is not None and self.reference not in self.eval_datasets:
            raise InputError(
                f"reference: {self.reference!r} is not among eval_datasets: {', '.join(self.eval_datasets)}"
            )
        if self.reference is not None and not self.ood_datasets:
            raise InputError("reference: is compared with sets out of distribution; give ood_datasets too")
        check_flags(self, whole=("latency_samples", "batch_sizes", "batch_size"))
        self.snrs = check_snrs(self.snrs, "--snrs") if self.noises else []
        for folder in self.sweeps:
            for name in ("table.md", "wer.png"):
                if not Path(folder, name).is_file():
                    raise InputError(f"--sweeps: {folder} has no {name}; run benchmarks/paper/sweep.py first")
        if self.notes is not None and not Path(self.notes).is_file():
            raise InputError(f"--notes: there is no file {self.notes}")


def measured_once(folder: Path, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """A figure that was measured with the same settings before, or is measured and stored now.

    The `settings` are all that it depends on; the parts of its `name` are separated by ", ".
    """
    # Two underscores separate parts and occur in none: `student-large` on `test` is not `student` on `large-test`.
    parts = [re.sub(r"(?:[^\w.-]|_)+", "-", part) for part in name.split(", ")]
    file = folder / ("__".join(parts) + ".json")
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored["measured"]
    measured = json.loads(json.dumps(measure()))
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".partial")
    content = {"name": name, "settings": settings, "measured": measured}  # the file's name is not exact
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, file)  # whole or not at all
    return measured


class Measurements:
    """The figures of a report, each measured or read from the folder of an earlier start."""

    def __init__(self, args: ReportArguments, models: Mapping[str, LoadedModel]):
        self.args, self.models = args, models
        self.measured = partial(measured_once, Path(args.output_dir or "", "measured"))
        self.weights = {name: weights_fingerprint(one.model) for name, one in models.items()}
        self.options = {"batch_size": args.batch_size, **args.scoring}

    def _identity(self, name: str, rows: Dataset) -> dict[str, Any]:
        """All that a figure of a model depends on besides the settings of its measurement."""
        flags = {flag: getattr(self.args, flag) for flag in ("dtype", "language", "normalizer", "batch_size")}
        return {"weights": self.weights[name], "rows": rows._fingerprint, **flags}

    def scores(self, sets: Mapping[str, Dataset], long_form: bool) -> dict[str, dict[str, SetScore]]:
        """By model and set."""
        evaluate, kind = (evaluate_long_form, "long form") if long_form else (evaluate_model, "short form")
        scores: dict[str, dict[str, SetScore]] = {}

        def measure(model: Any, rows: Dataset, processor: Any) -> dict[str, Any]:
            return asdict(set_score(evaluate(model, rows, processor, **self.options)))

        for name, (model, processor) in self.models.items():
            for data, rows in sets.items():
                settings = {**self._identity(name, rows), "machine": machine()}  # of the real-time factors
                work = partial(measure, model, rows, processor)
                stored = self.measured(f"{kind}, {name}, {data}", settings, work)
                stored["interval"] = None if stored["interval"] is None else tuple(stored["interval"])
                counts = {
                    "errors": WordErrors(**stored["errors"]),
                    "non_speech": NonSpeech(**stored.get("non_speech", {})),
                }
                score = SetScore(**stored | counts)
                if not score.errors.num_words:
                    raise ValueError(
                        f"{data}: no row has a reference, so that there is no rate to draw. Take the set out."
                    )
                scores.setdefault(name, {})[data] = score
        return scores

    def algorithms(self, data: str, rows: Dataset) -> list[AlgorithmRow]:
        """All models in turn: with another model or machine, all of them are measured again."""
        models = {name: self._identity(name, rows) for name in self.models}
        stored = self.measured(
            f"algorithms, {data}",
            {"models": models, "machine": machine()},
            lambda: [asdict(row) for row in compare_algorithms(self.models, rows, **self.options)],
        )
        return [
            AlgorithmRow(**row | {"errors": WordErrors(**row["errors"]), "seconds": tuple(row["seconds"])})
            for row in stored
        ]

    def latency(self, rows: Dataset) -> list[LatencyRow]:
        """All models in turn, as [`algorithms`]."""
        args, baseline = self.args, next(iter(self.models))
        chosen = rows.select(range(min(args.latency_samples, len(rows))))
        settings = {
            # No time depends on the normaliser.
            "models": {name: self._identity(name, chosen) | {"normalizer": None} for name in self.models},
            "batch_sizes": args.batch_sizes,
            "attn_implementations": ["sdpa"],
            "timestamps": [baseline],
            "machine": machine(),
        }

        def measure() -> list[dict[str, Any]]:
            options = {"batch_sizes": args.batch_sizes, "timestamps": [baseline], "language": args.language}
            return [asdict(row) for row in latency_grid(self.models, chosen, teacher=baseline, **options)]

        stored = self.measured("latency", settings, measure)
        return [LatencyRow(**row | {"seconds": tuple(row["seconds"])}) for row in stored]

    def noise(self, rows: Dataset, kind: str, noise: Any) -> dict[str, dict[float, WordErrors]]:
        """By model and ratio in dB."""
        snrs, errors = self.args.snrs, {}
        for name, (model, processor) in self.models.items():

            def measure(model: Any = model, processor: Any = processor) -> list[dict[str, int]]:
                results = evaluate_in_noise(model, rows, processor, noise=noise, snrs=snrs, **self.options)
                return [asdict(result.errors) for result in results.values()]

            sound = noise if isinstance(noise, str) else hashlib.sha256(noise.tobytes()).hexdigest()[:16]
            settings = {**self._identity(name, rows), "noise": sound, "snrs": snrs}
            stored = self.measured(f"noise {kind}, {name}", settings, measure)
            errors[name] = {snr: WordErrors(**counts) for snr, counts in zip(snrs, stored, strict=True)}
        return errors


def save_scores(scores: Sequence[Scores], groups: Mapping[str, str], folder: Path) -> None:
    """Writes `results.json` as `evaluate` does, from which a model card takes its scores."""
    content: dict[str, dict[str, dict[str, Any]]] = {}
    for by_model in scores:
        for name, by_set in by_model.items():
            for data, score in by_set.items():
                row = asdict(score) | {"wer": score.errors.wer, "group": groups.get(data, LONG_FORM)}
                content.setdefault(data, {})[name] = row
    save_json(folder / "results.json", content)


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(ReportArguments, argv=argv, command="benchmarks/paper/report.py")
    check_flags(args, "models", "eval_datasets", "output_dir")
    noises = load_noises(args.noises, args.babble_dataset)
    columns = ("audio", "text")
    inside, outside = (load_sets(sources, columns) for sources in (args.eval_datasets, args.ood_datasets))
    recordings = load_sets(args.long_form_datasets, columns)
    models = load_scored_models(args.models, args)
    if not ready(models, {**inside, **outside, **recordings}, args.dry_run):
        return
    figures, baseline, first = Measurements(args, models), next(iter(models)), next(iter(inside.values()))
    short = figures.scores({**inside, **outside}, long_form=False)
    long = figures.scores(recordings, long_form=True)
    algorithms = {name: figures.algorithms(name, rows) for name, rows in recordings.items()}
    latency = figures.latency(first)
    noise = {kind: figures.noise(first, kind, sound) for kind, sound in noises.items()}
    alone = min(row.batch_size for row in latency)
    speeds = {row.model: row.relative_latency or 1.0 for row in latency if row.batch_size == alone}
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    groups = {**dict.fromkeys(inside, IN_DISTRIBUTION), **dict.fromkeys(outside, OUT_OF_DISTRIBUTION)}
    save_scores([short, long], groups, folder)
    sections = [
        front_section(short, speeds, list(outside), baseline, folder),
        short_form_section(short, list(outside), baseline, args.reference),
        *([long_form_section(long, algorithms, baseline)] if long else []),
        *([noise_section(noise, folder)] if noise else []),
        latency_section(latency),
        *(sweep_section(Path(sweep), folder) for sweep in args.sweeps),
    ]
    if args.notes is not None:
        sections.append(Section("What the figures say", Path(args.notes).read_text(encoding="utf-8")))
    command = shlex.join(["python", "benchmarks/paper/report.py", *argv])
    paths = "\n".join(f"- {name}: `{path}`" for name, path in args.models.items())
    origin = f"```\n{command}\n```\n\nMeasured on: {machine()}. Models:\n\n{paths}"
    for file in write_report(folder, args.title, [*sections, Section("How this was made", origin)]):
        print(file)


if __name__ == "__main__":
    sys.exit(run_script(main))
