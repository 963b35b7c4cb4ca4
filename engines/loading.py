"""From a version's files to the engine that may answer for it on this machine."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from engines.errors import CompileError, EngineRefusedError
from engines.model.external_weights import weights_path
from engines.model.tensors import Array
from engines.options import BuildOptions, Precision
from engines.proof.padding import Padding
from engines.proof.proof import Proof, Verification
from engines.quantization.narrowing import WIDEST_SAFE_CODE, widest_code
from engines.reports.latency import repeated
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.enough_threads import one_is_enough, takes_long
from engines.runtimes.fit import Fit
from engines.runtimes.selection import runtime_for
from engines.runtimes.specialising import specialise
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
    # How rows of different lengths may; None where they may not.
    padding: Padding | None
    # Rows of the proof, the longest of them, to warm up and to measure with.
    rows: Mapping[str, Array]
    # What was found to suit it here.
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An engine that was compiled and made to replay the proof, whether it may answer or not."""

    verification: Verification
    # None where it did not compile. Close it after use.
    engine: Engine | None


def load_engine(
    folder: Path,
    options: BuildOptions,
    *,
    threads: int,
    cache: Path | None = None,
    streams: int = 1,
    fit: Fit | None = None,
) -> LoadedEngine:
    """Compiles a version for this machine, has it replay its proof, and specialises what gains by it.

    Where the 8-bit engine misses its contract here, or cannot be compiled, the FP32 engine is returned and
    `refusal` says why.

    Args:
        folder: the version's files: the prepared model, the quantized one if any, the proof.
        options: what the build was asked for.
        threads: processors that the engine may use.
        cache: folder in which compiled engines are kept for the next time.
        streams: batches that the engine runs at the same time, each on its share of the threads.
        fit: what suited these files on this machine, with as many threads and streams; None finds it out.

    Raises:
        InvalidArtifactError: files are missing or are not those that were proven.
        EngineRefusedError: FP32 does not reproduce its proof here either.
        CompileError: the FP32 model cannot be compiled.
        InvalidOptionsError: the build asked for a runtime that this machine does not have.
    """
    runtime = runtime_for(options, streams=streams)
    proof = Proof.load(folder / PROOF)
    proof.check(folder)
    refusal, trial = None, None
    processors = threads if fit is None else fit.threads
    # Whether nothing is to be found out: several streams have their share of the threads.
    settled = fit is not None or not threads > streams == 1
    if options.precision is not Precision.FP32:
        if QUANTIZED in proof.hashes:

            def tried(on_threads: int) -> Trial:
                artifact = folder / QUANTIZED
                return try_engine(
                    runtime, artifact, proof, options.precision, threads=on_threads, cache=cache
                )

            trial = tried(processors)
            if trial.engine is not None and trial.verification.holds:
                sizes = _sizes(folder / QUANTIZED, options)
                chosen = trial.engine, trial.verification, processors
                if not settled:
                    chosen = _frugal(*chosen, tried, proof, sizes.max_rows)
                return _loaded(*chosen, proof, sizes, fit)
            refusal = f"{trial.verification.miss}, so {fallback(proof)} serves."
            if trial.engine is not None:
                trial.engine.close()
        else:
            refusal = "no layer of the model can run in 8 bits, so FP32 serves."
    engine, verification = fp32_engine(runtime, folder, proof, threads=processors, cache=cache)
    if not verification.holds:
        engine.close()
        raise EngineRefusedError(no_engine(trial.verification if trial else None, verification))
    sizes = _sizes(folder / PREPARED, options)
    chosen = engine, verification, processors
    if not settled:

        def floating(on_threads: int) -> Trial:
            found, seen = fp32_engine(runtime, folder, proof, threads=on_threads, cache=cache)
            return Trial(verification=seen, engine=found)

        chosen = _frugal(*chosen, floating, proof, sizes.max_rows)
    return _loaded(*chosen, proof, sizes, fit, refusal=refusal)


