"""The FP32 reference: every tensor readable, ONNX's own semantics, errors in a sentence."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import CompileError, EngineRunError
from engines.runtimes.reference import ReferenceRuntime, ReferenceSession
from tests.unit.engines.arrived_graphs import pair, stored
from tests.unit.engines.onnx_graphs import GraphBuilder, conv_net, floats, image_rows, mlp, vector_rows


def test_outputs_are_the_models_own_unless_others_are_asked_for() -> None:
    session = ReferenceSession(conv_net().SerializeToString(), threads=1)
    assert list(session.run({"image": image_rows(3)})) == ["scores"]
    assert [spec.describe() for spec in session.inputs] == ["image float32 [?, 3, 8, 8]"]
    assert [spec.describe() for spec in session.outputs] == ["scores float32 [?, 4]"]


def test_any_tensor_can_be_read_in_the_order_asked_for() -> None:
    wanted = ["relu1", "image", "conv1.weight", "scores", "conv1"]
    session = ReferenceSession(conv_net().SerializeToString(), outputs=wanted, threads=1)
    feeds = {"image": image_rows(3)}
    found = session.run(feeds)
    assert list(found) == wanted
    np.testing.assert_array_equal(found["relu1"], np.maximum(found["conv1"], np.float32(0)))
    np.testing.assert_array_equal(found["image"], feeds["image"])
    assert found["image"] is not feeds["image"]
    assert found["conv1.weight"].shape == (16, 3, 3, 3)
    whole = ReferenceSession(conv_net().SerializeToString(), threads=1).run(feeds)
    np.testing.assert_array_equal(found["scores"], whole["scores"])


def test_fused_nodes_compute_the_same_but_for_last_digits() -> None:
    wanted, feeds = ["conv1", "relu1", "scores"], {"image": image_rows(3)}
    proto = conv_net().SerializeToString()
    plain, fused = (
        ReferenceSession(proto, outputs=wanted, threads=1, fused=each).run(feeds) for each in (False, True)
    )
    for name in wanted:
        assert np.allclose(fused[name], plain[name], rtol=1e-4, atol=1e-5)


def test_outputs_that_were_not_asked_for_are_left_out() -> None:
    session = ReferenceSession(conv_net().SerializeToString(), outputs=["relu1"], threads=1)
    assert list(session.run({"image": image_rows(1)})) == ["relu1"]


@pytest.mark.parametrize("outputs", [[], ["vector"]])
def test_nothing_or_inputs_alone_can_be_asked_for(outputs: list[str]) -> None:
    session = ReferenceSession(mlp().SerializeToString(), outputs=outputs, threads=1)
    assert list(session.run({"vector": vector_rows(2)})) == outputs


def test_a_tensor_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(CompileError, match=r"^the model has no tensor 'relu9' to observe\.$"):
        ReferenceSession(conv_net().SerializeToString(), outputs=["relu9"], threads=1)


def test_a_file_and_its_bytes_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    feeds = {"vector": vector_rows(2)}
    np.testing.assert_array_equal(
        ReferenceSession(path, threads=1).run(feeds)["scores"],
        ReferenceSession(path.read_bytes(), threads=1).run(feeds)["scores"],
    )


def test_a_relu_in_front_of_an_fp8_quantizer_is_kept() -> None:
    graph = GraphBuilder(opset=19)
    scale = graph.constant("scale", np.array(1, np.float32))
    graph.initializers.append(helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    graph.node("Relu", ["x"], "relu")
    graph.node("QuantizeLinear", ["relu", scale, "zero"], "codes")
    graph.node("DequantizeLinear", ["codes", scale, "zero"], "y")
    model = graph.model([floats("x", "n", 2)], [floats("y", "n", 2)])
    session = ReferenceSession(model.SerializeToString(), threads=1)
    assert session.run({"x": np.array([[-4, 4]], np.float32)})["y"].tolist() == [[0, 4]]


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({}, "the batch lacks the input 'vector'; the model reads vector float32 [?, 12]."),
        (
            {"vector": np.zeros((2, 11), np.float32)},
            "input 'vector' has the shape [2, 11]; send vector float32 [?, 12].",
        ),
        (
            {"vector": np.zeros((2, 12))},
            "input 'vector' has the element type float64; send vector float32 [?, 12].",
        ),
        (
            {"vector": np.zeros((2, 12), np.float32), "x": np.zeros(1)},
            "the model has no input 'x'; it reads vector float32 [?, 12].",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_it_runs(
    feeds: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(EngineRunError) as caught:
        ReferenceSession(mlp().SerializeToString(), threads=1).run(feeds)
    assert str(caught.value) == sentence


def test_a_node_that_fails_is_named_without_codes_and_source_lines() -> None:
    graph = GraphBuilder()
    graph.node("Reshape", ["x", graph.constant("shape", np.array([3, -1]))], "folded")
    model = graph.model([floats("x", "n", 4)], [floats("folded", None, None)])
    session = ReferenceSession(model.SerializeToString(), threads=1)
    with pytest.raises(EngineRunError) as caught:
        session.run({"x": np.zeros((2, 4), np.float32)})
    message = str(caught.value)
    assert message.startswith("onnxruntime failed on this batch: node 'folded_node' (Reshape): ")
    assert "cannot be reshaped" in message
    assert "onnxruntime_src" not in message
    assert "\n" not in message


def test_what_onnxruntime_does_not_take_is_a_compile_error_in_a_sentence() -> None:
    for content in (b"", b"no model", conv_net().SerializeToString()[:-100]):
        with pytest.raises(CompileError, match="onnxruntime cannot load the model: ") as caught:
            ReferenceSession(content, threads=1)
        assert "ONNXRuntimeError" not in str(caught.value)


def test_text_is_no_element_type_for_an_engine() -> None:
    graph = GraphBuilder()
    graph.node("Identity", ["words"], "same")
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("words", "same")]
    with pytest.raises(
        CompileError, match=r"tensor 'words' has the element type tensor\(string\).*use a number"
    ):
        ReferenceSession(graph.model(text[:1], text[1:]).SerializeToString(), threads=1)


def test_the_reference_takes_full_8_bit_weights() -> None:
    assert ReferenceRuntime().weight_bits() == 8
    assert ReferenceRuntime().hardware_key().startswith("onnxruntime-")


def test_quantizers_in_a_row_all_count() -> None:
    """onnxruntime joins two pairs of different scales unless told not to."""
    graph = GraphBuilder(opset=17)
    once = pair(graph, "x", 0.05, 3, np.uint8)
    graph.node("Identity", [pair(graph, once, 0.07, 9, np.uint8)], "y")
    proto = graph.model([floats("x", "n", 64)], [floats("y", "n", 64)])
    x = np.random.default_rng(0).uniform(0, 8, (4, 64)).astype(np.float32)
    first = (np.clip(np.rint(x / np.float32(0.05)) + 3, 0, 255) - 3).astype(np.float32) * np.float32(0.05)
    second = (np.clip(np.rint(first / np.float32(0.07)) + 9, 0, 255) - 9).astype(np.float32) * np.float32(
        0.07
    )
    found = ReferenceSession(proto.SerializeToString(), threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(np.asarray(found, np.float32), second)


@pytest.mark.parametrize("constant_codes", [True, False])
def test_what_arrived_floating_stays_floating(constant_codes: bool) -> None:
    """onnxruntime quantizes the bias, and the weights, of a convolution between two pairs unless told not to."""
    graph = GraphBuilder(opset=21)
    source = pair(graph, "image", 0.05)
    weight = stored(graph, "w", (16, 3, 3, 3)) if constant_codes else graph.weight("w", 16, 3, 3, 3)
    bias = graph.constant("b", np.linspace(-1, 1, 16, dtype=np.float32) / 3)
    graph.node("Conv", [source, weight, bias], "conv")
    feeds = {"image": image_rows(8)}
    before = graph.model([floats("image", "n", 3, 8, 8)], [floats("conv", "n", 16, 6, 6)])
    values = ReferenceSession(before.SerializeToString(), threads=1).run(feeds)["conv"]
    scale = np.float32(0.01)
    expected = np.clip(np.rint(np.asarray(values, np.float32) / scale), -128, 127) * scale
    graph.node("Identity", [pair(graph, "conv", 0.01)], "y")
    proto = graph.model([floats("image", "n", 3, 8, 8)], [floats("y", "n", 16, 6, 6)])
    found = ReferenceSession(proto.SerializeToString(), threads=1).run(feeds)["y"]
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-6)
