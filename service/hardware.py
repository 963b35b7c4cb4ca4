"""What kind of hardware this machine is to octet: engines are compiled, verified and shared for one kind."""

import functools


@functools.cache
def local_hardware() -> str:
    """The hardware key of the runtime that serves here; loads it and compiles a tiny model, once per process."""
    from engines.runtimes.openvino import OpenVINORuntime  # noqa: PLC0415 - native libraries load when they are needed

    return OpenVINORuntime().hardware_key()
