"""`report`: measures a set of models on everything and puts the tables and pictures on one page."""

import hashlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from cli_evaluate_noise import (
    check_noises,
    load_noises,
)
from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    as_sources,
    parse_arguments,
    parse_yaml,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    load_listener,
    machine,
)
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_model
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.evaluation.noise import (
    check_snrs,
    evaluate_in_noise,
)
from hf_distil_whisper.evaluation.results import (
    MeasuredFolder,
    SetScore,
    score_as_json,
    score_from_json,
    set_score,
)
from hf_distil_whisper.metrics import (
    WordErrors,
    get_normalizer,
)
from latency_grid import latency_grid
from latency_rows import LatencyRow
from long_form_algorithms import (
    AlgorithmRow,
    compare_algorithms,
)
from report import (
    Section,
    write_report,
)
from report_sections import (
    Scores,
    front_section,
    latency_section,
    long_form_section,
    noise_section,
    short_form_section,
    sweep_sections,
)


@dataclass
class ReportArguments:
    """Settings of a report: a YAML file in `configs/reports`, for example.

    Args:
        title (`str`): of the page.
        models (`dict[str, str]`): names on the page → Hub names or folders; the first one is what the others are
            compared with, so usually the teacher.
        eval_datasets (`dict[str, DataSource]`): short recordings in distribution, by name.
        ood_datasets (`dict[str, DataSource]`, *optional*): out of distribution.
        long_form_datasets (`dict[str, DataSource]`, *optional*): long recordings.
        reference (`str`, *optional*): the set in distribution that effective robustness on `ood_datasets` refers to
            (Table 6).
        noises (`list[str]`, *optional*): "white", "babble", or files of recorded noise, added to the first set.
        babble_dataset ([`DataSource`], *optional*): recordings that the babble is mixed from, best of other speakers.
        snrs (`list[float]`, *optional*): signal-to-noise ratios in dB.
        batch_sizes (`list[int]`, *optional*, defaults to `[1, 4, 16]`): of the latency.
        latency_samples (`int`, *optional*, defaults to 256): recordings of the first set that are timed.
        sweeps (`list[str]`, *optional*): folders that `sweep` has written.
        notes (`str`, *optional*): Markdown file that stands at the end: what the figures say.
        output_dir (`str`): for `report.md`, `report.html`, the pictures, and the figures in `measured`; a figure that
            was measured there with the same models and settings, and on this machine where it is one of time, is not
            measured again.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        batch_size (`int`, *optional*, defaults to 16): recordings or chunks in one pass, where time is not the point.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    title: str = setting("Report", "Of the page.")
    models: dict[str, Any] | str | None = setting(None, "Name: Hub name or folder; the first is the baseline.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Short recordings in distribution.")
    ood_datasets: dict[str, DataSource] | str | None = source_setting("Short recordings out of distribution.")
    long_form_datasets: dict[str, DataSource] | str | None = source_setting("Long recordings.")
    reference: str | None = setting(None, "Set in distribution that effective robustness refers to.")
    noises: list[str] = field(default_factory=list, metadata={"help": "White, babble, or files of recorded noise."})
    babble_dataset: DataSource | str | None = source_setting("Recordings that the babble is mixed from.")
    snrs: list[float] = field(
        default_factory=lambda: [40.0, 20.0, 10.0, 5.0, 0.0, -10.0], metadata={"help": "Ratios in dB."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 4, 16], metadata={"help": "Of the latency."})
    latency_samples: int = setting(256, "Recordings of the first set that are timed.")
    sweeps: list[str] = field(default_factory=list, metadata={"help": "Folders that `sweep` has written."})
    notes: str | None = setting(None, "Markdown file with what the figures say.")
    output_dir: str | None = setting(None, "Folder of the page, its pictures and figures.")
    language: str | None = setting(None, "Of the speech, for multilingual models.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    batch_size: int = setting(16, "Recordings or chunks in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.models = parse_yaml(self.models) if isinstance(self.models, str) else self.models or {}
        if not isinstance(self.models, dict):
            raise InputError(f"models: expected a mapping of names to Hub names or folders, got {self.models!r}")
        for name in ("eval_datasets", "ood_datasets", "long_form_datasets"):
            setattr(self, name, as_sources(getattr(self, name), name))
        self.babble_dataset = as_source(self.babble_dataset, "babble_dataset") if self.babble_dataset else None
        short = [*(self.eval_datasets or {}), *(self.ood_datasets or {})]
        if self.reference is not None and self.reference not in (self.eval_datasets or {}):
            raise InputError(
                f"reference: {self.reference!r} is not among eval_datasets: {', '.join(self.eval_datasets or {})}"
            )
        if self.reference is not None and not self.ood_datasets:
            raise InputError("reference: is compared with sets out of distribution; give ood_datasets too")
        counts = {
            "latency_samples": [self.latency_samples],
            "batch_sizes": self.batch_sizes,
            "batch_size": [self.batch_size],
        }
        for name, values in counts.items():
            if not values or min(values) < 1:
                raise InputError(f"{name}: expected whole numbers above 0, got {getattr(self, name)}")
        try:
            self.snrs = check_snrs(self.snrs) if self.noises else []
        except ValueError as error:
            raise InputError(f"snrs: {error}") from error
        if len(set(short)) < len(short):
            raise InputError("ood_datasets: a set of that name is also in eval_datasets")


def plan_report(args: ReportArguments) -> Plan:
    """Checks models, sets, noises, sweeps and notes.

    Args:
        args (`ReportArguments`): all of it.
    """
    plan = Plan("report")
    plan.single_process()
    if plan.require(args.models, "models", "at least one, by name"):
        whispers = {}
        for name, place in dict(args.models or {}).items():  # type: ignore[arg-type]
            model = plan.model(place, f"models.{name}")
            if model is not None:
                whispers[name] = model
                plan.processor(place, f"models.{name}")
        plan.scoring(whispers, args.language, args.normalizer)
    plan.require(args.eval_datasets, "eval_datasets", "at least one set to score on")
    plan.require(args.output_dir, "output_dir", "the folder of the page")
    for flag in ("eval_datasets", "ood_datasets", "long_form_datasets"):
        for name, source in as_sources(getattr(args, flag), flag).items():
            rows = plan.source(source, f"{flag}.{name}", ("text",))
            if rows is not None:
                plan.figures[f"audio of {name}"] = describe_rows(rows)
    check_noises(plan, args.noises, args.babble_dataset)
    for place in args.sweeps:
        missing = [name for name in ("table.md", "wer.png") if not (Path(place) / name).is_file()]
        if missing:
            plan.problems.append(f"--sweeps: {place} has no {missing[0]}; run `hf-distil-whisper sweep` first")
    if args.notes is not None and not Path(args.notes).is_file():
        plan.problems.append(f"--notes: there is no file {args.notes}")
    plan.steps.append(f"measure {', '.join(args.models or {})}: short form, long form, noise and latency")
    plan.steps.append(f"write {args.output_dir}/report.md and report.html")
    return plan


@dataclass(frozen=True)
class _Loaded:
    """A model of the report, and what names it in the settings of a figure."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    weights: str


