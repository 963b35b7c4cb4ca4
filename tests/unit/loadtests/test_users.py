"""The load for users, without its users: what they send, and what is made of the answers."""

from typing import Any

import numpy as np
import pytest

from engines.model.tensors import TensorSpec
from loadtests.users.__main__ import parsed_headers
from loadtests.users.inputs import VARIANTS, InputError, encode_binary, encode_json, make_inputs
from loadtests.users.page import Load, notes, render
from loadtests.users.results import Step
from service.protocol import DATATYPES, Signature, decode


def metadata(datatype: str, *shape: int) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": datatype, "shape": list(shape)}]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("form", ["json", "binary"])
def test_what_is_sent_is_what_the_server_reads(datatype: str, form: str) -> None:
    if form == "json" and datatype in ("FP16", "BF16"):
        return
    spec = TensorSpec(name="x", dtype=DATATYPES[datatype], shape=(None, 3))
    (first, *_) = requests = make_inputs(metadata(datatype, -1, 3), rows=2, shapes={}, samples={})
    assert len(requests) == VARIANTS
    body = (encode_json if form == "json" else encode_binary)(first, {"x": datatype})
    read = decode(body.content, Signature.of((spec,), (spec,), free_rows=True), json_bytes=body.json_bytes)
    assert read.feeds["x"].shape == (2, 3)
    assert read.feeds["x"].tolist() == first["x"].tolist()


def test_samples_are_sent_in_turn() -> None:
    samples = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    requests = make_inputs(metadata("FP32", -1, 2), rows=2, shapes={}, samples=samples)
    assert [request["x"][:, 0].tolist() for request in requests[:2]] == [[0, 2], [4, 0]]


def test_a_free_dimension_needs_a_size() -> None:
    with pytest.raises(InputError, match=r"SHAPE=x=1,"):
        make_inputs(metadata("INT64", -1, -1), rows=1, shapes={}, samples={})
    (first, *_) = make_inputs(metadata("INT64", -1, -1), rows=1, shapes={"x": (1, 7)}, samples={})
    assert first["x"].shape == (1, 7)


def test_headers_are_said_as_they_are_written_everywhere() -> None:
    said = ["Authorization: Bearer octet_1_2", "X-Team:models", "X-Time: 12:30"]
    assert parsed_headers(said) == {
        "Authorization": "Bearer octet_1_2",
        "X-Team": "models",
        "X-Time": "12:30",
    }


def scrape(rows: int, batches: int) -> str:
    labels = '{model="m",version="1"}'
    other = 'octet_batch_rows_sum{model="n",version="1"} 1000\n'
    return f"{other}octet_batch_rows_sum{labels} {rows}.0\noctet_batch_rows_count{labels} {batches}.0\n"


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "form": "json",
        "users": 4,
        "wall_s": 2.0,
        "client_cpu_s": 0.5,
        "ended_s": [0.1, 0.2, 1.5, 1.6],
        "latency_ms": [1.0, 2.0, 3.0, 4.0],
        "failures": [],
        "metrics": [scrape(10, 10), scrape(40, 20)],
        **changes,
    }


def test_a_step_is_summed_up() -> None:
    step = Step.of(raw(), model="m", rows=3)
    assert (step.requests_per_s, step.rows_per_s, step.p50_ms) == (2, 6, 2.5)
    assert step.batch_rows == 3
    assert step.queue_ms is None
    assert step.client_share == 0.25
    assert [second.requests for second in step.seconds] == [2, 2]
    assert [second.p99_ms for second in step.seconds] == pytest.approx([1.99, 3.99])


def load(*steps: Step) -> Load:
    return Load(url="http://x", model="<m>", rows=1, step_s=2.0, date="today", steps=steps)


def test_failures_and_a_busy_client_are_not_hidden() -> None:
    failing = Step.of(raw(failures=["503 <b>"]), model="m", rows=1)
    busy = Step.of(raw(client_cpu_s=1.9, users=64, metrics=None), model="m", rows=1)
    assert "1 requests of json with 4 users failed, first with: 503 <b>" in notes(load(failing))[0]
    assert "The load itself took a whole processor in these steps: json with 64" in notes(load(busy))[0]
    assert "no metrics" in notes(load(busy))[1]


def test_the_page_needs_nothing_else_and_takes_nobody_s_markup() -> None:
    page = render(load(Step.of(raw(failures=["503 <b>"]), model="m", rows=1)))
    assert page.count("<svg") == 5
    for forbidden in ("<script", "http://www", "src=", "<b>", "<m>"):
        assert forbidden not in page


def test_a_step_without_an_answer_can_be_shown() -> None:
    nothing = raw(ended_s=[], latency_ms=[], metrics=None)
    assert "<svg" in render(load(Step.of(nothing, model="m", rows=1)))
