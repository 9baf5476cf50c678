"""Table 20: decoder layers, latency and word error rate of a model that leaves its decoder early.

    OMP_NUM_THREADS=1 python benchmarks/paper/early_exit.py --model_name_or_path runs/quickstart/teacher \
        --dataset.path examples/quickstart/corpus --dataset.split test_kathleen

A layer whose two likeliest tokens are further apart than the threshold decides (CALM, Schuster et al. 2022; appendix
D.1). Batch size 1, greedy, without timestamps. Cost: about ten minutes on one CPU core.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.masking_utils import create_causal_mask

from hf_distil_whisper import evaluate_model, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, setting, source_setting
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import (
    decoder_prefix,
    detect_languages,
    max_generated_tokens,
    resolve_language,
    timestamp_begin,
    window_languages,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))
from inputs import ScoringArguments, check_flags, list_setting, load_scored_models, load_sets, ready
from tables import machine, save_json, table

FULL_DEPTH = 1.0
"""A threshold that no difference of two probabilities exceeds."""


class EarlyExit:
    """Greedy search for one window that takes the token of the first decoder layer that is sure enough."""

    def __init__(self, model: WhisperForConditionalGeneration, threshold: float, language: str | None = None):
        self.model, self.threshold, self.language = model, threshold, language
        self.depths: list[int] = []
        config, size = model.generation_config, model.config.vocab_size
        self.forbidden = torch.zeros(size, device=model.device)
        self.forbidden[[*(config.suppress_tokens or []), *range(timestamp_begin(model), size)]] = -torch.inf
        self.forbidden_first = self.forbidden.clone()
        self.forbidden_first[config.begin_suppress_tokens or []] = -torch.inf

    @torch.inference_mode()
    def __call__(self, input_features: Tensor, **_: Any) -> list[TokenSequence]:
        """Transcribes a batch of one window; [`evaluate_model`] takes it as `generate`."""
        model, end = self.model, self.model.generation_config.eos_token_id
        states = encode(model, input_features)
        codes = [resolve_language(model, self.language)]
        (language,) = window_languages(model, codes, partial(detect_languages, model, states))
        inputs = torch.tensor([decoder_prefix(model, language.code, "transcribe", False)], device=model.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        tokens: list[int] = []
        for _ in range(max_generated_tokens(model, return_timestamps=False)):
            scores = self._scores(inputs, states, cache, self.forbidden if tokens else self.forbidden_first)
            tokens.append(int(scores.argmax()))
            if tokens[-1] == end:
                return [TokenSequence(tokens[:-1], truncated=False)]
            inputs = torch.tensor([tokens[-1:]], device=model.device)
        return [TokenSequence(tokens, truncated=True)]

    def _scores(self, inputs: Tensor, states: Tensor, cache: EncoderDecoderCache, forbidden: Tensor) -> Tensor:
        """Scores (vocabulary,) of the first layer that is sure enough."""
        decoder, layers = self.model.get_decoder(), self.model.get_decoder().layers
        hidden = decoder.embed_tokens(inputs)
        hidden = hidden + decoder.embed_positions(inputs, past_key_values_length=cache.get_seq_length())
        mask = None  # a single token attends to everything before it
        if inputs.shape[1] > 1:
            config = self.model.config
            mask = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=cache)
        for depth, layer in enumerate(layers, 1):
            hidden = layer(hidden, mask, states, past_key_values=cache, use_cache=True)
            if depth < len(layers) and self.threshold >= FULL_DEPTH:
                continue
            # Equation 8: the final norm and the head on the state of any layer. Only tokens that may be chosen count.
            scores = self.model.proj_out(decoder.layer_norm(hidden[0, -1])).float() + forbidden
            if depth == len(layers) or confidence(scores) > self.threshold:
                break
        # Later tokens that reach the skipped layers attend to this position there: its state stands in for theirs.
        for layer in layers[depth:]:
            attention = layer.self_attn
            inner = layer.self_attn_layer_norm(hidden)
            shape = (*inner.shape[:2], attention.num_heads, attention.head_dim)
            keys, values = (
                project(inner).view(shape).transpose(1, 2).contiguous()
                for project in (attention.k_proj, attention.v_proj)
            )
            cache.self_attention_cache.update(keys, values, attention.layer_idx)
        self.depths.append(depth)
        return scores


def confidence(scores: Tensor) -> float:
    """Distance of the probabilities of the two likeliest tokens, 0 (undecided) to 1, from scores (vocabulary,)."""
    first, second = scores.softmax(dim=-1).topk(2).values.tolist()
    return first - second


@dataclass(frozen=True)
class EarlyExitRow:
    """One threshold."""

    threshold: float  # of the confidence
    depths: list[int]  # decoder layers run for every token
    full_depth_seconds: float  # of the same recordings with all layers
    result: EvaluationResult  # errors, rows and seconds

    @property
    def mean_layers(self) -> float:
        """Decoder layers per token."""
        return sum(self.depths) / len(self.depths)

    @property
    def relative_latency(self) -> float:
        """How many times faster than with all layers."""
        return self.full_depth_seconds / self.result.seconds


def early_exit_table(rows: Sequence[EarlyExitRow]) -> str:
    """Markdown in the layout of Table 20; the WER is "-" where no row has a reference.

    The tokens stand beside them: a text that ends sooner is faster too.
    """
    lines = []
    for row in rows:
        wer = f"{100 * row.result.wer:.1f}" if row.result.errors.num_words else "-"
        figures = [f"{row.threshold:.4f}", f"{row.mean_layers:.1f}", f"{row.relative_latency:.2f}"]
        lines.append([*figures, wer, str(len(row.depths))])
    return table(["Threshold", "Avg. Dec Layers", "Rel. Latency", "WER / %", "tokens"], lines, left=0)


@dataclass
class EarlyExitArguments(ScoringArguments):
    """Flags of the script; the defaults are those of Table 20."""

    model_name_or_path: str | None = setting(None, "Model to leave early, usually a teacher: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Recordings up to 30 s with text.")
    samples: int = setting(100, "Rows.")
    thresholds: list[float] = list_setting(
        [1.0, 0.9875, 0.975, 0.9625, 0.95, 0.9375, 0.925], "Of the confidence, 0 to 1."
    )
    output_dir: str | None = setting(None, "Folder for results.json.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(EarlyExitArguments, argv=argv, command="benchmarks/paper/early_exit.py")
    check_flags(args, "model_name_or_path", "dataset", "thresholds", whole=["samples"], folder=args.output_dir)
    if not all(0 <= threshold <= 1 for threshold in args.thresholds):
        raise InputError(f"--thresholds: expected numbers from 0 to 1, got {args.thresholds}")
    models = load_scored_models({"model": args.model_name_or_path}, args)
    sets = load_sets({"dataset": as_source(args.dataset, "dataset", "test")}, ("text",))
    sets["dataset"] = sets["dataset"].select(range(min(args.samples, len(sets["dataset"]))))
    if not ready(models, sets, args.dry_run):
        return
    model, processor = models["model"]
    # One window of silence, so that the first threshold does not pay for the set-up of the runtime.
    EarlyExit(model, FULL_DEPTH, args.language)(window_features(model, processor, [np.zeros(1600, dtype=np.float32)]))
    results = {}
    for threshold in dict.fromkeys([FULL_DEPTH, *args.thresholds]):
        search = EarlyExit(model, threshold, args.language)
        result = evaluate_model(model, sets["dataset"], processor, generate=search, batch_size=1, **args.scoring)
        results[threshold] = search.depths, result
    full = results[FULL_DEPTH][1].seconds
    rows = [
        EarlyExitRow(threshold, results[threshold][0], full, results[threshold][1]) for threshold in args.thresholds
    ]
    errors = rows[0].result.errors
    print(
        f"{early_exit_table(rows)}\n\n{len(rows[0].result.rows)} recordings, {errors.num_words} words, {args.dtype}, "
        f"{model.config.decoder_layers} decoder layers, {machine()}"
    )
    if args.output_dir is not None:
        content = [
            {
                "threshold": row.threshold,
                "mean_layers": row.mean_layers,
                "num_layers": sum(row.depths),
                "num_tokens": len(row.depths),
                "seconds": row.result.seconds,
                "full_depth_seconds": full,
                "relative_latency": row.relative_latency,
                "wer": row.result.wer if row.result.errors.num_words else None,
                **asdict(row.result.errors),
                "unreadable_rows": row.result.unreadable_rows,
            }
            for row in rows
        ]
        facts = {"machine": machine(), "dtype": args.dtype, "thresholds": content}
        save_json(Path(args.output_dir, "results.json"), facts)


if __name__ == "__main__":
    sys.exit(run_script(main))
