"""Cache of encoder hidden states and of the teacher's decoder states, computed once per training example.

In memory, or in shards on a local disk that are shared by runs and processes.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.data.array_store import content_key
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import MANY_EPOCHS
from hf_distil_whisper.data.labels import IGNORE_INDEX
from hf_distil_whisper.inference.encoder import EncoderCache, StateCache, encode, encoder_cache_bytes
from hf_distil_whisper.training.args import CACHES_OF_LOGITS, CACHES_OF_STATES, DistillationTrainingArguments
from hf_distil_whisper.training.losses import paired_layers

TOKENS_PER_WINDOW = 130
"""Mean number of labels of a packed window in the paper's corpora, to estimate the size of a cache of logits."""

TEACHER_DTYPE = torch.float16
"""Of the teacher's decoder states, which are far from the limits of half precision: eight times closer to float32
than bfloat16, whose error moved the KL of an untrained student by 2e-4 of its value."""


@dataclass(frozen=True)
class CacheSettings:
    """What a teacher cache stores, where, and how it is filled.

    Args:
        kind (`str`): "encoder" for the encoder's hidden states, "logits" for the last hidden states of the teacher's
            decoder, from which its head makes the logits again, or "both".
        dtype (`torch.dtype`): of the hidden states, and of the teacher's forward pass on them.
        folder (`str`, *optional*): on a local disk; None for memory.
        epochs (`int`, *optional*): the teacher runs on the label variants that this many epochs draw; by default on
            all variants.
        batch_size (`int`, *optional*, defaults to 8): windows per forward pass of the models.
        num_workers (`int`, *optional*, defaults to 0): processes that decode audio meanwhile.
        with_layers (`bool`, *optional*, defaults to `False`): store the hidden states of all teacher layers that the
            MSE compares with the student's, not only the last.
    """

    kind: str
    dtype: torch.dtype
    folder: str | None = None
    epochs: int | None = None
    batch_size: int = 8
    num_workers: int = 0
    with_layers: bool = False

    @classmethod
    def from_args(cls, args: DistillationTrainingArguments, dtype: torch.dtype, rows_per_epoch: int) -> Self:
        """The settings of a training; `rows_per_epoch` decides how many epochs its `max_steps` are."""
        return cls(
            args.teacher_cache,
            dtype,
            args.teacher_cache_dir,
            epochs=planned_epochs(rows_per_epoch, args),
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            with_layers=args.mse_weight > 0,
        )


