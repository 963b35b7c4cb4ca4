import os
from pathlib import Path

import pytest

from service.commands.files import check_targets, copy, replacing, write
from service.errors import BadRequestError


def test_new_and_old_files_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    check_targets([tmp_path / "new", tmp_path / "old"], [tmp_path / "model.onnx"])


def test_what_was_read_is_never_a_target_whatever_it_is_called(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("model")
    (tmp_path / "symbolic.onnx").symlink_to(model)
    os.link(model, tmp_path / "hard.onnx")
    for name in ("model.onnx", "symbolic.onnx", "hard.onnx", "../" + tmp_path.name + "/model.onnx"):
        with pytest.raises(
            BadRequestError, match="is an input and would be overwritten; choose another name"
        ):
            check_targets([tmp_path / name], [tmp_path / "other", model])


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="does not exist; make it first"):
        check_targets([tmp_path / "none" / "out.onnx"], [])
    with pytest.raises(BadRequestError, match="is a folder; name a file in it"):
        check_targets([tmp_path], [])
    with pytest.raises(BadRequestError, match="named for two outputs"):
        check_targets([tmp_path / "out", tmp_path / "." / "out"], [])


def test_a_folder_that_may_not_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(BadRequestError, match="may not be written to"):
        check_targets([tmp_path / "out"], [])


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"something longer")
    copy(source, target)
    assert target.read_bytes() == b"new"
    write("größer", target)
    assert target.read_bytes() == "größer".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_file_that_could_not_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as draft:
            draft.write_text("half")
            assert target.read_text() == "old"
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("target", "old")]
