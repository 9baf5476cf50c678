"""The card beside the weights: at every save and evaluation, with pictures and results, and with no secret in it."""

import logging
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from matplotlib.figure import Figure
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_distil_whisper.hub import callbacks as card_files
from hf_distil_whisper.hub.callbacks import (
    CARD_FILES,
    ModelCardCallback,
    curves_over_steps,
    loss_curves,
    save_model_card,
    teacher_facts,
    word_error_curves,
)
from hf_distil_whisper.hub.model_card import (
    check_card,
    find_license,
    generate_model_card,
    inline,
    public_name,
    public_url,
)
from hub_server import ALICE, HubServer
from toy_files import write_toy_model
from toy_models import toy_whisper

LOG = [
    {"loss": 3.0, "kl": 1.0, "pl": 2.0, "step": 1},
    {"eval_test_loss": 2.5, "eval_test_wer": 0.4, "eval_macro_wer": 0.4, "step": 1},
    {"loss": 2.0, "kl": 0.5, "pl": 1.5, "step": 2},
    {"eval_test_loss": 2.0, "eval_test_wer": 0.2, "eval_macro_wer": 0.2, "step": 2},
]


def test_curves_are_those_of_the_log() -> None:
    assert word_error_curves(LOG) == {"test": [(1, 0.4), (2, 0.2)]}
    assert word_error_curves([{"eval_wer": 0.1, "step": 3}]) == {"validation": [(3, 0.1)]}
    found = loss_curves(LOG)
    assert found["loss, training"] == [(1, 3.0), (2, 2.0)]
    assert found["loss, test"] == [(1, 2.5), (2, 2.0)]
    assert set(found) == {"loss, training", "kl, training", "pl, training", "loss, test"}


def test_a_saved_card_has_its_pictures_and_results_beside_it(tmp_path: Path) -> None:
    """A picture that was not uploaded is a hole in the page."""
    sources = {"test": {"path": "openslr/librispeech_asr", "config": "clean", "split": "test"}}
    card = save_model_card(tmp_path, toy_whisper(), name="me/toy", log_history=LOG, result_sources=sources)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"README.md", "loss_curves.png", "wer_curves.png", ".eval_results/openslr--librispeech_asr.yaml"}
    assert all(any(Path(name).match(pattern) for pattern in CARD_FILES) for name in written)
    assert "![Word error rate over training steps](wer_curves.png)" in card.text
    assert "![Loss per token over training steps](loss_curves.png)" in card.text
    (entry,) = yaml.safe_load((tmp_path / ".eval_results/openslr--librispeech_asr.yaml").read_text())
    assert entry["value"] == 20.0
    assert "| WER %, test | 20.00 |" in card.text
    save_model_card(tmp_path, toy_whisper(), name="me/toy")  # nothing of an earlier card stays
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["README.md"]


def test_the_callback_writes_the_card_as_of_each_step(tmp_path: Path) -> None:
    """A checkpoint whose card tells the scores of the last one cannot be compared with others."""
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    callback = ModelCardCallback(teacher="openai/whisper-toy.en")
    state = TrainerState(global_step=1, max_steps=2, log_history=LOG[:2])
    callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_test_loss": 1.0}, model=toy_whisper())
    assert not (tmp_path / "run").exists()  # one set of several: the average is still to come
    callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_macro_wer": 0.4}, model=toy_whisper())
    assert "| WER %, test | 40.00 |" in (tmp_path / "run/README.md").read_text()
    callback.on_save(args, state, TrainerControl(), model=toy_whisper())
    state = TrainerState(global_step=2, max_steps=2, log_history=LOG)
    callback.on_train_end(args, state, TrainerControl(), model=toy_whisper())
    first, last = (tmp_path / "run" / name for name in ("checkpoint-1/README.md", "README.md"))
    assert "as of training step 1" in first.read_text()
    assert "| WER %, test | 40.00 |" in first.read_text()
    assert "as of training step" not in last.read_text()
    assert "| WER %, test | 20.00 |" in last.read_text()


def test_a_card_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(card_files, "save_model_card", full)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    ModelCardCallback().on_save(args, TrainerState(), TrainerControl(), model=toy_whisper())


