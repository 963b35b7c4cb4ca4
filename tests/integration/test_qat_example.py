"""The example of models that arrive quantized, as `python -m examples.qat` runs it."""

from pathlib import Path

import httpx

from examples import qat
from examples.demo import free_port
from examples.running import service


def test_training_with_quantizers_keeps_what_rounding_loses(tmp_path: Path) -> None:
    """Both files come from PyTorch, the same network on the same 3-bit grid."""
    with (
        service(tmp_path / "home", port=free_port()) as octet,
        httpx.Client(base_url=octet.address, timeout=60.0) as client,
    ):
        rounded, trained = (qat.uploaded(client, name) for name in qat.MODELS)
    for result in (rounded, trained):
        assert (result.report["serving"], result.report["reason"]) == ("int8", None)
        arrived = result.report["arrived"]
        assert arrived["producer"].startswith("pytorch")
        assert (arrived["layers"], arrived["asymmetric"]) == (7, 0)
    assert trained.accuracy > 0.97
    assert trained.accuracy > rounded.accuracy + 0.05
