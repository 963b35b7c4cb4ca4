from engines.model.model import from_proto
from engines.phases.preparing import prepare
from engines.quantization.arrived import describe_arrived, producer
from tests.unit.engines.arrived_graphs import like_nncf, like_pytorch, like_tf2onnx
from tests.unit.engines.onnx_graphs import conv_net


def test_producer_layers_and_asymmetry_are_told() -> None:
    proto = like_pytorch()
    found = describe_arrived(proto, prepare(from_proto(proto)))
    assert found.producer == "pytorch 2.5.1"
    assert found.layers == ("conv1_node", "conv2_node", "scores_node")
    assert not found.floating
    assert len(found.asymmetric) == 6
    assert found.describe() == "the model arrived quantized by pytorch 2.5.1"


def test_layers_behind_transposes_are_seen() -> None:
    proto = like_tf2onnx()
    found = describe_arrived(proto, prepare(from_proto(proto)))
    assert found.layers == ("conv1_node", "scores_node")
    assert not found.asymmetric


def test_layers_that_read_a_float_are_floating() -> None:
    proto = like_nncf()
    conv = next(node for node in proto.graph.node if node.name == "conv2_node")
    conv.input[0] = "relu1"
    found = describe_arrived(proto, prepare(from_proto(proto)))
    assert found.layers == ("conv1_node", "scores_node")
    assert found.floating == {"conv2_node": "Conv"}
    assert found.producer is None
    assert "a tool that it does not name" in found.describe()


def test_the_producer_is_one_short_line() -> None:
    proto = conv_net()
    proto.producer_name, proto.producer_version = "a\nb\x1b[1m" + "c" * 200, "1"
    name = producer(proto)
    assert name is not None
    assert name.startswith("a b[1mc")
    assert len(name) == 80
