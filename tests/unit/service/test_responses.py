import inspect

import orjson
import pytest

from engines import errors as engine_errors
from engines.errors import EngineError, EngineRefusedError
from service import errors as service_errors
from service.errors import STATUS, NotReadyError, QueueFullError, ServiceError
from service.http.responses import INTERNAL, body_of, error_response, framework_response, status_of

BASES = (ServiceError, EngineError)
ERRORS = [
    kind
    for module in (service_errors, engine_errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == module.__name__ and kind not in BASES
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_code_of_its_own(kind: type[ServiceError | EngineError]) -> None:
    assert kind in STATUS
    assert kind.code not in {base.code for base in BASES}
    assert status_of(kind("x")) == STATUS[kind]


def test_an_error_says_its_sentence_and_code() -> None:
    assert orjson.loads(body_of(QueueFullError("full."))) == {"error": "full.", "code": "queue.full"}


def test_an_unforeseen_error_keeps_its_words_to_itself() -> None:
    assert status_of(KeyError("secret")) == 500
    assert orjson.loads(body_of(KeyError("secret"))) == {"error": INTERNAL, "code": "server.error"}


@pytest.mark.parametrize("error", [QueueFullError("x"), NotReadyError("x"), EngineRefusedError("x")])
def test_429_and_503_say_when_to_try_again(error: Exception) -> None:
    assert int(error_response(error).headers["retry-after"]) >= 1


def test_other_errors_do_not() -> None:
    assert "retry-after" not in error_response(service_errors.NotFoundError("x")).headers


def test_errors_of_the_framework_look_like_ours() -> None:
    response = framework_response(405, "no", {"Allow": "GET"})
    assert orjson.loads(response.body) == {"error": "no", "code": "request.method_not_allowed"}
    assert response.headers["allow"] == "GET"
