import pytest

from service.access.scopes import Scope, needed

CALLS = [
    ("GET", "/v2/health/live", None),
    ("GET", "/v2/health/ready", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/v2", Scope.INFER),
    ("GET", "/v2/models/m", Scope.INFER),
    ("GET", "/v2/models/m/versions/1/ready", Scope.INFER),
    ("GET", "/v2/models/stats", Scope.INFER),
    ("HEAD", "/v2/models/m/config", Scope.INFER),
    ("POST", "/v2/models/m/infer", Scope.INFER),
    ("POST", "/v2/repository/index", Scope.INFER),
    ("POST", "/v1/models/m/builds", Scope.BUILD),
    ("GET", "/v1/builds", Scope.BUILD),
    ("GET", "/v1/builds/b/events", Scope.BUILD),
    ("DELETE", "/v1/builds/b", Scope.BUILD),
    ("GET", "/v1/models/m/versions/1/artifact/weights", Scope.BUILD),
    ("PUT", "/v1/models/m/default", Scope.ADMIN),
    ("DELETE", "/v1/models/m", Scope.ADMIN),
    ("DELETE", "/v1/models/m/versions/1", Scope.ADMIN),
    ("POST", "/v2/repository/models/m/load", Scope.ADMIN),
    ("POST", "/v2/repository/models/m/unload", Scope.ADMIN),
]
# Whatever nobody thought of.
STRANGE = [
    ("GET", "/"),
    ("GET", ""),
    ("GET", "/metrics/"),
    ("GET", "//metrics"),
    ("GET", "/v2/health"),
    ("GET", "/v2/health/live/"),
    ("GET", "/v2/health/ready/../../../v1/models"),
    ("GET", "/v1"),
    ("GET", "/v1/keys"),
    ("GET", "/v2x/models/m"),
    ("POST", "/v2/models/m/trace/setting"),
    ("DELETE", "/v2/models/m/infer"),
    ("PATCH", "/v1/models/m/builds"),
    ("POST", "/v1/models/m/builds/x"),
    ("POST", "/v1/builds"),
    ("DELETE", "/v1/builds"),
    ("DELETE", "/v1/builds/b/events"),
    ("TRACE", "/v1/models"),
    ("get", "/v1/models"),
]


@pytest.mark.parametrize(("method", "path", "scope"), CALLS)
def test_each_call_needs_what_it_does(method: str, path: str, scope: Scope | None) -> None:
    assert needed(method, path) is scope


@pytest.mark.parametrize(("method", "path"), STRANGE)
def test_what_is_not_named_is_the_administrators_alone(method: str, path: str) -> None:
    assert needed(method, path) is Scope.ADMIN
