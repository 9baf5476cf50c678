"""A checkpoint for ONNX Runtime and transformers.js: encoder and decoder as graphs, in the layout that both expect.

The graphs are traced from transformers' own modules by torch.onnx; names of files, inputs and outputs are those of
optimum, which does not install beside transformers 5. Precisions are made by onnxruntime's converters. `onnx_merge`
puts the decoder's two graphs into one file, `run_onnx` runs them.
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import save_generation_config, save_processor
from hf_distil_whisper.inference.export import check_exportable, import_runtime, new_folder
from hf_distil_whisper.inference.onnx_merge import fold_transposed_weights, merge_decoders

if TYPE_CHECKING:
    from onnx import ModelProto

ONNX_FOLDER = "onnx"
SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""Precision → how transformers.js' file names end: its dtypes "fp32", "fp16" and "q8"."""
LARGEST_FILE = 1_900_000_000
"""Bytes of weights in a graph's own file: protobuf ends at 2 GiB. Beyond, they lie beside it in `<name>.onnx_data`."""

_OPSET = 18


def export_onnx(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    *,
    quantization: str = "float32",
) -> Path:
    """Writes a model as ONNX graphs for onnxruntime and transformers.js.

    Below `onnx/`: `encoder_model` (input_features → last_hidden_state), `decoder_model` (the prefix: input_ids,
    encoder_hidden_states → logits, present.N.{decoder,encoder}.{key,value}), `decoder_with_past_model` (every further
    token: past_key_values instead of the states) and `decoder_model_merged` (both, chosen by `use_cache_branch`, which
    is what transformers.js loads beside the encoder). Batch and lengths are free, the window is the model's.

    Args:
        model (`WhisperForConditionalGeneration`): left as it is.
        processor (`WhisperProcessor`): of the model.
        folder (`str` or `Path`): new or empty; written whole or not at all.
        quantization (`str`, *optional*, defaults to `"float32"`): of the weights; "float16" (files `…_fp16.onnx`,
            inputs and outputs stay float32) or "int8" (`…_quantized.onnx`, matrix products with 8-bit weights,
            each column with its scale, and activations quantised as they come).

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for another quantization, or a model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_onnx(student, processor, "student-onnx", quantization="int8")
        # transformers.js: pipeline("automatic-speech-recognition", "student-onnx", {dtype: "q8"})
        ```
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_runtime(package, "onnx")
    check_exportable(model, quantization, tuple(SUFFIXES))
    with new_folder(folder) as part:
        _write_configs(model, processor, part)
        (part / ONNX_FOLDER).mkdir()
        graphs = {name: _with_precision(graph, quantization) for name, graph in _traced(model).items()}
        graphs["decoder_model_merged"] = merge_decoders(graphs["decoder_model"], graphs["decoder_with_past_model"])
        for name, graph in graphs.items():
            _save(graph, part / ONNX_FOLDER / f"{name}{SUFFIXES[quantization]}.onnx")
    return Path(folder)


def cache_names(prefix: str, layers: int, parts: tuple[str, ...] = ("decoder", "encoder")) -> list[str]:
    """Names of keys and values, as optimum and transformers.js have them.

    Args:
        prefix (`str`): "past_key_values" or "present".
        layers (`int`): of the decoder.
        parts (`tuple[str, ...]`, *optional*): "decoder" for those of tokens, "encoder" for those of the states.
    """
    return [
        f"{prefix}.{layer}.{part}.{what}" for layer in range(layers) for part in parts for what in ("key", "value")
    ]


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        return self.encoder(input_features).last_hidden_state


class _Decoder(nn.Module):
    """The decoder on a prefix: logits, then keys and values of tokens and states for every layer."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        own, crossed = DynamicCache(), DynamicCache()
        logits = self._logits(input_ids, encoder_hidden_states, own, crossed)
        layers = zip(own.layers, crossed.layers, strict=True)
        return logits, *(part for mine, other in layers for part in (mine.keys, mine.values, other.keys, other.values))

    def _logits(self, input_ids: Tensor, states: Tensor, own: DynamicCache, crossed: DynamicCache) -> Tensor:
        cache = EncoderDecoderCache(own, crossed)
        found = self.decoder(input_ids=input_ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        return self.proj_out(found.last_hidden_state)


class _DecoderWithPast(_Decoder):
    """The decoder on further tokens: logits, then the longer keys and values of tokens."""

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own, crossed = DynamicCache(), DynamicCache()
        for layer in range(len(past) // 4):
            own.update(*past[4 * layer : 4 * layer + 2], layer)
            crossed.update(*past[4 * layer + 2 : 4 * layer + 4], layer)
        # The states are not read again: it matters only that there are some.
        logits = self._logits(input_ids, past[2], own, crossed)
        return logits, *(part for layer in own.layers for part in (layer.keys, layer.values))


def _traced(model: WhisperForConditionalGeneration) -> dict[str, "ModelProto"]:
    """The three graphs in float32."""
    config, layers = model.config, model.config.decoder_layers
    # A copy: eager attention makes a graph of plain products; sdpa's guards against rows without any key cost time.
    source = copy.deepcopy(model).cpu().float().eval()
    source.set_attn_implementation("eager")
    heads = (config.decoder_attention_heads, config.d_model // config.decoder_attention_heads)
    tokens = torch.zeros((2, 3), dtype=torch.long)
    states = torch.zeros((2, config.max_source_positions, config.d_model))
    lengths = (5, 5, states.shape[1], states.shape[1]) * layers
    past = [torch.zeros((2, heads[0], length, heads[1])) for length in lengths]  # one object each, or one input in all
    batch, length, frames = "batch_size", "decoder_sequence_length", "encoder_sequence_length"
    own, crossed = {0: batch, 2: "past_decoder_sequence_length"}, {0: batch, 2: frames}
    features = torch.zeros((2, config.num_mel_bins, 2 * config.max_source_positions))
    return {
        "encoder_model": _graph(
            _Encoder(source), (features,), ({0: batch},), ["input_features"], ["last_hidden_state"]
        ),
        "decoder_model": _graph(
            _Decoder(source),
            (tokens, states),
            ({0: batch, 1: length}, {0: batch, 1: frames}),
            ["input_ids", "encoder_hidden_states"],
            ["logits", *cache_names("present", layers)],
        ),
        "decoder_with_past_model": _graph(
            _DecoderWithPast(source),
            (tokens, *past),
            ({0: batch, 1: length}, (own, own, crossed, crossed) * layers),
            ["input_ids", *cache_names("past_key_values", layers)],
            ["logits", *cache_names("present", layers, ("decoder",))],
        ),
    }


def _graph(
    module: nn.Module, examples: tuple[Tensor, ...], shapes: tuple, inputs: list[str], outputs: list[str]
) -> "ModelProto":
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(), examples, dynamo=True, dynamic_shapes=shapes, input_names=inputs, output_names=outputs,
            opset_version=_OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None  # it is without dynamo
    graph = program.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph.graph):
        del part.metadata_props[:]  # where the exporter was installed, line by line
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser say about packages, names and steps that are of no concern here."""
    loggers = [logging.getLogger("torch.onnx"), logging.getLogger()]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _with_precision(graph: "ModelProto", quantization: str) -> "ModelProto":
    if quantization == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        halved = OnnxModel(convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=True))
        halved.topological_sort()
        return halved.model
    if quantization == "int8":
        return _int8(graph)
    return graph


def _int8(graph: "ModelProto") -> "ModelProto":
    """Matrix products and embeddings in 8 bits; convolutions, few and early, stay as they are."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fold_transposed_weights(graph)
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, "int8.onnx")
        with _quiet():
            quantize_dynamic(
                graph, file, op_types_to_quantize=["MatMul", "Gather"], per_channel=True,
                weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        return onnx.load(file)


def _save(graph: "ModelProto", file: Path) -> None:
    import onnx

    if sum(len(weight.raw_data) for weight in graph.graph.initializer) < LARGEST_FILE:
        onnx.save(graph, file)
    else:
        onnx.save(graph, file, save_as_external_data=True, location=f"{file.name}_data")


def _write_configs(model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(folder))
    save_generation_config(model, folder)
    save_processor(processor, folder)
