"""The page: says what the report says, whatever kind of build it is of, and nothing that an upload could smuggle in."""

import re
from pathlib import Path

import pytest

from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.options import CalibrationMethod, Contract, Metric, Precision
from engines.reports.details import (
    EngineLayersReport,
    HistogramReport,
    LatencyReport,
    LayerError,
    LayerErrors,
    speed_warnings,
)
from engines.reports.page.figures import NOTHING
from engines.reports.page.page import SECTIONS, render
from engines.reports.page.sections import verdict_line
from engines.reports.report import (
    ArrivedReport,
    Batching,
    ClauseReport,
    Evidence,
    IntervalReport,
    Report,
    TaskReport,
    ThresholdReport,
    Verdict,
    output_reports,
)
from engines.search.choices import (
    CandidateReport,
    Choices,
    Layers,
    MixedPoint,
    MixedReport,
    SkippedLayerReport,
    Variant,
)
from tests.unit.engines.reports.page.parsing import Page
from tests.unit.engines.test_report import engine, report

EVIL = "</title></style></svg><script>alert(1)</script><img src=x onerror='alert(1)'>\" x=\"\x00\u202e"
SEEN_EVIL = EVIL[:-2] + "\\x00\\u202e"


def histogram(
    tensor: str, *, threshold: float = 3.0, counts: tuple[int, ...] = (900, 90, 0, 1)
) -> HistogramReport:
    return HistogramReport(
        tensor=tensor, counts=counts, bin_width=1.0, zeros=9, absmax=4.0, threshold=threshold, sqnr_db=31.0
    )


def clause(output: str, measure: str, value: float, *, holds: bool = True) -> ClauseReport:
    limit = 20.0 if measure.endswith("_db") else 0.99
    return ClauseReport(
        output=output,
        measure=measure,
        value=value,
        limit=limit,
        lower=None,
        rows=64,
        holds=holds,
        margin_db=value - limit,
    )


def choices(name: str, *, points: int = 2) -> Choices:
    plain, fitted = (
        CandidateReport(
            variant=Variant.EVENED if fitted else Variant.PREPARED,
            calibration=CalibrationMethod.MSE,
            fitted=fitted,
            attention=fitted,
            sqnr_db=30.0 + fitted,
            batch_ms=2.5,
            size_bytes=2048,
        )
        for fitted in (False, True)
    )
    broken = plain.model_copy(update={"sqnr_db": None, "batch_ms": None})
    menu = tuple(
        MixedPoint(
            floating=tuple(f"{name} {layer}" for layer in range(number)),
            margin_db=number - 1.0,
            sqnr_db=19.0 + number,
            batch_ms=3.0,
            size_bytes=4096,
            chosen=number == 1,
        )
        for number in range(points)
    )
    mixed = MixedReport(
        groups=5, evaluations=points, budget=12, meets=True, left_floating=(f"{name} 0",), points=menu
    )
    return Choices(candidates=(plain, fitted, broken), chosen=1, mixed=mixed)


def full(name: str = "conv1", *, layers: int = 3) -> Report:
    """A report with something in every section; everything from the upload is called `name` and more."""
    errors = tuple(
        LayerError(node=f"{name} {number}", operator="Conv", sqnr_db=40.0 - number % 30)
        for number in range(layers)
    )
    skipped = SkippedLayerReport(node=f"{name} s", operator="Gemm", reason="its weights are too small")
    threshold = ThresholdReport(threshold=3.0, absmax=4.0, method=CalibrationMethod.MSE)
    clauses = (
        clause(f"{name} o", "sqnr_db", 35.0),
        clause("other", "sqnr_db", 40.0),
        clause("other", "top1_weighted", 0.999),
    )
    return report(
        quantized=engine(35.0).model_copy(update={"clauses": clauses}),
        choices=choices(name),
        layers=Layers(quantized=tuple(error.node for error in errors), skipped=(skipped,)),
        thresholds={f"{name} t": threshold},
        layer_errors=LayerErrors(rows=16, layers=errors),
        histograms=(histogram(f"{name} h"),),
        engine_layers=EngineLayersReport(
            by_type={"int8": 12, "fp32": 3}, eight_bit=(name,), alone=(f"{name} alone",)
        ),
    )


