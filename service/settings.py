"""What octet is told by its environment: read once at start, frozen afterwards."""

import ipaddress
import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pydantic
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import StartError
from service.processes.memory import memory_limit
from service.processes.processors import processor_budget

GIB = 1 << 30
MIB = 1 << 20
DAY_S = 24 * 3600.0
_UNREPEATED = ("OCTET_DATABASE_URL", "OCTET_ADMIN_KEY")
"""Variables that hold secrets."""
# As RFC 6750 has it, and as long as nobody guesses.
_ADMIN_KEY = re.compile(r"[A-Za-z0-9._~+/-]{32,}=*")
_EVERYWHERE = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))


class Settings(BaseSettings):
    """Every field is an environment variable `OCTET_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="OCTET_", frozen=True, extra="forbid")

    # Folder of everything that octet keeps: catalog, blobs, engines. A local disk; one service at a time.
    home: Path = Path("~/.octet")
    # Where the catalog and the queue of builds are: files under `home` when unset; postgresql://user:password@host/name
    # once there is more than one machine, and then `store_url` too.
    database_url: str | None = None
    # Where blobs are kept: a folder under `home` when unset; s3://bucket/prefix, with the credentials in the AWS_*
    # variables, or file:///folder on a disk that all machines have mounted, once there is more than one machine.
    store_url: str | None = None
    # Whether `octet serve` keeps a worker beside the server. One machine needs it; with a shared database, builds go
    # to `octet worker` on machines of their own unless this says else.
    worker: bool | None = None
    # Address to listen on. Anything but loopback needs API keys, `admin_key` or `no_auth`.
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    # Never asks for API keys: whoever reaches the port may do everything. For networks that keep others out.
    no_auth: bool = False
    # A key that has all scopes and is in no database: any random text of 32 characters or more. A fleet needs it for
    # its first start, before `octet keys create` could have made one.
    admin_key: SecretStr | None = None
    # Largest upload of a build, all its parts together; about the model plus the samples.
    max_upload_bytes: int = Field(default=4 * GIB, ge=1)
    # Largest body of an inference request; about the largest batch as JSON.
    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    # Smallest answer to an inference request that is compressed for a client that accepts it; raise it where
    # processors are dearer than the network.
    compress_min_bytes: int = Field(default=1024, ge=1)
    # A line in the log for every answer. It takes about as much of a processor as answering a small request does, and
    # metrics count the same for less: on for looking for one client's requests.
    access_log: bool = False
    # Tells clients how long their request waited and ran, in the header Server-Timing, which browsers and curl show.
    # On while looking for where time goes; whoever may infer then sees how busy the server is.
    server_timing: bool = False
    # Processors for engines and builds together. The cgroup's quota and the affinity mask decide when unset.
    threads: int = Field(default_factory=processor_budget, ge=1)
    # Batches that run at the same time, of one model or of several, each on its share of the threads. 1 gives every
    # batch all threads, and so the lowest latency. More is for many processors and small models, whose batches
    # cannot keep them busy: try it with `python -m loadtests.lanes`.
    lanes: int = Field(default=1, ge=1)
    # How long one phase of a build may run before it is stopped and the build fails.
    build_timeout_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    # Resident memory that a build may take before it is stopped; leave room for the server beside it.
    build_memory_bytes: int = Field(default=16 * GIB, ge=256 * MIB)

    # Memory that loaded models may take together; beyond it, the least recently used one leaves until a request
    # calls it back. Leave room for builds and for requests: half of the memory that there is when unset.
    max_loaded_bytes: int = Field(default_factory=lambda: memory_limit() // 2, ge=MIB)
    # Seconds without a request after which a model leaves memory, until the next request, which then waits for it.
    # Unset, models stay: set it where many models are rarely used.
    idle_unload_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    # What is removed in the course of time, all in seconds; `inf` keeps it for ever. A sweep looks at it this often.
    sweep_every_s: float = Field(default=600.0, ge=0.1)
    # Samples of a build that has ended: as long as somebody may want to look into it, and as short as what is in them
    # asks for. Uploads may ask for less (`samples: delete`).
    keep_samples_s: float = Field(default=7 * DAY_S, ge=0)
    # Builds without a version (failed, cancelled, or the version was deleted), in the list and with their uploads:
    # until whoever uploaded them has seen why.
    keep_failed_builds_s: float = Field(default=30 * DAY_S, ge=0)
    # How many versions of a model stay beside its default, the newest; all of them when unset. What is removed cannot
    # be rolled back to: as many as you would ever go back.
    keep_versions: int | None = Field(default=None, ge=0)
    # Versions beyond that number stay too as long as they are so young, or were asked for within that time.
    keep_versions_s: float = Field(default=30 * DAY_S, ge=0)
    # Engines that nobody used for so long leave the cache and the store; who needs one later waits until it is
    # compiled. Longer than a kind of hardware is ever away.
    keep_engines_s: float = Field(default=30 * DAY_S, ge=0)
    # What an upload that died left on this disk. Longer than an upload takes.
    keep_partial_uploads_s: float = Field(default=DAY_S, ge=0)
    # Files in the store that nothing names, such as a build's between two phases. Longer than storing one takes.
    keep_unnamed_s: float = Field(default=3600.0, ge=0)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("store_url")
    @classmethod
    def _store(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if (
            url
            and not (parts.scheme == "s3" and parts.netloc)
            and not (parts.scheme == "file" and parts.path)
        ):
            raise ValueError("Expected s3://bucket/prefix or file:///folder")
        return url or None

    @field_validator("database_url")
    @classmethod
    def _database(cls, url: str | None) -> str | None:
        # What was given is not repeated in the message: it holds a password.
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("Expected postgresql://user:password@host:port/database")
        return url or None

    @field_validator("admin_key")
    @classmethod
    def _unguessed(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None or not key.get_secret_value():
            return None
        if not _ADMIN_KEY.fullmatch(key.get_secret_value()):
            raise ValueError("Expected 32 or more of the characters A-Z a-z 0-9 . _ ~ + / -")
        return key

    @classmethod
    def load(cls) -> Self:
        """Reads the environment.

        Raises:
            StartError: a variable cannot be used; the message names it, the value and what is expected.
        """
        try:
            settings = cls()
        except pydantic.ValidationError as error:
            raise StartError(_explain(error)) from error
        settings.check()
        return settings

    def check(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            StartError: there are more lanes than threads, the catalog is shared and the store is not, or a key is
                given where none will be asked for.
        """
        if self.database_url and not self.store_url:
            raise StartError(
                "OCTET_DATABASE_URL is set and OCTET_STORE_URL is not: other machines would find builds whose files "
                "only this one has; set OCTET_STORE_URL too (s3://bucket/prefix, or file:///folder on a shared disk)."
            )
        if self.lanes > self.threads:
            raise StartError(
                f"OCTET_LANES is {self.lanes} and there are {self.threads} threads, so batches would wait for each "
                f"other's processors; set it to {self.threads} or less, or OCTET_THREADS to more."
            )
        if self.no_auth and self.admin_key is not None:
            raise StartError(
                "OCTET_ADMIN_KEY is set and --no-auth (OCTET_NO_AUTH=1) is said, so nobody would be asked for it; "
                "keep one of both."
            )

    @property
    def catalog_url(self) -> str:
        """SQLAlchemy's address of the catalog."""
        return self._postgresql or f"sqlite:///{self.home / 'catalog.db'}"

    @property
    def queue_url(self) -> str:
        """SQLAlchemy's address of the durable queue."""
        return self._postgresql or f"sqlite:///{self.home / 'queue.db'}"

    @property
    def has_worker(self) -> bool:
        """Whether `octet serve` keeps a worker."""
        return not self.shared if self.worker is None else self.worker

    @property
    def shared(self) -> bool:
        """Whether other machines use the same catalog."""
        return self.database_url is not None

    @property
    def _postgresql(self) -> str | None:
        # SQLAlchemy knows neither the short form nor which of the drivers is installed.
        return self.database_url and f"postgresql+psycopg://{self.database_url.partition('://')[2]}"

    @property
    def flight_file(self) -> Path:
        """What the server's engines are running."""
        return self.home / "flight"

    @property
    def crash_file(self) -> Path:
        """Crashes of the server, and whom they are blamed on."""
        return self.home / "crashes.json"

    @property
    def engine_cache(self) -> Path:
        """Where runtimes keep compiled engines; safe to delete while octet is stopped."""
        return self.home / "engines"

    @property
    def engine_uses_file(self) -> Path:
        """Which versions the engines in the cache are for."""
        return self.home / "engine-uses.json"

    @property
    def address(self) -> str:
        """What to type into a client on this machine."""
        host = self.host
        if _ip(host) in _EVERYWHERE:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that binds `host`."""
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    name = "OCTET_" + "_".join(str(part) for part in first["loc"]).upper()
    expected = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    seen = "what it is" if name in _UNREPEATED else repr(first["input"])
    return f"{name} cannot be {seen}: {expected}. Change or unset the variable and start again."
