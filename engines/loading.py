"""From a version's files to the engine that may answer for it on this machine."""

from dataclasses import dataclass
from pathlib import Path

from engines.errors import CompileError, EngineRefusedError
from engines.options import BuildOptions, Precision
from engines.proof import Proof, Verification
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.openvino import OpenVINORuntime
from engines.workspace import PREPARED, PROOF, QUANTIZED


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine that reproduced its proof here. Close it after use."""

    engine: Engine
    # What really serves.
    precision: Precision
    verification: Verification
    # Why FP32 serves instead of the 8-bit engine, where it does.
    refusal: str | None
    # Whether rows of different requests may share a batch.
    batchable: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An engine that was compiled and made to replay the proof, whether it may answer or not."""

    verification: Verification
    # None where it did not compile. Close it after use.
    engine: Engine | None


def load_engine(
    folder: Path, options: BuildOptions, *, threads: int, cache: Path | None = None
) -> LoadedEngine:
    """Compiles a version for this machine and has it replay its proof.

    Where the 8-bit engine misses its contract here, or cannot be compiled, the FP32 engine is returned and
    `refusal` says why.

    Args:
        folder: the version's files: the prepared model, the quantized one if any, the proof.
        options: what the build was asked for.
        threads: processors that the engine may use.
        cache: folder in which compiled engines are kept for the next time.

    Raises:
        InvalidArtifactError: files are missing or are not those that were proven.
        EngineRefusedError: FP32 does not reproduce its proof here either.
        CompileError: the FP32 model cannot be compiled.
    """
    runtime = OpenVINORuntime()
    proof = Proof.load(folder / PROOF)
    proof.check(folder)
    refusal = None
    if options.precision is not Precision.FP32:
        if QUANTIZED in proof.hashes:
            trial = try_engine(
                runtime, folder / QUANTIZED, proof, options.precision, threads=threads, cache=cache
            )
            if trial.engine is not None and trial.verification.holds:
                return _loaded(trial.engine, trial.verification, refusal=None)
            refusal = f"{trial.verification.miss}, so FP32 serves."
            if trial.engine is not None:
                trial.engine.close()
        else:
            refusal = "no layer of the model can run in 8 bits, so FP32 serves."
    engine, verification = fp32_engine(runtime, folder, proof, threads=threads, cache=cache)
    return _loaded(engine, verification, refusal=refusal)


def fp32_engine(
    runtime: Runtime, folder: Path, proof: Proof, *, threads: int, cache: Path | None
) -> tuple[Engine, Verification]:
    """The FP32 engine, which has to reproduce FP32's answers.

    Raises:
        EngineRefusedError: it does not.
        CompileError: the model cannot be compiled.
    """
    engine = runtime.compile(folder / PREPARED, threads=threads, cache=cache)
    verification = proof.replay(engine, Precision.FP32)
    if not verification.holds:
        engine.close()
        raise EngineRefusedError(
            f"no engine of this version may answer on this machine: {verification.miss}. "
            f"{runtime.hardware_key()} computes the model differently from onnxruntime; report the model."
        )
    return engine, verification


def try_engine(
    runtime: Runtime,
    artifact: Path,
    proof: Proof,
    precision: Precision,
    *,
    threads: int,
    cache: Path | None,
) -> Trial:
    """Compiles an artifact and replays the proof; what goes wrong with it is in the verification."""
    try:
        engine = runtime.compile(artifact, threads=threads, cache=cache)
    except CompileError as error:
        return Trial(verification=Verification.failed(precision, error), engine=None)
    return Trial(verification=proof.replay(engine, precision), engine=engine)


def _loaded(engine: Engine, verification: Verification, *, refusal: str | None) -> LoadedEngine:
    return LoadedEngine(
        engine=engine,
        precision=verification.precision,
        verification=verification,
        refusal=refusal,
        batchable=verification.unbatchable is None,
    )
