import pytest

from engines.errors import InvalidOptionsError
from engines.options import BuildOptions
from service.builds.acceptance import new_build
from service.builds.upload_options import UploadOptions, shown
from service.builds.uploads import Upload
from service.catalog.records import Samples


def test_what_becomes_of_the_samples_is_no_option_of_the_build() -> None:
    options = UploadOptions.parse({"precision": "fp32", "samples": "delete"})
    assert options.samples is Samples.DELETE
    assert options.build == BuildOptions.parse({"precision": "fp32"})
    assert type(options.build) is BuildOptions
    assert "samples" not in options.build.model_dump()


def test_samples_are_kept_where_nothing_is_said() -> None:
    assert UploadOptions().samples is Samples.KEEP


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": "forget"}, r"option 'samples' cannot be 'forget': input should be 'keep' or 'delete'"),
        ({"sample": "keep"}, r"unknown option 'sample'; known options: precision, .*, samples\."),
    ],
)
def test_what_is_not_understood_is_named(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidOptionsError, match=sentence):
        UploadOptions.parse(options)


def test_builds_show_it_beside_the_options() -> None:
    assert shown(BuildOptions(), Samples.DELETE)["samples"] == "delete"
    assert shown(BuildOptions(), Samples.KEEP) == BuildOptions().model_dump(mode="json") | {"samples": "keep"}


def test_uploads_that_differ_in_it_alone_are_the_same_build() -> None:
    keep, delete = (
        new_build("m", Upload(options=UploadOptions(samples=wish), files={}, sizes_bytes={}))
        for wish in Samples
    )
    assert keep.fingerprint == delete.fingerprint
    assert (keep.samples, delete.samples) == (Samples.KEEP, Samples.DELETE)
