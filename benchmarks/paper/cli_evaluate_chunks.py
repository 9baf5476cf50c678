"""`evaluate chunks`: word error rates of long recordings over length and overlap of their chunks (Table 23)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from figures import wer_over_chunks
from hf_distil_whisper.cli.config import (
    DataSource,
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
from hf_distil_whisper.inference.encoder import window_seconds
from hf_distil_whisper.metrics import get_normalizer
from long_form_sweep import (
    CHUNK_LENGTHS,
    ChunkRow,
    chunk_panels,
    chunk_settings,
    chunk_table,
    sweep_chunks,
)


@dataclass
class EvaluateChunksArguments:
    """Flags of `evaluate chunks`.

    Args:
        model_name_or_path (`str`): model to score, Hub name or folder.
        teacher_model_name_or_path (`str`, *optional*): scored too, in a column of its own.
        dataset ([`DataSource`]): long recordings with text, best of a validation set.
        chunk_lengths (`list[float]`, *optional*, defaults to `30 25 20 15 10`): seconds of a chunk, as in Table 23.
        strides (`list[float]`, *optional*): seconds that neighbouring chunks share at either side, each tried with
            each length, for example `0 0.5 1 2`; else a sixth of the chunk.
        output_dir (`str`, *optional*): folder for `results.json`, `table.md` and `wer.png`, as
            `sweep` writes them: `report --sweeps` takes it.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        batch_size (`int`, *optional*, defaults to 16): chunks in one pass.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Scored too, in a column of its own.")
    dataset: DataSource | str | None = source_setting("Long recordings with text.")
    chunk_lengths: list[float] = field(
        default_factory=lambda: list(CHUNK_LENGTHS),
        metadata={"help": "Seconds of a chunk."},
    )
    strides: list[float] = field(
        default_factory=list,
        metadata={"help": "Seconds shared at either side, for example `0 0.5 1 2`; else a sixth of the chunk."},
    )
    output_dir: str | None = setting(None, "Folder for the rows, the table and the figure.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    batch_size: int = setting(16, "Chunks in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "test") if self.dataset else None

    def models(self) -> dict[str, str]:
        """Names or paths to score, by column of the table."""
        teacher = {"teacher": self.teacher_model_name_or_path} if self.teacher_model_name_or_path else {}
        return {**teacher, "model": self.model_name_or_path or ""}


def plan_chunks(args: EvaluateChunksArguments) -> Plan:
    """Checks models, recordings and chunks.

    Args:
        args (`EvaluateChunksArguments`): what to score on what.
    """
    plan = Plan("evaluate chunks")
    plan.single_process()
    whispers = {}
    for column, name in args.models().items():
        flag = "teacher_model_name_or_path" if column == "teacher" else "model_name_or_path"
        model = plan.model(name, flag)
        if model is None:
            continue
        whispers[column] = model
        processor = plan.processor(name, flag)
        if processor is not None:
            try:
                settings = chunk_settings(args.chunk_lengths, args.strides or None, window_seconds(processor))
            except ValueError as error:
                plan.problems.append(f"--chunk_lengths, --strides: {error}")
            else:
                plan.steps.append(f"score {column} {name} in chunks of {len(settings)} lengths and overlaps")
    plan.scoring(whispers, args.language, args.normalizer)
    rows = plan.source(as_source(args.dataset, "dataset", "test") if args.dataset else None, "dataset", ("text",))
    if rows is not None:
        plan.figures["audio"] = describe_rows(rows)
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write rows, table and figure to {args.output_dir}")
    return plan


def save_chunks(rows: Sequence[ChunkRow], folder: str) -> None:
    """Writes `results.json` (counts and rates), `table.md` and `wer.png` into a folder.

    Args:
        rows (`Sequence[ChunkRow]`): from [`sweep_chunks`].
        folder (`str`): made where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(row), "wer": row.wer if row.errors.num_words else None, "rtf": row.rtf} for row in rows]
    (target / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = f"Length and overlap of chunks (Table 23)\n\nWER / %.\n\n{chunk_table(rows)}\n"
    (target / "table.md").write_text(text, encoding="utf-8")
    wer_over_chunks(chunk_panels(rows), target / "wer.png")


def run_chunks(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(EvaluateChunksArguments, argv=argv, command="hf-distil-whisper evaluate chunks")
    plan = plan_chunks(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    rows: list[ChunkRow] = []
    for column, name in args.models().items():
        model, processor = load_listener(name, args.dtype)
        rows += sweep_chunks(
            {column: model},
            plan.datasets["dataset"],
            processor,
            chunk_lengths=args.chunk_lengths,
            strides=args.strides or None,
            batch_size=args.batch_size,
            language=args.language,
            normalizer=get_normalizer(args.normalizer) if args.normalizer else None,
        )
    sys.stdout.write(f"WER / % by length of the chunks:\n\n{chunk_table(rows)}\n")
    if args.output_dir is not None:
        save_chunks(rows, args.output_dir)