class TeacherCacheDataset(Dataset):
    """A dataset whose items hold `encoder_states` instead of `input_features`, `teacher_states`, or both.

    Labels are still drawn anew in every epoch by the wrapped dataset: the teacher runs once on every variant of a row
    that will be drawn. The hidden states of a window take 1500 x width numbers (3.8 MB at width 1280 in bfloat16);
    the teacher's of a token width x 2 bytes, 256 KB for a variant of 100 tokens. With `settings.with_layers` that is
    for each layer of the student: the paired states of the teacher are side by side, (labels, layers x width).

    Args:
        dataset (`SpeechDataset`): or any dataset whose items hold `input_features` and the `index` of their row, with
            the methods `label_item(index)` for an item without features, `variants(index, epochs)` for the label
            variants drawn in that many epochs, `audio_key(index)` for the content of its features, and
            `set_epoch(epoch)`.
        student (`WhisperForConditionalGeneration`): its frozen encoder runs, on its device.
        teacher (`WhisperForConditionalGeneration`, *optional*): needed for logits.
        settings (`CacheSettings`): what is stored, and where.
        collator (`DataCollatorSpeechSeq2SeqWithPadding`): pads the variants of a batch.
        shares_encoder (`bool`): whether the teacher's decoder reads the student's hidden states.
        process_index (`int`, *optional*, defaults to 0): of this process. In memory every process computes all rows;
            a folder is filled by all of them together, each of which calls `reload` after a barrier.
        num_processes (`int`, *optional*, defaults to 1): that fill the folder.

    Raises:
        StaleRunError: if the folder holds what other models or settings computed, or other layers.
    """

    def __init__(
        self,
        dataset: Any,
        student: WhisperForConditionalGeneration,
        teacher: WhisperForConditionalGeneration | None,
        settings: CacheSettings,
        collator: DataCollatorSpeechSeq2SeqWithPadding,
        *,
        shares_encoder: bool,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.dataset, self.settings, self.collator = dataset, settings, collator
        self._states: EncoderCache | None = None
        self._teacher_states: StateCache | None = None
        self._layers: list[int] = []
        if settings.with_layers and teacher is not None:
            self._layers = paired_layers(student.config.decoder_layers, teacher.config.decoder_layers)
        if settings.kind in CACHES_OF_STATES:
            self._states = EncoderCache(student.model.encoder, settings.dtype, settings.folder)
        if settings.kind in CACHES_OF_LOGITS:
            self._teacher_states = _open_teacher_states(teacher, settings, self._layers)
        self._audio_keys = [dataset.audio_key(index) for index in range(len(dataset))]
        rows = range(len(dataset))
        if settings.folder is not None:  # memory is not shared: there each process computes all rows
            rows = rows[process_index::num_processes]
        was_training = student.training
        student.eval()  # dropout would be stored, and learned from in every epoch
        if self._states is not None:
            self._compute_states(self._states, student, rows)
        if self._teacher_states is not None and teacher is not None:
            self._compute_teacher_states(self._teacher_states, student, teacher, rows, shares_encoder)
        student.train(was_training)

    def _compute_states(self, cache: EncoderCache, student: WhisperForConditionalGeneration, rows: range) -> None:
        missing = [row for row in rows if self._audio_keys[row] not in cache]
        for features, indices in self._windows(missing, "encoder cache"):
            for row, states in zip(indices, encode(student, features.to(student.device)), strict=True):
                cache.add(self._audio_keys[row], states)
        cache.flush()

    def _compute_teacher_states(
        self,
        cache: StateCache,
        student: WhisperForConditionalGeneration,
        teacher: WhisperForConditionalGeneration,
        rows: range,
        shares_encoder: bool,
    ) -> None:
        missing = [row for row in rows if any(self._variant_key(item) not in cache for item in self._variants(row))]
        # Rows of similar length share a batch: its padded length is that of the longest label.
        missing.sort(key=lambda row: len(self.dataset.label_item(row)["labels"]))
        batches: Iterable[tuple[Tensor, list[int]]]
        if self._states is not None and shares_encoder:
            batches = self._cached_states(self._states, missing)
        else:
            encoder = student if shares_encoder else teacher
            windows = self._windows(missing, "teacher cache")
            batches = ((encode(encoder, features.to(encoder.device)), indices) for features, indices in windows)
        for states, indices in batches:  # (batch, frames, width)
            self._run_teacher(cache, teacher, states.to(teacher.device), indices)
        cache.flush()

    def _windows(self, rows: list[int], description: str) -> Iterable[tuple[Tensor, list[int]]]:
        """Features (batch, mel bins, frames) and their row indices: an unreadable row is replaced by another one."""
        loader: DataLoader = DataLoader(
            Subset(self.dataset, rows),
            self.settings.batch_size,
            num_workers=self.settings.num_workers,
            collate_fn=_stack_features,
        )
        return tqdm(loader, desc=description, unit="batch", disable=not rows)

    def _cached_states(self, cache: EncoderCache, rows: list[int]) -> Iterator[tuple[Tensor, list[int]]]:
        """Cached hidden states in batches, with their row indices; unreadable rows have none."""
        rows = [row for row in rows if self._audio_keys[row] in cache]
        size = self.settings.batch_size
        for start in tqdm(range(0, len(rows), size), "teacher cache", unit="batch", disable=not rows):
            batch = rows[start : start + size]
            states = [cache.get(self._audio_keys[row]) for row in batch]
            yield torch.stack([state for state in states if state is not None]), batch

    def _run_teacher(
        self, cache: StateCache, teacher: WhisperForConditionalGeneration, states: Tensor, rows: list[int]
    ) -> None:
        """Stores the teacher's decoder states of every label variant of a batch of rows."""
        variants = [self._variants(row) for row in rows]
        # Cross-attention keys and values, (batch, heads, frames, width / heads) in each layer: computed with the first
        # variant of a row, reused for all others.
        cross_kv = DynamicCache()
        active = list(range(len(rows)))
        for number in range(max(map(len, variants), default=0)):
            remaining = [position for position, row in enumerate(active) if number < len(variants[row])]
            if len(remaining) < len(active):
                indices = torch.tensor(remaining, device=states.device)
                cross_kv.batch_select_indices(indices)
                active, states = [active[position] for position in remaining], states[indices]
            items = [variants[row][number] for row in active]
            for item, hidden in zip(items, self._decode(teacher, states, cross_kv, items), strict=True):
                cache.add(self._variant_key(item), hidden)

    @torch.no_grad()
    def _decode(
        self,
        teacher: WhisperForConditionalGeneration,
        states: Tensor,
        cross_kv: DynamicCache,
        items: list[dict[str, Any]],
    ) -> Iterator[Tensor]:
        """The decoder states of each item, (labels that count, layers * width); fills `cross_kv` if it is empty."""
        batch = self.collator([{**item, "encoder_states": state} for item, state in zip(items, states, strict=True)])
        output = teacher.eval().model.decoder(
            input_ids=batch["decoder_input_ids"].to(states.device),
            encoder_hidden_states=states.to(teacher.proj_out.weight.dtype),
            past_key_values=EncoderDecoderCache(DynamicCache(), cross_kv),
            use_cache=True,
            output_hidden_states=bool(self._layers),
        )
        hidden = output.last_hidden_state  # (batch, length, width)
        if self._layers:
            hidden = torch.cat([output.hidden_states[layer] for layer in self._layers], dim=-1)
        for row, labels in zip(hidden, batch["labels"].to(hidden.device), strict=True):
            # Nothing is stored of prompt and padding, which no loss reads.
            labelled = row[labels != IGNORE_INDEX].to(TEACHER_DTYPE)
            if not torch.isfinite(labelled).all():
                raise ValueError(
                    "The teacher's hidden states are NaN or Inf, which must not be cached. Half precision may be too "
                    "narrow for it: set --bf16 instead of --fp16. If that changes nothing, its checkpoint is damaged."
                )
            yield labelled

    def __len__(self) -> int:
        return len(self._audio_keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset.label_item(index) if self._states is not None else self.dataset[index]
        # An unusable row is replaced by another one: label and hidden states must be of the same row.
        if self._states is not None:
            while (states := self._states.get(self._audio_keys[item["index"]])) is None:
                item = self.dataset.label_item((item["index"] + 1) % len(self))
            item["encoder_states"] = states
        if self._teacher_states is not None:
            hidden = self._teacher_states.get(self._variant_key(item))
            if hidden is None:
                raise KeyError(
                    f"row {item['index']}: the teacher cache has no states for these labels. It holds the label "
                    "variants of the planned number of epochs, and expected what the dataset draws to be among them. "
                    "Create a new trainer to train for more epochs."
                )
            item["teacher_states"] = hidden
        return item

    def set_epoch(self, epoch: int) -> None:
        """Draws other labels for the same audio; called by the data loader."""
        self.dataset.set_epoch(epoch)

    def reload(self) -> None:
        """Picks up the rows that the other processes computed."""
        for cache in (self._states, self._teacher_states):
            if cache is not None:
                cache.reload()

    def _variants(self, row: int) -> list[dict[str, Any]]:
        return self.dataset.variants(row, self.settings.epochs)

    def _variant_key(self, item: dict[str, Any]) -> bytes:
        tokens = (np.asarray(item[name], np.int32) for name in ("decoder_input_ids", "labels"))
        return content_key(self._audio_keys[item["index"]], *tokens)


def expected_cache_bytes(
    rows: int, config: WhisperConfig, dtype: torch.dtype, args: DistillationTrainingArguments
) -> int:
    """Estimated size of the cache of a training on `rows` examples, for the `config` of the student."""
    size = encoder_cache_bytes(rows, config, dtype) if args.teacher_cache in CACHES_OF_STATES else 0
    if args.teacher_cache in CACHES_OF_LOGITS:
        variants = _expected_variants(planned_epochs(rows, args), args)
        tokens = round(rows * variants * TOKENS_PER_WINDOW)
        size += teacher_states_bytes(tokens, config, with_layers=args.mse_weight > 0)
    return size


def teacher_states_bytes(num_tokens: int, config: WhisperConfig, *, with_layers: bool = False) -> int:
    """Bytes of the teacher's decoder states of `num_tokens` labels, for the `config` of the student."""
    return num_tokens * config.d_model * TEACHER_DTYPE.itemsize * (config.decoder_layers if with_layers else 1)


def planned_epochs(rows_per_epoch: int, args: DistillationTrainingArguments) -> int:
    """How many epochs a training starts at most, by its `max_steps` or `num_train_epochs`."""
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    steps = rows_per_epoch // (args.train_batch_size * args.world_size * args.gradient_accumulation_steps)
    return math.ceil(args.max_steps / max(steps, 1))


def _expected_variants(epochs: int, args: DistillationTrainingArguments) -> float:
    """Expected number of distinct variants drawn of a row that has timestamps and a previous text."""
    stamps, prompts = args.timestamp_probability, args.condition_on_prev_probability
    shares = (stamp * prompt for stamp in (stamps, 1 - stamps) for prompt in (prompts, 1 - prompts))
    draws = math.inf if epochs > MANY_EPOCHS else epochs
    return sum(1 - (1 - share) ** draws for share in shares)


def _open_teacher_states(
    teacher: WhisperForConditionalGeneration | None, settings: CacheSettings, layers: list[int]
) -> StateCache:
    if settings.folder is None:
        return StateCache(TEACHER_DTYPE)
    fingerprint = None if teacher is None else weights_fingerprint(teacher, settings.dtype)
    identity = {"teacher": fingerprint, "dtype": str(settings.dtype)}
    if not layers:
        return StateCache(TEACHER_DTYPE, Path(settings.folder, "teacher_states"), identity)
    # Beside them, so that trainings with and without MSE can share the encoder's hidden states.
    return StateCache(TEACHER_DTYPE, Path(settings.folder, "teacher_layers"), {**identity, "layers": layers})


def _stack_features(items: list[dict[str, Any]]) -> tuple[Tensor, list[int]]:
    return torch.stack([item["input_features"] for item in items]), [int(item["index"]) for item in items]