def run_report(args: ReportArguments, datasets: Mapping[str, Dataset], argv: Sequence[str]) -> tuple[Path, Path]:
    """Measures what is not measured yet, and writes the page.

    Args:
        args (`ReportArguments`): as checked by [`plan_report`].
        datasets (`Mapping[str, Dataset]`): `plan.datasets`.
        argv (`Sequence[str]`): of the command, which the page names.

    Returns:
        `tuple[Path, Path]`: `report.md` and `report.html`.
    """
    folder = Path(args.output_dir or "")
    kept = MeasuredFolder(folder / "measured")
    noises = load_noises(args.noises, datasets.get("babble_dataset"))
    models = {name: _load(place, args.dtype) for name, place in dict(args.models or {}).items()}  # type: ignore[arg-type]
    baseline, outside = next(iter(models)), list(args.ood_datasets or {})
    sets: dict[str, dict[str, Dataset]] = {"eval_datasets": {}, "ood_datasets": {}, "long_form_datasets": {}}
    for flag, rows in ((flag, rows) for flag, rows in datasets.items() if "." in flag):
        kind, name = flag.split(".", 1)
        sets[kind][name] = rows
    short = _scores(args, kept, models, {**sets["eval_datasets"], **sets["ood_datasets"]}, "short form")
    long = _scores(args, kept, models, sets["long_form_datasets"], "long form")
    algorithms = {
        name: _algorithms(args, kept, models, name, rows) for name, rows in sets["long_form_datasets"].items()
    }
    first = next(iter(sets["eval_datasets"].values()))
    latency = _latency(args, kept, models, first)
    noise = {kind: _noise(args, kept, models, first, kind, sound) for kind, sound in noises.items()}
    folder.mkdir(parents=True, exist_ok=True)
    sections = [front_section(short, _speeds(latency), outside, baseline, folder)]
    sections += [short_form_section(short, outside, baseline, args.reference)]
    sections += [long_form_section(long, algorithms, baseline)] if long else []
    sections += [noise_section(noise, folder)] if noise else []
    sections += [latency_section(latency)]
    sections += sweep_sections(args.sweeps, folder)
    if args.notes is not None:
        sections.append(Section("What the figures say", Path(args.notes).read_text(encoding="utf-8")))
    sections.append(Section("How this was made", _origin(args, argv)))
    return write_report(folder, args.title, sections)


def _load(place: str, dtype: str) -> _Loaded:
    model, processor = load_listener(place, dtype)
    return _Loaded(model, processor, weights_fingerprint(model))


def _identity(args: ReportArguments, model: _Loaded, rows: Dataset) -> dict[str, Any]:
    """What a figure depends on besides its own settings."""
    return {
        "weights": model.weights,
        "dtype": args.dtype,
        "rows": rows._fingerprint,
        "language": args.language,
        "normalizer": args.normalizer,
        "batch_size": args.batch_size,
    }


