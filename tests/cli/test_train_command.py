"""`train` and `cache` on toy models: what they save, mix, stream, cache and refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import pipeline

from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.sources import load_source
from toy_files import spoil, write_toy_corpus, write_toy_model

Command = Callable[..., str]
Arguments = Callable[..., list[str]]


def test_it_saves_a_student_for_the_pipeline_with_scores_and_card(toys, tmp_path, printed, training):
    folder = tmp_path / "run"
    argv = training(folder, "--decoder_layers", "2", "--eval_datasets.toy.path", str(toys / "corpus"))
    printed(*argv, "--eval_strategy", "steps", "--eval_steps", "2", "--generation_max_length", "20")
    recogniser = pipeline("automatic-speech-recognition", model=str(folder))
    audio = load_audio(toys / "corpus" / "00.wav")
    assert isinstance(recogniser(audio, generate_kwargs={"max_new_tokens": 5})["text"], str)
    scores = json.loads((folder / "eval_results.json").read_text())
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == round(100 * scores["eval_toy_wer"], 2)
    assert "distilled from teacher" in card.text
    assert str(tmp_path) not in card.text
    assert (folder / "checkpoint-2" / "README.md").is_file()


def test_a_second_run_is_refused_and_a_resumed_one_goes_on(tmp_path, printed, refused, training):
    folder = tmp_path / "run"
    argv = training(folder, "--decoder_layers", "2", "--save_steps", "1")
    printed(*argv)
    assert "--output_dir" in refused(*argv)
    printed(*argv, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


def test_without_a_teacher_it_fine_tunes(toys, tmp_path, printed, refused, training):
    """The baseline of Table 21: no teacher may be asked for or loaded."""
    argv = training(tmp_path / "run", "--model_name_or_path", str(toys / "student"))
    teacher = argv.index("--teacher_model_name_or_path")
    del argv[teacher : teacher + 2]
    assert "--teacher_model_name_or_path is missing" in refused(*argv)
    printed(*argv, "--kl_weight", "0")
    assert "trained on labels alone" in (tmp_path / "run" / "README.md").read_text()


def test_bad_rows_are_left_out_and_listed(tmp_path, printed, training, caplog):
    """One broken file among thousands ended the run after hours."""
    spoil(write_toy_corpus(tmp_path / "corpus"), 0)
    printed(*training(tmp_path / "run", "--decoder_layers", "2", "--train_dataset.path", str(tmp_path / "corpus")))
    assert "train-000000" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"vocab_size": 2000}, "2000 tokens"), ({"num_mel_bins": 128}, "128 mel bins")],
)
def test_a_student_of_another_family_is_refused(tmp_path, changes, message, refused, training):
    student = write_toy_model(tmp_path / "other", decoder_layers=2, **changes)
    text = refused(*training(tmp_path / "run", "--model_name_or_path", student))
    assert "--model_name_or_path: " in text
    assert message in text


def test_labels_of_a_multilingual_student_need_a_language(toys, tmp_path, printed, refused, training):
    """Without the language's token in its labels, the student does not learn to follow it."""
    model = tmp_path / "multilingual"
    write_toy_model(model)
    settings = json.loads((model / "generation_config.json").read_text()) | {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 302, "<|de|>": 304},
        "task_to_id": {"transcribe": 402},
    }
    (model / "generation_config.json").write_text(json.dumps(settings))
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--teacher_model_name_or_path", str(model))
    assert "--language is missing" in refused(*argv, "--dry_run")
    printed(*argv, "--dry_run", "--language", "de")
    refused(*argv, "--dry_run", "--language", "xx")
    mixed = load_source(toys / "corpus").map(
        lambda row, number: {"lang": "de" if number else "English"}, with_indices=True
    )
    mixed.save_to_disk(tmp_path / "mixed")
    of_rows = ["--train_dataset.path", tmp_path / "mixed", "--train_dataset.language_column", "lang"]
    printed(*argv, *of_rows, "--max_steps", "1")


def sources(toys: Path, other: str) -> list[str]:
    """Flags of two sources in place of the one that `training` names."""
    argv = []
    for name, path, weight in (("toy", str(toys / "corpus"), "2"), ("more", other, "1")):
        argv += [f"--train_dataset.{name}.path", path, f"--train_dataset.{name}.transcript_column", "text"]
        argv += [f"--train_dataset.{name}.weight", weight]
    return argv


