"""`evaluate noise`: word error rates of models on one set of recordings, with noise at several levels (Figure 2)."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from figures import wer_over_snr
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    is_main_process,
    parse_arguments,
    setting,
    short_names,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    generation_bytes,
    gigabytes,
    load_listener,
    torch_dtype,
)
from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_shared
from hf_distil_whisper.evaluation.noise import (
    BABBLE,
    SNRS,
    SPEAKERS,
    WHITE,
    babble,
    check_snrs,
    evaluate_in_noise,
    load_noise,
)
from hf_distil_whisper.evaluation.results import (
    left_out_text,
    result_summary,
)
from hf_distil_whisper.metrics import get_normalizer

Results = dict[str, dict[float, dict[str, EvaluationResult]]]
"""By noise, ratio in dB and model."""


@dataclass
class NoiseArguments:
    """Flags of `evaluate noise`.

    Args:
        model_name_or_path (`list[str]`): models to score, Hub names or folders.
        teacher_model_name_or_path (`str`, *optional*): scored beside them.
        dataset ([`DataSource`]): recordings up to 30 s with text, as clean as possible; split "test" where none is
            named.
        noises (`list[str]`, *optional*, defaults to `["white"]`): `white`, recordings of noise, for example of a
            pub, or `babble`.
        babble_dataset ([`DataSource`], *optional*): recordings that the babble is mixed from, best of other speakers
            than those of `dataset`.
        snrs (`list[float]`, *optional*, defaults to 40 to -10): signal-to-noise ratios in dB.
        output_dir (`str`, *optional*): folder for `results.json` and `wer_over_snr.png`.
        seed (`int`, *optional*, defaults to 0): of the noise that each recording meets, and of the babble.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Models to score: Hub names or folders."}
    )
    teacher_model_name_or_path: str | None = setting(None, "Scored beside them.")
    dataset: DataSource | str | None = source_setting("Recordings up to 30 s with text, as clean as possible.")
    noises: list[str] = field(
        default_factory=lambda: [WHITE],
        metadata={"help": "`white`, `babble`, or recordings of noise."},
    )
    babble_dataset: DataSource | str | None = source_setting("Recordings that the babble is mixed from.")
    snrs: list[float] = field(
        default_factory=lambda: list(SNRS), metadata={"help": "Signal-to-noise ratios in dB, 40 to -10 by default."}
    )
    output_dir: str | None = setting(None, "Folder for results.json and wer_over_snr.png.")
    seed: int = setting(0, "Of the noise that each recording meets.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    batch_size: int = setting(16, "Recordings in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "test") if self.dataset else None
        self.babble_dataset = as_source(self.babble_dataset, "babble_dataset") if self.babble_dataset else None
        for flag, value, least in (("batch_size", self.batch_size, 1), ("seed", self.seed, 0)):
            if value < least:
                raise InputError(f"--{flag}: expected a whole number of at least {least}, got {value}")
        try:
            self.snrs = check_snrs(self.snrs)
        except ValueError as error:
            raise InputError(f"--snrs: {error}") from error
        for flag, names in (("model_name_or_path", self._places()), ("noises", self.noises)):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise InputError(f"--{flag}: {twice[0]} is given {names.count(twice[0])} times; name each once")

    def models(self) -> dict[str, str]:
        """Names or paths to score, by column of the table."""
        return short_names(self._places())

    def _places(self) -> list[str]:
        teacher = [self.teacher_model_name_or_path] if self.teacher_model_name_or_path else []
        return [*self.model_name_or_path, *teacher]


def plan_noise(args: NoiseArguments) -> Plan:
    """Checks models, recordings and noises.

    Args:
        args (`NoiseArguments`): what to score on what.
    """
    plan = Plan("evaluate noise")
    flags = [("model_name_or_path", name) for name in args.model_name_or_path or [""]]
    if args.teacher_model_name_or_path is not None:
        flags.append(("teacher_model_name_or_path", args.teacher_model_name_or_path))
    whispers, expected = {}, []
    for flag, name in flags:
        model = plan.model(name, flag)
        if model is not None:
            plan.processor(name, flag)
            expected.append(generation_bytes(model, torch_dtype(args.dtype), args.batch_size))
            whispers[name] = model
    plan.scoring(whispers, args.language, args.normalizer)
    rows = plan.source(as_source(args.dataset, "dataset", "test") if args.dataset else None, "dataset", ("text",))
    if rows is not None:
        plan.figures["audio"] = f"{describe_rows(rows)}, heard {len(args.noises) * len(args.snrs)} times by each model"
    check_noises(plan, args.noises, args.babble_dataset)
    ratios = ", ".join(f"{snr:g}" for snr in args.snrs)
    for column, name in args.models().items():
        place = "" if column == name else f" ({name})"
        plan.steps.append(f"score {column}{place} in {', '.join(short_names(args.noises))} noise at {ratios} dB")
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results and the picture to {args.output_dir}")
    if expected:
        plan.figures["memory expected"] = gigabytes(max(expected))
    return plan


