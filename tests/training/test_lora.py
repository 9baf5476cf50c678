"""LoRA trains and saves the adapters alone, resumes from them, and saves complete students."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.lora import lora_settings
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_training import (
    RandomWindows,
    assert_same_weights,
    collate,
    logged,
    small_pair,
    small_processor,
    small_trainer,
)


def trainer_with(folder: Path, **changes: object) -> DistillationTrainer:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    settings |= {"lora": {"r": 4, "alpha": 8}, "train": RandomWindows(12), "processor": small_processor()}
    return small_trainer(folder, *small_pair(), **(settings | changes))


def trained_with(folder: Path, **changes: object) -> DistillationTrainer:
    trainer = trainer_with(folder, **changes)
    trainer.train()
    return trainer


def assert_same_logits(model, other) -> None:
    batch = collate([RandomWindows(2)[row] for row in range(2)])
    batch.pop("labels")
    with torch.no_grad():
        logits = [one.eval()(**batch).logits for one in (model, other)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", ["none", "both"])
def test_adapters_alone_are_trained_saved_and_resumed_from_and_the_student_at_the_end_is_complete(tmp_path, cache):
    trainer = trainer_with(tmp_path / "whole", teacher_cache=cache)
    model, checkpoint = trainer.model, tmp_path / "whole" / "checkpoint-4"
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name and ".decoder.layers." in name for name in trained)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in trained), name

    assert not list(checkpoint.glob("*.safetensors"))
    weights = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    assert sum(map(torch.numel, weights.values())) == sum(before[name].numel() for name in trained)
    resumed = trainer_with(tmp_path / "resumed", teacher_cache=cache)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(resumed.model, model)

    trainer.save_model(str(tmp_path))
    saved = load_model(tmp_path)
    assert not [name for name in saved.state_dict() if "lora" in name]
    assert_same_logits(saved, model)
    assert not (tmp_path / "adapter_config.json").exists()  # with it transformers would load an adapter on top
    assert_same_logits(PeftModel.from_pretrained(small_pair()[0], str(tmp_path / "adapter")), saved)


def test_adapters_of_other_sizes_are_not_resumed_from(tmp_path):
    trained_with(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="adapters on other modules or of another rank"):
        trainer_with(tmp_path, lora={"r": 8}).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="expected adapter/adapter_model"):
        trainer_with(tmp_path).train(resume_from_checkpoint=True)


def test_the_best_model_comes_back(tmp_path):
    trainer = trained_with(
        tmp_path, evaluation=RandomWindows(4, seed=1), eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", predict_with_generate=False,
        lr_scheduler_type="constant", learning_rate=0.5,
    )  # fmt: skip
    best = load_file(Path(trainer.state.best_model_checkpoint, "adapter", "adapter_model.safetensors"))
    weights = {name.replace(".default", ""): weight for name, weight in trainer.model.state_dict().items()}
    for name, weight in best.items():
        assert torch.equal(weight, weights[name.removeprefix("base_model.model.")])


def test_a_cut_encoder_can_have_adapters_too(tmp_path):
    lora = {"r": 2, "encoder": True, "target_modules": ["q_proj"]}
    trainer = trained_with(tmp_path, lora=lora, freeze_encoder=False)
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"encoder", "decoder"}
    assert all("q_proj.lora_" in name for name in trained)
    trainer.save_model()
    assert_same_logits(load_model(tmp_path), trainer.model)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    gradients = [
        logged(trained_with(tmp_path, max_steps=1, gradient_checkpointing=on), "grad_norm") for on in (False, True)
    ]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)
    assert gradients[0][0] > 0


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