def test_a_compiled_engine_shows_its_types_and_the_quantizers_that_stand_alone() -> None:
    page = Page(render(full("odd")))
    assert "Compiled engine" in page.inside["h2"]
    assert {"12", "odd alone"} <= set(page.inside["td"]) | set(page.inside["th"])
    whole = full().model_copy(
        update={"engine_layers": EngineLayersReport(by_type={"int8": 1}, eight_bit=(), alone=())}
    )
    assert "Every quantizer is a part of a layer." in Page(render(whole)).text


def test_an_accepted_build_says_so_with_its_figures() -> None:
    page = Page(render(full()))
    (heading,) = page.inside["h1"]
    assert heading == (
        "Accepted: the INT8 engine answers like FP32 (SQNR 35.0 dB, and at least 20.0 dB was asked for), "
        "3.00x as fast."
    )
    assert page.inside["dd"] == ["35.0 dB", "98.00%", "3.00x", "0.26x"]
    for title in (
        "Accuracy",
        "Contract",
        "Speed",
        "Error by layer",
        "Left in floating point",
        "Thresholds",
        "Evidence",
    ):
        assert title in page.inside["h2"]
    assert "INT8: scores" in page.inside["th"]
    assert {"30 ms", "10 ms", "1,067", "3,200", "its weights are too small"} <= set(page.inside["td"])
    assert "3 of 4 layers run in 8 bits." in page.text


def arrived(made: Report, *, name: str = "scores") -> Report:
    """`made` as if its model had been uploaded quantized."""
    distance = OutputAccuracy(name=name, rows=64, sqnr_db=15.6, cosine=0.98, top1_agreement=0.91)
    without = ArrivedReport(
        producer=f"{name} tool",
        layers=5,
        floating_layers=1,
        asymmetric=2,
        without_pairs=output_reports(Accuracy(outputs=(distance,))),
    )
    return made.model_copy(update={"arrived": without})


def labelled(made: Report, *, name: str = "scores") -> Report:
    """`made` as if labels had been uploaded."""
    task = TaskReport(
        output=name,
        rows=64,
        fp32_top1=0.96875,
        fp32_interval=IntervalReport(low=0.893, high=0.991),
        quantized_top1=0.953125,
        quantized_interval=IntervalReport(low=0.871, high=0.984),
        gained_rows=1,
        lost_rows=2,
        difference=-0.015625,
        difference_interval=IntervalReport(low=-0.07, high=0.04),
    )
    return made.model_copy(update={"task": task})


def test_a_model_that_arrived_quantized_is_not_compared_with_fp32() -> None:
    page = Page(render(arrived(full().model_copy(update={"choices": None}))))
    (heading,) = page.inside["h1"]
    assert heading.startswith("Accepted: the INT8 engine answers like the uploaded model (SQNR 35.0 dB")
    assert heading.endswith("3.00x as fast as without rounding.")
    assert "uploaded quantized by scores tool: 5 of 6 layers multiply 8 bits by 8 bits" in page.text
    assert "2 of its quantizers have zero points or UINT8" in page.text
    assert {"15.6 dB", "91.00%"} <= set(page.inside["td"])
    assert page.inside["td"].count("none: the model arrived quantized") == 2
    assert {"Without rounding: scores", "Model without rounding"} <= set(page.inside["th"])
    assert not [title for title in (*page.inside["th"], *page.inside["dt"]) if "FP32" in title]


def test_labels_show_both_accuracies() -> None:
    page = Page(render(labelled(full())))
    assert "Accuracy on the labels" in page.inside["h2"]
    assert "95.31%" in page.inside["dd"]
    assert {"95.31%", "96.88%", "89.30% to 99.10%"} <= set(page.inside["td"])
    assert "alone is right on 1 row, and alone wrong on 2 rows" in page.text
    assert "-1.56 percentage points, between -7.00 and +4.00 with 95% confidence" in page.text
    assert "The uploaded model" in Page(render(arrived(labelled(full())))).inside["th"]
    unbuilt = TaskReport(output="o", rows=9, fp32_top1=1.0, fp32_interval=IntervalReport(low=0.7, high=1.0))
    assert "percentage points" not in Page(render(full().model_copy(update={"task": unbuilt}))).text


def test_a_build_below_its_contract_says_so_in_its_heading() -> None:
    below = {"verdict": Verdict.BELOW_CONTRACT, "reason": "it misses; it serves all the same."}
    (heading,) = Page(render(full().model_copy(update=below))).inside["h1"]
    assert heading == "Below contract: it misses; it serves all the same."


