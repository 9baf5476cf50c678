"""The teacher cache: hidden states computed once per row, under labels that are still drawn anew."""

import copy
from typing import Any

import pytest
import torch

from hf_distil_whisper.data.shards import StaleRunError
from hf_distil_whisper.inference.encoder import encoder_cache_bytes
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.teacher_cache import (
    TOKENS_PER_WINDOW,
    CacheSettings,
    TeacherCacheDataset,
    expected_cache_bytes,
    teacher_states_bytes,
)
from talking_models import count_encoder_windows
from toy_training import RandomWindows, collate, logged, small_pair, small_trainer, small_whisper, trained


class TwoVariants(RandomWindows):
    """Every other epoch, labels lose their last word."""

    def label_item(self, index: int) -> dict[str, Any]:
        epoch = self.epochs[-1] if self.epochs else 0
        return TwoVariants.variants(self, index)[epoch % 2]

    def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
        item = super().label_item(index)
        cut = {**item, **{name: item[name][:-1] for name in ("decoder_input_ids", "labels")}}
        return [item, cut][:epochs]


def cached(
    windows, model, teacher=None, *, kind="encoder", dtype=torch.float32, folder=None, with_layers=False, **process
):
    path = None if folder is None else str(folder)
    settings = CacheSettings(kind, dtype, path, batch_size=2, with_layers=with_layers)
    return TeacherCacheDataset(windows, model, teacher, settings, collate, shares_encoder=True, **process)


def test_cached_states_are_those_of_the_encoder_in_the_datasets_order():
    """States of a neighbouring row would pair every text with another recording."""
    model, windows = small_whisper(dropout=0.5).train(), RandomWindows(5)
    dataset = cached(windows, model)
    assert model.model.encoder.training
    model.eval()
    assert len(dataset) == 5
    with torch.no_grad():
        states = model.model.encoder(windows.features).last_hidden_state
    for index in range(5):
        item = dataset[index]
        torch.testing.assert_close(item["encoder_states"], states[index], rtol=1e-4, atol=1e-5)
        assert item["labels"] == windows.label_item(index)["labels"]
        assert "input_features" not in item


@pytest.mark.parametrize(("with_layers", "layers"), [(False, 1), (True, 2)])
def test_the_expected_size_is_what_the_cache_takes(with_layers, layers):
    """The plan of a run announces it before hours of decoding."""
    (model, teacher), windows = small_pair(), RandomWindows(3)
    dataset = cached(windows, model, teacher, kind="both", dtype=torch.bfloat16, with_layers=with_layers)
    items = [dataset[index] for index in range(3)]
    states = [item["encoder_states"] for item in items]
    assert {state.dtype for state in states} == {torch.bfloat16}
    assert encoder_cache_bytes(3, model.config, torch.bfloat16) == sum(state.nbytes for state in states) == 3 * 50 * 32
    tokens = sum(label != -100 for item in items for label in item["labels"])
    size = sum(item["teacher_states"].nbytes for item in items)
    expected = teacher_states_bytes(tokens, model.config, with_layers=with_layers)
    assert expected == size == tokens * 16 * 2 * layers


