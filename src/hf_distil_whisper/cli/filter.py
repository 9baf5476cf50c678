"""`filter`: keeps the labelled rows whose transcript agrees with the reference (section 4.2); reports on the rest."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_distil_whisper.cli.arguments import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.plans import Plan
from hf_distil_whisper.pseudo_labels.filtering import filter_by_wer


@dataclass
class FilterArguments:
    """Flags of `filter`.

    Args:
        dataset ([`DataSource`]): labelled rows; its `text_column` and `transcript_column` are compared.
        output_dir (`str`): folder for the rows that pass, as `save_to_disk` writes them, and `filter_report.json`.
        language (`str`): chooses the normaliser: `"en"`, another language's code, or `"basic"`.
        threshold (`float`, *optional*, defaults to 0.1): λ as a fraction.
    """

    dataset: DataSource | str | None = source_setting("Labelled rows.")
    output_dir: str | None = setting(None, "Folder for the rows that pass.")
    language: str | None = setting(None, 'Whose normaliser compares: "en", another language, or "basic".')
    threshold: float = setting(0.1, "Highest word error rate that passes, as a fraction: 0.1 is 10 %.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None


def plan_filter(args: FilterArguments) -> Plan:
    """Checks rows, columns and output folder.

    Args:
        args (`FilterArguments`): what to filter and how.
    """
    plan = Plan("filter")
    source = as_source(args.dataset, "dataset") if args.dataset else None
    transcripts = source.transcript_column if source else "whisper_transcript"
    plan.source(source, "dataset", ("text", transcripts))
    plan.output(args.output_dir)
    plan.require(args.language, "language", '"en", another language\'s code, or "basic"')
    plan.steps.append(f"keep rows with a WER of at most {args.threshold:.1%} between text and {transcripts}")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(FilterArguments, argv=argv, command="hf-distil-whisper filter")
    plan = plan_filter(args)
    plan.settle(dry_run=False)
    kept, report = filter_by_wer(
        plan.datasets["dataset"],
        args.threshold,
        prediction_column=args.dataset.transcript_column,
        language=args.language,
    )
    sys.stdout.write(report.table() + "\n")
    kept.save_to_disk(args.output_dir)
    facts = dataclasses.asdict(report)
    Path(args.output_dir, "filter_report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
