"""Speculative decoding: every method is timed at every batch size, and the text stays the same."""

import json
from pathlib import Path

from toy_scripts import Printed

import speculative
from hf_distil_whisper import save_checkpoint
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.speculative import DraftCounts
from speculative import MethodTimes, methods_table
from talking_models import talking_whisper
from toy_files import write_toy_model
from toy_models import toy_processor


def test_every_method_is_timed_at_every_batch_size(toys: Path, tmp_path: Path, printed: Printed) -> None:
    """Tables 9 and 22; two assistants of one name must not be one column."""
    corpus, other = toys / "corpus", write_toy_model(tmp_path / "student", decoder_layers=1)
    flags = ["--model_name_or_path", toys / "teacher", "--assistants", toys / "student", other, "--dataset", corpus]
    flags += ["--long_form_dataset", corpus, "--output_dir", tmp_path / "out", "--batch_sizes", 1, 2]
    text = printed(speculative.main, *flags, "--repeats", 1, "--windows", 2, "--compute_types", "int8")
    first, second = f"{toys.name}/student", f"{tmp_path.name}/student"
    for part in (
        "| batch size 1 | batch size 2 | same text | accepted | passes saved |",
        f"| with {first} |",
        f"| with {second}, pipeline's own |",
        f"| {first} alone, CTranslate2 int8 |",
        "windows of 30 s: the dataset has too little speech of one speaker",
        "long recordings, sequential (6)",
        "long recordings, chunked (6)",
        f", with {first} 6, with {second} 6",
    ):
        assert part in text
    times = json.loads((tmp_path / "out" / "results.json").read_text())["times"]["utterances"]
    assert times["2"][f"with {first}"]["num_same"] == 6
    assert f"with {first}, pipeline's own" not in times["2"]


def test_without_an_assistant_greedy_search_is_compared_with_generate(
    toys: Path, tmp_path: Path, printed: Printed
) -> None:
    """The time of a search that finds other tokens says nothing."""
    model = talking_whisper()
    # Only this library's search suppresses timestamps, which a trained model does not predict without being asked.
    model.generation_config.suppress_tokens += range(timestamp_begin(model), model.config.vocab_size)
    save_checkpoint(model, toy_processor(), tmp_path)
    flags = ["--model_name_or_path", tmp_path, "--dataset", toys / "corpus", "--batch_sizes", 1, 2]
    text = printed(speculative.main, *flags, "--repeats", 1)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| alone")]
    assert [row[0] for row in rows] == ["| alone", "| alone, `generate`", "| alone, pipeline"]
    assert all("1.00" in [row[column] for row in rows] for column in (2, 3))
    assert "1.00 is " in text
    assert {row[4] for row in rows} == {"6 of 6"}
    assert "same text on all 6 utterances in batches: alone, `generate` 6\n" in text


def test_the_fastest_baseline_of_a_batch_size_is_one() -> None:
    """Tables 9 and 22, worked by hand: 2 s against the faster baseline of 3 s; 5 of 8 drafted tokens accepted."""
    none, drafts = DraftCounts(), DraftCounts(drafted=8, accepted=5, tokens=10, checks=4)
    times = {
        1: {
            "alone": MethodTimes((4.0,), 3, 3, none),
            "generate": MethodTimes((3.0,), 3, 3, none),
            "with student": MethodTimes((2.0, 9.0, 1.0), 2, 3, drafts),
        }
    }
    lines = methods_table(times, {"alone": 3_000_000}, ["alone", "generate"]).splitlines()
    assert lines[2] == "| alone | 3.00 M | 0.75 | 3 of 3 |  |  |"
    assert lines[4].startswith("| with student |  | 1.50 | 2 of 3 | 62% |")
