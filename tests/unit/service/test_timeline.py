from service.monitoring.timeline import EngineRun, Timeline


def test_times_are_told_in_milliseconds() -> None:
    timeline = Timeline(decode_s=0.0001, encode_s=0.0002, queued_s=5.0)
    for started_s, ended_s in ((5.25, 5.5), (5.5, 6.0)):
        timeline.runs.append(
            EngineRun(started_s=started_s, ended_s=ended_s, rows=2, requests=1, watched=[timeline])
        )
    told = b"decode;dur=0.100, queue;dur=250.000, compute;dur=750.000, encode;dur=0.200"
    assert timeline.server_timing() == told
