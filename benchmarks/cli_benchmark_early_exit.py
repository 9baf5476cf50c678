"""`benchmark early-exit`: how many decoder layers a model could leave out, what that saves and what it costs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from early_exit import (
    PAPER_THRESHOLDS,
    EarlyExit,
    early_exit_table,
    evaluate_early_exit,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    load_listener,
)
from hf_distil_whisper.metrics import get_normalizer


@dataclass
class EarlyExitArguments:
    """Flags of `benchmark early-exit`; the defaults are those of Table 20.

    Args:
        model_name_or_path (`str`): model to leave early, usually a teacher, Hub name or folder.
        dataset ([`DataSource`]): recordings up to 30 s with text.
        samples (`int`, *optional*, defaults to 100): rows.
        thresholds (`list[float]`, *optional*, defaults to 1 and 0.9875 to 0.925): of the confidence, 0 to 1.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        output_dir (`str`, *optional*): folder for `results.json`.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to leave early: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Recordings up to 30 s with text.")
    samples: int = setting(100, "Rows.")
    thresholds: list[float] = field(
        default_factory=lambda: list(PAPER_THRESHOLDS), metadata={"help": "Of the confidence, 0 to 1."}
    )
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    output_dir: str | None = setting(None, "Folder for results.json.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "test") if self.dataset else None
        if self.samples < 1:
            raise InputError(f"--samples: expected a whole number above 0, got {self.samples}")
        if not self.thresholds or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise InputError(f"--thresholds: expected numbers from 0 to 1, got {self.thresholds}")


def plan_early_exit(args: EarlyExitArguments) -> Plan:
    """Checks model and recordings.

    Args:
        args (`EarlyExitArguments`): what to score on what.
    """
    plan = Plan("benchmark early-exit")
    plan.single_process()
    model = plan.listener(args.model_name_or_path, args.language)
    if model is not None and model.config.decoder_layers == 1:
        plan.problems.append("--model_name_or_path: the decoder has 1 layer, expected more: none can be skipped")
    rows = plan.source(as_source(args.dataset, "dataset") if args.dataset else None, "dataset", ("audio", "text"))
    if rows is not None:
        plan.datasets["dataset"] = rows.select(range(min(args.samples, len(rows))))
        plan.figures["audio"] = describe_rows(plan.datasets["dataset"])
    plan.steps.append(
        f"transcribe with {args.model_name_or_path}, leaving its decoder at a confidence above "
        + ", ".join(f"{threshold:g}" for threshold in args.thresholds)
    )
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    return plan


def save_early_exits(found: Sequence[EarlyExit], folder: str, **facts: object) -> None:
    """Writes `results.json`: counts and rates by threshold, and how they were measured.

    Args:
        found (`Sequence[EarlyExit]`): from [`evaluate_early_exit`].
        folder (`str`): made where it is missing.
        facts: that hold for all thresholds, for example `machine` and `dtype`.
    """
    content = [
        {
            "threshold": one.threshold,
            "mean_layers": one.mean_layers,
            "num_layers": one.num_layers,
            "num_tokens": one.num_tokens,
            "seconds": one.seconds,
            "full_depth_seconds": one.full_depth_seconds,
            "relative_latency": one.relative_latency,
            "wer": one.errors.wer if one.errors.num_words else None,
            **asdict(one.errors),
            "unreadable_rows": len(one.result.row_errors),
        }
        for one in found
    ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "results.json").write_text(json.dumps({**facts, "thresholds": content}, indent=2) + "\n")


def run_early_exit(argv: Sequence[str], machine: str) -> None:
    """Sweeps over the thresholds.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
        machine (`str`): what it is measured on, in words.
    """
    (args,) = parse_arguments(EarlyExitArguments, argv=argv, command="hf-distil-whisper benchmark early-exit")
    plan = plan_early_exit(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    model, processor = load_listener(args.model_name_or_path or "", args.dtype)
    found = evaluate_early_exit(
        model, plan.datasets["dataset"], processor, thresholds=args.thresholds, language=args.language,
        normalizer=get_normalizer(args.normalizer) if args.normalizer else None,
    )  # fmt: skip
    rows = found[0].result.rows
    sys.stdout.write(
        f"{early_exit_table(found)}\n\n{len(rows)} recordings, {found[0].errors.num_words} words, {args.dtype}, "
        f"{model.config.decoder_layers} decoder layers, {machine}\n"
    )
    if args.output_dir is not None:
        save_early_exits(found, args.output_dir, machine=machine, dtype=args.dtype)
