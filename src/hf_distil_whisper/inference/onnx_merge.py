"""Surgery on ONNX graphs: two decoders in one file that share their weights, and weights that lie the right way.

Knows graphs, their nodes and weights; nothing of Whisper but that a decoder comes with and without a past.
"""

import hashlib
from typing import TYPE_CHECKING

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
