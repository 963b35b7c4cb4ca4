"""What an upload may ask for: a build's options, and what is to become of the upload itself."""

from typing import Any

from engines.options import BuildOptions
from service.catalog.records import Samples


class UploadOptions(BuildOptions):
    """The options of an upload, as they come from outside."""

    # What becomes of the samples once the build has ended.
    samples: Samples = Samples.KEEP

    @property
    def build(self) -> BuildOptions:
        """Those that say what is built, and so whether two uploads are the same build."""
        return BuildOptions.parse(self.model_dump(mode="json", exclude={"samples"}))


def shown(options: BuildOptions, samples: Samples) -> dict[str, Any]:
    """Both, as clients see them."""
    return {**options.model_dump(mode="json"), "samples": samples}
