"""What [`export_onnx`] writes, run by onnxruntime: the greedy search of `generation.py` on the exported graphs.

Knows how encoder, decoder and decoder with past work together, as they do in transformers.js and optimum.
"""

import copy
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import (
    save_generation_config,
    save_processor,
)
from hf_distil_whisper.inference.ctranslate2 import (
    check_exportable,
    import_runtime,
    new_folder,
)
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    logits_rules,
    strip_end,
)
from hf_distil_whisper.inference.prompt import (
    decoder_prefix,
    language_tokens,
    max_generated_tokens,
    resolve_languages,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

SWITCH = "use_cache_branch"
"""Input of a merged decoder: false for the prefix, true for every further token."""


def merge_decoders(first: "ModelProto", further: "ModelProto") -> "ModelProto":
    """One graph that runs a decoder without or with a past, as optimum merges them and transformers.js loads them.

    With a past, the outputs for the encoder's keys and values are empty: whoever has them passes them on.

    Args:
        first (`ModelProto`): on a prefix: token ids and states to logits and all keys and values.
        further (`ModelProto`): on further tokens: ids and all past keys and values to logits and those of tokens.

    Returns:
        `ModelProto`: with the inputs of both and `use_cache_branch`; the two given are left as they are.
    """
    import onnx
    from onnx import TensorProto, helper

    shared: dict[str, TensorProto] = {}
    branches = {name: _branch(model.graph, name, shared) for name, model in (("further", further), ("first", first))}
    _add_empty_outputs(branches["further"], first.graph)
    outputs = [_free_shape(output) for output in first.graph.output]
    switch = helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, [1])
    inputs = {value.name: value for graph in (first.graph, further.graph) for value in graph.input}
    choice = helper.make_node(
        "If", [SWITCH], [output.name for output in outputs],
        then_branch=branches["further"], else_branch=branches["first"],
    )  # fmt: skip
    graph = helper.make_graph([choice], "decoder", [*inputs.values(), switch], outputs, list(shared.values()))
    opsets = {entry.domain: entry for model in (first, further) for entry in model.opset_import}
    merged = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=first.ir_version)
    if merged.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        onnx.checker.check_model(merged)
    return merged


def _branch(graph: "GraphProto", name: str, shared: dict[str, "TensorProto"]) -> "GraphProto":
    """A graph without inputs and weights: it finds them around it under the same names, weights by their content."""
    from onnx import GraphProto

    branch = GraphProto(name=name)
    renamed = {value.name: value.name for value in graph.input}
    for weight in graph.initializer:
        key = _content(weight)
        if key not in shared:
            shared[key] = type(weight)()
            shared[key].CopyFrom(weight)
            shared[key].name = f"weight_{len(shared)}"
        renamed[weight.name] = shared[key].name
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


def _add_empty_outputs(branch: "GraphProto", whole: "GraphProto") -> None:
    """Outputs that a branch has not, with no row in them, so that both branches have the same in the same order."""
    from onnx import helper

    own = {value.name: value for value in branch.output}
    outputs = []
    for value in whole.output:
        name = f"{branch.name}/{value.name}"
        if name not in own:
            kind = value.type.tensor_type
            sizes = [dim.dim_value or 1 for dim in kind.shape.dim]
            empty = helper.make_tensor(name, kind.elem_type, [0, *sizes[1:]], [])
            branch.node.append(helper.make_node("Constant", [], [name], value=empty))
            own[name] = helper.make_tensor_value_info(name, kind.elem_type, None)
        outputs.append(own[name])
    del branch.output[:]
    branch.output.extend(outputs)


def _free_shape(value: "ValueInfoProto") -> "ValueInfoProto":
    """With the fixed sizes only: a length of one branch is another in the other, and what has a name shares memory."""
    from onnx import helper

    kind = value.type.tensor_type
    return helper.make_tensor_value_info(value.name, kind.elem_type, [dim.dim_value or None for dim in kind.shape.dim])


def _content(weight: "TensorProto") -> str:
    from onnx import numpy_helper

    array = numpy_helper.to_array(weight)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def fold_transposed_weights(model: "ModelProto") -> None:
    """Turns weights that a graph transposes into weights that lie the other way, in place.

    Only those are quantised: a product with a transposed weight has no constant to the quantiser.

    Args:
        model (`ModelProto`): changed.
    """
    import numpy as np
    from onnx import numpy_helper

    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Transpose" or node.input[0] not in weights:
            continue
        (order,) = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        turned = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[0]]).transpose(order))
        graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for weight in [weight for weight in graph.initializer if weight.name not in read]:
        graph.initializer.remove(weight)


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


