"""Model-local functions, put in the place of their calls.

Exporters write modules as functions; quantization looks at plain nodes. Functions that call each other can
expand without bound, so the nodes are counted before anything is expanded.
"""

import graphlib
from collections.abc import Iterable

import onnx
import onnx.inliner

from engines.errors import InvalidModelError, UnsupportedModelError
from engines.model.external_weights import is_large, skeleton, with_weights
from engines.model.naming import quote

_Key = tuple[str, str, str]


def inline_functions(proto: onnx.ModelProto, *, max_nodes: int) -> None:
    """Replaces calls of model-local functions by their bodies, in place, until no function is left.

    Raises:
        InvalidModelError: functions call each other in a circle.
        UnsupportedModelError: more than `max_nodes` nodes would result, or a function cannot be inlined.
    """
    if not proto.functions:
        return
    _check_expansion(proto, max_nodes)
    if is_large(proto):
        light = skeleton(proto)
        inline_functions(light, max_nodes=max_nodes)
        proto.CopyFrom(with_weights(light, proto))
        return
    try:
        inlined = onnx.inliner.inline_local_functions(proto, convert_version=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(
            f"the model's {len(proto.functions)} local functions cannot be inlined ({str(error)[:200]!r}):"
            " export the model with its functions inlined."
        ) from error
    if inlined.functions:
        left = inlined.functions[0]
        raise UnsupportedModelError(
            f"the local function {quote(f'{left.domain}.{left.name}')} cannot be inlined: export the model"
            " with its functions inlined and with one opset throughout."
        )
    proto.CopyFrom(inlined)


def _call_key(node: onnx.NodeProto) -> _Key:
    """What a node calls: (domain, operator, overload)."""
    return (node.domain, node.op_type, node.overload)


def _check_expansion(proto: onnx.ModelProto, max_nodes: int) -> None:
    bodies = {(f.domain, f.name, f.overload): f.node for f in proto.functions}
    sizes: dict[_Key, int] = {}
    for key in _callees_first(bodies):
        sizes[key] = sum(sizes.get(_call_key(node), 1) for node in bodies[key])
    total = sum(sizes.get(_call_key(node), 1) for node in proto.graph.node)
    if total > max_nodes:
        raise UnsupportedModelError(
            f"the model has {total} nodes once its functions are inlined; octet takes at most {max_nodes}."
        )


def _callees_first(bodies: dict[_Key, Iterable[onnx.NodeProto]]) -> list[_Key]:
    calls = {key: {_call_key(node) for node in nodes} & bodies.keys() for key, nodes in bodies.items()}
    try:
        return list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        domain, name, _ = error.args[1][0]
        raise InvalidModelError(
            f"the local function {quote(f'{domain}.{name}')} calls itself, directly or through others: ONNX"
            " functions cannot recurse."
        ) from error