@pytest.mark.parametrize(
    ("batching", "words"),
    [
        (Batching(batchable=True, reason=None), "free"),
        (
            Batching(batchable=True, reason=None, uploaded_rows=1, rewritten=True),
            "fixed to 1 row, and made free: proven against the uploaded model's own answers",
        ),
        (
            Batching(batchable=False, reason="r", uploaded_rows=4, stays_fixed="a Reshape says 4"),
            "fixed to 4 rows, and stays so: a Reshape says 4",
        ),
    ],
)
def test_what_became_of_the_batch_is_told(batching: Batching, words: str) -> None:
    assert words in Page(render(full().model_copy(update={"batching": batching}))).inside["td"]


def test_lengths_are_told_of_where_there_are_any() -> None:
    def cells(batching: Batching) -> str:
        return " ".join(Page(render(full().model_copy(update={"batching": batching}))).inside["td"])

    fixed = Batching(batchable=True, reason=None)
    assert "padded" not in cells(fixed)
    assert "yes: padded where 'm' is 0" in cells(fixed.model_copy(update={"mask": "m"}))
    assert "no: it leaks" in cells(fixed.model_copy(update={"unpadded": "it leaks"}))


def test_attention_has_a_column_where_a_model_has_some() -> None:
    made = full()

    def page(attention: tuple[bool, ...]) -> Page:
        assert made.choices is not None
        tried = tuple(
            candidate.model_copy(update={"attention": attended})
            for candidate, attended in zip(made.choices.candidates, attention, strict=True)
        )
        choices = made.choices.model_copy(update={"candidates": tried})
        return Page(render(made.model_copy(update={"choices": choices})))

    assert "Queries by keys" not in page((False, False, False)).inside["th"]
    shown = page((True, False, False))
    assert "Queries by keys" in shown.inside["th"]
    # One candidate, and the weights of the engine.
    assert shown.inside["td"].count("8 bits") == 2


def test_thresholds_of_fp8_are_explained() -> None:
    fp8 = full().model_copy(update={"requested": Precision.FP8, "serving": Precision.FP8})
    assert "may lie above the largest magnitude" in Page(render(fp8)).text
    assert "may lie above the largest magnitude" not in Page(render(full())).text


def test_a_refused_build_says_why_and_that_fp32_serves() -> None:
    refused = full().model_copy(
        update={
            "verdict": Verdict.REFUSED,
            "reason": "the engine missed <it>, so FP32 serves.",
            "serving": Precision.FP32,
            "quantized": engine(12.0, miss="the engine missed <it>").model_copy(
                update={
                    "clauses": (
                        clause("scores", "top1_weighted", 1.0),
                        clause("scores", "sqnr_db", 12.0, holds=False),
                    )
                }
            ),
        }
    )
    page = Page(render(refused))
    assert page.inside["h1"] == ["Refused: the engine missed <it>, so FP32 serves."]
    assert page.inside["dd"][0] == "12.0 dB"
    assert page.inside["strong"][0] == "missed"
    # What was missed comes first.
    assert page.inside["td"].index("missed") < page.inside["td"].index("kept")


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (
            Contract(metric=Metric.TOP1_AGREEMENT),
            "like FP32 (top-1 agreement 99.50%, and at least 99.00% was asked",
        ),
        (Contract(), "like FP32 (share of equal elements 99.90%, and at least 99.00% was asked"),
        (Contract(metric=Metric.COSINE), "like FP32, 3.00x as fast."),
    ],
)
def test_the_verdict_is_in_the_words_of_the_contract(contract: Contract, words: str) -> None:
    clauses = (clause("a", "equal_share", 0.999), clause("b", "top1_agreement", 0.995))
    quantized = engine(35.0).model_copy(update={"clauses": clauses})
    assert words in verdict_line(report(contract=contract, quantized=quantized))


def test_an_emulated_engine_has_no_speed_to_boast_of() -> None:
    emulated = full().model_copy(
        update={"emulated": True, "requested": Precision.FP8, "serving": Precision.FP8}
    )
    page = Page(render(emulated))
    assert page.inside["h1"][0].startswith("Accepted: the FP8 engine answers like FP32")
    assert page.inside["h1"][0].endswith("; this machine only emulates it.")
    assert "these times say nothing about hardware that has it" in page.text
    assert page.inside["dd"][2] == "emulated"


