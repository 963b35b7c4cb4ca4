import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.access.key_records import KeyRecords
from service.access.keys import Key, KeyState, Quotas, digest_of
from service.access.scopes import Scope
from service.catalog.catalog import Catalog
from service.cli import app
from tests.databases import PostgreSQL

HOUR_S = 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OCTET_HOME", str(tmp_path / "home"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'catalog.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    url = server.new_catalog()
    monkeypatch.setenv("OCTET_DATABASE_URL", url)
    monkeypatch.setenv("OCTET_STORE_URL", "s3://bucket")
    return url


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would take pytest's own handlers away; the log has tests of its own.
    monkeypatch.setattr("service.commands.keys.configure_logging", lambda _: None)


def octet(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def kept(url: str) -> list[Key]:
    catalog = Catalog(url)
    try:
        return KeyRecords(catalog).all()
    finally:
        catalog.close()


def test_a_key_is_printed_alone_and_kept_as_a_hash(url: str) -> None:
    done = octet(
        *("create", "--name", "ci", "--scope", "infer", "--scope", "build", "--expires-in-days", "30"),
        *("--requests-per-second", "100", "--max-builds", "2", "--max-bytes", "10GB"),
    )
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"octet_[0-9a-f]{12}_[0-9a-f]{64}\n", done.stdout)
    assert "Keep it now: octet does not" in done.stderr
    [key] = kept(url)
    assert key.digest == digest_of(done.stdout.strip().encode())
    assert key.name == "ci"
    assert set(key.scopes) == {Scope.INFER, Scope.BUILD}
    assert key.quotas == Quotas(requests_per_s=100, max_builds=2, max_bytes=10**10)
    assert key.expires_at == pytest.approx(key.created_at + 30 * 24 * HOUR_S, abs=60)


def test_keys_are_listed_without_what_opens(url: str) -> None:
    text = octet("create", "--name", "one", "--scope", "infer", "--max-bytes", "512MiB").stdout.strip()
    octet("create", "--name", "two", "--scope", "admin")
    shown = octet("list")
    assert all(word in shown.stdout for word in ("one", "two", "infer", "admin", "active", "536.9MB"))
    [one, two] = json.loads(octet("list", "--json").stdout)
    assert (one["name"], one["scopes"], one["quotas"]["max_bytes"]) == ("one", ["infer"], 1 << 29)
    assert (two["state"], two["expires_at"]) == ("active", None)
    for said in (shown.output, octet("list", "--json").output):
        assert text[-64:] not in said
        assert kept(url)[0].digest.hex() not in said


def test_a_revoked_key_stays_revoked(url: str) -> None:
    octet("create", "--name", "one", "--scope", "infer")
    [key] = kept(url)
    first, again = octet("revoke", key.id), octet("revoke", key.id)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "is revoked and is refused within 2 s" in first.stderr
    assert re.search(r"is revoked since \d{4}-", again.stderr)
    assert kept(url)[0].state(0.0) is KeyState.REVOKED


def test_quotas_are_changed_and_lifted_by_name(url: str) -> None:
    octet("create", "--name", "one", "--scope", "infer", "--max-builds", "2", "--max-bytes", "1GB")
    [key] = kept(url)
    assert octet("limit", key.id, "--max-builds", "0", "--requests-per-second", "0.5").exit_code == 0
    assert kept(url)[0].quotas == Quotas(requests_per_s=0.5, max_bytes=10**9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "--name", "a\nb", "--scope", "infer"), "cannot be a key's name"),
        (
            ("create", "--name", "a", "--scope", "infer", "--requests-per-second", "1e12"),
            "cannot be 1000000000000",
        ),
        (("create", "--name", "a", "--scope", "root"), "is not one of"),
        (("create", "--name", "a"), "Missing option '--scope'"),
        (("create", "--name", "a", "--scope", "infer", "--max-bytes", "lots"), "'lots' is no size"),
        (("revoke", "nobody"), "there is no key 'nobody'; octet keys list shows"),
        (("limit", "nobody"), "no quota was named"),
        (("limit", "nobody", "--max-builds", "1"), "there is no key 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    url: str, arguments: tuple[str, ...], words: str
) -> None:
    done = octet(*arguments)
    assert done.exit_code in (1, 2)
    assert words in done.stderr
    assert kept(url) == []


def test_a_home_that_is_not_there_yet_is_made_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "fresh"
    # The option replaces it; afterwards it is as before.
    monkeypatch.setenv("OCTET_HOME", str(tmp_path))
    assert octet("create", "--name", "a", "--scope", "admin", "--home", str(home)).exit_code == 0
    assert home.stat().st_mode & 0o777 == 0o700
