"""`filter`: keeps the labelled rows whose transcript agrees with the reference (section 4.2); reports on the rest."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_distil_whisper.cli.config import (
    DataSource,
    as_source,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    source_arguments,
)
from hf_distil_whisper.data.sources import write_row_index
from hf_distil_whisper.pseudo_labels.filtering import RowRules, passing_rows, wer_histogram


@dataclass
class FilterArguments:
    """Flags of `filter`.

    Args:
        dataset ([`DataSource`]): labelled rows; its `text_column` and `transcript_column` are compared.
        output_dir (`str`): folder for the numbers of the rows that pass, which every command reads as a data set, and
            for `filter_report.json` and `wer_histogram.png`. The labelled rows stay where they are.
        language (`str`): chooses the normaliser: `"en"`, another language's code, or `"basic"`.
        threshold (`float`, *optional*, defaults to 0.1): λ as a fraction.
        drop_truncated, max_compression_ratio, max_repeated_ngrams, drop_all_capitals, min_mean_log_prob: see
            [`RowRules`]; rows without a reference are held to rules of their own in any case.
    """

    dataset: DataSource | str | None = source_setting("Labelled rows.")
    output_dir: str | None = setting(None, "Folder for the rows that pass.")
    language: str | None = setting(None, 'Whose normaliser compares: "en", another language, or "basic".')
    threshold: float = setting(0.1, "Highest word error rate that passes, as a fraction: 0.1 is 10 %.")
    drop_truncated: bool = setting(False, "Drop labels whose length ran out.")
    max_compression_ratio: float | None = setting(None, "Drop labels that repeat themselves; 2.4 in OpenAI's Whisper.")
    max_repeated_ngrams: int | None = setting(None, "Drop labels with more runs of five words that occur again.")
    drop_all_capitals: bool = setting(False, "Drop labels of capitals only.")
    min_mean_log_prob: float | None = setting(None, "Drop labels that the teacher guessed; -1.0 in OpenAI's Whisper.")

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
    rows = plan.datasets["dataset"]
    kept, report = passing_rows(
        rows,
        args.threshold,
        prediction_column=args.dataset.transcript_column,
        language=args.language,
        rules=RowRules(**{item.name: getattr(args, item.name) for item in dataclasses.fields(RowRules)}),
    )
    sys.stdout.write(report.table() + "\n")
    for name, statistics in (("before", report.before), ("after", report.after)):
        sys.stdout.write(f"{name}: {statistics.line()}\n")
    write_row_index(args.output_dir, source_arguments(args.dataset), len(rows), kept)
    facts = dataclasses.asdict(report)
    Path(args.output_dir, "filter_report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
    wer_histogram(report.histogram, report.threshold, Path(args.output_dir, "wer_histogram.png"))
