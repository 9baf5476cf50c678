"""The training step: its loss, which encoder runs, what is trained, and that no split of the batch changes it."""

import copy
import time

import pytest
import torch
from accelerate import Accelerator

from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.trainer import DistillationTrainer, StepLog, same_encoder
from toy_training import (
    RandomWindows,
    assert_same_weights,
    collate,
    logged,
    plain_losses,
    small_pair,
    small_processor,
    small_trainer,
    small_whisper,
    trained,
)


def count_runs(module: torch.nn.Module) -> list[bool]:
    """Grows with every window that passes `module`: whether it ran in train mode."""
    runs: list[bool] = []
    module.register_forward_hook(lambda _, __, out: runs.extend([module.training] * len(out.last_hidden_state)))
    return runs


@pytest.mark.parametrize("freeze_encoder", [True, False])
@pytest.mark.parametrize("mse_weight", [0.0, 0.5])
def test_the_loss_is_the_plain_formula_on_the_full_logits(tmp_path, freeze_encoder, mse_weight):
    """The fused path, the shared encoder and the scaling by tokens together must give the textbook value."""
    student, teacher = small_pair()
    expected = plain_losses(student, teacher, RandomWindows(4), temperature=2.0)
    weights = {"kl": 0.8, "pl": 1.0} | ({"mse": mse_weight} if mse_weight else {})
    settings = {"max_steps": 1, "freeze_encoder": freeze_encoder, "mse_weight": mse_weight}
    trainer = trained(tmp_path, student, teacher, train=RandomWindows(4), **settings)
    for name in expected:
        assert logged(trainer, name) == ([pytest.approx(expected[name], rel=1e-4)] if name in weights else [])
    total = sum(weight * expected[name] for name, weight in weights.items())
    assert logged(trainer, "loss") == [pytest.approx(total, rel=1e-4)]


@pytest.mark.parametrize(
    ("broken", "message"), [("teacher", "teacher's hidden states are NaN or Inf"), ("student", "cross-entropy")]
)
@pytest.mark.parametrize("cache", ["none", "logits"])
def test_nan_ends_the_training_before_it_reaches_a_weight(tmp_path, broken, message, cache):
    """Upstream leaves NaN out of the logged mean and trains on: the checkpoints are noise, noticed days later."""
    student, teacher = small_pair()
    trainer = small_trainer(tmp_path, student, teacher, teacher_cache=cache)
    with torch.no_grad():
        (teacher if broken == "teacher" else student).model.decoder.layer_norm.bias[0] = torch.nan
    before = student.proj_out.weight.clone()
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.equal(student.proj_out.weight, before)