def test_an_engine_below_its_contract_is_not_shown_as_accepted() -> None:
    reason = "the engine misses its contract; it serves all the same, as on_miss 'publish' asks."
    html = render(full().model_copy(update={"verdict": Verdict.BELOW_CONTRACT, "reason": reason}))
    assert Page(html).inside["h1"] == [f"Below contract: {reason}"]
    assert '<header class="below_contract">' in html


def test_a_refusal_without_a_reason_says_what_serves() -> None:
    page = Page(render(full().model_copy(update={"verdict": Verdict.REFUSED, "reason": None})))
    assert page.inside["h1"] == ["Refused: the 8-bit engine may not answer, so FP32 serves."]


def test_an_engine_that_did_not_run_has_no_figures_but_a_reason() -> None:
    broken = engine(12.0, miss="it cannot be compiled.").model_copy(update={"outputs": (), "value": None})
    alone = (LatencyReport(rows=1, fp32_ms=2.0, quantized_ms=None),)
    refused = report(
        verdict=Verdict.REFUSED, reason="it cannot be compiled.", quantized=broken, latencies=alone
    )
    assert "INT8 has no figures: it cannot be compiled." in Page(render(refused)).text


def test_an_fp32_build_has_no_section_on_what_was_not_done() -> None:
    page = Page(render(report(requested=Precision.FP32, serving=Precision.FP32, quantized=None)))
    assert page.inside["h1"] == ["Accepted: FP32 serves, as it was asked for."]
    assert page.inside["h2"] == ["Accuracy", "Speed", "Evidence", "Files, times, versions"]
    assert page.tags["svg"] == 0


def test_what_has_to_be_said_loudly_stands_beside_the_verdict() -> None:
    latencies = (LatencyReport(rows=1, fp32_ms=1.0, quantized_ms=2.0),)
    slow = full().model_copy(
        update={
            "latencies": latencies,
            "warnings": speed_warnings(latencies, emulated=False),
            "evidence": Evidence(
                calibrate_rows=3, tune_rows=3, verify_rows=3, proof_rows=3, disjoint=False, weak="so few"
            ),
        }
    )
    page = Page(render(slow))
    (header,) = page.inside["header"]
    assert "The 8-bit engine is slower than FP32 on this machine: 2 ms against 1 ms" in header
    assert "The evidence is weak: so few." in header
    assert "but 0.50x as fast." in header
    assert ("role", "alert") in page.attributes
    assert ("role", "alert") not in Page(render(full())).attributes


def test_names_of_the_upload_are_text_wherever_they_stand() -> None:
    page = Page(render(labelled(arrived(full(EVIL), name=EVIL), name=EVIL), title=EVIL))
    assert not {"script", "img", "iframe", "object", "a", "link", "form"} & set(page.tags)
    assert page.tags["style"] == 1
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    for cell in (f"{SEEN_EVIL} s", f"{SEEN_EVIL} t", f"{SEEN_EVIL} 0"):
        assert cell in page.inside["th"]
    assert page.inside["h3"] == [f"{SEEN_EVIL} h"]
    assert page.inside["title"][0] == SEEN_EVIL


def test_nothing_is_fetched_from_anywhere() -> None:
    html = render(full())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", html)


def test_what_was_tried_is_listed_with_what_was_chosen() -> None:
    page = Page(render(full()))
    cells = page.inside["td"]
    first = cells.index("nearest")
    rows = [cells[first - 1 + 7 * row : first + 6 + 7 * row] for row in range(3)]
    assert rows == [
        ["mse", "nearest", "floating", "30.0 dB", "2.5 ms", "2.0 KiB", ""],
        ["mse", "fitted", "8 bits", "31.0 dB", "2.5 ms", "2.0 KiB", "chosen"],
        ["mse", "nearest", "floating", "would not run", NOTHING, "2.0 KiB", ""],
    ]
    assert page.inside["strong"] == ["chosen", "chosen"]


