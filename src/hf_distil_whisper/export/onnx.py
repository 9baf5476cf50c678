"""Export to ONNX graphs for onnxruntime and transformers.js, laid out and named as optimum does."""

import copy
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging as transformers_logging

from hf_distil_whisper.checkpoints import save_generation_config, save_processor
from hf_distil_whisper.export import check_exportable, new_folder
from hf_distil_whisper.inference.ctranslate2 import import_runtime
from hf_distil_whisper.inference.generation import TokenSequence, logits_rules, strip_end
from hf_distil_whisper.inference.prompt import (
    WindowLanguage,
    decoder_prefix,
    likeliest_languages,
    max_generated_tokens,
    resolve_languages,
    window_languages,
)
from hf_distil_whisper.inference.word_timestamps import alignment_heads

logger = transformers_logging.get_logger(__name__)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

ONNX_FOLDER = "onnx"

SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""Precision → suffix of the file names, as transformers.js expects it for its dtypes "fp32", "fp16" and "q8"."""

USE_CACHE_BRANCH = "use_cache_branch"
"""Input of the merged decoder: false for the prefix, true for every further token."""

MAX_FILE_BYTES = 1_900_000_000
"""Bytes of weights that fit into the graph's file (protobuf: 2 GiB); more of them go to `<name>.onnx_data`."""

BLOCK = 128
"""Weights of a column, and numbers of a token, that share a scale in "int8"."""

_OPSET = 18