def test_a_replaced_row_keeps_label_and_states_together():
    """A row that fails to decode is replaced by the next one, whose audio does not match its label."""

    class Broken(RandomWindows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(2 if index == 1 else index)

    windows = Broken(4)
    model = small_whisper()
    dataset = cached(windows, model, model, kind="both")
    assert dataset[1]["index"] == 2
    for name in ("encoder_states", "teacher_states"):
        assert torch.equal(dataset[1][name], dataset[2][name])
    windows.label_item = lambda index: RandomWindows.label_item(windows, 3 if index == 2 else index)
    assert dataset[2]["index"] == 3
    assert torch.equal(dataset[2]["encoder_states"], dataset[3]["encoder_states"])


@pytest.mark.parametrize("objective", [{}, {"mse_weight": 0.5}, {"kl_weight": 0.0, "mse_weight": 0.5}], ids=str)
def test_training_on_a_cache_gives_the_same_losses_and_runs_no_model_twice(tmp_path, objective):
    """A cache that changes the result, or that is computed and not used."""
    losses = {}
    # Steps of 4 rows, 8 rows: each passes the encoder once to fill the cache, and the teacher in 4 batches for two
    # variants of each row.
    expected = {"none": (24, 6, 24), "encoder": (8, 6, 8), "logits": (32, 4, 32), "both": (8, 4, 8)}
    for cache, runs in expected.items():
        student, teacher = small_pair()
        encoded, decoder_runs = count_encoder_windows(student), []
        teacher.model.decoder.register_forward_hook(lambda *_, calls=decoder_runs: calls.append(True))
        windows = TwoVariants(8)
        settings = {"teacher_cache": cache, "num_train_epochs": 3, "max_steps": 6, "learning_rate": 1e-2, **objective}
        losses[cache] = logged(trained(tmp_path, student, teacher, train=windows, **settings), "loss")
        assert losses[cache] == pytest.approx(losses["none"], rel=1e-4)
        assert (encoded(), len(decoder_runs), len(windows.decoded)) == runs
        assert sorted(set(windows.epochs)) == [0, 1, 2]


@pytest.mark.parametrize("decoder_layers", [1, 2, 3])
def test_losses_and_gradients_from_the_cache_are_those_of_the_teacher(tmp_path, decoder_layers):
    """MSE with the wrong layers trains as smoothly; the last one stored twice would only take disk."""
    results = []
    for cache in ("none", "both"):
        teacher = small_whisper()
        student = create_student(teacher, decoder_layers=decoder_layers)
        trainer = small_trainer(tmp_path, student, teacher, teacher_cache=cache, mse_weight=0.5)
        batch = next(iter(trainer.get_train_dataloader()))
        loss, components = trainer.compute_loss(student, batch, return_outputs=True)
        loss.backward()
        gradients = [weight.grad.flatten() for weight in student.parameters() if weight.grad is not None]
        results.append((components, torch.cat(gradients)))
    (exact, gradient), (from_cache, gradient_from_cache) = results
    assert batch["teacher_states"].shape[2] == decoder_layers * 16
    torch.testing.assert_close(from_cache, exact, rtol=1e-4, atol=0)
    assert (gradient_from_cache - gradient).norm() < 1e-4 * gradient.norm()


def test_a_teacher_with_another_encoder_runs_its_own(tmp_path):
    """Its distributions given the student's hidden states would be noise."""
    losses = []
    for cache in ("none", "both"):
        student, teacher = small_whisper(seed=1, decoder_layers=2), small_whisper()
        losses.append(logged(trained(tmp_path, student, teacher, teacher_cache=cache), "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "epochs", "expected"),
    [
        ({"max_steps": -1, "num_train_epochs": 1}, 1, 1.0),
        ({"max_steps": -1, "num_train_epochs": 1.5}, 2, 1.66),
        ({"max_steps": 1}, 1, 1.0),
        ({"max_steps": 3}, 2, 1.66),
        ({"max_steps": 3, "gradient_accumulation_steps": 2}, 3, 2 * (1 - 0.6**3) + 2 * (1 - 0.9**3)),
        ({"max_steps": 3, "timestamp_probability": 0.0}, 2, 2 - 0.8**2 - 0.2**2),
        ({"max_steps": 34}, 17, 4.0),
        ({"max_steps": 1, "mse_weight": 1.0}, 1, 1.0),
    ],
)
def test_the_teacher_runs_on_the_variants_that_the_epochs_draw(tmp_path, changes, epochs, expected):
    """A training of one epoch would pay for four variants of each row; one of two would end in its second."""
    teacher, planned = small_whisper(), set()

    class Recording(TwoVariants):
        def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
            planned.add(epochs)
            return super().variants(index, epochs)

    trainer = trained(tmp_path, None, teacher, train=Recording(8), teacher_cache="logits", **changes)
    assert planned == {epochs}
    assert len(trainer.train_dataset._teacher_states) == 8 * min(epochs, 2)
    tokens = round(8 * expected * TOKENS_PER_WINDOW)
    size = teacher_states_bytes(tokens, trainer.model.config, with_layers="mse_weight" in changes)
    assert expected_cache_bytes(8, trainer.model.config, torch.float32, trainer.args) == size


def test_the_cache_is_filled_once_for_several_runs_of_one_trainer(tmp_path):
    """Training again would otherwise cache the states of cached states."""
    windows = RandomWindows(8)
    trained(tmp_path, train=windows, teacher_cache="both").train()
    assert len(windows.decoded) == 8


@pytest.mark.parametrize("with_layers", [False, True])
def test_a_folder_is_filled_once_for_all_runs_and_only_with_what_is_new_or_damaged(tmp_path, with_layers):
    """The second run would pay for the teacher again; a new text, or a flipped bit, would be trained on unseen."""
    student, teacher = small_pair()
    in_memory = cached(TwoVariants(8), student, teacher, kind="both", with_layers=with_layers)
    for count, decoded, damaged in ((6, 6, False), (6, 0, False), (8, 2, False), (8, 6, True)):
        if damaged:
            path = max(tmp_path.glob("states/*/array-states.npy"), key=lambda path: path.stat().st_size)
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        windows = TwoVariants(8)
        windows.features = windows.features[:count]
        dataset = cached(windows, student, teacher, kind="both", folder=tmp_path, with_layers=with_layers)
        assert len(windows.decoded) == decoded
        for index in range(count):
            item, other = dataset[index], in_memory[index]
            assert torch.equal(item["encoder_states"], other["encoder_states"]), (count, index)
            # A batch of other rows is padded to another length, which changes the last bit.
            torch.testing.assert_close(item["teacher_states"], other["teacher_states"], rtol=1e-3, atol=1e-3)


def test_each_process_fills_its_part_of_a_folder(tmp_path):
    """Processes that all compute everything gain nothing; a row that none computes ends the run."""
    (student, teacher), parts = small_pair(), []
    for number in range(2):
        windows = RandomWindows(5)
        process = {"process_index": number, "num_processes": 2}
        parts.append(cached(windows, student, teacher, kind="both", folder=tmp_path, **process))
        assert sorted(windows.decoded) == list(range(number, 5, 2))
    parts[0].reload()
    assert [item["index"] for item in (parts[0][index] for index in range(5))] == list(range(5))


def test_a_folder_of_another_teacher_is_refused(tmp_path):
    """Another teacher's distributions fit every shape."""
    student, teacher = small_pair()
    cached(RandomWindows(2), student, teacher, kind="both", folder=tmp_path)
    other_student, other_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    with torch.no_grad():
        other_student.model.encoder.conv1.weight.mul_(1.01)
        other_teacher.model.decoder.layers[0].fc1.weight.mul_(1.01)
    for name, models in (("encoder", (other_student, teacher)), ("teacher", (student, other_teacher))):
        with pytest.raises(StaleRunError, match=rf"{name}: '\w+' there, '\w+' asked for"):
            cached(RandomWindows(2), *models, kind="both", folder=tmp_path)


def test_trainings_with_and_without_mse_share_a_folder_but_other_layers_are_refused(tmp_path):
    """Layer 3 in place of layer 2 has the same shape; the encoder would run again for every objective."""
    teacher = small_whisper()
    for layers, with_layers, decoded in ((2, False, 2), (2, True, 0), (3, False, 0)):
        student, windows = create_student(teacher, decoder_layers=layers), RandomWindows(2)
        cached(windows, student, teacher, kind="both", folder=tmp_path, with_layers=with_layers)
        assert len(windows.decoded) == decoded
    with pytest.raises(StaleRunError, match=r"layers: \[2, 4\] there, \[1, 3, 4\] asked for"):
        cached(RandomWindows(2), student, teacher, kind="both", folder=tmp_path, with_layers=True)


def test_labels_that_are_not_in_the_cache_are_refused():
    """Another variant's distributions would be learned, position by position, one word off."""
    model, windows = small_whisper(), RandomWindows(2)
    dataset = cached(windows, model, model, kind="logits")
    windows.label_item = lambda index: {"decoder_input_ids": [1, 2], "labels": [2, 3], "index": index}
    with pytest.raises(KeyError, match="row 0: the teacher cache has no states for these labels"):
        dataset[0]
