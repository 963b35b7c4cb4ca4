"""The HTTP application: one context, the routes, and one form for every error."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from engines.errors import EngineError
from service.access.gate import Gate
from service.access.key_follower import KeyFollower
from service.access.refusals import Refusals
from service.access.scopes import Scope as KeyScope
from service.access.scopes import needed
from service.builds.sandbox import Limits
from service.catalog.catalog import Catalog, Version
from service.catalog.engine_states import EngineStates
from service.catalog.holds import Holds
from service.catalog.retention import Retention
from service.context import Context
from service.errors import ServiceError
from service.http.exchange import Exchange
from service.http.responses import INTERNAL, error_response, framework_response, part_with_frames
from service.monitoring import request_ids
from service.monitoring.build_metrics import BuildCollector
from service.monitoring.metrics import Metrics
from service.monitoring.observer import Observer
from service.monitoring.state_metrics import StateCollector
from service.monitoring.tracing import start_tracing
from service.openapi import describe_keys, inference_paths
from service.retention.engine_uses import EngineUses
from service.retention.periodic import PeriodicSweeps
from service.retention.sweeper import Sweeper
from service.routes import builds, configuration, health, metrics, models, repository, statistics
from service.routes.inference import InferenceHandler, infer_address
from service.serving.deployments import Deployments
from service.serving.engine_exchange import EngineExchange
from service.serving.flight import FlightRecorder
from service.serving.inventory import Care
from service.serving.loading import Loaded, VersionLoader
from service.serving.quarantine import CrashLog
from service.serving.rehearsals import Rehearsals
from service.serving.residency import MemoryLimits
from service.serving.usage import Usage
from service.settings import Settings
from service.storage.stores import open_store


class OctetApp(FastAPI):
    """FastAPI, with inference dispatched before it, and the gate before both."""

    gate: Gate
    inference: InferenceHandler
    # Watches every request, where the settings ask for that.
    observer: Observer | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request_ids.begin(scope)
        if self.observer is None:
            await self._answer(scope, receive, send)
        else:
            await self.observer.observe(self._answer, scope, receive, send)

    def begin(self, exchange: Exchange) -> bool:
        """Has a request answered without a task of its own where that is possible; else returns False.

        That is inference with nothing to wait for but its body and its batch, and nobody who watches it.
        """
        address = None if self.observer is not None else infer_address(exchange.scope["path"])
        if address is None:
            return False
        try:
            self.gate.admit(exchange.scope, KeyScope.INFER)
        except ServiceError as error:
            part_with_frames(error)
            exchange.answer_error(error)
            return True
        return self.inference.begin(address, exchange)

    def _answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = scope["path"]
        address = infer_address(path)
        try:
            self.gate.admit(scope, needed(scope["method"], path) if address is None else KeyScope.INFER)
        except ServiceError as error:
            part_with_frames(error)
            return error_response(error)(scope, receive, _naming(request_ids.current(), send))
        if address is not None:
            return self.inference(address, scope, receive, send)
        return super().__call__(scope, receive, _naming(request_ids.current(), send))

    def openapi(self) -> dict[str, Any]:
        """The schema of all calls, those that FastAPI never sees included."""
        schema = super().openapi()
        schema["paths"].update(inference_paths())
        describe_keys(schema)
        return schema


def _naming(request_id: bytes, send: Send) -> Send:
    """`send`, which tells the client how its request is called here."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (request_ids.HEADER, request_id)]
        await send(message)

    return named


def create_app(settings: Settings, *, load: Callable[[Version], Loaded] | None = None) -> OctetApp:
    """The application for these settings; its lifespan starts and ends the serving of models.

    `load` gives a warm engine of a version; left out, versions are loaded from the store.
    """
    measured = Metrics()
    catalog, store = Catalog(settings.catalog_url), open_store(settings)
    measured.registry.register(BuildCollector(catalog))
    gate, follower = _gate(settings, catalog, measured)
    states = EngineStates(catalog)
    uses = EngineUses(settings.engine_uses_file, settings.engine_cache)
    crashes = CrashLog(settings.crash_file)
    recorder = FlightRecorder(settings.flight_file, suspects=crashes.suspects)
    loader = VersionLoader(
        store=store,
        folder=settings.home / "serving",
        cache=settings.engine_cache,
        threads=settings.threads,
        lanes=settings.lanes,
        limits=Limits(timeout_s=settings.build_timeout_s, memory_bytes=settings.build_memory_bytes),
        exchange=EngineExchange(states, Holds(catalog), store, settings.engine_cache, shared=settings.shared),
        uses=uses,
        recorder=recorder,
        rehearsals=Rehearsals(settings.home / "rehearsals.json"),
        crashes=crashes,
    )
    spans = start_tracing("server")
    limits = MemoryLimits(max_bytes=settings.max_loaded_bytes, idle_s=settings.idle_unload_s)
    deployments = Deployments(
        catalog=catalog,
        metrics=measured,
        load=load or loader.load,
        care=Care(memory=limits, recorder=recorder, crashes=crashes, lanes=settings.lanes),
    )
    measured.registry.register(StateCollector(deployments.statuses))
    usage = Usage(deployments, Retention(catalog), uses)
    sweeps = PeriodicSweeps(Sweeper(settings, catalog, store), every_s=settings.sweep_every_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loader.clear()
        await deployments.start()
        chores = [
            asyncio.create_task(work)
            for work in (measured.keep_sampling(), usage.keep_noting(), follower.follow())
        ]
        if not settings.has_worker:
            # Else the worker does it, where it takes nothing from requests.
            sweeps.start()
        try:
            yield
        finally:
            sweeps.stop()
            for chore in chores:
                chore.cancel()
            loader.stopping.set()
            await deployments.close()
            catalog.close()
            if spans is not None:
                await asyncio.to_thread(spans.close)

    app = OctetApp(title="octet", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.octet = Context(
        settings=settings,
        catalog=catalog,
        store=store,
        deployments=deployments,
        metrics=measured,
        gate=gate,
    )
    app.gate = gate
    app.observer = Observer.of(settings, spans)
    app.inference = InferenceHandler(deployments=deployments, metrics=measured, settings=settings)
    # Statistics come before the metadata of models, of which one might be called "stats".
    for routes in (statistics, configuration, repository, health, metrics, builds, models):
        app.include_router(routes.router)
    _handle_errors(app)
    return app


def _gate(settings: Settings, catalog: Catalog, metrics: Metrics) -> tuple[Gate, KeyFollower]:
    """The gate, which knows the keys that there are, and what keeps it so."""
    refusals = Refusals()
    metrics.registry.register(refusals)
    gate = Gate(settings, refusals)
    follower = KeyFollower(catalog, gate)
    follower.begin()
    return gate, follower


def _handle_errors(app: FastAPI) -> None:
    """Gives every error its body `{"error", "code"}`, those of the framework too."""

    async def ours(_: Request, error: Exception) -> Response:
        return error_response(error)

    async def framework(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        message = _explained(request, error)
        return framework_response(error.status_code, message, error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        seen = repr(first.get("input"))[:80]
        return framework_response(422, f"{where} cannot be {seen}: {first['msg'].lower()}.")

    async def unforeseen(_: Request, __: Exception) -> Response:
        return framework_response(500, INTERNAL)

    app.add_exception_handler(ServiceError, ours)
    app.add_exception_handler(EngineError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unforeseen)


def _explained(request: Request, error: HTTPException) -> str:
    path = request.url.path
    if error.status_code == 404 and error.detail == "Not Found":
        return f"there is nothing at {path}; see /docs for the calls that there are."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} does not take {request.method}; send {allowed}."
    return str(error.detail)
