"""What the frozen encoder says of each training row, computed once and kept in memory.

Knows the encoder and a dataset of windows; labels are still drawn anew in every epoch by that dataset.
"""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import WhisperConfig, WhisperForConditionalGeneration


class EncoderStateDataset(Dataset):
    """A dataset whose items hold `encoder_states` in place of `input_features`.

    The states of all rows are computed at once, when the dataset is made, and kept in one tensor: 30 s take 1500 x
    width numbers (0.8 MB at width 128 in float32, 3.8 MB at 1280 in bfloat16). Every process keeps its own.

    Args:
        dataset (`SpeechDataset`): or any dataset whose items hold `input_features` and the `index` of their row, with
            a method `label_item(index)` for an item without features, and `set_epoch(epoch)`.
        model (`WhisperForConditionalGeneration`): its encoder is run, on its device, in eval mode.
        dtype (`torch.dtype`): to keep the states in.
        batch_size (`int`): windows per run of the encoder.
        num_workers (`int`, *optional*, defaults to 0): processes that decode audio meanwhile.
    """

    def __init__(
        self,
        dataset: Any,
        model: WhisperForConditionalGeneration,
        dtype: torch.dtype,
        batch_size: int,
        num_workers: int = 0,
    ):
        self.dataset = dataset
        config = model.config
        self.states = torch.empty(len(dataset), config.max_source_positions, config.d_model, dtype=dtype)
        self.rows: list[int] = []
        encoder = model.model.encoder
        training = encoder.training
        encoder.eval()
        loader: DataLoader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_stack_windows)
        for features, rows in tqdm(loader, desc="encoder states", unit="batch"):
            with torch.no_grad():
                states = encoder(features.to(encoder.device, encoder.dtype)).last_hidden_state
            self.states[len(self.rows) : len(self.rows) + len(rows)] = states.to("cpu", dtype)
            self.rows += rows
        self._places = {row: place for place, row in enumerate(self.rows)}
        encoder.train(training)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A row that cannot be used is replaced by another one, here or when it was decoded: both must be of one row.
        item = self.dataset.label_item(self.rows[index])
        return {**item, "encoder_states": self.states[self._places[item["index"]]]}

    def set_epoch(self, epoch: int) -> None:
        """Draws other labels for the same states: called by the data loader."""
        self.dataset.set_epoch(epoch)


def encoder_cache_bytes(num_rows: int, config: WhisperConfig, dtype: torch.dtype) -> int:
    """Memory that an [`EncoderStateDataset`] of `num_rows` windows will take, in bytes."""
    return num_rows * config.max_source_positions * config.d_model * dtype.itemsize


def _stack_windows(items: list[dict[str, Any]]) -> tuple[torch.Tensor, list[int]]:
    return torch.stack([item["input_features"] for item in items]), [int(item["index"]) for item in items]