class OnnxGenerator:
    """Transcribes batches of windows as [`generate_tokens`] does, by onnxruntime on the CPU.

    Args:
        model (`WhisperForConditionalGeneration`): what was exported; only its configs are read.
        folder (`str` or `Path`): written by [`export_onnx`].
        max_new_tokens (`int`, *optional*, defaults to what [`max_generated_tokens`] allows): bound on the tokens.
        language (`str`, *optional*): see [`resolve_language`]; None detects it.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        merged (`bool`, *optional*, defaults to `False`): run `decoder_model_merged`, as transformers.js does.

    Raises:
        ImportError: without the extra `onnx`.
        FileNotFoundError: if there are no exported graphs.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        folder: str | Path,
        *,
        max_new_tokens: int | None = None,
        language: str | None = None,
        task: str = "transcribe",
        merged: bool = False,
    ):
        runtime = import_runtime("onnxruntime", "onnx")
        self._model, self._language, self._task, self._merged = model, language, task, merged
        resolve_languages(model, language, task, 1)
        self._new_tokens = max_new_tokens or max_generated_tokens(model, False)
        names = ["decoder_model_merged"] if merged else ["decoder_model", "decoder_with_past_model"]
        graphs = [_session(runtime, Path(folder, ONNX_FOLDER), name) for name in ["encoder_model", *names]]
        self._encoder, self._first, self._further = graphs[0], graphs[1], graphs[-1]

    def __call__(self, input_features: Tensor, *, language: Sequence[str | None] | None = None) -> list[TokenSequence]:
        """Tokens of a batch of windows.

        Args:
            input_features (`Tensor`): log-mel of shape (batch, mel bins, frames), padded to the window.
            language (`Sequence[str | None]`, *optional*): of each window, in place of the one for all.
        """
        told = self._language if language is None else language
        codes = resolve_languages(self._model, told, self._task, len(input_features))
        # One window after the other, as `encode` does it on a CPU: sooner than all at once.
        windows = input_features.float().cpu().numpy()[:, None]
        states = np.concatenate([self._encoder.run(None, {"input_features": window})[0] for window in windows])
        languages = language_tokens(self._model, codes, lambda: self._heard(states))
        prefix = torch.tensor([decoder_prefix(self._model, token, self._task, False) for token in languages])
        end = self._model.generation_config.eos_token_id
        rows = self._search(states, prefix, end)[:, prefix.shape[1] :].tolist()
        return [TokenSequence(*strip_end(row, end)) for row in rows]

    def _search(self, states: np.ndarray, prefix: Tensor, end: int) -> Tensor:
        rules = logits_rules(self._model, prefix.shape[1], False)
        sequences, ended = prefix, torch.zeros(len(prefix), dtype=torch.bool)
        logits, past = self._start(states, prefix.numpy())
        for step in range(self._new_tokens):
            if step:
                logits = self._go_on(sequences[:, -1:].numpy(), states, past)
            chosen = rules(sequences, torch.from_numpy(logits[:, -1])).argmax(dim=-1).masked_fill(ended, end)
            sequences = torch.cat([sequences, chosen[:, None]], dim=1)
            ended = ended | (chosen == end)
            if ended.all():
                break
        return sequences

    def _start(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits of the prefix, and keys and values under the names of the next step's inputs."""
        inputs = {"input_ids": tokens, "encoder_hidden_states": states}
        if self._merged:
            config = self._model.config
            heads = config.decoder_attention_heads
            empty = np.zeros((len(tokens), heads, 0, config.d_model // heads), dtype=np.float32)
            inputs |= {name: empty for name in _names(self._first.get_inputs()) if name.startswith("past_key_values")}
            inputs[SWITCH] = np.array([False])
        logits, *present = self._first.run(None, inputs)
        names = [name.replace("present", "past_key_values") for name in _names(self._first.get_outputs())[1:]]
        return logits, dict(zip(names, present, strict=True))

    def _go_on(self, tokens: np.ndarray, states: np.ndarray, past: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {"input_ids": tokens, **past}
        if self._merged:
            inputs |= {"encoder_hidden_states": states, SWITCH: np.array([True])}
        wanted = [name for name in _names(self._further.get_outputs()) if ".encoder." not in name]
        logits, *present = self._further.run(wanted, inputs)
        names = [name.replace("present", "past_key_values") for name in wanted[1:]]
        past |= dict(zip(names, present, strict=True))
        return logits

    def _heard(self, states: np.ndarray) -> list[int]:
        """The likeliest language of each window behind `<|startoftranscript|>`."""
        settings = self._model.generation_config
        start = np.full((len(states), 1), settings.decoder_start_token_id, dtype=np.int64)
        languages = np.array(list(settings.lang_to_id.values()))
        logits, _ = self._start(states, start)
        return languages[logits[:, -1, languages].argmax(axis=-1)].tolist()


def _session(runtime: Any, folder: Path, name: str) -> Any:
    found = sorted(file for file in folder.glob(f"{name}*.onnx") if file.stem.removeprefix(name) in SUFFIXES.values())
    if len(found) != 1:
        raise FileNotFoundError(
            f"`folder`: {folder} holds {len(found)} files {name}*.onnx, expected one of export_onnx."
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(found[0]), options, providers=["CPUExecutionProvider"])


def _names(values: Sequence[Any]) -> list[str]:
    return [value.name for value in values]
