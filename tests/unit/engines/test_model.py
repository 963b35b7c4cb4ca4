import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.errors import EngineError, InvalidModelError, UnsupportedModelError
from engines.model.model import from_proto, load_model, save_model
from tests.unit.engines import onnx_graphs as graphs

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def tensor_info(name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def relu_model(
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[TensorProto] | None = None,
    opset: int = 17,
    **extra: Any,
) -> onnx.ModelProto:
    """x -> Relu -> y, [n, 4], unless told otherwise."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")] if nodes is None else nodes,
        "test",
        [tensor_info("x", "n", 4)] if inputs is None else inputs,
        [tensor_info("y", "n", 4)] if outputs is None else outputs,
        initializers or [],
    )
    imports = extra.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **extra)


def refusal(proto: onnx.ModelProto | bytes, kind: type[EngineError] = UnsupportedModelError) -> str:
    """The sentence with which the model is refused."""
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    with pytest.raises(kind) as caught:
        load_model(content)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "."))
    return message


def external(tensor: TensorProto) -> TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    tensor.ClearField("raw_data")
    return tensor


def weight(name: str = "w", *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape or (4,), np.float32), name)


def if_node(branch: onnx.GraphProto, name: str = "choice") -> onnx.NodeProto:
    return helper.make_node("If", ["c"], ["y"], name=name, then_branch=branch, else_branch=branch)


def branch_graph(
    *, initializers: list[TensorProto] | None = None, inner: onnx.NodeProto | None = None
) -> onnx.GraphProto:
    node = inner or helper.make_node("Identity", ["x"], ["y"])
    return helper.make_graph([node], "branch", [], [tensor_info("y", "n", 4)], initializers or [])


class TestReading:
    @pytest.mark.parametrize("build", graphs.BUILDERS)
    @pytest.mark.parametrize("opset", [11, 13, 17, NEWEST_OPSET])
    def test_takes_networks_of_every_opset_in_range(
        self, build: Callable[..., onnx.ModelProto], opset: int
    ) -> None:
        model = load_model(build(opset=opset).SerializeToString())
        assert model.opset == opset
        assert [spec.name for spec in model.outputs] == ["scores"]
        assert model.outputs[0].shape == (None, 4)

    def test_reads_the_same_from_a_path_as_from_bytes(self, tmp_path: Path) -> None:
        proto = graphs.conv_net()
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        assert load_model(path) == load_model(proto.SerializeToString())

    def test_saves_what_it_loads(self, tmp_path: Path) -> None:
        model = load_model(graphs.mlp().SerializeToString())
        save_model(model, tmp_path / "saved.onnx")
        assert load_model(tmp_path / "saved.onnx") == model

    def test_types_inputs_and_outputs_in_order(self) -> None:
        nodes = [helper.make_node("Identity", ["b"], ["y1"]), helper.make_node("Identity", ["a"], ["y0"])]
        model = load_model(
            relu_model(
                nodes=nodes,
                inputs=[tensor_info("b", 2, "t", dtype=TensorProto.INT64), tensor_info("a", 2, None, 3)],
                outputs=[tensor_info("y0", 2, None, 3), tensor_info("y1", 2, "t", dtype=TensorProto.INT64)],
            ).SerializeToString()
        )
        assert [spec.describe() for spec in model.inputs] == ["b int64 [2, ?]", "a float32 [2, ?, 3]"]
        assert [spec.describe() for spec in model.outputs] == ["y0 float32 [2, ?, 3]", "y1 int64 [2, ?]"]
        assert model.fixed_rows == 2

    def test_batch_is_free_where_the_model_leaves_it_free(self) -> None:
        assert load_model(graphs.mlp().SerializeToString()).fixed_rows is None
        assert load_model(graphs.mlp(rows=8).SerializeToString()).fixed_rows == 8

    @pytest.mark.parametrize(
        ("onnx_type", "dtype"),
        [
            (TensorProto.FLOAT, np.float32),
            (TensorProto.DOUBLE, np.float64),
            (TensorProto.FLOAT16, np.float16),
            (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
            (TensorProto.BOOL, np.bool_),
            (TensorProto.INT8, np.int8),
            (TensorProto.INT16, np.int16),
            (TensorProto.INT32, np.int32),
            (TensorProto.INT64, np.int64),
            (TensorProto.UINT8, np.uint8),
            (TensorProto.UINT16, np.uint16),
            (TensorProto.UINT32, np.uint32),
            (TensorProto.UINT64, np.uint64),
        ],
    )
    def test_maps_element_types_to_numpy(self, onnx_type: int, dtype: type) -> None:
        model = load_model(
            relu_model(
                nodes=[helper.make_node("Identity", ["x"], ["y"])],
                inputs=[tensor_info("x", "n", 2, dtype=onnx_type)],
                outputs=[tensor_info("y", "n", 2, dtype=onnx_type)],
            ).SerializeToString()
        )
        assert model.inputs[0].dtype == np.dtype(dtype)
        assert model.outputs[0].dtype == np.dtype(dtype)

    def test_initializers_listed_as_inputs_are_no_inputs(self) -> None:
        proto = relu_model(
            nodes=[helper.make_node("Add", ["x", "w"], ["y"])],
            inputs=[tensor_info("x", "n", 4), tensor_info("w", 4)],
            initializers=[weight()],
        )
        assert [spec.name for spec in load_model(proto.SerializeToString()).inputs] == ["x"]

    def test_negative_dimensions_are_free(self) -> None:
        proto = relu_model(inputs=[tensor_info("x", -1, 4)], outputs=[tensor_info("y", -1, 4)])
        assert load_model(proto.SerializeToString()).inputs[0].shape == (None, 4)

    def test_input_names_may_be_anything(self) -> None:
        name = "serving_default/input:0 é"
        proto = relu_model(
            nodes=[helper.make_node("Relu", [name], ["y"])], inputs=[tensor_info(name, "n", 4)]
        )
        assert load_model(proto.SerializeToString()).inputs[0].name == name

    def test_shapes_of_outputs_follow_from_the_graph_not_from_stale_declarations(self) -> None:
        model = load_model(relu_model(outputs=[tensor_info("y", 1, 999)]).SerializeToString())
        assert model.outputs[0].shape == (None, 4)
        assert from_proto(model.proto).outputs == model.outputs

    def test_free_dimensions_need_no_name_to_be_recognised(self) -> None:
        proto = relu_model(inputs=[tensor_info("x", None, 4)], outputs=[tensor_info("y", 1, 4)])
        assert load_model(proto.SerializeToString()).outputs[0].shape == (None, 4)

    def test_takes_declared_dimensions_that_inference_leaves_open(self) -> None:
        nodes = [helper.make_node("Compress", ["x", "keep"], ["y"], axis=1)]
        inputs = [tensor_info("x", "n", 4), tensor_info("keep", 4, dtype=TensorProto.BOOL)]
        proto = relu_model(nodes=nodes, inputs=inputs, outputs=[tensor_info("y", "n", 3)])
        assert load_model(proto.SerializeToString()).outputs[0].shape == (None, 3)

    def test_standard_domain_may_be_written_out(self) -> None:
        node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
        proto = relu_model(nodes=[node], opset_imports=[helper.make_opsetid("ai.onnx", 17)])
        model = load_model(proto.SerializeToString())
        assert (model.opset, model.proto.graph.node[0].domain) == (17, "")

    def test_unused_domains_are_dropped(self) -> None:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = load_model(relu_model(opset_imports=imports).SerializeToString())
        assert [entry.domain for entry in model.proto.opset_import] == [""]

    def test_local_functions_are_inlined(self) -> None:
        body = [helper.make_node("Relu", ["a"], ["m"]), helper.make_node("Neg", ["m"], ["b"])]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.module", 1)]
        block = helper.make_function("my.module", "Block", ["a"], ["b"], body, imports)
        proto = relu_model(
            nodes=[helper.make_node("Block", ["x"], ["y"], domain="my.module")],
            opset_imports=imports,
            functions=[block],
        )
        model = load_model(proto.SerializeToString())
        assert [node.op_type for node in model.proto.graph.node] == ["Relu", "Neg"]
        assert not model.proto.functions

    def test_source_proto_is_left_alone(self) -> None:
        proto = graphs.mlp()
        before = proto.SerializeToString(deterministic=True)
        from_proto(proto).proto.graph.name = "changed"
        assert proto.SerializeToString(deterministic=True) == before


class TestNoModelAtAll:
    def test_empty(self) -> None:
        assert "empty (0 bytes)" in refusal(b"", InvalidModelError)

    @pytest.mark.parametrize(
        ("content", "seen"),
        [
            (b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG"),
            (b'{"model": 1}', "JSON"),
            (b"PK\x03\x04" + bytes(64), "zip archive"),
            (b"\x80\x04\x95" + bytes(64), "pickle"),
            (b"<!DOCTYPE html>", "HTML"),
        ],
    )
    def test_other_formats_are_named(self, content: bytes, seen: str) -> None:
        message = refusal(content, InvalidModelError)
        assert "not an ONNX file" in message
        assert seen in message

    def test_unknown_bytes(self) -> None:
        assert "cannot be read as ONNX (11 bytes" in refusal(b"hello world", InvalidModelError)

    def test_protobuf_without_a_graph(self) -> None:
        assert "holds no graph" in refusal(onnx.ModelProto(ir_version=8), InvalidModelError)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, share: float) -> None:
        content = graphs.conv_net().SerializeToString()
        message = refusal(content[: int(len(content) * share)], InvalidModelError)
        assert "truncated" in message

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidModelError, match=r"'none.onnx' cannot be read \(No such file"):
            load_model(tmp_path / "none.onnx")

    @given(content=st.binary(max_size=200))
    def test_any_bytes_give_an_error_of_ours(self, content: bytes) -> None:
        with pytest.raises(EngineError):
            load_model(content)

    @settings(max_examples=300)
    @given(position=st.integers(0, 10_000), value=st.integers(0, 255))
    def test_one_wrong_byte_gives_a_model_or_an_error_of_ours(self, position: int, value: int) -> None:
        content = bytearray(MLP_BYTES)
        content[position % len(content)] = value
        try:
            load_model(bytes(content))
        except EngineError as error:
            message = str(error)
        else:
            message = ""
        assert "\n" not in message


MLP_BYTES = graphs.mlp(hidden=4).SerializeToString()


class TestExternalData:
    def test_in_an_initializer(self) -> None:
        proto = relu_model(
            nodes=[helper.make_node("Add", ["x", "w"], ["y"])], initializers=[external(weight("secret"))]
        )
        message = refusal(proto)
        assert "initializer 'secret' keeps its data in another file" in message

    def test_entries_alone_are_enough(self) -> None:
        tensor = weight("secret")
        tensor.external_data.add(key="location", value="x")
        assert "'secret' keeps its data" in refusal(relu_model(initializers=[tensor]))

    def test_in_a_constant(self) -> None:
        node = helper.make_node("Constant", [], ["k"], name="const", value=external(weight("secret")))
        message = refusal(relu_model(nodes=[node]))
        assert "attribute 'value' of node 'const' (Constant) keeps its data" in message

    def test_in_a_sparse_initializer(self) -> None:
        proto = relu_model()
        sparse = proto.graph.sparse_initializer.add()
        sparse.values.CopyFrom(external(weight("secret")))
        assert "initializer 'secret' keeps its data" in refusal(proto)

    def test_in_the_indices_of_a_sparse_attribute(self) -> None:
        node = helper.make_node("Constant", [], ["k"], name="const")
        attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
        attribute.sparse_tensor.indices.CopyFrom(external(weight("secret")))
        assert "attribute 'sparse_value' of node 'const' (Constant) keeps" in refusal(
            relu_model(nodes=[node])
        )

    def test_in_a_subgraph_of_a_subgraph(self) -> None:
        inner = branch_graph(initializers=[external(weight("secret"))])
        proto = relu_model(nodes=[if_node(branch_graph(inner=if_node(inner)))])
        assert "initializer 'secret' keeps its data" in refusal(proto)

    def test_in_a_function(self) -> None:
        node = helper.make_node("Constant", [], ["b"], name="inside", value=external(weight("secret")))
        function = helper.make_function("my", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
        assert "node 'inside' (Constant) keeps its data" in refusal(relu_model(functions=[function]))

    def test_in_training_information(self) -> None:
        proto = relu_model()
        proto.training_info.add().algorithm.initializer.append(external(weight("secret")))
        assert "initializer 'secret' keeps its data" in refusal(proto)


class TestOperators:
    def test_unknown_operator_is_named_with_its_node(self) -> None:
        message = refusal(relu_model(nodes=[helper.make_node("Frobnicate", ["x"], ["y"], name="n7")]))
        assert "node 'n7' (Frobnicate) is no operator of the ONNX standard" in message

    def test_nameless_node_is_named_by_its_place(self) -> None:
        message = refusal(relu_model(nodes=[helper.make_node("Frobnicate", ["x"], ["y"])]))
        assert "node number 0 (Frobnicate, without a name)" in message

    def test_custom_domain(self) -> None:
        node = helper.make_node("FusedConv", ["x"], ["y"], name="fused", domain="com.microsoft")
        message = refusal(relu_model(nodes=[node]))
        assert (
            "node 'fused' (com.microsoft.FusedConv) is a custom operator of the domain 'com.microsoft'"
            in message
        )

    @pytest.mark.parametrize(
        ("operator", "domain"),
        [
            ("QLinearAdd", "com.microsoft"),
            ("MatMulNBits", "com.microsoft"),
            ("FakeQuantize", "org.openvinotoolkit"),
        ],
    )
    def test_custom_operators_that_quantize_have_a_standard_form(self, operator: str, domain: str) -> None:
        node = helper.make_node(operator, ["x"], ["y"], name="q", domain=domain)
        message = refusal(relu_model(nodes=[node]))
        assert f"node 'q' ({domain}.{operator}) is a custom operator" in message
        assert "export the quantized model in Q/DQ form" in message

    @pytest.mark.parametrize("opset", [9, 17])
    def test_classical_machine_learning_whatever_opset_its_converter_declares(self, opset: int) -> None:
        node = helper.make_node("Scaler", ["x"], ["y"], name="s", domain="ai.onnx.ml")
        assert "classical machine learning" in refusal(relu_model(nodes=[node], opset=opset))

    @pytest.mark.parametrize("operator", ["If", "Loop", "Scan"])
    def test_control_flow(self, operator: str) -> None:
        node = helper.make_node(operator, ["x"], ["y"], name="c", body=branch_graph())
        assert f"node 'c' ({operator}) is control flow" in refusal(relu_model(nodes=[node]))

    def test_operator_of_a_later_opset(self) -> None:
        message = refusal(
            relu_model(nodes=[helper.make_node("Gelu", ["x"], ["y"], name="g")], opset=17), InvalidModelError
        )
        assert "node 'g' (Gelu) exists from opset 20 on, but the model declares opset 17" in message

    def test_removed_operator(self) -> None:
        node = helper.make_node("Upsample", ["x", "s"], ["y"], name="u")
        message = refusal(relu_model(nodes=[node]), InvalidModelError)
        assert "node 'u' (Upsample) is withdrawn from ONNX as of opset 10" in message
        assert "current exporter" in message

    def test_operator_that_came_back(self) -> None:
        node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], name="g", num_groups=1)
        message = refusal(relu_model(nodes=[node], opset=18), InvalidModelError)
        assert "is withdrawn from ONNX as of opset 18, but the model declares opset 18" in message
        assert "with opset 21 or later" in message

    @pytest.mark.parametrize("opset", [1, 6, NEWEST_OPSET + 1, 1000])
    def test_opset_out_of_range(self, opset: int) -> None:
        message = refusal(relu_model(opset=opset))
        assert f"opset {opset}; octet takes 7 to {NEWEST_OPSET}" in message

    def test_no_opset_of_the_standard_operators(self) -> None:
        proto = relu_model(opset_imports=[helper.make_opsetid("com.microsoft", 1)])
        assert "declares none" in refusal(proto, InvalidModelError)

    def test_two_opsets_of_the_standard_operators(self) -> None:
        proto = relu_model(opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx", 17)])
        assert "declares 13 and 17" in refusal(proto, InvalidModelError)

    def test_ir_version_too_new(self) -> None:
        proto = relu_model()
        proto.ir_version = 99
        assert f"IR version 99; octet reads up to {onnx.IR_VERSION}" in refusal(proto)

    def test_functions_that_call_each_other(self) -> None:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        functions = [
            helper.make_function(
                "my", name, ["a"], ["b"], [helper.make_node(callee, ["a"], ["b"], domain="my")], imports
            )
            for name, callee in (("F", "G"), ("G", "F"))
        ]
        proto = relu_model(
            nodes=[helper.make_node("F", ["x"], ["y"], domain="my")],
            functions=functions,
            opset_imports=imports,
        )
        assert "calls itself" in refusal(proto, InvalidModelError)

    def test_functions_that_expand_without_bound(self) -> None:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        functions = [
            helper.make_function("my", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)
        ]
        for level in range(1, 40):
            twice = [
                helper.make_node(f"F{level - 1}", ["a"], ["m"], domain="my"),
                helper.make_node(f"F{level - 1}", ["m"], ["b"], domain="my"),
            ]
            functions.append(helper.make_function("my", f"F{level}", ["a"], ["b"], twice, imports))
        proto = relu_model(
            nodes=[helper.make_node("F39", ["x"], ["y"], domain="my")],
            functions=functions,
            opset_imports=imports,
        )
        assert f"{2**39} nodes once its functions are inlined" in refusal(proto)


class TestStructure:
    def test_too_many_nodes(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"])] * 100_001
        assert "more than 100000 nodes" in refusal(relu_model(nodes=nodes))

    def test_deep_nesting_is_refused_before_the_checker_sees_it(self) -> None:
        graph = branch_graph()
        for _ in range(20):
            graph = branch_graph(inner=helper.make_node("If", ["c"], ["y"], then_branch=graph))
        start = time.perf_counter()
        message = refusal(relu_model(nodes=[if_node(graph)]))
        assert "more than 8 deep" in message
        assert time.perf_counter() - start < 5

    def test_names_that_are_no_text(self) -> None:
        content = relu_model().SerializeToString().replace(b"Relu", b"\xff\xfelu")
        assert "not UTF-8 text (b'\\xff\\xfelu')" in refusal(content, InvalidModelError)

    def test_no_inputs(self) -> None:
        proto = relu_model(
            nodes=[helper.make_node("Relu", ["w"], ["y"])], inputs=[], initializers=[weight("w", 2, 4)]
        )
        assert "has no inputs" in refusal(proto)

    def test_no_outputs(self) -> None:
        assert "has no outputs" in refusal(relu_model(outputs=[]), InvalidModelError)

    def test_initializer_shorter_than_its_shape(self) -> None:
        tensor = TensorProto(name="w", dims=[4, 4], data_type=TensorProto.FLOAT, raw_data=bytes(8))
        message = refusal(relu_model(initializers=[tensor]), InvalidModelError)
        assert "initializer 'w' declares the shape [4, 4], which is 64 bytes, but holds 8" in message

    def test_initializer_longer_than_its_shape(self) -> None:
        tensor = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, raw_data=bytes(12))
        assert "which is 8 bytes, but holds 12" in refusal(
            relu_model(initializers=[tensor]), InvalidModelError
        )

    def test_initializer_in_a_typed_field(self) -> None:
        tensor = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, float_data=[1, 2])
        assert "which is 3 values, but holds 2" in refusal(
            relu_model(initializers=[tensor]), InvalidModelError
        )

    def test_negative_size_of_an_initializer(self) -> None:
        tensor = TensorProto(name="w", dims=[-1, -4], data_type=TensorProto.FLOAT, raw_data=bytes(16))
        assert "negative size in its shape [-1, -4]" in refusal(
            relu_model(initializers=[tensor]), InvalidModelError
        )

    def test_initializer_without_an_element_type(self) -> None:
        tensor = TensorProto(name="w", dims=[1], raw_data=bytes(4))
        assert "unknown element type (number 0)" in refusal(
            relu_model(initializers=[tensor]), InvalidModelError
        )

    def test_packed_and_complex_initializers_are_measured_right(self) -> None:
        tensors = [
            TensorProto(name="i4", dims=[3], data_type=TensorProto.INT4, raw_data=bytes(2)),
            TensorProto(name="c", dims=[3], data_type=TensorProto.COMPLEX64, raw_data=bytes(24)),
            TensorProto(name="s", dims=[2], data_type=TensorProto.STRING, string_data=[b"a", b"b"]),
            TensorProto(name="h", dims=[2], data_type=TensorProto.FLOAT16, int32_data=[1, 2]),
        ]
        proto = relu_model(initializers=tensors)
        proto.ir_version = 10
        assert load_model(proto.SerializeToString()).opset == 17

    @pytest.mark.parametrize(
        ("proto", "name"),
        [
            (relu_model(inputs=[tensor_info("x", "n", 4), tensor_info("x", "n", 4)]), "x"),
            (relu_model(outputs=[tensor_info("y", "n", 4), tensor_info("y", "n", 4)]), "y"),
            (relu_model(initializers=[weight("w"), weight("w")]), "w"),
            (relu_model(nodes=[helper.make_node("Relu", ["x"], ["y"])] * 2), "y"),
            (relu_model(nodes=[helper.make_node("Relu", ["x"], ["x"])]), "x"),
        ],
    )
    def test_names_must_be_unique(self, proto: onnx.ModelProto, name: str) -> None:
        assert f"have the same name {name!r}" in refusal(proto, InvalidModelError)

    def test_rules_of_onnx_become_one_sentence(self) -> None:
        proto = relu_model(nodes=[helper.make_node("Relu", ["ghost"], ["y"], name="r")])
        message = refusal(proto, InvalidModelError)
        assert "breaks a rule of ONNX" in message
        assert "'ghost'" in message
        assert "Context" not in message

    def test_shapes_that_do_not_fit_together(self) -> None:
        proto = relu_model(
            nodes=[helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            initializers=[weight("w", 5, 3)],
        )
        message = refusal(proto, InvalidModelError)
        assert "do not fit together" in message
        assert "product" in message
        assert "ShapeInferenceError" not in message


class TestInputsAndOutputs:
    def test_strings(self) -> None:
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        strings = [tensor_info(name, "n", 4, dtype=TensorProto.STRING) for name in "xy"]
        message = refusal(relu_model(nodes=nodes, inputs=strings[:1], outputs=strings[1:]))
        assert "input 'x' has the element type string" in message

    def test_string_outputs(self) -> None:
        nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)]
        message = refusal(
            relu_model(nodes=nodes, outputs=[tensor_info("y", "n", 4, dtype=TensorProto.STRING)])
        )
        assert "output 'y' has the element type string" in message

    def test_sequences(self) -> None:
        sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
        nodes = [helper.make_node("SequenceLength", ["x"], ["y"])]
        outputs = [tensor_info("y", dtype=TensorProto.INT64)]
        assert "input 'x' is of the kind sequence" in refusal(
            relu_model(inputs=[sequence], nodes=nodes, outputs=outputs)
        )

    def test_optional(self) -> None:
        kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 4]))
        inputs = [helper.make_value_info("x", kind)]
        nodes = [helper.make_node("OptionalGetElement", ["x"], ["y"])]
        assert "input 'x' is of the kind optional" in refusal(relu_model(inputs=inputs, nodes=nodes))

    def test_input_without_a_batch_axis(self) -> None:
        proto = relu_model(inputs=[tensor_info("x")], outputs=[tensor_info("y")])
        assert "input 'x' is a scalar (shape []), so it has no batch axis" in refusal(proto)

    def test_output_without_a_batch_axis(self) -> None:
        nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
        assert "output 'y' is a scalar" in refusal(relu_model(nodes=nodes, outputs=[tensor_info("y")]))

    def test_input_of_unknown_rank(self) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
        assert "input 'x' has no known shape" in refusal(relu_model(inputs=[value]))

    def test_shape_of_an_output_may_be_left_to_inference(self) -> None:
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        assert load_model(relu_model(outputs=[value]).SerializeToString()).outputs[0].shape == (None, 4)

    def test_output_of_unknown_rank(self) -> None:
        nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
        inputs = [tensor_info("x", "n", 4), tensor_info("shape", "n", dtype=TensorProto.INT64)]
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        assert "output 'y' has no known shape" in refusal(
            relu_model(nodes=nodes, inputs=inputs, outputs=[value])
        )

    def test_input_with_a_dimension_of_zero(self) -> None:
        proto = relu_model(inputs=[tensor_info("x", "n", 0)])
        assert "input 'x' has a dimension of size 0" in refusal(proto)

    def test_inputs_that_disagree_on_the_batch(self) -> None:
        proto = relu_model(
            nodes=[helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["z"], ["q"])],
            inputs=[tensor_info("x", 2, 4), tensor_info("z", 3, 4)],
            outputs=[tensor_info("y", 2, 4), tensor_info("q", 3, 4)],
        )
        assert "disagree on the number of rows along axis 0 ('x' 2, 'z' 3)" in refusal(proto)


def growing_model(node: onnx.NodeProto, **constants: list[int] | int) -> onnx.ModelProto:
    """x + (what `node` writes to k), its constant operands given by name."""
    initializers = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]
    nodes = [node, helper.make_node("Cast", ["k"], ["f"], to=1), helper.make_node("Add", ["x", "f"], ["y"])]
    return relu_model(
        nodes=nodes,
        initializers=initializers,
        inputs=[tensor_info("x", "n", 1)],
        outputs=[tensor_info("y", None, None)],
    )


class TestExpansion:
    """Small files that declare huge tensors: refused before anything allocates them."""

    @pytest.mark.parametrize(
        "proto",
        [
            growing_model(helper.make_node("ConstantOfShape", ["s"], ["k"], name="grow"), s=[2**33]),
            growing_model(
                helper.make_node("Expand", ["a", "s"], ["k"], name="grow"), a=[0], s=[2**11, 2**22]
            ),
            growing_model(helper.make_node("Tile", ["a", "s"], ["k"], name="grow"), a=[0, 0], s=[2**32]),
            growing_model(
                helper.make_node("Range", ["a", "b", "d"], ["k"], name="grow"), a=0, b=-(2**34), d=-2
            ),
        ],
    )
    def test_operators_that_grow(self, proto: onnx.ModelProto) -> None:
        message = refusal(proto)
        assert "node 'grow'" in message
        assert f"would make a tensor of {2**33} elements" in message

    @pytest.mark.parametrize("values", [{"value_ints": [2**33]}, {"value": np.array([2**33])}])
    def test_shapes_from_constant_nodes(self, values: dict[str, Any]) -> None:
        if "value" in values:
            values = {"value": numpy_helper.from_array(values["value"])}
        proto = growing_model(helper.make_node("ConstantOfShape", ["s"], ["k"], name="grow"))
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["s"], **values))
        assert f"node 'grow' (ConstantOfShape) would make a tensor of {2**33} elements" in refusal(proto)

    def test_range_with_a_step_of_zero(self) -> None:
        proto = growing_model(helper.make_node("Range", ["a", "b", "d"], ["k"], name="grow"), a=0, b=1, d=0)
        assert "node 'grow' (Range)" in refusal(proto)

    def test_shape_operand_of_absurd_rank(self) -> None:
        proto = growing_model(helper.make_node("ConstantOfShape", ["s"], ["k"], name="grow"), s=[1] * 1000)
        assert "shape operand of 1000 axes; octet takes at most 64" in refusal(proto)

    def test_sizes_that_follow_from_other_operators(self) -> None:
        nodes = [helper.make_node("Pad", ["x", "pads"], ["y"])]
        pads = numpy_helper.from_array(np.array([0, 0, 0, 2**31]), "pads")
        message = refusal(relu_model(nodes=nodes, initializers=[pads]))
        assert f"tensor 'y' [?, {2**31 + 4}] would take {4 * (2**31 + 4)} bytes" in message

    def test_input_of_absurd_size(self) -> None:
        proto = relu_model(inputs=[tensor_info("x", "n", 2**40)], outputs=[tensor_info("y", "n", 2**40)])
        assert f"tensor 'x' [?, {2**40}] would take {2**42} bytes" in refusal(proto)

    def test_modest_growth_is_taken(self) -> None:
        proto = growing_model(helper.make_node("ConstantOfShape", ["s"], ["k"]), s=[1000])
        assert load_model(proto.SerializeToString()).outputs[0].shape == (None, 1000)