def test_the_menu_of_mixed_precision_tells_what_each_point_costs() -> None:
    page = Page(render(full()))
    assert "Mixed precision" in page.inside["h2"]
    assert "1 node was left floating to keep the contract; 2 of 12 models were measured" in page.text
    cells = page.inside["td"]
    place = cells.index("-1.0 dB")
    assert cells[place - 1 : place + 5] == ["none", "-1.0 dB", "19.0 dB", "3 ms", "4.0 KiB", ""]
    assert cells[place + 5 : place + 11] == ["conv1 0", "+0.0 dB", "20.0 dB", "3 ms", "4.0 KiB", "chosen"]


def test_points_that_leave_many_layers_floating_are_told_in_short() -> None:
    many = full().model_copy(update={"choices": choices("n", points=9)})
    assert "n 0, n 1, n 2 and 5 more" in Page(render(many)).inside["td"]


def test_a_search_that_found_nothing_says_so() -> None:
    found = choices("n")
    missed = found.model_copy(
        update={"mixed": found.mixed and found.mixed.model_copy(update={"meets": False, "left_floating": ()})}
    )
    text = Page(render(full().model_copy(update={"choices": missed}))).text
    assert "No choice of layers to leave floating kept the contract on the tune rows" in text


def test_many_layers_are_drawn_in_part_and_listed_whole() -> None:
    page = Page(render(full(layers=300)))
    assert page.tags["path"] == 40
    assert "The worst 40 of 300 layers" in page.text
    assert sum(cell.startswith("conv1 ") and cell[6:].isdigit() for cell in page.inside["th"]) == 300
    bars = [text for text in page.inside["text"] if text.startswith("conv1 ")]
    # The worst ones, in the order of the graph.
    numbers = [int(text[6:]) for text in bars]
    assert numbers == sorted(numbers)
    assert {number % 30 for number in numbers} == {29, 28, 27, 26}


def test_every_chart_has_a_title_and_a_description() -> None:
    html = render(full())
    page = Page(html)
    assert page.tags["svg"] == 2
    assert page.tags["desc"] == 2
    assert len(re.findall(r"<svg [^>]*role=\"img\"[^>]*><title>[^<]+</title><desc>[^<]+</desc>", html)) == 2
    assert page.tags["caption"] == page.tags["table"]


def test_bins_beyond_the_threshold_are_marked_as_clipped() -> None:
    page = Page(render(full()))
    rectangles = [value for name, value in page.attributes if name == "class" and value in ("bar", "clipped")]
    # Three bars of layers, then three filled bins, one of them beyond.
    assert rectangles == ["bar"] * 3 + ["bar", "bar", "clipped"]
    assert any("3 to 4: 1 values, clipped" in title for title in page.inside["title"])


@pytest.mark.parametrize("counts", [(), (0,), (10**15,)])
def test_histograms_of_any_counts_are_drawn(counts: tuple[int, ...]) -> None:
    odd = full().model_copy(update={"histograms": (histogram("t", counts=counts, threshold=0.0),)})
    page = Page(render(odd))
    assert page.tags["svg"] == 2
    assert not [value for _, value in page.attributes if value in ("nan", "inf")]


def test_an_error_beyond_all_bounds_ends_at_the_edge_of_the_chart() -> None:
    lost = LayerErrors(rows=4, layers=(LayerError(node="lost", operator="Conv", sqnr_db=-200.0),))
    exact = LayerErrors(rows=4, layers=(LayerError(node="exact", operator="Conv", sqnr_db=200.0),))
    page = Page(render(full().model_copy(update={"layer_errors": lost})))
    assert "over 100%" in page.text
    (path,) = (value for name, value in page.attributes if name == "d")
    assert max(float(number) for number in re.findall(r"[\d.]+", path)) < 900
    assert "exact" in Page(render(full().model_copy(update={"layer_errors": exact}))).text


def test_every_section_may_be_missing_or_there() -> None:
    bare = report(quantized=None, latencies=(), thresholds={})
    everything = labelled(arrived(full()))
    assert all(make(everything) is not None for make in SECTIONS)
    assert {make.__name__ for make in SECTIONS if make(bare) is None} == {
        "arrived",
        "task",
        "contract",
        "speed",
        "layer_errors",
        "histograms",
        "candidates",
        "mixed_precision",
        "floating",
        "engine_layers",
        "thresholds",
    }


def test_the_page_of_a_report_is_made_from_its_json_alone(tmp_path: Path) -> None:
    full().save(tmp_path / "report.json")
    assert render(Report.load(tmp_path / "report.json")) == render(full())
