"""cuda.bindings.driver on the simulated GPU: CUDA graphs. Every function returns its status first."""

import enum

from tests.fakes import gpu


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUstream:
    def __init__(self, init_value: int = 0) -> None:
        self._value = int(init_value)

    def __int__(self) -> int:
        return self._value


class CUgraph(CUstream):
    pass


class CUgraphExec(CUstream):
    pass


def cuStreamBeginCapture(hStream: CUstream, mode: CUstreamCaptureMode) -> tuple[CUresult]:  # CUDA's names
    gpu.the.require_context("a stream is captured")
    stream = gpu.the.stream(int(hStream))
    if mode is not CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL:
        raise gpu.MisuseError("the allocations of other threads would break this capture")
    if stream.capturing is not None:
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    stream.capturing = []
    return (CUresult.CUDA_SUCCESS,)


def cuStreamEndCapture(hStream: CUstream) -> tuple[CUresult, CUgraph]:  # CUDA's names
    stream = gpu.the.stream(int(hStream))
    if stream.capturing is None:
        return CUresult.CUDA_ERROR_INVALID_VALUE, CUgraph()
    number = gpu.the.next_number()
    gpu.the.graphs[number] = stream.capturing
    stream.capturing = None
    return CUresult.CUDA_SUCCESS, CUgraph(number)


def cuGraphInstantiate(hGraph: CUgraph, flags: int) -> tuple[CUresult, CUgraphExec]:  # CUDA's names
    number = gpu.the.next_number()
    gpu.the.executables[number] = list(gpu.the.graphs[int(hGraph)])
    return CUresult.CUDA_SUCCESS, CUgraphExec(number)


def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) -> tuple[CUresult]:  # CUDA's names
    gpu.the.require_context("a graph is launched")
    if int(hGraphExec) not in gpu.the.executables:
        raise gpu.MisuseError("a graph is launched after it was destroyed")
    for work in gpu.the.executables[int(hGraphExec)]:
        gpu.the.put(int(hStream), work)
    return (CUresult.CUDA_SUCCESS,)


def cuGraphDestroy(hGraph: CUgraph) -> tuple[CUresult]:  # CUDA's names
    if gpu.the.graphs.pop(int(hGraph), None) is None:
        raise gpu.MisuseError("a graph is destroyed twice")
    return (CUresult.CUDA_SUCCESS,)


def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> tuple[CUresult]:  # CUDA's names
    if gpu.the.executables.pop(int(hGraphExec), None) is None:
        raise gpu.MisuseError("an instantiated graph is destroyed twice")
    return (CUresult.CUDA_SUCCESS,)
