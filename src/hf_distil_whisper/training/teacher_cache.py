"""What the frozen encoder and the teacher say of each training row, computed once: in memory, or in shards on a disk.

Knows both models and a dataset of windows. Labels are still drawn anew in every epoch by that dataset: the teacher is
asked about all variants that a row will be drawn as. `cache_store` keeps the arrays, `fused_loss` learns from them.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.data.array_store import (
    CacheStore,
    content_key,
)
from hf_distil_whisper.data.collator import (
    TEACHER_ARRAYS,
    DataCollatorSpeechSeq2SeqWithPadding,
)
from hf_distil_whisper.data.dataset import MANY_EPOCHS
from hf_distil_whisper.inference.encoder import (
    EncoderCache,
    encode,
    encoder_cache_bytes,
)
from hf_distil_whisper.training.args import (
    CACHES_OF_LOGITS,
    CACHES_OF_STATES,
    DistillationTrainingArguments,
)
from hf_distil_whisper.training.fused_loss import top_k_logits

logger = logging.get_logger(__name__)

TOKENS_OF_A_WINDOW = 130
"""Labels of packed windows in the paper's corpora; what a cache of logits will take is told before they are read."""


class CacheSettings(NamedTuple):
    """What is kept, how and where.

    Args:
        kind (`str`): "encoder" for the encoder's states, "logits" for the teacher's likeliest tokens, or "both".
        dtype (`torch.dtype`): of the states, and of the teacher's run over them.
        top_k (`int`): tokens of the vocabulary that are kept of each distribution.
        temperature (`float`): of the KL divergence.
        folder (`str`, *optional*): on a local disk; None for memory.
        int8 (`bool`, *optional*, defaults to `False`): keep the states in 8 bits; see [`EncoderCache`].
        epochs (`int`, *optional*): the teacher is asked about what so many epochs draw, by default about all variants.
    """

    kind: str
    dtype: torch.dtype
    top_k: int
    temperature: float
    folder: str | None
    int8: bool = False
    epochs: int | None = None

    @property
    def states(self) -> bool:
        """Whether encoder states are kept."""
        return self.kind in CACHES_OF_STATES

    @property
    def logits(self) -> bool:
        """Whether the teacher's distributions are kept."""
        return self.kind in CACHES_OF_LOGITS