def test_no_split_into_micro_batches_changes_loss_gradient_norm_or_weights(tmp_path):
    """The stock trainer multiplies Whisper's loss by the number of accumulation steps: 4.17, 16.7, 33.4."""
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = trained(tmp_path, **split, mse_weight=0.1, learning_rate=1e-3)
        logs = [logged(trainer, name) for name in ("loss", "grad_norm", "kl", "pl", "mse")]
        results.append((torch.tensor(logs), trainer.model))
    for logs, model in results[1:]:
        torch.testing.assert_close(logs, results[0][0], rtol=1e-4, atol=1e-5)
        assert_same_weights(model, results[0][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["equal", "wider", "trained"])
def test_a_window_passes_an_equal_frozen_encoder_once_and_others_in_each_model(tmp_path, case):
    """A second run, or a gradient, doubles time and memory; a teacher fed by another encoder teaches noise."""
    teacher = small_whisper()
    student = small_whisper(d_model=32, decoder_layers=2) if case == "wider" else create_student(teacher)
    ours, theirs = count_runs(student.model.encoder), count_runs(teacher.model.encoder)
    grads = []
    student.model.encoder.register_forward_hook(lambda _, __, out: grads.append(out.last_hidden_state.requires_grad))
    trainer = trained(tmp_path, student, teacher, gradient_accumulation_steps=2, freeze_encoder=case != "trained")
    assert trainer.shares_encoder == (case == "equal")
    assert (len(ours), len(theirs), set(grads)) == (16, 0 if case == "equal" else 16, {case == "trained"})


def test_encoders_are_equal_by_shape_and_by_weights_in_the_lower_of_two_precisions():
    """The reference script compares widths only; a teacher in half precision would run its encoder for nothing."""
    student, teacher = small_pair()
    for changes in ({"encoder_layers": 1}, {"d_model": 32}, {"encoder_attention_heads": 4}):
        assert not same_encoder(create_student(small_whisper(**changes)), teacher)
    with torch.no_grad():
        student.model.encoder.layers[1].fc2.bias[3] += 1e-3
    assert not same_encoder(student, teacher)
    assert same_encoder(create_student(teacher), teacher.to(torch.bfloat16))
    with torch.no_grad():
        student.model.encoder.conv1.weight[0, 0, 0] += 0.1
    assert not same_encoder(student, teacher)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"decoder.layers", "decoder.embed_tokens", "decoder.embed_positions", "decoder.layer_norm"}),
        ({"freeze_embed_positions": True}, {"decoder.layers", "decoder.embed_tokens", "decoder.layer_norm"}),
        ({"freeze_embed_tokens": True}, {"decoder.layers", "decoder.embed_positions", "decoder.layer_norm"}),
        ({"freeze_decoder": True}, {"decoder.embed_tokens"}),
        (
            {"freeze_encoder": False, "freeze_decoder": True},
            {"encoder.conv1", "encoder.conv2", "encoder.layers", "encoder.layer_norm", "decoder.embed_tokens"},
        ),
    ],
)
def test_each_freeze_flag_freezes_its_weights_and_no_others_and_the_teacher_is_frozen(tmp_path, flags, expected):
    """`model.train()` at every step switches on dropout in what is frozen; a teacher with gradients drifts."""
    student, teacher = small_pair()
    runs = [count_runs(model) for model in (student.model.encoder, student.model.decoder, teacher.model.decoder)]
    before, teachers = (copy.deepcopy(model.state_dict()) for model in (student, teacher))
    teacher.train()
    trainer = trained(tmp_path, student, teacher, learning_rate=1e-2, mse_weight=1.0, **flags)
    trains = (not flags.get("freeze_encoder", True), not flags.get("freeze_decoder", False), False)
    assert [set(modes) for modes in runs] == [{mode} for mode in trains]
    changed = {name for name, weight in student.state_dict().items() if not torch.equal(weight, before[name])}
    modules = {".".join(name.removeprefix("model.").split(".")[:2]) for name in changed if name != "proj_out.weight"}
    assert modules == expected
    optimised = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert optimised == {id(weight) for weight in student.parameters() if weight.requires_grad}
    assert all(torch.equal(weight, teachers[name]) for name, weight in teacher.state_dict().items())
    assert all(not weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert all(model is not teacher for model in trainer.accelerator._models)


@pytest.mark.parametrize("cache", ["none", "encoder"])
def test_without_a_teacher_the_student_learns_from_labels_alone(tmp_path, cache):
    """The baseline of Table 21; a KL of 0 in its logs would look like a perfect student."""
    settings = {"kl_weight": 0.0, "learning_rate": 1e-2, "max_steps": 6, "teacher_cache": cache}
    trainer = small_trainer(tmp_path, small_whisper(decoder_layers=2), None, **settings)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx(logged(trainer, "pl"))
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    assert logged(trainer, "kl") == []


def test_activation_checkpointing_gives_the_same_gradients_with_everything_frozen_below(tmp_path):
    """The reference script announces that it disables this combination, and does not."""
    norms = [
        logged(trained(tmp_path, activation_checkpointing=on, freeze_embed_positions=True), "grad_norm")
        for on in (False, True)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_bfloat16_casts_the_teacher_and_leaves_the_students_weights_in_float32(tmp_path):
    """Autocast around the student alone would run the teacher and the loss in other precisions than intended."""
    losses = []
    for bf16 in (False, True):
        teacher = small_whisper()
        trainer = trained(tmp_path, None, teacher, bf16=bf16, evaluation=RandomWindows(4), max_steps=1)
        losses.append(logged(trainer, "loss")[0])
        assert teacher.model.decoder.dtype == (torch.bfloat16 if bf16 else torch.float32)
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
        assert trainer.evaluate()["eval_loss"] > 0
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_a_batch_without_any_label_leaves_the_weights_finite(tmp_path):
    """Rows that are all prompt must not divide by 0 tokens."""
    windows = RandomWindows(4)
    windows.label_item = lambda index: {"decoder_input_ids": [301, 5], "labels": [-100, -100], "index": index}
    trainer = trained(tmp_path, train=windows, max_steps=1)
    assert logged(trainer, "loss") == [0.0]
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_the_processor_brings_its_own_collator(tmp_path):
    """Transformers' default would stack nothing of a speech sample."""
    trainer = small_trainer(tmp_path, small_whisper(), small_whisper(1), processor=small_processor())
    assert trainer.data_collator is collate
    arguments = DistillationTrainingArguments(str(tmp_path), use_cpu=True)
    trainer = DistillationTrainer(small_whisper(), small_whisper(1), arguments, processing_class=small_processor())
    assert isinstance(trainer.data_collator, DataCollatorSpeechSeq2SeqWithPadding)


def test_models_and_settings_that_do_not_go_together_are_refused(tmp_path):
    """Each would otherwise train something else than asked for."""
    teacher = small_whisper()
    for message, student, other, settings in (
        (r"no teacher_model, but --kl_weight is 0\.8", small_whisper(), None, {}),
        (r"no teacher_model.*--mse_weight 1\.0", small_whisper(), None, {"kl_weight": 0.0, "mse_weight": 1.0}),
        ("same object: freezing the teacher would freeze the student", teacher, teacher, {}),
        (
            r"student's hidden states are 32 wide and the teacher's 16.*Set --mse_weight 0",
            small_whisper(d_model=32), teacher, {"mse_weight": 1.0},
        ),
        (
            "--teacher_cache encoder.*the student's encoder is not the teacher's",
            small_whisper(1), small_whisper(), {"teacher_cache": "encoder"},
        ),
        ("student has 80 mel bins, the teacher 128", small_whisper(), small_whisper(num_mel_bins=128), {}),
        ("teacher_model: expected a WhisperForConditionalGeneration, got WhisperModel", teacher, teacher.model, {}),
        (
            "processing_class: expected a WhisperProcessor, got WhisperTokenizer",
            small_whisper(), teacher, {"processor": small_processor().tokenizer},
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            small_trainer(tmp_path, student, other, **settings)


def test_a_batch_without_decoder_inputs_is_refused(tmp_path):
    """Each model would shift the labels by itself, and only one of them would see the prompt."""
    trainer = small_trainer(tmp_path, small_whisper(), small_whisper(1))
    trainer.data_collator = lambda items: {
        name: value for name, value in collate(items).items() if "decoder" not in name
    }
    with pytest.raises(ValueError, match="A batch lacks decoder_input_ids"):
        trainer.train()


def test_spec_augment_on_a_frozen_encoder_logs_that_it_has_no_effect(tmp_path, caplog):
    """An option that is read and ignored; the teacher would see the masked speech too."""
    student = small_whisper(apply_spec_augment=True)
    small_trainer(tmp_path, student, small_whisper(1), freeze_encoder=False)
    assert "SpecAugment" not in caplog.text
    small_trainer(tmp_path, student, small_whisper(1))
    assert "SpecAugment" in caplog.text


def test_logged_values_are_means_over_the_steps_since_the_first_batch_or_the_last_log(monkeypatch):
    """Components that are summed, or taken from the last step only, do not add up to the logged loss."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    log, accelerator = StepLog(torch.device("cpu")), Accelerator(cpu=True)
    assert log.pop(accelerator) == {}
    now[0] += 50.0  # a cache is filled
    for share, components in ((0.25, [1.0, 2.0, 3.0]), (0.0, [5.0, 0.0, 1.0])):
        for factor in (0.5, 1.5, 0.0, 2.0):  # two steps of two batches
            with log.waiting():
                now[0] += 4 * share
            now[0] += 4 * (1 - share)
            log.add(torch.tensor(components) * factor, ends_step=factor > 1)
        means = dict(zip(("kl", "pl", "mse"), (2 * value for value in components), strict=True))
        assert log.pop(accelerator) == means | {"data_wait": pytest.approx(share)}


def test_a_training_logs_how_long_it_waited(tmp_path):
    class SlowWindows(RandomWindows):
        def __getitem__(self, index):
            time.sleep(0.4)
            return super().__getitem__(index)

    waits = logged(trained(tmp_path, train=SlowWindows(4)), "data_wait")
    assert len(waits) == 2
    assert all(0.5 <= wait <= 1.0 for wait in waits)