def test_names_with_markup_are_shown_and_do_nothing(tmp_path: Path) -> None:
    """Set names and folders come from users and file names: one `|` shifts every column behind it."""
    name = 'a|b\n# c <script> "d" [x](http://y)'
    card = generate_model_card(toy_whisper(), name="me/toy", teacher=name, results={name: 0.5}, datasets=[name])
    assert "<script>" not in card.text
    assert "\n# c" not in card.text
    assert "[x](" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| WER")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 3
    assert ModelCard(str(card)).data.eval_results[0].metric_value == 50.0
    assert inline("one\r\ntwo") == "one two"


def test_no_secret_and_no_folder_reaches_a_card(tmp_path: Path) -> None:
    """A card is public: it is the first place where somebody looks for a token."""
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, hub_token=ALICE)
    card = generate_model_card(
        toy_whisper(),
        name=str(tmp_path / "my-student"),
        teacher="/data/elsewhere/my-teacher",
        base_model=f"{tmp_path}/gone/base",
        datasets=[f"https://me:{ALICE}@host.example/rows.parquet?token={ALICE}", "~/speech", f"named {ALICE}"],
        run_url=f"https://me:{ALICE}@wandb.example/run?key={ALICE}",
        training_args=args,
    )
    text = str(card)
    for secret in (ALICE, str(tmp_path), "/data/elsewhere", "~/"):
        assert secret not in text
    assert 'model="my-student"' in text
    assert "It began as base." in text
    assert "https://host.example/rows.parquet, speech" in text
    assert "<https://wandb.example/run>" in text


def test_public_forms_of_names_and_addresses() -> None:
    assert public_name("openai/whisper-tiny") == "openai/whisper-tiny"
    assert public_name("../runs/teacher/") == "teacher"
    assert public_name("C:\\models\\teacher") == "teacher"
    assert public_name("s3://key:secret@bucket/labels?x=1") == "s3://bucket/labels"
    assert public_url("javascript:alert(1)") == ""
    assert public_url("https://a.example/x y") == ""


def test_licence_and_revision_are_those_that_the_teacher_tells(hub: HubServer, tmp_path: Path) -> None:
    """A licence that is guessed, or left behind, is worse than a missing one."""
    write_toy_model(tmp_path / "toy")
    (tmp_path / "toy" / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Toy\n")
    assert teacher_facts(str(tmp_path / "toy"))["license"] == "cc-by-sa-4.0"
    assert teacher_facts(str(tmp_path / "toy"))["teacher_revision"] is None
    api = HfApi()
    api.create_repo("alice/toy")
    commit = api.upload_folder(repo_id="alice/toy", folder_path=tmp_path / "toy")
    teacher_facts("alice/toy")  # loads the config, as a training has loaded the whole model
    facts = teacher_facts("alice/toy")
    assert facts["license"] == "cc-by-sa-4.0"
    assert facts["teacher_revision"] == commit.oid
    assert facts["teacher_config"].decoder_layers == 4
    hub.stop()
    assert find_license("alice/other") is None  # nobody answers


def test_the_hub_takes_the_card(hub: HubServer, tmp_path: Path) -> None:
    """Metadata that it refuses stop a push at its very end."""
    sources = {"test": {"path": "openslr/librispeech_asr", "config": "clean", "split": "test"}}
    details = {"name": "alice/toy", "teacher": "openai/whisper-toy.en", "license": "mit", "result_sources": sources}
    card = save_model_card(tmp_path, toy_whisper(), log_history=LOG, **details)
    assert check_card(card) is None
    api = HfApi()
    api.create_repo("alice/toy")
    api.upload_folder(repo_id="alice/toy", folder_path=tmp_path)
    read = ModelCard.load("alice/toy")
    assert (read.data.base_model, read.data.base_model_relation) == ("openai/whisper-toy.en", "finetune")
    assert read.data.eval_results[0].metric_value == 20.0
    assert ".eval_results/openslr--librispeech_asr.yaml" in api.list_repo_files("alice/toy")


def test_a_card_is_checked_without_ever_failing(hub: HubServer) -> None:
    """The check is a help: a Hub that is down must not end what it belongs to."""
    wrong = generate_model_card(toy_whisper(), name="alice/toy", license="my own licence")
    assert "license" in str(check_card(wrong))
    hub.stop()
    assert check_card(wrong) is None


def test_curves_of_a_training_stand_over_whole_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Step 1.5 does not exist; and a validation that started later must not be drawn from the first step."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    curves_over_steps({"training": [(1, 3.0), (4, 2.0)], "test": [(2, 2.5)]}, "loss per token", tmp_path / "loss.png")
    axes = figures[0].axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 4], [2]]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert axes.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="got none"):
        curves_over_steps({}, "loss", tmp_path / "none.png")