class TeacherCacheDataset(Dataset):
    """A dataset whose items hold `encoder_states` in place of `input_features`, or `teacher_ids` and so on, or both.

    30 s of states take 1500 x width numbers (0.8 MB at width 128 in float32, 3.8 MB at 1280 in bfloat16); a token's
    distribution takes 256 bytes at k = 64 and up to 65,536 tokens, about 26 KB for a variant of 100 tokens. In memory
    every process keeps its own; in a folder the processes share what each has computed a part of.

    Args:
        dataset (`SpeechDataset`): or any dataset whose items hold `input_features` and the `index` of their row, with
            methods `label_item(index)` for an item without features, `variants(index, epochs)` for what so many epochs
            draw it as, `audio_key(index)` for what its features are made of, and `set_epoch(epoch)`.
        student (`WhisperForConditionalGeneration`): its frozen encoder is run, on its device.
        teacher (`WhisperForConditionalGeneration`, *optional*): needed for logits.
        settings (`CacheSettings`): what is kept.
        collator (`DataCollatorSpeechSeq2SeqWithPadding`): joins the variants of a batch.
        shares_encoder (`bool`): whether the teacher reads the student's encoder states.
        batch_size (`int`): windows per run of the models.
        num_workers (`int`, *optional*, defaults to 0): processes that decode audio meanwhile.
        part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): this process's number, and how many share the
            folder's work. After a barrier each calls `reload`.

    Raises:
        StaleRunError: if the folder holds what other models or settings have computed.
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
        batch_size: int,
        num_workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        self.dataset, self._settings = dataset, settings
        self._states = (
            EncoderCache(student.model.encoder, settings.dtype, settings.folder, settings.int8)
            if settings.states
            else None
        )
        self._logits = _open_logits(teacher, settings) if settings.logits else None
        self._audio_keys = [dataset.audio_key(index) for index in range(len(dataset))]
        number, processes = part if settings.folder is not None else (0, 1)
        own_part = range(number, len(dataset), processes)
        training = student.training
        student.eval()
        if self._states is not None:
            self._fill_states(self._states, student, own_part, batch_size, num_workers)
        if self._logits is not None and teacher is not None:
            # Neighbours of one length: a batch of the teacher's is as long as its longest label.
            rows = [row for row in own_part if not self._is_asked(row, self._logits)]
            rows.sort(key=lambda row: len(dataset.label_item(row)["labels"]))
            if self._states is not None and shares_encoder:
                batches = _kept_states(self._states, [(row, self._audio_keys[row]) for row in rows], batch_size)
            else:
                listener = student if shares_encoder else teacher
                windows = self._windows(rows, "teacher cache", batch_size, num_workers)
                batches = ((encode(listener, features.to(listener.device)), heard) for features, heard in windows)
            for states, heard in batches:
                self._keep_logits(self._logits, teacher, states.to(teacher.device), heard, collator)
            self._logits.flush()
        student.train(training)

    def _windows(self, rows: list[int], name: str, batch_size: int, num_workers: int) -> Iterable:
        """Features of the rows in batches, and the rows that they are of: one that cannot be read is replaced."""
        loader: DataLoader = DataLoader(
            Subset(self.dataset, rows), batch_size, num_workers=num_workers, collate_fn=_stack_windows
        )
        return tqdm(loader, desc=name, unit="batch", disable=not rows)

    def _fill_states(
        self,
        cache: EncoderCache,
        student: WhisperForConditionalGeneration,
        own_part: range,
        batch_size: int,
        num_workers: int,
    ) -> None:
        rows = [row for row in own_part if self._audio_keys[row] not in cache]
        for features, heard in self._windows(rows, "encoder cache", batch_size, num_workers):
            for row, states in zip(heard, encode(student, features.to(student.device)), strict=True):
                cache.add(self._audio_keys[row], states)
        cache.flush()

    def __len__(self) -> int:
        return len(self._audio_keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset.label_item(index) if self._states is not None else self.dataset[index]
        # A row that cannot be used is replaced by another one: label, states and logits must be of one row.
        if self._states is not None:
            while (states := self._states.get(self._audio_keys[item["index"]])) is None:
                item = self.dataset.label_item((item["index"] + 1) % len(self))
            item["encoder_states"] = states
        if self._logits is not None:
            kept = self._logits.get(self._variant_key(item))
            if kept is None:
                raise KeyError(
                    f"row {item['index']}: the teacher was not asked about these labels. The cache holds what "
                    "`variants` gives for the epochs that were planned; expected what the dataset draws to be among "
                    "them. Begin a training of more epochs with a new trainer."
                )
            item |= {name: torch.from_numpy(_readable(kept[name])) for name in TEACHER_ARRAYS}
        return item

    def set_epoch(self, epoch: int) -> None:
        """Draws other labels for the same states: called by the data loader."""
        self.dataset.set_epoch(epoch)

    def reload(self) -> None:
        """Finds what the other processes have computed."""
        for store in (self._states, self._logits):
            if store is not None:
                store.reload()

    def _variant_key(self, item: dict[str, Any]) -> bytes:
        tokens = (np.asarray(item[name], np.int32) for name in ("decoder_input_ids", "labels"))
        return content_key(self._audio_keys[item["index"]], *tokens)

    def _is_asked(self, row: int, store: CacheStore) -> bool:
        return all(
            self._variant_key(variant) in store for variant in self.dataset.variants(row, self._settings.epochs)
        )

    def _keep_logits(
        self,
        store: CacheStore,
        teacher: WhisperForConditionalGeneration,
        states: torch.Tensor,
        rows: list[int],
        collator: DataCollatorSpeechSeq2SeqWithPadding,
    ) -> None:
        variants = [self.dataset.variants(row, self._settings.epochs) for row in rows]
        heard = DynamicCache()  # keys and values of the encoder's states, the same for all variants of a row
        places = list(range(len(rows)))
        for number in range(max(map(len, variants), default=0)):
            kept = [position for position, place in enumerate(places) if number < len(variants[place])]
            if len(kept) < len(places):
                chosen = torch.tensor(kept, device=states.device)
                heard.batch_select_indices(chosen)
                places, states = [places[position] for position in kept], states[chosen]
            items = [variants[place][number] for place in places]
            for item, arrays in zip(items, self._ask(teacher, states, heard, items, collator), strict=True):
                key = self._variant_key(item)
                if key not in store:
                    store.add(key, arrays)

    @torch.no_grad()
    def _ask(
        self,
        teacher: WhisperForConditionalGeneration,
        states: torch.Tensor,
        heard: DynamicCache,
        items: list[dict[str, Any]],
        collator: DataCollatorSpeechSeq2SeqWithPadding,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The teacher's likeliest tokens for each item; fills `heard` where it is empty."""
        batch = collator([{**item, "encoder_states": state} for item, state in zip(items, states, strict=True)])
        labels = batch["labels"].to(states.device)
        head = teacher.proj_out.weight
        hidden = teacher.eval().model.decoder(
            input_ids=batch["decoder_input_ids"].to(states.device),
            encoder_hidden_states=states.to(head.dtype),
            past_key_values=EncoderDecoderCache(DynamicCache(), heard),
            use_cache=True,
        )
        kept = top_k_logits(
            hidden.last_hidden_state, head, labels, k=self._settings.top_k, temperature=self._settings.temperature
        )
        ids = kept.ids.cpu().numpy().astype(np.uint16 if len(head) <= 2**16 else np.int32)
        log_probs, log_tail = (part.half().cpu().numpy() for part in (kept.log_probs, kept.log_tail))
        ends = np.cumsum([sum(label != -100 for label in row) for row in batch["labels"].tolist()])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield dict(zip(TEACHER_ARRAYS, (array[start:end] for array in (ids, log_probs, log_tail)), strict=True))


