r"""Transcribe a dataset with the teacher and report which rows a filter by word error rate would keep.

    accelerate launch examples/run_pseudo_labelling.py --teacher_model_name_or_path openai/whisper-small.en \
        --dataset corpus --speaker_column speaker --output_dir runs/labelled

Every process labels its share, and an interrupted run resumes when it is started again. `wer_threshold` in the
recipe of a training, or `hf-distil-whisper filter`, then drops the bad rows.
"""

import argparse
import sys
from collections.abc import Sequence

from accelerate import PartialState

from hf_distil_whisper import (
    EmptyFilterError,
    filter_by_wer,
    load_model,
    load_processor,
    load_source,
    pseudo_label_dataset,
    run_script,
)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher_model_name_or_path", required=True, help="Hub name or folder of a Whisper")
    parser.add_argument("--dataset", required=True, help="Hub name, folder or file of recordings")
    parser.add_argument("--split", default="train", help="split of the dataset (default: train)")
    parser.add_argument("--text_column", default="text", help="column of the reference text (default: text)")
    parser.add_argument("--speaker_column", help="column of the speaker (default: speaker, if there is one)")
    parser.add_argument("--output_dir", required=True, help="folder for the labelled rows")
    parser.add_argument("--language", help="language of the speech, for multilingual teachers")
    parser.add_argument("--batch_size", type=int, default=16, help="windows in one pass (default: 16)")
    args = parser.parse_args(argv)

    rows = load_source(
        args.dataset, split=args.split, text_column=args.text_column, speaker_column=args.speaker_column
    )
    if "speaker" in rows.column_names:
        rows = rows.sort("speaker")  # neighbouring utterances of one speaker are packed, longer recordings split
    teacher = load_model(args.teacher_model_name_or_path).to(PartialState().device)
    processor = load_processor(args.teacher_model_name_or_path)
    labelled = pseudo_label_dataset(
        rows,
        teacher,
        processor,
        output_dir=args.output_dir,
        language=args.language,
        batch_size=args.batch_size,
        max_duration=30.0,
    )
    if not PartialState().is_main_process:
        return
    print(f"{len(labelled)} rows labelled, {sum(labelled['truncated'])} of them cut off")
    try:
        _, report = filter_by_wer(labelled, threshold=0.1, language=args.language or "en")
        print(report.table())
    except EmptyFilterError as error:
        print(error)


if __name__ == "__main__":
    sys.exit(run_script(main))
