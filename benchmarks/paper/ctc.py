"""Table 8, the column of wav2vec2: a CTC model on recordings of any length, scored as Whisper is.

    python benchmarks/paper/ctc.py --model_name_or_path facebook/wav2vec2-large-960h --language en \
        --dataset.path examples/quickstart/corpus --dataset.split longform

Any CTC model that takes the waveform (wav2vec2, HuBERT, WavLM), greedy, by transformers' pipeline, in overlapping
chunks. Cost: with wav2vec2-large, about the length of the recordings on two CPU cores.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCTC, AutoProcessor, pipeline

from hf_distil_whisper import AudioError, RowErrors, get_normalizer, load_audio, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, as_source, setting, source_setting
from hf_distil_whisper.cli.inputs import best_device
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, TranscribedRow, readable_rows, score
from hf_distil_whisper.evaluation.results import left_out_text, long_form_summary

sys.path.append(str(Path(__file__).resolve().parents[1]))
from inputs import check_flags, load_sets


def load_ctc(name_or_path: str, chunk_length: float = 30.0, stride: float | None = None) -> Any:
    """A CTC model as transformers' pipeline."""
    model, report = AutoModelForCTC.from_pretrained(name_or_path, use_safetensors=True, output_loading_info=True)
    if any(key.startswith("lm_head") for key in report["missing_keys"]):
        raise ValueError(
            f"{name_or_path}: the head that writes characters (lm_head) is missing in the file and would be random. "
            "Expected a checkpoint fine-tuned for speech recognition, such as facebook/wav2vec2-large-960h."
        )
    processor = AutoProcessor.from_pretrained(name_or_path)
    return pipeline(
        "automatic-speech-recognition", model=model.eval(), tokenizer=processor.tokenizer, device=best_device(),
        feature_extractor=processor.feature_extractor, chunk_length_s=chunk_length, stride_length_s=stride,
    )  # fmt: skip


def evaluate_ctc(
    recognise: Any, dataset: Dataset, *, language: str, normalizer: str | None = None
) -> EvaluationResult:
    """Scores a pipeline of [`load_ctc`] as [`evaluate_long_form`] scores a Whisper."""
    dataset, errors, rows, seconds = readable_rows(dataset, "text"), RowErrors(), [], 0.0
    for index in range(len(dataset)):
        row, name = dataset[index], row_id(dataset[index], index)
        try:
            samples = load_audio(row["audio"], name=name)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        # wav2vec2's convolutions raise below 25 ms, which would end the run at one click.
        padded = np.pad(samples, (0, max(0, SAMPLING_RATE // 10 - len(samples))))
        start = time.perf_counter()
        text = recognise({"raw": padded, "sampling_rate": SAMPLING_RATE})["text"].strip()
        seconds += time.perf_counter() - start
        rows.append(TranscribedRow(name, row["text"], text, len(samples) / SAMPLING_RATE, False))
    return score(
        rows, errors, seconds, language=language, normalizer=get_normalizer(normalizer) if normalizer else None
    )


@dataclass
class CtcArguments:
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "CTC model: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Recordings of any length with text.")
    language: str | None = setting(None, "Of the speech, whose normaliser scores: a CTC checkpoint does not name it.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the normaliser of the language.')
    chunk_length: float = setting(30.0, "Seconds of a chunk.")
    stride: float | None = setting(None, "Seconds at either side of a chunk; by default a sixth of it.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(CtcArguments, argv=argv, command="benchmarks/paper/ctc.py")
    check_flags(args, "model_name_or_path", "dataset", "language")
    source = as_source(args.dataset, "dataset", "test")
    rows = load_sets({"dataset": source}, ("text",))["dataset"]
    recognise = load_ctc(args.model_name_or_path, args.chunk_length, args.stride)
    results = {"dataset": {"CTC": evaluate_ctc(recognise, rows, language=args.language, normalizer=args.normalizer)}}
    print("\n\n".join(filter(None, [long_form_summary(results), left_out_text(results)])))


if __name__ == "__main__":
    sys.exit(run_script(main))
