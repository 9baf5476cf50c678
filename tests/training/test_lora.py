"""LoRA trains and saves the adapters alone, resumes from them, and saves complete students."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.lora import lora_settings
from toy_training import (
    RandomWindows,
    StopAt,
    assert_same_weights,
    collate,
    logged,
    small_processor,
    small_trainer,
    small_whisper,
)


def trainer_with(folder, lora=None, *, stop: int | None = None, **changes):
    teacher = small_whisper()
    settings = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2,
        "lora": {"r": 4, "alpha": 8} if lora is None else lora, **changes,
    }  # fmt: skip
    return small_trainer(
        folder, create_student(teacher), teacher, train=RandomWindows(12), processor=small_processor(),
        callbacks=[StopAt(stop)] if stop else None, **settings,
    )  # fmt: skip


def trained_with(folder, lora=None, *, resume: bool = False, **changes):
    trainer = trainer_with(folder, lora, **changes)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def assert_same_logits(model, other) -> None:
    batch = collate([RandomWindows(2)[row] for row in range(2)])
    batch.pop("labels")
    with torch.no_grad():
        logits = [one.eval()(**batch).logits for one in (model, other)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", ["none", "both"])
def test_only_adapters_are_trained_and_the_saved_student_is_complete(tmp_path, cache):
    trainer = trainer_with(tmp_path, teacher_cache=cache)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name and ".decoder.layers." in name for name in trained)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in trained), name
    trainer.save_model()
    saved = load_model(tmp_path)
    assert not [name for name in saved.state_dict() if "lora" in name]
    assert_same_logits(saved, trainer.model)
    assert not (tmp_path / "adapter_config.json").exists()  # with it transformers would load an adapter on top
    base = create_student(small_whisper())
    with_adapter = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert_same_logits(with_adapter, saved)


def test_a_checkpoint_holds_the_adapters_alone_and_resumes_to_the_weights_of_an_undisturbed_run(tmp_path):
    whole = trained_with(tmp_path / "whole")
    trainer = trained_with(tmp_path / "broken", stop=4)
    checkpoint = tmp_path / "broken" / "checkpoint-4"
    assert not list(checkpoint.glob("*.safetensors"))
    weights = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    assert sum(weight.numel() for weight in weights.values()) == trained
    assert json.loads((checkpoint / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert_same_weights(trained_with(tmp_path / "broken", resume=True).model, whole.model)


def test_the_best_model_comes_back(tmp_path):
    trainer = trained_with(
        tmp_path, evaluation=RandomWindows(4, seed=1, prompts=False), eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", predict_with_generate=False,
        lr_scheduler_type="constant", learning_rate=0.5,
    )  # fmt: skip
    best = load_file(Path(trainer.state.best_model_checkpoint, "adapter", "adapter_model.safetensors"))
    weights = {name.replace(".default", ""): weight for name, weight in trainer.model.state_dict().items()}
    for name, weight in best.items():
        assert torch.equal(weight, weights[name.removeprefix("base_model.model.")])


def test_a_cut_encoder_can_have_adapters_too(tmp_path):
    trainer = trained_with(tmp_path, {"r": 2, "encoder": True, "target_modules": ["q_proj"]}, freeze_encoder=False)
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"encoder", "decoder"}
    assert all("q_proj.lora_" in name for name in trained)
    trainer.save_model()
    assert_same_logits(load_model(tmp_path), trainer.model)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = trained_with(tmp_path / str(checkpointing), stop=1, gradient_checkpointing=checkpointing)
        gradients.append(logged(trainer, "grad_norm"))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)
    assert gradients[0][0] > 0


def test_adapters_of_other_sizes_are_not_resumed_from(tmp_path):
    trained_with(tmp_path / "run", stop=2)
    with pytest.raises(ValueError, match="adapters on other modules or of another rank"):
        trained_with(tmp_path / "run", {"r": 8}, resume=True)
    (tmp_path / "run" / "checkpoint-2" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="expected adapter/adapter_model"):
        trained_with(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, r"--lora: unknown key 'rank', expected r, alpha"),
        ({"r": 0}, r"--lora\.r: expected a number of at least 1, got 0"),
        ({"r": 1.5}, r"--lora\.r: expected a whole number, got 1\.5"),
        ({"dropout": 1.0}, r"--lora\.dropout: expected a share below 1"),
        ({"target_modules": ["head"]}, r"--lora\.target_modules: expected some of q_proj"),
        ({"encoder": True}, r"--lora\.encoder is true and --freeze_encoder true"),
        ("many", r"--lora: expected a mapping such as"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(tmp_path, lora, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments(str(tmp_path), lora=lora)
    with pytest.raises(ValueError, match="--freeze_decoder is on"):
        DistillationTrainingArguments(str(tmp_path), lora="{r: 4}", freeze_decoder=True)
    assert lora_settings({}) == lora_settings({"r": 32, "alpha": 64})
