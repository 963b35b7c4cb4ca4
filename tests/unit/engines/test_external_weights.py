from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines.errors import EngineError, InvalidArtifactError, InvalidModelError, UnsupportedModelError
from engines.model import external_weights
from engines.model.external_weights import skeleton, weights_path, with_weights
from engines.model.model import Model, load_model, save_model
from engines.phases.preparing import prepare
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import conv_net, image_rows, mlp

Spoil = Callable[[onnx.ModelProto], None]


@pytest.fixture
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a few kilobytes go the way of those of gigabytes."""
    monkeypatch.setattr(external_weights, "MAX_INLINE_BYTES", 1000)
    monkeypatch.setattr(external_weights, "_SMALLEST_BYTES", 64)


def exported(
    folder: Path, model: onnx.ModelProto | None = None, location: str = "weights.bin"
) -> onnx.ModelProto:
    """A model saved with external data, as it lies in its file."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model or mlp())
    onnx.save(whole, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return onnx.load(folder / "model.onnx", load_external_data=False)


def read(proto: onnx.ModelProto, **parts: Path) -> Model:
    return load_model(
        proto.SerializeToString(), weights={name.replace("_", "."): path for name, path in parts.items()}
    )


def test_weights_are_read_from_the_part_that_the_model_names(tmp_path: Path) -> None:
    proto = exported(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "our own name")
    model = read(proto, weights_bin=tmp_path / "our own name")
    assert model == load_model(mlp().SerializeToString())


def test_tensors_may_lie_in_several_parts_and_overlap(tmp_path: Path) -> None:
    proto = exported(tmp_path)
    first, second, *_ = proto.graph.initializer
    (tmp_path / "more.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
    next(entry for entry in first.external_data if entry.key == "location").value = "more.bin"
    offset = next(entry for entry in second.external_data if entry.key == "offset")
    offset.value = "0"
    model = read(proto, weights_bin=tmp_path / "weights.bin", more_bin=tmp_path / "more.bin")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    right = {tensor.name: numpy_helper.to_array(tensor) for tensor in mlp().graph.initializer}
    np.testing.assert_array_equal(tensors[first.name], right[first.name])
    np.testing.assert_array_equal(
        tensors[second.name], right[first.name].ravel()[: tensors[second.name].size]
    )


def rewrite(key: str, value: str) -> Spoil:
    def spoil(proto: onnx.ModelProto) -> None:
        entries = proto.graph.initializer[0].external_data
        found = next((entry for entry in entries if entry.key == key), None) or entries.add(key=key)
        found.value = value

    return spoil


def drop(key: str) -> Spoil:
    def spoil(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        kept = [entry for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)

    return spoil


def in_an_attribute(proto: onnx.ModelProto) -> None:
    tensor = TensorProto()
    tensor.CopyFrom(proto.graph.initializer[0])
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["inside"], value=tensor))


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (
            rewrite("location", "/etc/passwd"),
            InvalidModelError,
            "'/etc/passwd'; octet takes plain file names",
        ),
        (rewrite("location", "../weights.bin"), InvalidModelError, "plain file names only"),
        (rewrite("location", "sub/weights.bin"), InvalidModelError, "plain file names only"),
        (rewrite("location", ""), InvalidModelError, "plain file names only"),
        (
            rewrite("location", "other.bin"),
            InvalidModelError,
            "'other.bin', which was not uploaded.*'weights.bin'",
        ),
        (rewrite("offset", "-1"), InvalidModelError, "has the offset '-1'"),
        (rewrite("offset", "9" * 30), InvalidModelError, "has the offset"),
        (
            rewrite("offset", "1000000"),
            InvalidModelError,
            "lies in bytes 1000000 to 1001536 of .* which have",
        ),
        (rewrite("length", "1000000"), InvalidModelError, "lies in bytes 0 to 1000000 of"),
        (rewrite("length", "x"), InvalidModelError, "has the length 'x'"),
        (rewrite("length", "12"), InvalidModelError, "which is 1536 bytes, but holds 12"),
        (rewrite("basepath", "/"), UnsupportedModelError, "the key 'basepath'"),
        (drop("location"), UnsupportedModelError, "no location"),
        (in_an_attribute, UnsupportedModelError, "'value' of node .* keeps its data in another file"),
    ],
)
def test_what_lies_elsewhere_is_refused_in_a_sentence(
    tmp_path: Path, spoil: Spoil, kind: type[EngineError], message: str
) -> None:
    proto = exported(tmp_path)
    spoil(proto)
    with pytest.raises(kind, match=message) as caught:
        read(proto, weights_bin=tmp_path / "weights.bin")
    assert "\n" not in str(caught.value)


def test_a_part_that_no_tensor_names_is_refused(tmp_path: Path) -> None:
    proto = exported(tmp_path)
    (tmp_path / "more.bin").write_bytes(b"more")
    with pytest.raises(InvalidModelError, match=r"no tensor of the model lies in the weights 'more.bin'"):
        read(proto, weights_bin=tmp_path / "weights.bin", more_bin=tmp_path / "more.bin")


