"""`filter`: keeps the labelled rows whose transcript agrees with the reference (section 4.2); reports on the rest."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_distil_whisper.cli.config import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.inputs import Plan
from hf_distil_whisper.data.sources import write_row_index
from hf_distil_whisper.pseudo_labels.filtering import RowRules, passing_rows, wer_histogram


@dataclass
class FilterArguments:
    """Flags of `filter`; those behind `unit` are fields of [`RowRules`]."""

    dataset: DataSource | str | None = source_setting("Labelled rows; text_column and transcript_column are compared.")
    output_dir: str | None = setting(
        None, "Folder for the row indices that pass, to be given as a dataset, the report and a histogram."
    )
    language: str | None = setting(
        None, 'Language of the text normaliser for rows that name none: "en", another code, or "basic".'
    )
    threshold: float = setting(0.1, "Highest word error rate that passes, as a fraction: 0.1 is 10 %.")
    unit: Literal["word", "character"] | None = setting(
        None, "What errors are counted in (default: that of the language)."
    )
    drop_truncated: bool = setting(False, "Drop labels that stop before the speech does.")
    drop_silence: bool = setting(False, "Drop what the teacher writes where nothing is spoken.")
    silence_phrases: str | None = setting(
        None, "JSON file of more phrases of that kind, by language: {'en': ['Thanks for watching!']}."
    )
    max_compression_ratio: float | None = setting(
        None, "Drop labels with a higher gzip compression ratio, which repeat themselves (2.4 in OpenAI's Whisper)."
    )
    max_repeated_ngrams: int | None = setting(
        None, "Drop labels in which more sequences of five words occur more than once."
    )
    min_words_per_second: float | None = setting(None, "Drop labels with fewer words in a second.")
    max_words_per_second: float | None = setting(None, "Drop labels with more words in a second.")
    drop_other_scripts: bool = setting(False, "Drop labels in a script that their language is not written in.")
    drop_all_capitals: bool = setting(False, "Drop labels in capitals only.")
    min_mean_log_prob: float | None = setting(
        None, "Drop labels whose tokens have a lower mean log-probability (-1.0 in OpenAI's Whisper)."
    )

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    (args,) = parse_arguments(FilterArguments, argv=argv, command="hf-distil-whisper filter")
    plan = Plan("filter")
    column = args.dataset.transcript_column if args.dataset else "whisper_transcript"
    rows = plan.source(args.dataset, "dataset", ("text", column))
    plan.output(args.output_dir)
    if rows is not None and "language" not in rows.column_names:
        plan.require(args.language, "language", '"en", another language\'s code, or "basic"')
    plan.steps.append(f"keep rows with a WER of at most {args.threshold:.1%} between text and {column}")
    if not plan.report() or rows is None:
        return
    passing, report = passing_rows(
        rows,
        args.threshold,
        prediction_column=column,
        language=args.language,
        unit=args.unit,
        rules=RowRules(**{item.name: getattr(args, item.name) for item in dataclasses.fields(RowRules)}),
    )
    sys.stdout.write(report.table() + "\n")
    for name, statistics in (("before", report.before), ("after", report.after)):
        sys.stdout.write(f"{name}: {statistics.line()}\n")
    write_row_index(args.output_dir, args.dataset.arguments(), len(rows), passing)
    folder, facts = Path(args.output_dir), json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False)
    (folder / "filter_report.json").write_text(facts, encoding="utf-8")
    wer_histogram(report.histogram, report.threshold, folder / "wer_histogram.png")