def export_onnx(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    *,
    quantization: str = "float32",
    word_timestamps: bool | None = None,
) -> Path:
    """Writes a model as ONNX graphs for onnxruntime and transformers.js.

    In `onnx/`: `encoder_model` (input_features → last_hidden_state), `decoder_model` (the prefix: input_ids,
    encoder_hidden_states → logits, present.N.{decoder,encoder}.{key,value}), `decoder_with_past_model` (every further
    token: past_key_values in place of the hidden states) and `decoder_model_merged` (both, selected by
    `use_cache_branch`; transformers.js loads it beside the encoder). Batch size and lengths are dynamic, the window is
    the model's. With word timestamps the decoders also return cross_attentions.N (batch, heads, tokens, frames), which
    `return_timestamps: "word"` of transformers.js needs.

    Args:
        model (`WhisperForConditionalGeneration`): left as it is.
        processor (`WhisperProcessor`): of the model.
        folder (`str` or `Path`): new or empty; written completely or not at all.
        quantization (`str`, *optional*, defaults to `"float32"`): of the weights; "float16" (files `…_fp16.onnx`,
            inputs and outputs stay float32) or "int8" (`…_quantized.onnx`, matrix products of 8 bits with a
            scale for every `BLOCK` weights and activations).
        word_timestamps (`bool`, *optional*): return the cross-attentions; by default if the generation config has
            `alignment_heads`, without which they have no use.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for word timestamps without alignment heads, another quantization, another model's processor, or a
            model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_onnx(student, processor, "student-onnx", quantization="int8")
        # transformers.js: pipeline("automatic-speech-recognition", "student-onnx", {dtype: "q8"})
        ```
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_runtime(package, "onnx")
    check_exportable(model, processor, quantization, tuple(SUFFIXES))
    if word_timestamps:
        alignment_heads(model)
    elif word_timestamps is None:
        with suppress(ValueError):
            word_timestamps = bool(alignment_heads(model))
    if not word_timestamps:
        logger.info("the graphs return no cross-attentions: transformers.js has no word timestamps with this export")
    with new_folder(folder) as part:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(part))
        save_generation_config(model, part)
        save_processor(processor, part)
        (part / ONNX_FOLDER).mkdir()
        traced = _traced(model, bool(word_timestamps))
        graphs = {name: _with_precision(graph, quantization) for name, graph in traced.items()}
        graphs["decoder_model_merged"] = merge_decoders(graphs["decoder_model"], graphs["decoder_with_past_model"])
        for name, graph in graphs.items():
            _save(graph, part / ONNX_FOLDER / f"{name}{SUFFIXES[quantization]}.onnx")
    return Path(folder)


def cache_names(prefix: str, layers: int, parts: tuple[str, ...] = ("decoder", "encoder")) -> list[str]:
    """Names of self-attention ("decoder") and cross-attention ("encoder") keys and values in optimum."""
    kinds = ("key", "value")
    return [f"{prefix}.{layer}.{part}.{kind}" for layer in range(layers) for part in parts for kind in kinds]


class OnnxGenerator:
    """Greedy search by onnxruntime on the CPU over the graphs that [`export_onnx`] wrote, to check them.

    Of `model` only the configs are read.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        folder: str | Path,
        *,
        language: str | None = None,
        max_new_tokens: int | None = None,
    ):
        self._runtime = import_runtime("onnxruntime", "onnx")
        resolve_languages(model, language, "transcribe", 1)
        self._model, self._language = model, language
        self._max_new_tokens = max_new_tokens or max_generated_tokens(model, False)
        names = ("encoder_model", "decoder_model", "decoder_with_past_model")
        self._encoder, self._decoder, self._decoder_with_past = (
            self._session(Path(folder, ONNX_FOLDER), name) for name in names
        )

    def __call__(self, input_features: Tensor) -> list[TokenSequence]:
        """Tokens of log-mel features (batch, mel bins, frames), padded to the window."""
        codes = resolve_languages(self._model, self._language, "transcribe", len(input_features))
        # One window at a time, as `encode` does on a CPU: faster than the batch.
        windows = input_features.float().cpu().numpy()[:, None]
        hidden = np.concatenate([self._encoder.run(None, {"input_features": window})[0] for window in windows])
        decoded_in = window_languages(self._model, codes, lambda: self._detect(hidden))
        prefix = torch.tensor([decoder_prefix(self._model, one.code, "transcribe", False) for one in decoded_in])
        end = self._model.generation_config.eos_token_id
        rows = self._search(hidden, prefix, end)[:, prefix.shape[1] :].tolist()
        return [
            TokenSequence(*strip_end(row, end), language=one.code) for row, one in zip(rows, decoded_in, strict=True)
        ]

    def _search(self, hidden: np.ndarray, prefix: Tensor, end: int) -> Tensor:
        """Greedy search; `hidden` are the encoder's states of shape (batch, frames, width)."""
        rules = logits_rules(self._model, prefix.shape[1], False)
        sequences, ended = prefix, torch.zeros(len(prefix), dtype=torch.bool)
        logits, past = self._run(self._decoder, input_ids=prefix.numpy(), encoder_hidden_states=hidden)
        for _ in range(self._max_new_tokens):
            chosen = rules(sequences, torch.from_numpy(logits[:, -1])).argmax(dim=-1).masked_fill(ended, end)
            sequences = torch.cat([sequences, chosen[:, None]], dim=1)
            ended = ended | (chosen == end)
            if ended.all() or sequences.shape[1] == prefix.shape[1] + self._max_new_tokens:
                break
            # Only the self-attention cache grows; keys and values of the encoder stay as they are.
            logits, grown = self._run(self._decoder_with_past, input_ids=chosen[:, None].numpy(), **past)
            past |= grown
        return sequences

    def _detect(self, hidden: np.ndarray) -> list[WindowLanguage]:
        start = np.full((len(hidden), 1), self._model.generation_config.decoder_start_token_id, dtype=np.int64)
        logits, _ = self._run(self._decoder, input_ids=start, encoder_hidden_states=hidden)
        return likeliest_languages(self._model, torch.from_numpy(logits[:, -1]))

    def _session(self, folder: Path, name: str) -> Any:
        files = [file for file in folder.glob(f"{name}*.onnx") if file.stem.removeprefix(name) in SUFFIXES.values()]
        if len(files) != 1:
            raise FileNotFoundError(
                f"`folder`: {folder} holds {len(files)} files {name}*.onnx, expected the one that export_onnx writes."
            )
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return self._runtime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])

    @staticmethod
    def _run(session: Any, **inputs: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits, and keys and values under the names of the next step's inputs."""
        logits, *present = session.run(None, inputs)
        names = [value.name.replace("present", "past_key_values") for value in session.get_outputs()[1:]]
        cache = {name: array for name, array in zip(names, present, strict=True) if name.startswith("past")}
        return logits, cache


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        return self.encoder(input_features).last_hidden_state


class _Decoder(nn.Module):
    """The decoder on a prefix: logits, keys and values of both attentions of every layer, cross-attentions."""

    def __init__(self, model: WhisperForConditionalGeneration, with_attentions: bool):
        super().__init__()
        self.decoder, self.proj_out, self.with_attentions = model.model.decoder, model.proj_out, with_attentions

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        self_cache, cross_cache = DynamicCache(), DynamicCache()
        logits, attentions = self._run(input_ids, encoder_hidden_states, self_cache, cross_cache)
        layers = zip(self_cache.layers, cross_cache.layers, strict=True)
        parts = (part for first, second in layers for part in (first.keys, first.values, second.keys, second.values))
        return logits, *parts, *attentions

    def _run(
        self, input_ids: Tensor, hidden: Tensor, self_cache: DynamicCache, cross_cache: DynamicCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = self.decoder(
            input_ids=input_ids, encoder_hidden_states=hidden, use_cache=True,
            past_key_values=EncoderDecoderCache(self_cache, cross_cache), output_attentions=self.with_attentions,
        )  # fmt: skip
        return self.proj_out(output.last_hidden_state), output.cross_attentions or ()


class _DecoderWithPast(_Decoder):
    """The decoder on further tokens: logits, the grown self-attention keys and values, cross-attentions.

    `past` holds keys and values of self- and cross-attention layer by layer, each (batch, heads, length, head_dim).
    """

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        self_cache, cross_cache = DynamicCache(), DynamicCache()
        for layer in range(len(past) // 4):
            self_cache.update(*past[4 * layer : 4 * layer + 2], layer)
            cross_cache.update(*past[4 * layer + 2 : 4 * layer + 4], layer)
        # The decoder asks for encoder hidden states but reads the cross-attention cache: any tensor will do.
        logits, attentions = self._run(input_ids, past[2], self_cache, cross_cache)
        return logits, *(part for layer in self_cache.layers for part in (layer.keys, layer.values)), *attentions


def _traced(model: WhisperForConditionalGeneration, with_attentions: bool) -> dict[str, "ModelProto"]:
    """Encoder, decoder and decoder with past as graphs in float32."""
    config, layers = model.config, model.config.decoder_layers
    # A copy with eager attention, which traces to plain matrix products; sdpa adds a guard for fully masked rows.
    source = copy.deepcopy(model).cpu().float().eval()
    source.set_attn_implementation("eager")
    heads = (config.decoder_attention_heads, config.d_model // config.decoder_attention_heads)
    tokens = torch.zeros((2, 3), dtype=torch.long)
    hidden = torch.zeros((2, config.max_source_positions, config.d_model))
    lengths = (5, 5, hidden.shape[1], hidden.shape[1]) * layers
    # One tensor object each: the exporter makes a single input of an object that comes twice.
    past = [torch.zeros((2, heads[0], length, heads[1])) for length in lengths]
    batch, length, frames = "batch_size", "decoder_sequence_length", "encoder_sequence_length"
    self_shape, cross_shape = {0: batch, 2: "past_decoder_sequence_length"}, {0: batch, 2: frames}
    attentions = [f"cross_attentions.{layer}" for layer in range(layers)] if with_attentions else []
    features = torch.zeros((2, config.num_mel_bins, 2 * config.max_source_positions))
    return {
        "encoder_model": _graph(
            _Encoder(source), (features,), ({0: batch},), ["input_features"], ["last_hidden_state"]
        ),
        "decoder_model": _graph(
            _Decoder(source, with_attentions),
            (tokens, hidden),
            ({0: batch, 1: length}, {0: batch, 1: frames}),
            ["input_ids", "encoder_hidden_states"],
            ["logits", *cache_names("present", layers), *attentions],
        ),
        "decoder_with_past_model": _graph(
            _DecoderWithPast(source, with_attentions),
            (tokens, *past),
            ({0: batch, 1: length}, (self_shape, self_shape, cross_shape, cross_shape) * layers),
            ["input_ids", *cache_names("past_key_values", layers)],
            ["logits", *cache_names("present", layers, ("decoder",)), *attentions],
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
    assert program is not None  # None without dynamo only
    graph = program.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph.graph):
        del part.metadata_props[:]  # holds paths and source lines of this machine
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's and quantiser's warnings about optional packages, names and steps."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers  # the quantiser calls `basicConfig` when it is imported
        root.setLevel(level)


def _with_precision(graph: "ModelProto", quantization: str) -> "ModelProto":
    if quantization == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        halved = OnnxModel(convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=True))
        halved.topological_sort()
        return halved.model
    if quantization == "int8":
        import onnx

        _fold_transposed_weights(graph)
        with tempfile.TemporaryDirectory() as work, _quiet():
            from onnxruntime.quantization import QuantType, quantize_dynamic
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            # Embeddings and matrix products with a weight; convolutions and products of activations stay in float32.
            file = Path(work, "int8.onnx")
            quantize_dynamic(graph, file, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
            # `quantize_dynamic` has one scale for all tokens of a product. In a feed-forward layer or two of Whisper's
            # encoder some are 20 to 40 times as large as the others (Sun et al., Massive Activations in Large Language
            # Models, 2024), which leaves those a dozen of 255 steps, and the text is lost.
            quantizer = MatMulNBitsQuantizer(onnx.load(file), bits=8, block_size=BLOCK, accuracy_level=4)
            quantizer.process()
        return quantizer.model.model
    return graph


def _save(graph: "ModelProto", file: Path) -> None:
    import onnx

    if sum(len(weight.raw_data) for weight in graph.graph.initializer) < MAX_FILE_BYTES:
        onnx.save(graph, file)
    else:
        onnx.save(graph, file, save_as_external_data=True, location=f"{file.name}_data")


def merge_decoders(first: "ModelProto", further: "ModelProto") -> "ModelProto":
    """One graph for the decoder without (`first`) and with past (`further`), as optimum merges them.

    With past, the outputs for the cross-attention keys and values are empty: the caller has them already.
    """
    import onnx
    from onnx import TensorProto, helper

    # An `If` has no inputs: its branches read tokens, caches and weights, each stored once, from the graph around it.
    shared: dict[str, TensorProto] = {}
    branches = {name: _branch(model.graph, name, shared) for name, model in (("further", further), ("first", first))}
    _add_empty_outputs(branches["further"], first.graph)
    outputs = [_free_shape(output) for output in first.graph.output]
    switch = helper.make_tensor_value_info(USE_CACHE_BRANCH, TensorProto.BOOL, [1])
    inputs = {value.name: value for graph in (first.graph, further.graph) for value in graph.input}
    choice = helper.make_node(
        "If", [USE_CACHE_BRANCH], [output.name for output in outputs],
        then_branch=branches["further"], else_branch=branches["first"],
    )  # fmt: skip
    graph = helper.make_graph([choice], "decoder", [*inputs.values(), switch], outputs, list(shared.values()))
    opsets = {entry.domain: entry for model in (first, further) for entry in model.opset_import}
    merged = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=first.ir_version)
    if merged.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        onnx.checker.check_model(merged)
    return merged


def _branch(graph: "GraphProto", name: str, shared: dict[str, "TensorProto"]) -> "GraphProto":
    """A subgraph that reads inputs and weights from the outer graph; equal weights are `shared`, by their digest."""
    from onnx import GraphProto, numpy_helper

    branch = GraphProto(name=name)
    renamed = {value.name: value.name for value in graph.input}
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
        if digest not in shared:
            shared[digest] = type(weight)()
            shared[digest].CopyFrom(weight)
            shared[digest].name = f"weight_{len(shared)}"
        renamed[weight.name] = shared[digest].name
    for node in graph.node:
        copied = branch.node.add()
        copied.CopyFrom(node)
        copied.name = f"{name}/{node.name}"
        copied.input[:] = [renamed.get(value, f"{name}/{value}") if value else value for value in node.input]
        copied.output[:] = [f"{name}/{value}" if value else value for value in node.output]
    for value in graph.output:
        copied = branch.output.add()
        copied.CopyFrom(_free_shape(value))
        copied.name = f"{name}/{value.name}"
    return branch


def _add_empty_outputs(branch: "GraphProto", full: "GraphProto") -> None:
    """Adds the outputs that a branch lacks as empty constants: both branches of an `If` need the same outputs."""
    from onnx import helper

    existing = {value.name: value for value in branch.output}
    outputs = []
    for value in full.output:
        name = f"{branch.name}/{value.name}"
        if name not in existing:
            kind = value.type.tensor_type
            sizes = [dim.dim_value or 1 for dim in kind.shape.dim]
            empty = helper.make_tensor(name, kind.elem_type, [0, *sizes[1:]], [])
            branch.node.append(helper.make_node("Constant", [], [name], value=empty))
            existing[name] = helper.make_tensor_value_info(name, kind.elem_type, None)
        outputs.append(existing[name])
    del branch.output[:]
    branch.output.extend(outputs)


def _free_shape(value: "ValueInfoProto") -> "ValueInfoProto":
    """Without named dimensions: the same name means different lengths in the two branches."""
    from onnx import helper

    kind = value.type.tensor_type
    return helper.make_tensor_value_info(value.name, kind.elem_type, [dim.dim_value or None for dim in kind.shape.dim])


def _fold_transposed_weights(model: "ModelProto") -> None:
    """Stores weights the other way round, in place: to the quantiser a transposed weight is no constant."""
    from onnx import numpy_helper

    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Transpose" or node.input[0] not in weights:
            continue
        (order,) = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        transposed = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[0]]).transpose(order))
        graph.initializer.append(numpy_helper.from_array(transposed, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)