def test_tensors_that_overlap_without_end_are_refused(tmp_path: Path) -> None:
    proto = exported(tmp_path)
    for number in range(20):
        proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"copy {number}"
    with pytest.raises(UnsupportedModelError, match="more bytes than twice its weights files"):
        read(proto, weights_bin=tmp_path / "weights.bin")


def test_a_tensor_past_the_end_of_protobuf_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_weights, "MAX_TENSOR_BYTES", 1535)
    with pytest.raises(UnsupportedModelError, match="takes 1536 bytes; octet takes tensors of at most 1535"):
        read(exported(tmp_path), weights_bin=tmp_path / "weights.bin")


def test_a_model_without_its_parts_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="a part 'weights' of the upload, --weights of the command"
    ):
        load_model(exported(tmp_path).SerializeToString())
    # The file lies beside the model, but nobody handed it over.
    with pytest.raises(UnsupportedModelError, match="which was not given"):
        load_model(tmp_path / "model.onnx")


@pytest.mark.usefixtures("_small_limits")
class TestLarge:
    def test_a_model_is_saved_in_two_files_and_read_back(self, tmp_path: Path) -> None:
        model = load_model(conv_net().SerializeToString())
        path = tmp_path / "model.onnx"
        save_model(model, path)
        assert path.stat().st_size < 2000
        assert weights_path(path).stat().st_size > 9000
        assert load_model(path) == model

    def test_a_model_that_has_become_small_leaves_no_second_file(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        save_model(load_model(conv_net().SerializeToString()), path)
        save_model(load_model(mlp(hidden=4).SerializeToString()), path)
        assert not weights_path(path).exists()

    @pytest.mark.parametrize("damage", ["cut", "missing"])
    def test_damaged_weights_of_ours_are_an_artifact_error(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "model.onnx"
        save_model(load_model(conv_net().SerializeToString()), path)
        if damage == "cut":
            weights_path(path).write_bytes(weights_path(path).read_bytes()[:-8])
            with pytest.raises(InvalidArtifactError, match=r"does not fit its weights.*Restore both"):
                load_model(path)
        else:
            weights_path(path).unlink()
            with pytest.raises(UnsupportedModelError, match="keeps its data in another file"):
                load_model(path)

    def test_another_file_of_the_folder_is_never_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        save_model(load_model(conv_net().SerializeToString()), path)
        (tmp_path / "other.data").write_bytes(weights_path(path).read_bytes())
        path.write_bytes(path.read_bytes().replace(b"model.onnx.data", b"other.data\0\0\0\0\0"))
        with pytest.raises(InvalidArtifactError, match="does not fit its weights"):
            load_model(path)

    def test_preparation_computes_the_same_without_handing_weights_to_libraries(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = conv_net(opset=13).SerializeToString()
        largest = 0

        def watched(model: onnx.ModelProto, *arguments: object, **options: object) -> onnx.ModelProto:
            nonlocal largest
            largest = max(largest, model.ByteSize())
            return infer(model, *arguments, **options)  # type: ignore[arg-type] # whatever the caller gives

        infer = onnx.shape_inference.infer_shapes
        monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
        large = prepare(load_model(content))
        assert 0 < largest < 3000
        monkeypatch.setattr(external_weights, "MAX_INLINE_BYTES", 2**30)
        small = prepare(load_model(content))
        assert large.opset == small.opset == 21
        assert (large.inputs, large.outputs) == (small.inputs, small.outputs)
        images = image_rows(2)
        found, right = (
            ReferenceSession(model.proto, threads=1).run({"image": images})["scores"]
            for model in (large, small)
        )
        np.testing.assert_array_equal(found, right)

    def test_the_reference_reads_it_from_memory_and_from_files_with_any_tensor(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        model = load_model(conv_net().SerializeToString())
        save_model(model, path)
        files = sorted(tmp_path.iterdir())
        feeds = {"image": image_rows(2)}
        right = ReferenceSession(conv_net().SerializeToString(), outputs=["relu1", "scores"], threads=1).run(
            feeds
        )
        for source in (model.proto, path):
            found = ReferenceSession(source, outputs=["relu1", "scores"], threads=1).run(feeds)
            for name, array in right.items():
                np.testing.assert_array_equal(found[name], array)
            assert ReferenceSession(source, threads=1).run(feeds).keys() == {"scores"}
        assert sorted(tmp_path.iterdir()) == files

    def test_a_skeleton_has_inputs_for_weights_and_gets_them_back(self) -> None:
        proto = conv_net()
        light = skeleton(proto)
        onnx.checker.check_model(light, full_check=True)
        assert {"conv1.weight", "conv2.weight"} <= {value.name for value in light.graph.input}
        whole = with_weights(light, proto)
        assert {tensor.name: tensor for tensor in whole.graph.initializer} == {
            tensor.name: tensor for tensor in proto.graph.initializer
        }
        assert whole.graph.input == proto.graph.input
