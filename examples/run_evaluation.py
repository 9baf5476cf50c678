r"""Score a model, and optionally its teacher, on test sets of recordings up to 30 s, and test whether they differ.

    python examples/run_evaluation.py --model_name_or_path runs/student \
        --teacher_model_name_or_path openai/whisper-small.en --eval_datasets corpus --output_dir runs/scores

`hf-distil-whisper evaluate` also scores long recordings and sets out of distribution.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from hf_distil_whisper import compare_results, evaluate_model, load_model, load_processor, load_source, run_script


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="Hub name or folder of a Whisper")
    parser.add_argument("--teacher_model_name_or_path", help="scored on the same sets and compared with the model")
    parser.add_argument("--eval_datasets", nargs="+", required=True, help="Hub names, folders or files with text")
    parser.add_argument("--split", default="test", help="split of the datasets (default: test)")
    parser.add_argument("--language", help="language of the speech, for multilingual models")
    parser.add_argument("--batch_size", type=int, default=16, help="recordings in one pass (default: 16)")
    parser.add_argument("--output_dir", help="folder for results.json")
    args = parser.parse_args(argv)

    device = PartialState().device
    paths = {"model": args.model_name_or_path, "teacher": args.teacher_model_name_or_path}
    models = {name: (load_model(path).to(device), load_processor(path)) for name, path in paths.items() if path}
    summary: dict[str, dict[str, dict[str, float]]] = {}
    print("dataset, model: WER %, CER %, real-time factor")
    for dataset in args.eval_datasets:
        rows, name = load_source(dataset, split=args.split), Path(dataset).name
        results = {
            column: evaluate_model(model, rows, processor, language=args.language, batch_size=args.batch_size)
            for column, (model, processor) in models.items()
        }
        summary[name] = {column: {"wer": one.wer, "cer": one.cer, "rtf": one.rtf} for column, one in results.items()}
        for column, one in results.items():
            print(f"{name}, {column}: {100 * one.wer:.2f}, {100 * one.cer:.2f}, {one.rtf:.3f}")
        comparison = compare_results(results["model"], results["teacher"]) if "teacher" in results else None
        if comparison is not None:
            low, high = (f"{100 * end:+.2f}" for end in comparison.interval)
            print(f"{name}: WER minus the teacher's from {low} to {high} % (95 %), p = {comparison.p_value:.3f}")
    if args.output_dir is not None:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(args.output_dir, "results.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))