def expected_cache_bytes(
    kind: str, rows: int, config: WhisperConfig, dtype: torch.dtype, args: DistillationTrainingArguments
) -> int:
    """About what a cache will take, before a row is read.

    Args:
        kind (`str`): "encoder", "logits", "both" or "none".
        rows (`int`): windows to train on.
        config (`WhisperConfig`): of the student.
        dtype (`torch.dtype`): of the states.
        args (`DistillationTrainingArguments`): the top k, and how many variants of a row will be drawn.
    """
    int8 = args.teacher_cache_dtype == "int8"
    size = encoder_cache_bytes(rows, config, dtype, int8) if kind in CACHES_OF_STATES else 0
    if kind in CACHES_OF_LOGITS:
        variants = _expected_variants(planned_epochs(rows, args), args)
        size += logits_cache_bytes(round(rows * variants * TOKENS_OF_A_WINDOW), config, args.teacher_cache_top_k)
    return size


def _expected_variants(epochs: int, args: DistillationTrainingArguments) -> float:
    """What a row that has timestamps and a text before it is drawn as in so many epochs, in the mean."""
    stamps, prompts = args.timestamp_probability, args.condition_on_prev_probability
    shares = (stamp * prompt for stamp in (stamps, 1 - stamps) for prompt in (prompts, 1 - prompts))
    draws = math.inf if epochs > MANY_EPOCHS else epochs
    return sum(1 - (1 - share) ** draws for share in shares)