def test_several_sources_are_mixed_by_their_weights(toys, tmp_path, printed, refused, training):
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--save_steps", "1")
    single = argv.index("--train_dataset.path")
    del argv[single : single + 4]
    argv += sources(toys, write_toy_corpus(tmp_path / "more", train=2))
    assert "draw 9 rows an epoch: toy 67%, more 33%" in printed(*argv)
    mixture = json.loads((tmp_path / "run" / "checkpoint-1" / "mixture.json").read_text())
    assert (mixture["names"], mixture["sizes"], mixture["weights"]) == (["toy", "more"], [6, 2], [2, 1])
    message = refused(*argv, "--dry_run", "--train_dataset.more.weight", "none")
    assert "train_dataset.more.weight: expected a number above 0" in message
    message = refused(*argv, "--dry_run", "--train_dataset.more.weight", "null")
    assert "train_dataset.more.weight is missing: toy has one" in message


def test_student_with_layers_and_a_missing_column_are_refused(toys, tmp_path, refused, training):
    """One of student and layers would be ignored."""
    both = ["--model_name_or_path", str(toys / "student"), "--decoder_layers", "1"]
    assert "leave one out" in refused(*training(tmp_path / "run", *both))
    column = ["--decoder_layers", "2", "--train_dataset.transcript_column", "label"]
    assert "has no column 'label'; it has: " in refused(*training(tmp_path / "run", *column))


def test_a_cache_is_filled_before_the_training_that_reads_it(tmp_path, printed, refused, training):
    """On one machine with a large disk, for many trainings."""
    cache = tmp_path / "cache"
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--teacher_cache", "both")[1:]
    assert "--teacher_cache_dir is missing" in refused("cache", *argv)
    argv += ["--teacher_cache_dir", str(cache), "--teacher_cache_top_k", "8"]
    plan = printed("cache", *argv, "--dry_run")
    assert "cache encoder outputs and teacher logits in" in plan
    assert "train 2 steps" not in plan
    assert not cache.exists()
    assert "6 rows: cached both in" in printed("cache", *argv)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert before
    printed("train", *argv)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before


@pytest.fixture(scope="module")
def streams(toys: Path, right: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Arguments of a streaming `train` on two sources of labelled rows."""
    teacher = ["--teacher_model_name_or_path", str(toys / "teacher")]
    spoken = tmp_path_factory.mktemp("spoken")
    load_source(right).to_parquet(str(spoken / "train.parquet"))

    def arguments(output_dir: Path, *more: str, weights: bool = True) -> list[str]:
        argv = ["train", *teacher, "--output_dir", str(output_dir), "--streaming", "true", "--shuffle_buffer", "2"]
        argv += ["--decoder_layers", "2", "--per_device_train_batch_size", "2", "--disable_tqdm", "true", "--use_cpu"]
        for name, path, weight in (("read", right, "2"), ("spoken", spoken, "1")):
            argv += [f"--train_dataset.{name}.path", str(path), f"--train_dataset.{name}.wer_threshold", "0.1"]
            argv += [f"--train_dataset.{name}.weight", weight] if weights else []
        return [*argv, "--save_steps", "2", *more]

    return arguments


def test_a_stopped_training_on_streams_ends_with_the_student_of_an_undisturbed_one(tmp_path, printed, streams):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = ["--max_steps", "4", "--learning_rate", "0.01", "--lr_scheduler_type", "constant"]
    text = printed(*streams(whole, *settings))
    assert "keep the rows of read with WER ≤ 10.0%, as they come" in text
    assert "train 4 steps of 2 rows: 0.8 · KL + 1 · PL" in text
    printed(*streams(stopped, *settings, "--max_steps", "2"))
    printed(*streams(stopped, *settings, "--resume_from_checkpoint", "true"))
    expected = load_file(whole / "model.safetensors")
    for name, weight in load_file(stopped / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    assert (whole / "README.md").is_file()


def test_what_a_stream_cannot_do_is_refused_before_anything_is_read(tmp_path, refused, streams):
    argv = streams(tmp_path, "--teacher_cache", "both", weights=False)
    message = refused(*argv, "--train_dataset.read.transcript_column", "label")
    assert "--streaming true: a teacher cache is read again in every epoch" in message
    assert "--max_steps is missing: a stream has no end" in message
    assert "--train_dataset.spoken.weight is missing: the number of rows of a stream is not known" in message
    assert "--train_dataset.read: " in message
    assert "has no column 'label'; it has: " in message


def test_a_filter_that_leaves_nothing_of_a_stream_ends_the_training(tmp_path, labelled, refused, streams):
    argv = streams(tmp_path, "--max_steps", "9", "--train_dataset.read.path", str(labelled))
    assert "read: this worker's part of it holds no row that can be used" in refused(*argv)
