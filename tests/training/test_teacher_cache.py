"""The teacher cache: hidden states and log-probs computed once per row, under labels that are still drawn anew."""

import copy
from typing import Any

import pytest
import torch

from hf_distil_whisper.data.shards import StaleRunError
from hf_distil_whisper.inference.encoder import encoder_cache_bytes
from hf_distil_whisper.training.teacher_cache import (
    TOKENS_PER_WINDOW,
    CacheSettings,
    TeacherCacheDataset,
    expected_cache_bytes,
    logits_cache_bytes,
)
from talking_models import count_encoder_windows
from toy_training import RandomWindows, collate, logged, small_pair, small_trainer, small_whisper, trained

KINDS = ("encoder", "logits", "both")


class TwoVariants(RandomWindows):
    """Every other epoch, labels lose their last word."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def _cut(self, item: dict[str, Any], cut: bool) -> dict[str, Any]:
        return item if not cut else {**item, **{name: item[name][:-1] for name in ("decoder_input_ids", "labels")}}

    def label_item(self, index: int) -> dict[str, Any]:
        return self._cut(super().label_item(index), self.epoch % 2 == 1)

    def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
        return [self._cut(super(TwoVariants, self).label_item(index), cut) for cut in (False, True)[:epochs]]


def cached(windows, model, teacher=None, *, kind="encoder", dtype=torch.float32, folder=None, top_k=8, **process):
    settings = CacheSettings(kind, dtype, top_k, folder=None if folder is None else str(folder), batch_size=2)
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


def test_the_expected_size_is_what_the_cache_takes():
    """The plan of a run announces it before hours of decoding."""
    model, windows = small_whisper(), RandomWindows(3)
    dataset = cached(windows, model, model, kind="both", dtype=torch.bfloat16)
    items = [dataset[index] for index in range(3)]
    states = [item["encoder_states"] for item in items]
    assert {state.dtype for state in states} == {torch.bfloat16}
    assert encoder_cache_bytes(3, model.config, torch.bfloat16) == sum(state.nbytes for state in states) == 3 * 50 * 32
    tokens = sum(label != -100 for item in items for label in item["labels"])
    stored = [dataset._logits.get(dataset._variant_key(item)) for item in items]
    size = sum(array.nbytes for arrays in stored for array in arrays.values())
    assert logits_cache_bytes(tokens, model.config, 8) == size == tokens * (8 * 4 + 2)


def test_a_replaced_row_keeps_label_and_states_together():
    """A row that fails to decode is replaced by the next one, whose audio does not match its label."""
    windows = RandomWindows(4)
    decode = windows.__class__.__getitem__
    windows.__class__ = type(
        "Broken", (RandomWindows,), {"__getitem__": lambda self, i: decode(self, 2 if i == 1 else i)}
    )
    model = small_whisper()
    dataset = cached(windows, model, model, kind="both")
    assert dataset[1]["index"] == 2
    for name in ("encoder_states", "teacher_ids"):
        assert torch.equal(dataset[1][name], dataset[2][name])
    windows.label_item = lambda index: RandomWindows.label_item(windows, 3 if index == 2 else index)
    assert dataset[2]["index"] == 3
    assert torch.equal(dataset[2]["encoder_states"], dataset[3]["encoder_states"])


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_a_cache_gives_the_same_losses_and_runs_no_model_twice(tmp_path, kind):
    """A cache that changes the result, or that is computed and not used."""
    losses, runs = [], []
    for cache in ("none", kind):
        student, teacher = small_pair()
        encoded, decoder_runs = count_encoder_windows(student), []
        teacher.model.decoder.register_forward_hook(lambda *_, calls=decoder_runs: calls.append(True))
        windows = TwoVariants(8)
        settings = {"num_train_epochs": 3, "max_steps": 6, "learning_rate": 1e-2, "teacher_cache": cache}
        settings["teacher_cache_top_k"] = teacher.config.vocab_size
        trainer = trained(tmp_path, student, teacher, train=windows, **settings)
        losses.append(logged(trainer, "loss"))
        runs.append((encoded(), len(decoder_runs), len(windows.decoded)))
        assert sorted(set(windows.epochs)) == [0, 1, 2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Steps of 4 rows, 8 rows: each passes the encoder once to fill the cache, and the teacher in 4 batches for two
    # variants of each row.
    assert runs[0] == (24, 6, 24)
    assert runs[1] == {"encoder": (8, 6, 8), "logits": (32, 4, 32), "both": (8, 4, 8)}[kind]


def test_with_a_small_k_the_logged_kl_is_a_lower_bound(tmp_path):
    """A KL above the exact one would mean that mass is counted twice."""
    logs = []
    for settings in ({}, {"teacher_cache": "both", "teacher_cache_top_k": 4}):
        teacher = small_whisper()
        trainer = small_trainer(tmp_path, small_whisper(seed=1, decoder_layers=2), teacher, **settings)
        trainer.model.model.encoder.load_state_dict(teacher.model.encoder.state_dict())
        trainer._prepare_teacher()
        trainer.train()
        logs.append((logged(trainer, "kl")[0], logged(trainer, "pl")[0]))
    assert 0 < logs[1][0] < logs[0][0]
    assert logs[1][1] == pytest.approx(logs[0][1], rel=1e-4)


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
    assert len(trainer.train_dataset._logits) == 8 * min(epochs, 2)
    tokens = round(8 * expected * TOKENS_PER_WINDOW)
    size = logits_cache_bytes(tokens, teacher.config, trainer.args.teacher_cache_top_k)
    assert expected_cache_bytes(8, teacher.config, torch.float32, trainer.args) == size


def test_the_cache_is_filled_once_for_several_runs_of_one_trainer(tmp_path):
    """Training again would otherwise cache the states of cached states."""
    windows = RandomWindows(8)
    trained(tmp_path, train=windows, teacher_cache="both").train()
    assert len(windows.decoded) == 8


def test_a_folder_is_filled_once_for_all_runs_and_only_with_what_is_new(tmp_path):
    """The second run would pay for the teacher again; a row with a new text would be trained on the old one."""
    student, teacher = small_pair()
    for count, decoded in ((6, 6), (6, 0), (8, 2)):
        windows = TwoVariants(8)
        windows.features = windows.features[:count]
        dataset = cached(windows, student, teacher, kind="both", folder=tmp_path)
        assert len(windows.decoded) == decoded
        in_memory = cached(TwoVariants(count), student, teacher, kind="both")
        in_memory.dataset.features = windows.features
        for index in range(count):
            for name in ("encoder_states", "teacher_ids"):
                assert torch.equal(dataset[index][name], in_memory[index][name]), (count, index, name)


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


def test_a_damaged_shard_is_computed_anew(tmp_path):
    """A flipped bit in the hidden states shows in no loss curve."""
    student, teacher = small_pair()
    before = cached(RandomWindows(4), student, teacher, kind="encoder", folder=tmp_path)[0]["encoder_states"]
    (path,) = tmp_path.glob("states/*/array-states.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    windows = RandomWindows(4)
    again = cached(windows, student, teacher, kind="encoder", folder=tmp_path)
    assert len(windows.decoded) == 4
    assert torch.equal(again[0]["encoder_states"], before)


def test_a_folder_of_another_teacher_or_setting_is_refused(tmp_path):
    """Another teacher's distributions fit every shape."""
    student, teacher = small_pair()
    cached(RandomWindows(2), student, teacher, kind="both", folder=tmp_path)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.model.decoder.layers[0].fc1.weight.mul_(1.01)
    with pytest.raises(StaleRunError, match=r"teacher: '\w+' there, '\w+' asked for"):
        cached(RandomWindows(2), student, other, kind="both", folder=tmp_path)
    with pytest.raises(StaleRunError, match="top_k: 8 there, 4 asked for"):
        cached(RandomWindows(2), student, teacher, kind="both", folder=tmp_path, top_k=4)
    with torch.no_grad():
        student.model.encoder.conv1.weight.mul_(1.01)
    with pytest.raises(StaleRunError, match=r"encoder: '\w+' there, '\w+' asked for"):
        cached(RandomWindows(2), student, teacher, kind="encoder", folder=tmp_path)


def test_a_teacher_with_another_encoder_runs_its_own(tmp_path):
    """Its distributions given the student's hidden states would be noise."""
    losses = []
    for cache in ("none", "both"):
        student, teacher = small_whisper(seed=1, decoder_layers=2), small_whisper()
        settings = {"teacher_cache": cache, "teacher_cache_top_k": teacher.config.vocab_size}
        losses.append(logged(trained(tmp_path, student, teacher, **settings), "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_labels_that_are_not_in_the_cache_are_refused():
    """Another variant's distributions would be learned, position by position, one word off."""
    model, windows = small_whisper(), RandomWindows(2)
    dataset = cached(windows, model, model, kind="logits")
    windows.label_item = lambda index: {"decoder_input_ids": [1, 2], "labels": [2, 3], "index": index}
    with pytest.raises(KeyError, match="row 0: the teacher cache has no logits for these labels"):
        dataset[0]
