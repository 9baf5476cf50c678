"""The teacher as it trains: a `WhisperForConditionalGeneration`, heads that are discarded, guided attention."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from teacher_alignment import BLANK, clean
from teacher_windows import Window, Word
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from vocabulary import build_processor, generation_config

from hf_distil_whisper import create_student

READING, WRITING = {0: [0, 1]}, {2: [0], 4: [0], 7: [0, 1]}
"""Layer → heads led to the word of the input token, and to the word that is written next. The first and the last layer
are among them, since a two-layer student inherits those."""


def teacher_config(tokenizer) -> WhisperConfig:
    """About 3.7 million weights: 4 encoder and 8 decoder layers of width 128."""
    settings = generation_config(tokenizer)
    return WhisperConfig(
        vocab_size=len(tokenizer), d_model=128, encoder_layers=4, decoder_layers=8, encoder_attention_heads=2,
        decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512, pad_token_id=settings.pad_token_id,
        bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id,
        decoder_start_token_id=settings.decoder_start_token_id, begin_suppress_tokens=None, suppress_tokens=None,
        dropout=0.0,
    )  # fmt: skip


POSITION_SCALE, NEARNESS = 5.0, 1.3
HEADS = "heads.pt"


@torch.no_grad()
def _look_nearby(encoder: nn.Module) -> None:
    """Begins the encoder's attention as a look at the neighbouring frames, wherever in the window these stand.

    The dot product of two sinusoidal positions depends on their distance only and is largest at zero. So each head's
    queries and keys begin as a copy of some frequencies: the first head takes the fastest, the second slower ones. The
    positions themselves are made five times larger than Whisper's: beside what the convolutions learn to put out they
    would vanish, attention would spread over the whole window, and the encoder would spell sounds, not words.
    """
    encoder.embed_positions.weight *= POSITION_SCALE
    half = encoder.config.d_model // 2
    for layer in encoder.layers:
        for head, fastest in enumerate((0, 8)):
            chosen = torch.arange(fastest, fastest + half // 2)
            columns = torch.cat([chosen, half + chosen])
            rows = head * half + torch.arange(half)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight[rows, columns] += NEARNESS


class Teacher(nn.Module):
    """The model, its processor and auxiliary heads for training only: characters, whole `words`, and `shallow`.

    `shallow` is a second decoder, of two layers: trained jointly, the encoder learns hidden states that two layers can
    decode.
    """

    def __init__(self, whisper: WhisperForConditionalGeneration, processor: WhisperProcessor, words: list[str]):
        super().__init__()
        self.whisper, self.processor, self.words = whisper, processor, words
        self.speller = nn.Linear(whisper.config.d_model, BLANK + 1)
        self.reader = nn.Linear(whisper.config.d_model, len(words))
        self.shallow = create_student(whisper, decoder_layers=2).model.decoder
        for name in ("embed_tokens", "embed_positions"):
            setattr(self.shallow, name, getattr(whisper.model.decoder, name))

    @classmethod
    def load_or_create(cls, folder: Path, texts: Iterable[str], words: list[str]) -> Teacher:
        """The checkpoint in `folder`, or a new model whose vocabulary is counted on `texts`.

        `words` are those that the encoder's head learns to know; a checkpoint keeps its own. One that was exported has
        lost its heads and gets new ones.
        """
        if (folder / "model.safetensors").exists():
            whisper = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            processor = WhisperProcessor.from_pretrained(folder)
            if (folder / HEADS).exists():
                saved = torch.load(folder / HEADS, map_location="cpu", weights_only=True)
                teacher = cls(whisper, processor, saved.pop("words"))
                for name, weights in saved.items():
                    getattr(teacher, name).load_state_dict(weights, strict=False)
            else:
                teacher = cls(whisper, processor, words)
        else:
            processor = build_processor(texts)
            teacher = cls(WhisperForConditionalGeneration(teacher_config(processor.tokenizer)), processor, words)
            teacher.whisper.generation_config = generation_config(processor.tokenizer)
            _look_nearby(teacher.whisper.model.encoder)
        teacher.whisper.model.encoder.embed_positions.requires_grad_(False)
        # Two matrix products and a softmax take less time on a CPU than the fused attention, below 30 s.
        implementation = "sdpa" if torch.cuda.is_available() else "eager"
        for part in (teacher.whisper, teacher.shallow):
            part.set_attn_implementation(implementation)
        return teacher

    def save(self, folder: Path) -> None:
        """Model, processor and the encoder's heads."""
        self.whisper.generation_config.alignment_heads = [
            [layer, head] for layer in WRITING for head in WRITING[layer]
        ]
        self.whisper.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        heads = {name: getattr(self, name).state_dict() for name in ("speller", "reader", "shallow")}
        # The embeddings are the model's own.
        heads["shallow"] = {name: value for name, value in heads["shallow"].items() if not name.startswith("embed")}
        torch.save({"words": self.words, **heads}, folder / HEADS)

    def encode(self, features: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """Encoder states (windows, frames / 2, width) of features (windows, 80, frames).

        The features stand `offset` positions of 20 ms behind the start of the 30 s window.
        """
        encoder = self.whisper.model.encoder
        states = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        states = states + encoder.embed_positions.weight[offset : offset + states.shape[1]]
        for layer in encoder.layers:
            states = layer(states, None)
            states = states[0] if isinstance(states, tuple) else states
        return encoder.layer_norm(states)

    def spell(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the characters and the blank, float32."""
        return self.speller(states).float().log_softmax(-1)

    def read(self, states: torch.Tensor, word_ids: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the word that each position lies in.

        Letters describe a sound, words distinguish homophones. A decoder of eight layers learns the difference itself;
        one of two layers needs it from the encoder.

        Args:
            states (`torch.Tensor`): (windows, positions, width).
            word_ids (`torch.Tensor`): (windows, positions), indices of `words`; -100 where there is none.
        """
        known = word_ids >= 0
        return F.cross_entropy(
            self.reader(states[known]).float(), word_ids[known], reduction="sum"
        ) / known.sum().clamp(1)


def words_at_positions(window: Window, words: dict[str, int]) -> torch.Tensor:
    """The index of the word that each position of 20 ms lies in; -100 between words and where a word is unknown."""
    word_ids = torch.full((len(window.frames.low) // 2,), -100)
    for word in (word for segment in window.segments for word in segment):
        word_ids[max(round(word.start / 2), 0) : max(round(word.end / 2), 0)] = words.get(_cleaned(word.text), -100)
    return word_ids


_cleaned = functools.cache(clean)


@functools.cache
def _id(tokenizer, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)


@functools.cache
def _word_ids(tokenizer, word: str) -> list[int]:
    return tokenizer(" " + word, add_special_tokens=False).input_ids


def _time_token(tokenizer, frame: float) -> int:
    return _id(tokenizer, "<|0.00|>") + int(np.clip(round(frame / 2), 0, 1500))


def decoder_rows(tokenizer, window: Window, offset: int, rng: np.random.Generator) -> dict[str, list]:
    """The decoder's side of a window: `inputs`, `targets` (-100: none) and `spans`, where each target is spoken.

    A window shorter than 30 s stands `offset` positions of 20 ms behind their start: its timestamps count from there.

    Half of the rows carry timestamps. A window without speech asks for `<|nospeech|>` after `<|startoftranscript|>`,
    and for the end right after `<|notimestamps|>` or `<|0.00|>`. A sentence that the end of the window cuts is left to
    the next window where there are timestamps: only its start is given (section 2.3 of the Whisper paper).
    """
    ids = functools.partial(_id, tokenizer)
    stamps = rng.random() < 0.5
    body: list[tuple[int, tuple[float, float] | None]] = []
    if window.empty:
        body = [(ids("<|0.00|>") if stamps else ids("<|notimestamps|>"), None)]
    elif stamps:
        body = _timed(tokenizer, window, 2 * offset)
    else:
        body = [(ids("<|notimestamps|>"), None)]
        body += [pair for segment in window.segments for pair in _spelt(tokenizer, segment)]
    body.append((tokenizer.eos_token_id, None))
    prompt = []
    if window.previous:
        previous = [token for word in window.previous.split() for token in _word_ids(tokenizer, word)]
        prompt = [ids("<|startofprev|>"), *previous[-223:]]
    tokens = [*prompt, ids("<|startoftranscript|>"), *(token for token, _ in body)]
    targets = [-100] * len(prompt) + tokens[len(prompt) + 1 :]
    if window.empty:
        targets[len(prompt)] = ids("<|nospeech|>")
    spans = [None] * len(prompt) + [span for _, span in body]
    return {"inputs": tokens[:-1][:448], "targets": targets[:448], "spans": spans[:448]}


def _spelt(tokenizer, segment: list[Word]) -> list[tuple[int, tuple[float, float] | None]]:
    """Tokens of a sentence, each with the time of its word."""
    pairs: list[tuple[int, tuple[float, float] | None]] = []
    for word in segment:
        for token in _word_ids(tokenizer, word.text):
            pairs.append((token, (word.start, word.end)))
    return pairs


def _timed(tokenizer, window: Window, shift: int) -> list[tuple[int, tuple[float, float] | None]]:
    pairs: list[tuple[int, tuple[float, float] | None]] = []
    cut = window.cut_start
    for segment in window.segments:
        start, end = max(segment[0].start, 0), segment[-1].end
        if cut is not None and start >= cut - 2:
            break
        pairs.append((_time_token(tokenizer, start + shift), (start - 8, start + 12)))
        pairs += _spelt(tokenizer, segment)
        pairs.append((_time_token(tokenizer, end + shift), (end - 12, end + 8)))
    if cut is not None:
        pairs.append((_time_token(tokenizer, cut + shift), (cut - 8, cut + 12)))
    return pairs


def collate_rows(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """`inputs` and `targets`, (windows, tokens), and the encoder positions `reading` and `writing` should look at.

    These are the first and the last one of 20 ms, (windows, tokens, 2), of the word of the input token and of the word
    that is written next; (0, 0) where there is no target.
    """
    length = max(len(row["inputs"]) for row in rows)
    found = {
        "inputs": torch.tensor([row["inputs"] + [pad] * (length - len(row["inputs"])) for row in rows]),
        "targets": torch.tensor([row["targets"] + [-100] * (length - len(row["targets"])) for row in rows]),
    }
    for name, shift in (("reading", 1), ("writing", 0)):
        spans = np.zeros((len(rows), length + 1, 2), np.float32)
        for number, row in enumerate(rows):
            for place, span in enumerate(row["spans"], start=shift):
                if span is not None and place < len(row["inputs"]):
                    spans[number, place] = max(span[0] / 2 - 1, 0), span[1] / 2 + 1
        found[name] = torch.from_numpy(spans[:, :length].copy())
    return found


def _pass_by(before: torch.Tensor, after: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return torch.where((torch.rand_like(shares) < shares)[:, None, None], before, after)


class DecoderLoss:
    """Cross-entropy of the decoders and the guided heads' loss, over a batch of rows from `collate_rows`.

    Every row passes by each layer between the first and the last one with a probability of its own, `skip` on average
    (stochastic depth, as large-v2 was trained with): so no layer relies on the one before it, and some rows go through
    the whole decoder as others through hardly any of it.
    """

    def __init__(self, teacher: Teacher, skip: float, shallow: bool):
        self.whisper, self.skip, self.seen = teacher.whisper, skip, {}
        self.shallow = teacher.shallow if shallow else None
        self.shares = torch.zeros(0)
        for layer in self.whisper.model.decoder.layers[1:-1]:
            layer.register_forward_hook(lambda _, inputs, output: _pass_by(inputs[0], output, self.shares))
        for layer in READING | WRITING:
            attention = self.whisper.model.decoder.layers[layer].encoder_attn
            for part in ("q_proj", "k_proj"):
                getattr(attention, part).register_forward_hook(self._keep(layer, part))

    def _keep(self, layer: int, part: str):
        def hook(module, inputs, output):
            self.seen[layer, part] = output

        return hook

    def __call__(self, states: torch.Tensor, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns `ce`, a mean over the targets, `guide`, a mean over heads of those over the words, and `shallow`."""
        self.shares = 2 * self.skip * torch.rand(len(states), device=states.device)
        found = {"ce": self._written(self.whisper.model.decoder, states, rows), "guide": self._guide(rows)}
        if self.shallow is not None:
            found["shallow"] = self._written(self.shallow, states, rows)
        return found

    def _written(self, decoder: nn.Module, states: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = decoder(input_ids=rows["inputs"], encoder_hidden_states=states, use_cache=False)[0]
        kept = rows["targets"] >= 0
        return F.cross_entropy(self.whisper.proj_out(hidden[kept]).float(), rows["targets"][kept])

    def _guide(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        heads = self.whisper.config.decoder_attention_heads
        losses = []
        for name, layers in (("reading", READING), ("writing", WRITING)):
            low, high = rows[name].unbind(-1)
            known = high > 0
            for layer, chosen in layers.items():
                query, key = self.seen[layer, "q_proj"], self.seen[layer, "k_proj"]
                width = query.shape[-1] // heads
                frame = torch.arange(key.shape[1], device=key.device)
                inside = (frame >= low[..., None]) & (frame <= high[..., None])
                for head in chosen:
                    part = slice(head * width, (head + 1) * width)
                    scores = (query[..., part] @ key[..., part].transpose(1, 2)).float() * width**-0.5
                    mass = scores.masked_fill(~inside, -1e9).logsumexp(-1) - scores.logsumexp(-1)
                    losses.append(-(mass * known).sum() / known.sum().clamp(min=1))
        return torch.stack(losses).mean()