def check_noises(plan: Plan, noises: Sequence[str], babble_dataset: DataSource | str | None) -> None:
    """Checks that every noise can be had; the recordings of a babble become `plan.datasets["babble_dataset"]`.

    Args:
        plan (`Plan`): takes the problems.
        noises (`Sequence[str]`): as in [`NoiseArguments`].
        babble_dataset (`DataSource`, *optional*): the same.
    """
    for noise in noises:
        if noise != BABBLE:
            try:
                load_noise(noise)
            except AudioError as error:
                plan.problems.append(f"--noises: {error}")
    if BABBLE in noises:
        source = as_source(babble_dataset, "babble_dataset") if babble_dataset else None
        rows = plan.source(source, "babble_dataset", ("audio",))
        if rows is not None and len(rows) < SPEAKERS:
            plan.problems.append(f"--babble_dataset: expected at least {SPEAKERS} recordings, got {len(rows)}")
    elif babble_dataset:
        plan.problems.append(f"--babble_dataset: nothing is mixed from it, since {BABBLE!r} is not among --noises")


def load_noises(
    noises: Sequence[str], babble_rows: Dataset | None = None, seed: int = 0
) -> dict[str, str | np.ndarray]:
    """What [`evaluate_in_noise`] takes as `noise`, by the name in tables.

    Args:
        noises (`Sequence[str]`): as checked by [`check_noises`].
        babble_rows (`Dataset`, *optional*): `plan.datasets["babble_dataset"]`.
        seed (`int`, *optional*, defaults to 0): of the babble.
    """
    found: dict[str, str | np.ndarray] = {}
    for name, place in short_names(noises).items():
        if place == BABBLE and babble_rows is not None:
            found[name] = babble(without_decoder(babble_rows)["audio"], seed=seed)
        else:
            samples = load_noise(place)
            found[name] = WHITE if samples is None else samples
    return found


def run_models(args: NoiseArguments, datasets: Mapping[str, Dataset]) -> Results:
    """Scores the models of a plan, one after another, each in every noise. Several processes share the rows.

    Args:
        args (`NoiseArguments`): as checked by [`plan_noise`].
        datasets (`Mapping[str, Dataset]`): `plan.datasets`.

    Returns:
        `Results`: the same in every process.
    """
    noises = load_noises(args.noises, datasets.get("babble_dataset"), args.seed)
    results: Results = {noise: {snr: {} for snr in args.snrs} for noise in noises}
    for column, name in args.models().items():
        model, processor = load_listener(name, args.dtype)
        for (noise, sound), snr in product(noises.items(), args.snrs):

            def evaluate(
                rows: Dataset,
                model: WhisperForConditionalGeneration = model,
                processor: WhisperProcessor = processor,
                sound: str | np.ndarray = sound,
                snr: float = snr,
            ) -> EvaluationResult:
                found = evaluate_in_noise(
                    model, rows, processor, noise=sound, snrs=[snr], seed=args.seed, language=args.language,
                    normalizer=get_normalizer(args.normalizer) if args.normalizer else None,
                    batch_size=args.batch_size,
                )  # fmt: skip
                return found[snr]

            results[noise][snr][column] = evaluate_shared(datasets["dataset"], evaluate)
    return results


def noise_table(results: Mapping[str, Mapping[float, Mapping[str, EvaluationResult]]]) -> str:
    """WER in % by noise and ratio, a column for each model, as Markdown.

    Args:
        results (`Mapping`): from [`run_models`]; "-" where no row has a reference.
    """
    columns = list(next(iter(next(iter(results.values())).values())))
    lines = [
        "| noise | SNR / dB | " + " | ".join(f"{column} WER %" for column in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for noise, by_snr in results.items():
        for snr, by_model in by_snr.items():
            cells = " | ".join(
                f"{100 * by_model[column].wer:.2f}" if by_model[column].errors.num_words else "-" for column in columns
            )
            lines.append(f"| {noise} | {snr:g} | {cells} |")
    return "\n".join(lines)


def save_noise_results(args: NoiseArguments, results: Results, folder: str) -> None:
    """Writes `results.json` (what was asked for, counts and rates) and `wer_over_snr.png` into a folder.

    Args:
        args (`NoiseArguments`): what was asked for.
        results (`Results`): from [`run_models`].
        folder (`str`): made where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    summary = {
        "models": args.models(),
        "noises": short_names(args.noises),
        "dataset": asdict(as_source(args.dataset, "dataset", "test")),
        "seed": args.seed,
        "wer_by_noise_and_snr": {
            noise: {
                f"{snr:g}": {column: result_summary(result) for column, result in by_model.items()}
                for snr, by_model in by_snr.items()
            }
            for noise, by_snr in results.items()
        },
    }
    (target / "results.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    curves = {
        noise: {column: {snr: _drawn(by_snr[snr][column]) for snr in by_snr} for column in args.models()}
        for noise, by_snr in results.items()
    }
    wer_over_snr(curves, target / "wer_over_snr.png")


def run_noise(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(NoiseArguments, argv=argv, command="hf-distil-whisper evaluate noise")
    plan = plan_noise(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    results = run_models(args, plan.datasets)
    if is_main_process():
        first = next(iter(next(iter(results.values())).values()))
        left_out = left_out_text({"in every noise": first})
        sys.stdout.write("\n".join([noise_table(results), *[f"\n{left_out}"] * bool(left_out)]) + "\n")
        if args.output_dir is not None:
            save_noise_results(args, results, args.output_dir)
    # As in `evaluate`: a process that leaves without this may abort with its work done.
    PartialState().destroy_process_group()


def _drawn(result: EvaluationResult) -> float:
    """A rate for the picture; no point where no row has a reference."""
    return result.wer if result.errors.num_words else math.nan
