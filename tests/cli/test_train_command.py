"""`train` and `cache` on toy models: what they save, mix, stream, cache and refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.sources import load_source
from toy_files import spoil, write_toy_corpus, write_toy_model


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


def test_bad_rows_are_listed_a_second_run_is_refused_and_a_resumed_one_goes_on(
    tmp_path, printed, refused, training, caplog
):
    """One broken file among thousands ended the run after hours."""
    corpus = write_toy_corpus(tmp_path / "corpus")
    spoil(corpus, 0)
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--save_steps", "1", "--train_dataset.path", corpus)
    printed(*argv)
    assert "train-000000" in caplog.text
    assert "--output_dir" in refused(*argv)
    printed(*argv, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 3


def test_without_a_teacher_it_fine_tunes(toys, tmp_path, printed, refused, training):
    """The baseline of Table 21: no teacher may be asked for or loaded."""
    argv = training(tmp_path / "run", "--model_name_or_path", str(toys / "student"))
    teacher = argv.index("--teacher_model_name_or_path")
    del argv[teacher : teacher + 2]
    assert "--teacher_model_name_or_path is missing" in refused(*argv)
    printed(*argv, "--kl_weight", "0")
    assert "trained on labels alone" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "more", "messages"),
    [
        ({"vocab_size": 2000}, [], ["--model_name_or_path: ", "2000 tokens"]),  # of another family
        ({}, ["--decoder_layers", "1"], ["leave one out"]),  # one of student and layers would be ignored
        ({}, ["--train_dataset.transcript_column", "label"], ["has no column 'label'; it has: "]),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, more, messages, refused, training):
    student = write_toy_model(tmp_path / "other", decoder_layers=2, **changes)
    text = refused(*training(tmp_path / "run", "--model_name_or_path", student, *more))
    for message in messages:
        assert message in text


def test_labels_of_a_multilingual_student_need_a_language(toys, multilingual, tmp_path, printed, refused, training):
    """Without the language's token in its labels, the student does not learn to follow it."""
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--teacher_model_name_or_path", multilingual)
    assert "--language is missing" in refused(*argv, "--dry_run")
    printed(*argv, "--dry_run", "--language", "de")
    refused(*argv, "--dry_run", "--language", "xx")
    corpus = load_source(toys / "corpus")
    mixed = corpus.add_column("lang", ["English", *["de"] * (len(corpus) - 1)])
    mixed.save_to_disk(tmp_path / "mixed")
    of_rows = ["--train_dataset.path", tmp_path / "mixed", "--train_dataset.language_column", "lang"]
    printed(*argv, *of_rows, "--max_steps", "1")
    assert "labels of --train_dataset are in de, en, not in 'nl'" in refused(*argv, *of_rows, "--language", "nl")


def test_several_sources_are_mixed_by_their_weights(toys, tmp_path, printed, refused, training):
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--save_steps", "1")
    single = argv.index("--train_dataset.path")
    del argv[single : single + 4]
    sources = {"toy": (str(toys / "corpus"), "2"), "more": (write_toy_corpus(tmp_path / "more", train=2), "1")}
    for name, (path, weight) in sources.items():
        argv += [f"--train_dataset.{name}.path", path, f"--train_dataset.{name}.transcript_column", "text"]
        argv += [f"--train_dataset.{name}.weight", weight]
    assert "draw 9 rows an epoch: toy 67%, more 33%" in printed(*argv)
    mixture = json.loads((tmp_path / "run" / "checkpoint-1" / "mixture.json").read_text())
    assert (mixture["names"], mixture["sizes"], mixture["weights"]) == (["toy", "more"], [6, 2], [2, 1])
    for weight, message in (
        ("none", "more.weight: expected a number above 0"),
        ("null", "more.weight is missing: toy"),
    ):
        assert message in refused(*argv, "--dry_run", "--train_dataset.more.weight", weight)


def test_a_cache_is_filled_before_the_training_that_reads_it(tmp_path, printed, refused, training):
    """On one machine with a large disk, for many trainings."""
    cache = tmp_path / "cache"
    argv = training(tmp_path / "run", "--decoder_layers", "2", "--teacher_cache", "both")[1:]
    assert "--teacher_cache_dir is missing" in refused("cache", *argv)
    argv += ["--teacher_cache_dir", str(cache)]
    plan = printed("cache", *argv, "--dry_run")
    assert "cache encoder outputs and teacher logits in" in plan
    assert "train 2 steps" not in plan
    with_mse = printed("cache", *argv, "--mse_weight", "1", "--dry_run")
    assert "encoder outputs and teacher logits, with 2 decoder layers for MSE, in" in with_mse
    assert not cache.exists()
    assert "6 rows: cached both in" in printed("cache", *argv)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert before
    printed("train", *argv)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before


@pytest.fixture(scope="module")
def streams(toys: Path, right: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Arguments of a streaming `train` on two sources of labelled rows."""
    spoken = tmp_path_factory.mktemp("spoken")
    load_source(right).to_parquet(str(spoken / "train.parquet"))

    def arguments(output_dir: Path, *more: str, weights: bool = True) -> list[str]:
        argv = ["train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(output_dir)]
        argv += ["--streaming", "true", "--shuffle_buffer", "2", "--decoder_layers", "2", "--use_cpu"]
        for name, path, weight in (("read", right, "2"), ("spoken", spoken, "1")):
            argv += [f"--train_dataset.{name}.path", str(path), f"--train_dataset.{name}.wer_threshold", "0.1"]
            argv += [f"--train_dataset.{name}.weight", weight] if weights else []
        return [*argv, "--per_device_train_batch_size", "2", "--disable_tqdm", "true", *more]

    return arguments


def test_streams_are_trained_on_and_resumed(tmp_path, printed, streams):
    argv = streams(tmp_path / "run", "--save_steps", "2", "--max_steps")
    text = printed(*argv, "2")
    assert "keep the rows of read with WER ≤ 10.0%, as they come" in text
    assert "train 2 steps of 2 rows: 0.8 · KL + 1 · PL" in text
    printed(*argv, "4", "--resume_from_checkpoint", "true")
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 4
    assert (tmp_path / "run" / "README.md").is_file()


def test_what_a_stream_cannot_do_is_refused_before_anything_is_read(tmp_path, labelled, refused, streams):
    argv = streams(tmp_path, "--teacher_cache", "both", weights=False)
    message = refused(*argv, "--train_dataset.read.transcript_column", "label")
    for part in (
        "--streaming true: a teacher cache is read again in every epoch",
        "--max_steps is missing: a stream has no end",
        "--train_dataset.spoken.weight is missing: the number of rows of a stream is not known",
        "--train_dataset.read: ",
        "has no column 'label'; it has: ",
    ):
        assert part in message
    # A filter that leaves nothing of a stream ends the training.
    argv = streams(tmp_path, "--max_steps", "9", "--train_dataset.read.path", str(labelled))
    assert "read: this worker's part of it holds no row that can be used" in refused(*argv)
