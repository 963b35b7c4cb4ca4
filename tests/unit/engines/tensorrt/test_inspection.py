"""What the inspector says of layers, read for types and for quantizers that stand alone."""

import json
from typing import Any

import pytest

from engines.runtimes.tensorrt.inspection import read_layers


def layer(name: str, kind: str, inputs: list[str], nodes: list[str]) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Format/Datatype": described} for described in inputs],
        "Outputs": [],
        "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def text(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": []})


def test_layers_are_counted_by_the_type_of_what_they_multiply() -> None:
    found = read_layers(
        text(
            layer("conv", "CaskConvolution", ["Thirty-two wide channel Int8 format", "FP32"], ["conv", "q"]),
            layer("gemm", "gemm", ["Row major linear FP8 format"], ["gemm"]),
            layer("half", "kgen", ["Row major linear FP16 format"], ["half"]),
            layer("softmax", "kgen", ["Row major linear FP32"], ["softmax"]),
            layer("ids", "kgen", ["Row major Int64"], ["ids"]),
        ),
        {"q"},
    )
    assert found.by_type == {"int8": 1, "fp8": 1, "fp16": 1, "fp32": 1, "other": 1}
    assert found.eight_bit == ("conv", "gemm")
    assert found.alone == ()


def test_a_layer_of_nothing_but_quantizers_stands_alone_and_moves_count_as_nothing() -> None:
    found = read_layers(
        text(
            layer("q+dq", "Scale", ["FP32"], ["q", "dq"]),
            layer("moved", "Reformat", ["FP32"], []),
            layer("reformatted q", "Reformat", ["FP32"], ["q2"]),
        ),
        {"q", "dq", "q2"},
    )
    assert found.by_type == {}
    assert found.alone == ("dq", "q", "q2")


@pytest.mark.parametrize(
    "said", ["", "no JSON", '{"Layers": ["conv", "gemm"]}', '{"Bindings": []}', "[]", "null"]
)
def test_what_says_nothing_of_types_is_no_error(said: str) -> None:
    found = read_layers(said, ())
    assert (found.by_type, found.eight_bit, found.alone) == ({}, (), ())


def test_layers_without_tensors_or_with_odd_ones_are_of_no_known_type() -> None:
    odd = {"Name": "x", "LayerType": "kgen", "Inputs": ["just a name"], "Outputs": []}
    bare = {"Name": "y", "LayerType": "kgen"}
    assert read_layers(text(odd, bare), ()).by_type == {"other": 2}