def _scoring(args: ReportArguments) -> dict[str, Any]:
    """How every model is heard and scored."""
    normalizer = get_normalizer(args.normalizer) if args.normalizer else None
    return {"language": args.language, "normalizer": normalizer, "batch_size": args.batch_size}


def _scores(
    args: ReportArguments,
    kept: MeasuredFolder,
    models: Mapping[str, _Loaded],
    sets: Mapping[str, Dataset],
    kind: str,
) -> Scores:
    scorer: Callable[..., EvaluationResult] = evaluate_model if kind == "short form" else evaluate_long_form
    found: dict[str, dict[str, SetScore]] = {}
    for name, one in models.items():
        for data, rows in sets.items():

            def measure(one: _Loaded = one, rows: Dataset = rows) -> dict[str, Any]:
                result = scorer(one.model, rows, one.processor, **_scoring(args))
                return score_as_json(set_score(result))

            settings = {**_identity(args, one, rows), "machine": machine()}  # of the real-time factors
            measured = kept.get(f"{kind}, {name}, {data}", settings, measure)
            found.setdefault(name, {})[data] = score_from_json(measured)
            if not found[name][data].errors.num_words:
                raise ValueError(
                    f"{data}: no row has a reference, so that there is no rate to draw. Take the set out."
                )
    return found


def _algorithms(
    args: ReportArguments, kept: MeasuredFolder, models: Mapping[str, _Loaded], data: str, rows: Dataset
) -> list[AlgorithmRow]:
    """All models in turn, as [`_latency`]."""

    def measure() -> list[dict[str, Any]]:
        found = compare_algorithms(
            {name: one.model for name, one in models.items()}, rows,
            {name: one.processor for name, one in models.items()}, **_scoring(args),
        )  # fmt: skip
        return [asdict(row) for row in found]

    settings = {"models": {name: _identity(args, one, rows) for name, one in models.items()}, "machine": machine()}
    measured = kept.get(f"algorithms, {data}", settings, measure)
    return [
        AlgorithmRow(**row | {"errors": WordErrors(**row["errors"]), "seconds": tuple(row["seconds"])})
        for row in measured
    ]


def _noise(
    args: ReportArguments,
    kept: MeasuredFolder,
    models: Mapping[str, _Loaded],
    rows: Dataset,
    kind: str,
    noise: str | np.ndarray,
) -> dict[str, dict[float, WordErrors]]:
    found = {}
    for name, one in models.items():

        def measure(one: _Loaded = one) -> list[dict[str, int]]:
            results = evaluate_in_noise(one.model, rows, one.processor, noise=noise, snrs=args.snrs, **_scoring(args))
            return [asdict(result.errors) for result in results.values()]

        sound = noise if isinstance(noise, str) else hashlib.sha256(noise.tobytes()).hexdigest()[:16]
        settings = {**_identity(args, one, rows), "noise": sound, "snrs": args.snrs}
        measured = kept.get(f"noise {kind}, {name}", settings, measure)
        found[name] = {snr: WordErrors(**counts) for snr, counts in zip(args.snrs, measured, strict=True)}
    return found


def _latency(
    args: ReportArguments, kept: MeasuredFolder, models: Mapping[str, _Loaded], rows: Dataset
) -> list[LatencyRow]:
    """All models in turn, so that the figure is one: another model or machine means another measurement."""
    chosen, baseline = rows.select(range(min(args.latency_samples, len(rows)))), next(iter(models))

    def measure() -> list[dict[str, Any]]:
        found = latency_grid(
            {name: one.model for name, one in models.items()}, chosen,
            {name: one.processor for name, one in models.items()},
            teacher=baseline, batch_sizes=args.batch_sizes, timestamps=[baseline], language=args.language,
        )  # fmt: skip
        return [asdict(row) for row in found]

    timed = replace(args, normalizer=None)  # of which no time depends
    settings = {
        "models": {name: _identity(timed, one, chosen) for name, one in models.items()},
        "batch_sizes": args.batch_sizes,
        "timestamps": [baseline],
        "machine": machine(),
    }
    return [LatencyRow(**row | {"seconds": tuple(row["seconds"])}) for row in kept.get("latency", settings, measure)]


def _speeds(latency: Sequence[LatencyRow]) -> dict[str, float]:
    """Times as fast as the baseline, at the smallest batch."""
    smallest = min(row.batch_size for row in latency)
    return {row.model: row.relative_latency or 1.0 for row in latency if row.batch_size == smallest}


def _origin(args: ReportArguments, argv: Sequence[str]) -> str:
    command = shlex.join(["hf-distil-whisper", "report", *argv])
    models = "\n".join(f"- {name}: `{place}`" for name, place in dict(args.models or {}).items())  # type: ignore[arg-type]
    return f"```\n{command}\n```\n\nMeasured on: {machine()}. Models:\n\n{models}"


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): the report's YAML file, then flags.
    """
    (args,) = parse_arguments(ReportArguments, argv=argv, command="hf-distil-whisper report")
    plan = plan_report(args)
    if plan.settle(dry_run=args.dry_run):
        for file in run_report(args, plan.datasets, argv):
            sys.stdout.write(f"{file}\n")
