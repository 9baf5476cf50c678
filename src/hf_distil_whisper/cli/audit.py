"""`audit`: compares kept and dropped pseudo-labels with the ground truth, so that the threshold can be judged."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_distil_whisper.cli.config import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.inputs import Plan
from hf_distil_whisper.pseudo_labels.audit import audit_labels, audit_table
from hf_distil_whisper.pseudo_labels.filtering import passing_rows


@dataclass
class AuditArguments:
    """Flags of `audit`."""

    dataset: DataSource | str | None = source_setting(
        "Labelled rows with their ground truth; the filter compares text_column with transcript_column."
    )
    language: str | None = setting(None, 'Language of the text normaliser: "en", another code, or "basic".')
    threshold: float = setting(0.1, "Highest word error rate that passes, as a fraction: 0.1 is 10 %.")
    truth_column: str = setting("text", "Column of the true transcript, where the filter's text is not it.")
    source_column: str | None = setting(None, "Column that names the corpus of each row, to audit each separately.")
    samples: int = setting(1000, "Rows drawn of the kept and of the dropped labels of each corpus, at most.")
    seed: int = setting(0, "Seed of the sample.")
    output_file: str | None = setting(None, "JSON file for the figures of the table.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    (args,) = parse_arguments(AuditArguments, argv=argv, command="hf-distil-whisper audit")
    plan = Plan("audit")
    column = args.dataset.transcript_column if args.dataset else "whisper_transcript"
    columns = ["text", column, args.truth_column, *filter(None, [args.source_column])]
    rows = plan.source(args.dataset, "dataset", tuple(dict.fromkeys(columns)))
    plan.require(args.language, "language", '"en", another language\'s code, or "basic"')
    plan.steps.append(f"compare up to {args.samples} kept and dropped labels of each source with {args.truth_column}")
    if not plan.report() or rows is None:
        return
    passing, report = passing_rows(rows, args.threshold, prediction_column=column, language=args.language)
    parts = audit_labels(
        rows,
        passing,
        truth_column=args.truth_column,
        prediction_column=column,
        source_column=args.source_column,
        language=args.language,
        samples=args.samples,
        seed=args.seed,
    )
    sys.stdout.write(f"{report.table()}\n\n{audit_table(parts)}\n")
    if args.output_file:
        facts = [dataclasses.asdict(part) for part in parts]
        Path(args.output_file).write_text(json.dumps(facts, indent=2), encoding="utf-8")
