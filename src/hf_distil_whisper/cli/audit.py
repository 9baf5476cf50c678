"""`audit`: holds kept and dropped pseudo-labels against the ground truth, so that the threshold can be judged."""

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
from hf_distil_whisper.cli.inputs import Plan
from hf_distil_whisper.pseudo_labels.audit import (
    audit_labels,
    audit_table,
)
from hf_distil_whisper.pseudo_labels.filtering import passing_rows


@dataclass
class AuditArguments:
    """Flags of `audit`.

    Args:
        dataset ([`DataSource`]): labelled rows; the filter compares its `text_column` with its `transcript_column`.
        language (`str`): as for `filter`.
        threshold (`float`, *optional*, defaults to 0.1): λ to judge, as a fraction.
        truth_column (`str`, *optional*, defaults to `"text"`): what was really said, where the filter's text is not.
        source_column (`str`, *optional*): names the corpus of each row.
        samples (`int`, *optional*, defaults to 1000): rows of each part.
        seed (`int`, *optional*, defaults to 0): of the sample.
        output_file (`str`, *optional*): JSON with the same numbers.
    """

    dataset: DataSource | str | None = source_setting("Labelled rows with their ground truth.")
    language: str | None = setting(None, 'Whose normaliser compares: "en", another language, or "basic".')
    threshold: float = setting(0.1, "Highest word error rate that passes, as a fraction: 0.1 is 10 %.")
    truth_column: str = setting("text", "What was really said.")
    source_column: str | None = setting(None, "Column that names the corpus of each row.")
    samples: int = setting(1000, "Rows of each part at most.")
    seed: int = setting(0, "Of the sample.")
    output_file: str | None = setting(None, "JSON with the same numbers.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None


def plan_audit(args: AuditArguments) -> Plan:
    """Checks rows and columns.

    Args:
        args (`AuditArguments`): what to audit.
    """
    plan = Plan("audit")
    source = as_source(args.dataset, "dataset") if args.dataset else None
    transcripts = source.transcript_column if source else "whisper_transcript"
    columns = ["text", transcripts, args.truth_column, *filter(None, [args.source_column])]
    plan.source(source, "dataset", tuple(dict.fromkeys(columns)))
    plan.require(args.language, "language", '"en", another language\'s code, or "basic"')
    plan.steps.append(f"compare up to {args.samples} kept and dropped labels of each source with {args.truth_column}")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(AuditArguments, argv=argv, command="hf-distil-whisper audit")
    plan = plan_audit(args)
    plan.settle(dry_run=False)
    rows, column = plan.datasets["dataset"], args.dataset.transcript_column
    kept, report = passing_rows(rows, args.threshold, prediction_column=column, language=args.language)
    parts = audit_labels(
        rows,
        kept,
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
