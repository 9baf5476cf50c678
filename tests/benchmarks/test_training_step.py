"""Training steps: the plain one is the reference's, ours equals it, and the table holds ratios."""

import pytest
import torch

import training_step
from hf_distil_whisper import create_student, kl_divergence_loss, pseudo_label_loss
from training_step import EXACT, LORA, TRIMMED, StepSpeed, TrainingSpeed, random_batch

SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 100}


def small():
    torch.manual_seed(0)
    return training_step.random_whisper("tiny", **SMALL)


def test_the_plain_step_is_the_formula_padded_or_not() -> None:
    teacher = small()
    student = create_student(teacher, decoder_layers=1)
    batch = random_batch(teacher.config, 3, 5, 9)
    assert (batch["labels"] != -100).sum(1).tolist() == [5, 7, 9]
    long = training_step.padded(batch, 20, teacher.config.pad_token_id)
    assert long["labels"].shape == long["decoder_input_ids"].shape == (3, 20)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
        logits = [model(**inputs).logits for model in (student, teacher)]
        expected = 0.8 * kl_divergence_loss(*logits, batch["labels"]) + pseudo_label_loss(logits[0], batch["labels"])
    for inputs in (batch, long):
        assert training_step.plain_loss(student, teacher, inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_mode_takes_every_step_and_ours_is_the_plain_one() -> None:
    teacher = small()
    speed = training_step.measure_training(teacher, random_batch(teacher.config, 2, 4, 8), decoder_layers=1, rounds=2)
    cached = "cached states", "both cached"
    assert list(speed.steps) == [training_step.PLAIN, TRIMMED, EXACT, *cached, LORA]
    for mode, step in speed.steps.items():
        assert len(step.seconds) == 2
        assert sum(values[0] for values in step.stages.values()) == pytest.approx(step.seconds[0])
        assert 0 < speed.floor(mode)
    *full, lora = speed.steps.values()
    assert lora.trained_bytes < full[0].trained_bytes == full[-1].trained_bytes
    flops = [step.flops for step in full]
    assert flops == sorted(flops, reverse=True)
    assert len(set(flops)) == 5
    # Whatever is cached, head and its gradient are multiplied with 12 tokens: logits, and gradients of both factors.
    assert flops[-1] > 3 * 2 * 12 * 51_865 * 32
    assert speed.loss_difference < 1e-5
    assert speed.gradient_difference < 1e-5
    assert list(speed.forward) == ["encoder", "teacher's decoder", "student's decoder"]


def test_the_table_shows_the_distance_from_the_floor() -> None:
    """Worked by hand: 4 TFLOP at 1 TFLOP/s and 1 GB at 2 GB/s are 4.5 s; a step of 9 s takes twice as long."""
    stages = {"loss": [4.5], "backward": [2.25], "optimizer": [2.25]}
    steps = {TRIMMED: StepSpeed(10**9, 8 * 10**12, [18.0], stages)}
    steps[EXACT] = StepSpeed(5 * 10**8, 4 * 10**12, [9.0], stages, 5 * 10**9)
    table = training_step.training_table(TrainingSpeed(steps, 1e12, 2e9, {"encoder": 3.0}, 1e-7, 2e-6), rows=18)
    assert "| exact | 9 | 2 | 2.00 | 4.00 | 4.5 | 2.00 | 0.500 GB | 5.0 GB |" in table
    assert "| exact | 50% | 25% | 25% |" in table
    assert "Forward alone: encoder 3 s." in table
    assert "loss 1.0e-07, gradients 2.0e-06 apart" in table


def test_the_fused_loss_takes_less_memory() -> None:
    """The bound at the shape of large-v3 is an eighth; a small shape shows that it is measured."""
    peaks = training_step.loss_memory(rows=4, length=256, vocabulary=51_866, width=16)
    assert 0 < peaks["fused"] < peaks["plain"] / 2
