"""Every command on toy models and files, in-process: what it writes, what it says, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import WhisperForConditionalGeneration, pipeline

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli.inputs import best_device
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.cli.pseudo_label import sort_by_speaker
from hf_distil_whisper.data.audio import (
    encode_flac,
    load_audio,
)
from hf_distil_whisper.data.sources import load_source
from talking_models import multilingual_whisper
from toy_files import spoil, tar_sample, write_tar, write_toy_corpus, write_toy_model
from toy_models import toy_audio, toy_processor


@pytest.fixture(scope="module")
def labelled(toys: Path) -> Path:
    """The toy corpus as `pseudo-label` writes it."""
    folder = toys / "labelled"
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--dataset", str(toys / "corpus")]
    assert main(["pseudo-label", *argv, "--output_dir", str(folder)]) == 0
    return folder


def training(toys: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of a training of two steps on the text of the toy corpus."""
    return [
        *("train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder), "--use_cpu"),
        *("--train_dataset.path", str(toys / "corpus"), "--train_dataset.transcript_column", "text"),
        *("--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--disable_tqdm", "true"),
        *more,
    ]


def test_create_student_writes_a_student_that_loads(toys: Path, tmp_path: Path) -> None:
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--decoder_layer_ids", "0", "-1"]
    assert main(["create-student", *argv, "--output_dir", str(tmp_path / "student")]) == 0
    student = WhisperForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert student.config.decoder_layers == 2
    assert (tmp_path / "student" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("command", ["create-student", "pseudo-label", "train", "evaluate"])
def test_a_dry_run_prints_steps_and_costs_and_writes_nothing(
    command: str, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong path is otherwise found out after the queue, and a run that is too large after the night."""
    output = tmp_path / "output"
    teacher, corpus = ["--teacher_model_name_or_path", str(toys / "teacher")], str(toys / "corpus")
    argv = {
        "create-student": [command, *teacher],
        "pseudo-label": [command, *teacher, "--dataset", corpus],
        "train": training(toys, output, "--decoder_layers", "2", "--bf16", "--use_cpu", "false"),
        "evaluate": [command, *teacher, "--model_name_or_path", str(toys / "student"), "--eval_datasets", corpus],
    }[command]
    assert main([*argv, "--output_dir", str(output), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "  1. " in said
    assert "memory expected: " in said
    assert ("audio" in said) == (command != "create-student")
    assert said.endswith("dry run: the inputs are ready, nothing was written\n")
    assert not output.exists()


def test_all_problems_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One problem per start costs a start per problem."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--teacher_model_name_or_path", str(tmp_path / "none")]
    argv += ["--eval_datasets.test.path", str(tmp_path / "corpus"), "--output_dir", str(tmp_path)]
    assert main(["evaluate", *argv]) == 2
    said = capsys.readouterr().err
    for problem in (
        "--model_name_or_path: ",
        "is a 'bert' model, expected a Whisper",
        "--teacher_model_name_or_path: no model at",
        "--eval_datasets.test: ",
        f"--output_dir: {tmp_path} holds another run already",
    ):
        assert problem in said


def test_pseudo_label_joins_utterances_of_one_speaker(labelled: Path) -> None:
    rows = load_source(labelled)
    assert rows["speaker"][:] == ["speaker-0", "speaker-1"]
    assert rows["duration"][:] == [3.0, 3.0]
    assert rows["ids"][:] == [[f"train-{row:06d}" for row in range(start, 6, 2)] for start in (0, 1)]
    assert {"whisper_transcript", "truncated", "wer", "hits", "previous_transcript"} <= set(rows.column_names)


@pytest.mark.parametrize("streaming", [False, True])
def test_pseudo_label_splits_recordings_of_unknown_speakers(
    toys: Path, tmp_path: Path, streaming: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were left out for their length; nothing tells who speaks, so nothing is joined either."""
    for name, seconds in (("a", 65.0), ("b", 1.0), ("c", 1.0)):
        (tmp_path / f"{name}.flac").write_bytes(encode_flac(toy_audio(seconds)))
    audio = [str(tmp_path / f"{name}.flac") for name in "abc"]
    rows = Dataset.from_dict({"id": list("abc"), "audio": audio, "text": ["much", "yes", "no"]})
    rows.to_parquet(tmp_path / "train.parquet")
    argv = ["pseudo-label", "--teacher_model_name_or_path", str(toys / "teacher"), "--max_duration", "25"]
    argv += ["--dataset", str(tmp_path / "train.parquet"), "--output_dir", str(tmp_path / "labels")]
    assert main([*argv, "--streaming", str(streaming).lower()]) == 0
    assert "split longer recordings, to at most 25 s" in capsys.readouterr().out
    labelled = load_source(tmp_path / "labels")
    pieces = len(labelled) - 2
    assert list(labelled["id"]) == [*(f"a-{number}" for number in range(pieces)), "b", "c"]
    assert pieces >= 3
    assert sum(labelled["duration"]) == pytest.approx(67.0)
    assert max(labelled["duration"]) <= 25
    assert list(labelled["text"]) == [*[None] * pieces, "yes", "no"]


def test_pseudo_label_reads_archives_as_they_come(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        samples = [tar_sample(f"{number}-{row}", "yes", {"speaker": "a"}) for row in range(2)]
        write_tar(tmp_path / "tars" / f"train-{number}.tar", samples[0] | samples[1])
    argv = ["pseudo-label", "--teacher_model_name_or_path", str(toys / "teacher"), "--streaming"]
    argv += ["--dataset", f"file://{tmp_path}/tars/train-*.tar", "--output_dir", str(tmp_path / "labels")]
    assert main([*argv, "--dry_run"]) == 0
    assert "audio: 2 files, read as they come" in capsys.readouterr().out
    assert main(argv) == 0
    assert list(load_source(tmp_path / "labels")["text"]) == ["yes yes", "yes yes"]
    assert main([*argv, "--dataset.text_column", "words"]) == 2
    assert "--dataset: " in capsys.readouterr().err


def test_only_utterances_of_one_recording_become_neighbours() -> None:
    """Two readings by one speaker whose utterances alternate would leave nothing to join."""
    rows = Dataset.from_dict({"id": list("pqrs"), "speaker": list("abaa"), "recording": list("yxxy")})
    assert sort_by_speaker(rows)["id"][:] == ["r", "p", "s", "q"]
    assert sort_by_speaker(rows.remove_columns("recording"))["id"][:] == ["p", "r", "s", "q"]


def test_pseudo_label_lists_the_rows_that_it_left_out(
    toys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are lost while they are joined were counted in a copy of the list."""
    spoil(write_toy_corpus(tmp_path / "corpus"), 0)
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--dataset", str(tmp_path / "corpus")]
    assert main(["pseudo-label", *argv, "--output_dir", str(tmp_path / "labelled")]) == 0
    assert "2 rows left out" in caplog.text
    assert "train-000000" in caplog.text


def test_a_filter_that_leaves_nothing_ends_with_its_table(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training on nothing would start, or the next step would fail without the reason."""
    output = tmp_path / "filtered"
    assert main(["filter", "--dataset", str(labelled), "--language", "en", "--output_dir", str(output)]) == 2
    said = capsys.readouterr().err
    assert "nothing is trained" in said
    assert "10.0%   100.0%       0.000  <- used" in said
    assert not output.exists()


def test_filter_writes_rows_and_report(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "filtered"
    argv = ["filter", "--dataset", str(labelled), "--language", "en", "--threshold", "1e3"]
    before = load_source(labelled)
    if all(before["truncated"]):  # what a random teacher says never ends, and such rows are dropped at any threshold
        before = before.remove_columns("truncated")
        before.save_to_disk(str(tmp_path / "ended"))
        argv[2] = str(tmp_path / "ended")
    assert main([*argv, "--output_dir", str(output)]) == 0
    assert "2 of 2 rows kept" in capsys.readouterr().out
    assert load_source(output)["id"] == before["id"]
    report = json.loads((output / "filter_report.json").read_text())
    assert (report["kept"], report["after"]["speakers"]) == (2, 2)
    assert (output / "wer_histogram.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output.glob("*.arrow"))


def test_train_saves_a_student_for_the_pipeline_with_scores_and_card(toys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = training(toys, folder, "--decoder_layers", "2", "--eval_datasets.toy.path", str(toys / "corpus"))
    assert main([*argv, "--eval_strategy", "steps", "--eval_steps", "2", "--generation_max_length", "20"]) == 0
    recogniser = pipeline("automatic-speech-recognition", model=str(folder))
    audio = load_audio(toys / "corpus" / "00.wav")
    assert isinstance(recogniser(audio, generate_kwargs={"max_new_tokens": 5})["text"], str)
    scores = json.loads((folder / "eval_results.json").read_text())
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == round(100 * scores["eval_toy_wer"], 2)
    assert "distilled from teacher" in card.text
    assert str(tmp_path) not in card.text
    assert (folder / "checkpoint-2" / "README.md").is_file()


def test_a_second_run_is_refused_and_a_resumed_one_goes_on(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    argv = training(toys, folder, "--decoder_layers", "2", "--save_steps", "1")
    assert main(argv) == 0
    assert main(argv) == 2
    assert "--output_dir" in capsys.readouterr().err
    assert main([*argv, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


def test_train_without_a_teacher_fine_tunes(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline of Table 21: nothing of a teacher may be asked for or loaded."""
    argv = training(toys, tmp_path / "run", "--model_name_or_path", str(toys / "student"))
    teacher = argv.index("--teacher_model_name_or_path")
    del argv[teacher : teacher + 2]
    assert main(argv) == 2
    assert "--teacher_model_name_or_path is missing" in capsys.readouterr().err
    assert main([*argv, "--kl_weight", "0"]) == 0
    assert "trained on labels alone" in (tmp_path / "run" / "README.md").read_text()


def test_bad_rows_cost_themselves(tmp_path: Path, toys: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken file among thousands ended the run after hours."""
    spoil(write_toy_corpus(tmp_path / "corpus"), 0)
    argv = training(toys, tmp_path / "run", "--decoder_layers", "2", "--train_dataset.path", str(tmp_path / "corpus"))
    assert main(argv) == 0
    assert "train-000000" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"vocab_size": 2000}, "2000 tokens"), ({"num_mel_bins": 128}, "128 mel bins")],
)
def test_a_student_of_another_family_is_refused(
    toys: Path, tmp_path: Path, changes: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = write_toy_model(tmp_path / "other", decoder_layers=2, **changes)
    assert main(training(toys, tmp_path / "run", "--model_name_or_path", student)) == 2
    said = capsys.readouterr().err
    assert "--model_name_or_path: " in said
    assert message in said


def test_student_and_layers_together_are_refused(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the two would be ignored."""
    argv = training(toys, tmp_path / "run", "--model_name_or_path", str(toys / "student"), "--decoder_layers", "1")
    assert main(argv) == 2
    assert "leave one out" in capsys.readouterr().err


def test_a_missing_column_is_named_with_those_that_exist(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = training(toys, tmp_path / "run", "--decoder_layers", "2")
    argv[argv.index("--train_dataset.transcript_column") + 1] = "whisper_transcript"
    assert main(argv) == 2
    assert "has no column 'whisper_transcript'; it has: " in capsys.readouterr().err


def test_evaluate_scores_student_and_teacher_side_by_side(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    argv += ["--eval_datasets.toy.path", str(toys / "corpus"), "--long_form_datasets.long.path", str(toys / "corpus")]
    argv += [
        "--long_form_datasets.long.max_samples",
        "1",
        "--normalizer",
        "basic",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(["evaluate", *argv]) == 0
    table = capsys.readouterr().out
    assert "WER %" in table
    assert "WER minus the teacher's" in table
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"toy", "long"}
    counts = results["toy"]["teacher"]
    assert counts["hits"] + counts["substitutions"] + counts["deletions"] == 18
    assert set(counts) >= {"character_hits", "orthographic_hits", "wer_interval", "rtf", "wall_seconds"}
    assert "against_teacher" in results["toy"]["model"]
    assert "against_teacher" not in counts
    assert len(Dataset.from_parquet(str(tmp_path / "out" / "toy.model.parquet"))) == 2
    assert "REF:" in (tmp_path / "out" / "toy.model.worst.txt").read_text()


def test_evaluate_takes_more_models_and_sets_out_of_distribution(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each figure of a comparison is to come from the same rows and normaliser."""
    corpus, other = str(toys / "corpus"), str(toys / "teacher")
    argv = ["evaluate", "--model_name_or_path", str(toys / "student"), "--eval_datasets.read", corpus]
    argv += ["--other_models.other", other, "--ood_datasets.spoken.path", corpus]
    argv += ["--ood_datasets.spoken.max_samples", "1", "--long_form_datasets.long", corpus]
    argv += ["--ood_long_form_datasets.longer", corpus]
    assert main([*argv, "--language", "en", "--output_dir", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert table.index("in distribution:") < table.index("out of distribution:") < table.index("long form:")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    groups = {name: {row["group"] for row in by_model.values()} for name, by_model in results.items()}
    assert groups == {
        "read": {"in distribution"},
        "spoken": {"out of distribution"},
        "long": {"long form"},
        "longer": {"long form out of distribution"},
    }
    averages = json.loads((tmp_path / "out" / "averages.json").read_text())["averages"]
    assert averages["long form, all sets"]["model"]["macro"] == results["long"]["model"]["wer"]
    assert "| other | " in (tmp_path / "out" / "long_form.md").read_text()
    for by_model in results.values():
        assert list(by_model) == ["model", "other"]
        words = [row["hits"] + row["substitutions"] + row["deletions"] for row in by_model.values()]
        assert words[0] == words[1] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ood_datasets.toy", "CORPUS"], "two sets are called 'toy'"),
        (["--reference", "other"], "--reference: 'other' is not among --eval_datasets, which are toy"),
        (["--reference", "toy"], "give it and --ood_datasets too"),
        (["--other_models.teacher", "MODEL"], "'teacher' is the name of another model"),
        (["--other_models", "{a/b: MODEL}"], "'a/b': is part of a file's name"),
        (["--other_models.a.b", "MODEL"], "other_models: expected a mapping of names to models"),
        (["--other_models.a", "nowhere/nothing"], "--other_models.a: no model at 'nowhere/nothing'"),
        (["--other_models.a", "HEARING"], "the models would be normalised differently (model by 'en', a by 'basic')"),
        (["--language", "klingon"], "--language: "),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_evaluate_refuses_what_cannot_be_told_apart_or_compared(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    """Found out after hours, when one set has replaced another in the results."""
    places = {"CORPUS": toys / "corpus", "MODEL": toys / "student", "HEARING": tmp_path / "multilingual"}
    save_checkpoint(multilingual_whisper(), toy_processor(), tmp_path / "multilingual")
    argv = ["evaluate", "--model_name_or_path", str(toys / "student"), "--eval_datasets.toy", str(toys / "corpus")]
    for name, place in places.items():
        flags = [flag.replace(name, str(place)) for flag in flags]
    assert main([*argv, *flags, "--dry_run"]) == 2
    assert message in capsys.readouterr().err


def test_transcribe_reads_the_files_that_can_be_read(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file among many should not cost the others."""
    good, bad = str(toys / "corpus" / "00.wav"), str(toys / "corpus" / "none.wav")
    assert main(["transcribe", good, bad, "--model_name_or_path", str(toys / "student")]) == 2
    output = capsys.readouterr()
    assert output.out.startswith(f"{good}: ")
    assert "1 of 2 files could not be transcribed" in output.err
    assert bad in output.err


def test_a_cache_is_filled_before_the_training_that_reads_it(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one machine with a large disk, for many trainings."""
    argv = training(toys, tmp_path / "run", "--decoder_layers", "2", "--teacher_cache", "both")[1:]
    assert main(["cache", *argv]) == 2
    assert "--teacher_cache_dir is missing" in capsys.readouterr().err
    argv += ["--teacher_cache_dir", str(tmp_path / "cache"), "--teacher_cache_top_k", "8"]
    assert main(["cache", *argv, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "cache encoder outputs and teacher logits in" in said
    assert "train 2 steps" not in said
    assert not (tmp_path / "cache").exists()
    assert main(["cache", *argv]) == 0
    assert "6 rows: cached both in" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert before
    assert main(["train", *argv]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == before


def test_several_processes_are_refused_where_one_does_the_work(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would write the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(tmp_path / "student")]
    assert main(["create-student", *argv]) == 2
    assert "works in one process" in capsys.readouterr().err


def test_labels_of_a_multilingual_student_need_a_language(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the language's token the student never learns to be told its language."""
    model = tmp_path / "multilingual"
    write_toy_model(model)
    settings = json.loads((model / "generation_config.json").read_text())
    settings |= {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 302, "<|de|>": 304},
        "task_to_id": {"transcribe": 402},
    }
    (model / "generation_config.json").write_text(json.dumps(settings))
    argv = training(toys, tmp_path / "run", "--decoder_layers", "2")
    argv[argv.index("--teacher_model_name_or_path") + 1] = str(model)
    assert main([*argv, "--dry_run"]) == 2
    assert "--language is missing" in capsys.readouterr().err
    assert main([*argv, "--dry_run", "--language", "de"]) == 0
    assert main([*argv, "--dry_run", "--language", "xx"]) == 2
    spoken = load_source(toys / "corpus").map(
        lambda row, number: {"lang": "de" if number else "English"}, with_indices=True
    )
    spoken.save_to_disk(tmp_path / "spoken")
    argv[argv.index(str(toys / "corpus"))] = str(tmp_path / "spoken")
    assert main([*argv, "--train_dataset.language_column", "lang", "--max_steps", "1"]) == 0


def test_processes_of_one_machine_take_different_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index, all of them would load their teacher onto the first one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert best_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device("cuda", 3)


def test_train_mixes_several_sources_by_their_weights(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = write_toy_corpus(tmp_path / "more", train=2)
    argv = training(toys, tmp_path / "run", "--decoder_layers", "2", "--save_steps", "1")
    argv = [argument for argument in argv if not argument.startswith("--train_dataset")]
    argv = [argument for argument in argv if argument not in (str(toys / "corpus"), "text")]
    for name, path, weight in (("toy", str(toys / "corpus"), "2"), ("more", more, "1")):
        argv += [f"--train_dataset.{name}.path", path, f"--train_dataset.{name}.transcript_column", "text"]
        argv += [f"--train_dataset.{name}.weight", weight]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "draw 9 rows an epoch: toy 67%, more 33%" in said
    mixture = json.loads((tmp_path / "run" / "checkpoint-1" / "mixture.json").read_text())
    assert (mixture["names"], mixture["sizes"], mixture["weights"]) == (["toy", "more"], [6, 2], [2, 1])
    assert main([*argv, "--dry_run", "--train_dataset.more.weight", "none"]) == 2
    assert "train_dataset.more.weight: expected a number above 0" in capsys.readouterr().err


def test_weights_of_only_some_sources_are_refused(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(toys / "corpus")
    argv = ["--train_dataset", f"{{a: {{path: {corpus}, weight: 1}}, b: {{path: {corpus}}}}}"]
    assert main(["train", *argv, "--output_dir", str(tmp_path / "run")]) == 2
    assert "train_dataset.b.weight is missing: a has one" in capsys.readouterr().err
