import logging

import pytest

from service.access.refusals import Reason, Refusals


def test_a_flood_of_refusals_is_a_line_a_second_that_says_how_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    monkeypatch.setattr("service.access.refusals.time.monotonic", lambda: now_s)
    refusals = Refusals()
    with caplog.at_level(logging.WARNING, "octet.audit"):
        for _ in range(500):
            refusals.note(Reason.UNKNOWN, request_id="r", key_id=None, client="10.0.0.7", path="/v1/models")
        now_s += 1.0
        refusals.note(Reason.SCOPE, request_id="s", key_id="k1", client="10.0.0.8", path="/v1/models")
        now_s += 1.0
        refusals.note(Reason.SCOPE, request_id="t", key_id="k1", client="10.0.0.8", path="/v1/models")
    first, second, third = caplog.records
    assert "; 0 more" in third.getMessage()
    assert first.getMessage() == "a request was refused: unknown; 0 more since the last line"
    assert second.getMessage() == "a request was refused: scope; 499 more since the last line"
    said = vars(second)
    assert (said["request_id"], said["action"], said["outcome"], said["key"], said["client"]) == (
        "s",
        "refused",
        "scope",
        "k1",
        "10.0.0.8",
    )
    [family] = refusals.collect()
    counts = {sample.labels["reason"]: sample.value for sample in family.samples}
    assert (counts["unknown"], counts["scope"], counts["missing"]) == (500, 2, 0)
