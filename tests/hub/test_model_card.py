"""Model cards: metadata that the Hub reads, text that is true, code that runs."""

import re
from pathlib import Path

import pytest
import soundfile
from huggingface_hub import ModelCard
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_distil_whisper.hub.callbacks import (
    ModelCardCallback,
    latest_word_errors,
)
from hf_distil_whisper.hub.model_card import Evaluation, generate_model_card, versions
from hf_distil_whisper.training.args import DistillationTrainingArguments
from toy_files import write_toy_model
from toy_models import toy_audio, toy_whisper

KINDS = ("pipeline", "transcribe_chunked", "create_assistant", "faster_whisper")
"""What the examples of a card show, in their order."""
GOLDEN = Path(__file__).with_name("expected_model_card.md")


def test_the_whole_card(tmp_path: Path) -> None:
    """A golden test: read the difference, and if it is meant, write the new text into the file."""
    args = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=100, learning_rate=1e-4)
    card = generate_model_card(
        toy_whisper(decoder_layers=2),
        name="someone/distil-toy.en",
        teacher="openai/whisper-toy.en",
        teacher_revision="9ccd4bd39e5a01b1",
        teacher_config=toy_whisper().config,
        teacher_parameters=toy_whisper().num_parameters(),
        datasets=["openslr/librispeech_asr", "my_recordings"],
        dataset_licenses={"openslr/librispeech_asr": "cc-by-4.0"},
        license="mit",
        evaluation=Evaluation(
            results={"test": 0.0512, "unseen": 0.1, "talks": 0.2},
            teacher_results={"test": 0.05, "talks": 0.19},
            groups={"test": "in distribution", "unseen": "out of distribution", "talks": "long form"},
            rtf=(0.01, 0.02),
            speed=1.9,
        ),
        result_sources={"test": {"path": "openslr/librispeech_asr", "config": "clean", "split": "test"}},
        figures={"Word error rate over training steps": "wer_curves.png"},
        step=50,
        run_url="https://wandb.ai/someone/distil/runs/1",
        training_args=args,
    )
    text = str(card)
    for package, number in versions().items():
        text = text.replace(f"| {package} | {number} |", f"| {package} | <version> |")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_metadata_are_read_back(tmp_path: Path) -> None:
    """Metadata that do not parse make a model that no search finds."""
    card = generate_model_card(
        toy_whisper(), name="someone/toy", teacher="openai/whisper-toy.en", license="mit", results={"test": 0.0512}
    )
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "openai/whisper-toy.en"
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert (data.library_name, data.language, data.license) == ("transformers", "en", "mit")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("wer", 5.12)


def test_folders_of_this_machine_stay_out_of_the_card(tmp_path: Path) -> None:
    """A path in public metadata is a broken link and tells the world how a machine is set up."""
    teacher, corpus = tmp_path / "teacher", tmp_path / "corpus"
    teacher.mkdir()
    corpus.mkdir()
    card = generate_model_card(toy_whisper(), name="student", teacher=str(teacher), datasets=[str(corpus)])
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert str(tmp_path) not in str(card)
    assert "distilled from teacher" in card.text
    assert "Data: corpus." in card.text


def test_what_is_not_known_is_not_said() -> None:
    """A card with a made-up licence, teacher or score is worse than a short one."""
    card = generate_model_card(toy_whisper(), name="student")
    assert "Not measured yet." in card.text
    assert "assistant" not in card.text
    assert "licence" not in card.text
    assert card.data.license is None
    assert card.data.eval_results is None


def test_a_multilingual_model_is_told_its_language() -> None:
    model = toy_whisper()
    model.generation_config.is_multilingual = True
    card = generate_model_card(model, name="student", language="hi")
    assert '"language": "hi", "task": "transcribe"' in card.text
    assert "distilled for the language `hi`" in card.text
    assert card.data.language == "hi"


def test_the_code_in_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code in a card is what most users of a model ever read of it."""
    monkeypatch.chdir(tmp_path)
    write_toy_model(Path("teacher"))
    write_toy_model(Path("student"))  # the same weights: an assistant needs the teacher's encoder
    soundfile.write("speech.flac", toy_audio(1.0), 16_000)
    soundfile.write("talk.flac", toy_audio(2.0), 16_000)
    card = generate_model_card(toy_whisper(), name="student", teacher="teacher")
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert [word in block for word, block in zip(KINDS, blocks, strict=True)] == [True] * 4
    for block in blocks:
        exec(block.replace('"max_new_tokens": 200', '"max_new_tokens": 20'), {})
    assert capsys.readouterr().out.count("\n") == 4


def test_the_callback_writes_the_card_of_checkpoint_and_student(tmp_path: Path) -> None:
    """Checkpoints are shared too, and the Trainer's own card knows no word error rate."""
    args = TrainingArguments(output_dir=str(tmp_path / "my-student"), use_cpu=True)
    state = TrainerState(global_step=5, log_history=[{"eval_test_wer": 0.3}, {"eval_test_wer": 0.2, "eval_loss": 1.0}])
    callback = ModelCardCallback(teacher="openai/whisper-toy.en", license="mit")
    callback.on_save(args, state, TrainerControl(), model=toy_whisper())
    callback.on_train_end(args, state, TrainerControl(), model=toy_whisper())
    for path in ("checkpoint-5/README.md", "README.md"):
        card = ModelCard.load(tmp_path / "my-student" / path)
        assert card.data.model_name == "my-student"
        assert card.data.eval_results[0].metric_value == 20.0
        assert card.data.license == "mit"


def test_only_the_main_process_writes_the_card(tmp_path: Path) -> None:
    state = TrainerState(is_world_process_zero=False)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    ModelCardCallback().on_train_end(args, state, TrainerControl(), model=toy_whisper())
    assert not (tmp_path / "run" / "README.md").exists()


def test_word_errors_of_the_log_are_the_newest_without_their_average() -> None:
    log = [{"eval_a_wer": 0.5}, {"eval_a_wer": 0.4, "eval_b_wer": 0.2, "eval_macro_wer": 0.3, "eval_a_kl": 1.0}]
    assert latest_word_errors(log) == {"a": 0.4, "b": 0.2}


def test_an_optimizer_of_ones_own_is_named(tmp_path: Path) -> None:
    """The training arguments hold a learning rate that was never used: a card with it misleads who repeats the run."""
    args = DistillationTrainingArguments(output_dir=str(tmp_path), learning_rate=5e-5)
    own = generate_model_card(toy_whisper(), name="me/toy", training_args=args, optimizer="Muon (2e-3)").content
    assert "| optim | Muon (2e-3) |" in own
    assert "5e-05" not in own
    assert "| learning_rate | 5e-05 |" in generate_model_card(toy_whisper(), name="me/toy", training_args=args).content