def affordable_cache(rows: int, config: WhisperConfig, dtype: torch.dtype, args: DistillationTrainingArguments) -> str:
    """The kind of cache that `args` ask for, or what of it their `teacher_cache_budget` allows.

    Args:
        rows (`int`): as for [`expected_cache_bytes`], and so are the others.
        config (`WhisperConfig`): of the student.
        dtype (`torch.dtype`): of the states.
        args (`DistillationTrainingArguments`): what is asked for.
    """
    kind = args.teacher_cache
    for cheaper in (kind, *(("logits",) if kind == "both" else ())):
        size = expected_cache_bytes(cheaper, rows, config, dtype, args)
        if args.teacher_cache_budget is None or size <= args.teacher_cache_budget * 1e9:
            return cheaper
    return "none"


def planned_epochs(rows: int, args: DistillationTrainingArguments) -> int:
    """How many epochs a training begins at most.

    Args:
        rows (`int`): drawn in one of them.
        args (`DistillationTrainingArguments`): its steps or epochs.
    """
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    steps = rows // (args.train_batch_size * args.world_size * args.gradient_accumulation_steps)
    return math.ceil(args.max_steps / max(steps, 1))


def cache_settings(
    rows: int, epoch_rows: int, config: WhisperConfig, dtype: torch.dtype, args: DistillationTrainingArguments
) -> CacheSettings | None:
    """What a training keeps, None for nothing; warns where the budget allows less than it asks for.

    Args:
        rows (`int`): as for [`affordable_cache`], and so are the others.
        epoch_rows (`int`): drawn in an epoch.
        config (`WhisperConfig`): of the student.
        dtype (`torch.dtype`): of the states.
        args (`DistillationTrainingArguments`): what is asked for.
    """
    kind = affordable_cache(rows, config, dtype, args)
    if kind != args.teacher_cache:
        logger.warning(
            f"--teacher_cache {args.teacher_cache} would take more than the {args.teacher_cache_budget:g} GB of "
            f"--teacher_cache_budget: it is {kind} now, and the rest is computed in every epoch."
        )
    if kind == "none":
        return None
    int8 = args.teacher_cache_dtype == "int8"
    return CacheSettings(
        kind, dtype, args.teacher_cache_top_k, args.temperature, args.teacher_cache_dir, int8,
        planned_epochs(epoch_rows, args),
    )  # fmt: skip


def logits_cache_bytes(num_tokens: int, config: WhisperConfig, top_k: int) -> int:
    """Bytes of the teacher's `top_k` likeliest tokens at `num_tokens` positions."""
    return num_tokens * (top_k * (2 + (2 if config.vocab_size <= 2**16 else 4)) + 2)


def _open_logits(teacher: WhisperForConditionalGeneration | None, settings: CacheSettings) -> CacheStore:
    if settings.folder is None:
        return CacheStore()
    store = CacheStore(Path(settings.folder, "logits"), _logits_identity(teacher, settings))
    store.remove_damaged()
    return store


def _logits_identity(teacher: WhisperForConditionalGeneration | None, settings: CacheSettings) -> dict[str, Any]:
    return {
        "teacher": None if teacher is None else weights_fingerprint(teacher),
        "dtype": f"{settings.dtype} of int8 states" if settings.states and settings.int8 else str(settings.dtype),
        "top_k": settings.top_k,
        "temperature": settings.temperature,
    }


def _readable(array: np.ndarray) -> np.ndarray:
    """In a type that torch computes with, and in memory of its own: mapped shards cannot be written to."""
    return array.astype(np.int32) if array.dtype == np.uint16 else np.array(array)


def _kept_states(
    cache: EncoderCache, rows: list[tuple[int, bytes]], batch_size: int
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """The states of rows with their keys in batches, and the rows; those that could not be read have none."""
    rows = [(row, key) for row, key in rows if key in cache]
    for start in tqdm(range(0, len(rows), batch_size), "teacher cache", unit="batch", disable=not rows):
        batch = rows[start : start + batch_size]
        found = [states for _, key in batch if (states := cache.get(key)) is not None]
        yield torch.stack(found), [row for row, _ in batch]


def _stack_windows(items: list[dict[str, Any]]) -> tuple[torch.Tensor, list[int]]:
    return torch.stack([item["input_features"] for item in items]), [int(item["index"]) for item in items]