def fp32_engine(
    runtime: Runtime, folder: Path, proof: Proof, *, threads: int, cache: Path | None
) -> tuple[Engine, Verification]:
    """The FP32 engine, which has to reproduce FP32's answers.

    Of a model that arrived quantized, it is the engine without rounding. That need not hold: see its verification.

    Raises:
        EngineRefusedError: it does not, and the model did not arrive quantized.
        CompileError: the model cannot be compiled.
    """
    engine = runtime.compile(folder / PREPARED, threads=threads, cache=cache)
    verification = proof.replay(engine, Precision.FP32)
    if not verification.holds and not proof.arrived:
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
    verification = proof.replay(engine, precision)
    if verification.miss is not None:
        verification = dataclasses.replace(
            verification, miss=verification.miss + _saturating(runtime, artifact)
        )
    return Trial(verification=verification, engine=engine)


def _frugal(
    engine: Engine,
    verification: Verification,
    threads: int,
    tried: Callable[[int], Trial],
    proof: Proof,
    max_rows: int,
) -> tuple[Engine, Verification, int]:
    """The engine on one thread, where that keeps up and reproduces the proof as well; else the one of several."""
    shared = proof.free_rows and verification.unbatchable is None
    feeds = repeated(proof.longest.inputs, max_rows) if shared else proof.longest.inputs
    if engine.on_gpu or takes_long(engine, feeds):
        return engine, verification, threads
    other, seen = (trial := tried(1)).engine, trial.verification
    if other is None:
        return engine, verification, threads
    as_good = seen.holds and (seen.unbatchable, seen.unpadded) == (
        verification.unbatchable,
        verification.unpadded,
    )
    if as_good and one_is_enough(engine, other, feeds):
        engine.close()
        return other, seen, 1
    other.close()
    return engine, verification, threads


def fallback(proof: Proof) -> str:
    """What serves where the 8-bit engine may not."""
    return "the graph without its rounding" if proof.arrived else "FP32"


def no_engine(eight_bits: Verification | None, floating: Verification) -> str:
    """The message that refuses a model that arrived quantized, none of whose engines keep the contract."""
    misses = [found.miss for found in (eight_bits, floating) if found and found.miss]
    return (
        f"no engine of this version may answer on this machine: {', and '.join(misses)}. The model arrived quantized,"
        " so its own answers in onnxruntime are the reference: lower the contract, or upload the FP32 model and have"
        " octet quantize it."
    )


def _saturating(runtime: Runtime, artifact: Path) -> str:
    """Why an engine may miss on this processor and keep its contract on another; empty where that is not it."""
    bits = runtime.weight_bits()
    if bits == 8:
        return ""
    try:
        widest = widest_code(onnx.load_model_from_string(artifact.read_bytes()))
    except DecodeError:
        return ""
    if widest <= WIDEST_SAFE_CODE:
        return ""
    return (
        f" (its weights use 8 bits, with codes up to {widest}, and this processor needs {bits}, codes up to"
        f" {WIDEST_SAFE_CODE}: its sums of larger products overflow)"
    )


def hardware_key(options: BuildOptions) -> str:
    """What engines of versions with these options depend on here, of hardware and libraries."""
    return runtime_for(options).hardware_key()


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What special batch sizes are chosen by."""

    max_rows: int
    weights_bytes: int


def _sizes(model: Path, options: BuildOptions) -> _Sizes:
    files = (path for path in (model, weights_path(model)) if path.is_file())
    return _Sizes(
        max_rows=options.batching.max_batch_rows, weights_bytes=sum(path.stat().st_size for path in files)
    )


def _loaded(
    engine: Engine,
    verification: Verification,
    threads: int,
    proof: Proof,
    sizes: _Sizes,
    fit: Fit | None,
    *,
    refusal: str | None = None,
) -> LoadedEngine:
    padded = verification.unpadded is None and isinstance(proof.padding, Padding)
    gains: Mapping[int, float] = {}
    fixed_items = all(None not in spec.item_shape for spec in engine.inputs)
    shared = proof.free_rows and verification.unbatchable is None
    if fixed_items and shared and verification.accuracy is not None:
        gains = specialise(
            engine,
            proof.longest.inputs,
            max_rows=sizes.max_rows,
            weights_bytes=sizes.weights_bytes,
            least_db=proof.least_db(verification.precision, verification.accuracy),
            known=None if fit is None else fit.gains,
        )
    return LoadedEngine(
        engine=engine,
        precision=verification.precision,
        verification=verification,
        refusal=refusal,
        batchable=verification.unbatchable is None,
        padding=proof.padding if padded and isinstance(proof.padding, Padding) else None,
        rows=proof.longest.inputs,
        fit=Fit(threads=threads, gains=gains),
    )
