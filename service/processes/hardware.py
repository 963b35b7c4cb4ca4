"""What kind of hardware this machine is to octet: engines are compiled, verified and shared for one kind."""

import functools

from engines.options import BuildOptions


@functools.cache
def local_hardware() -> str:
    """The hardware key of the best runtime here; loads it and compiles a tiny model, once per process."""
    from engines import hardware_key  # noqa: PLC0415 - native libraries load when they are needed

    return hardware_key(BuildOptions())
