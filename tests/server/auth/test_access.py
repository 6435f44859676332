"""Who is let in, what they may ask for, and what each worker gives them."""

import pytest

from aigateway.server.auth.keys import Access, Caller
from aigateway.server.http.errors import Refusal
from aigateway.settings import ServerSettings
from tests.server.callers import api_key, bearer, caller_by, digest
from tests.settings.helpers import refused as setting_refused


def pay(use, cost):
    """End a request that cost so much."""
    with use:
        use.on_cost(cost)


def access_of(*keys, clock=None, **fields):
    settings = ServerSettings(keys=keys, **fields)
    return Access(settings) if clock is None else Access(settings, clock)


def refused(act):
    with pytest.raises(Refusal) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    "headers",
    [
        bearer("red"),
        {"authorization": "bearer   sk-red  "},
        {"x-api-key": "sk-red"},
        {"authorization": "Basic bm8=", "x-api-key": "sk-red"},
    ],
)
def test_a_key_says_who_asks(headers):
    key = api_key("red")
    caller = caller_by(access_of(api_key("blue"), key, api_key("green")), headers)
    assert caller == Caller("red", key)
    assert (caller.partition, caller.is_admin) == ("key:red", False)


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({}, "needs a key"),
        ({"authorization": "Bearer"}, "needs a key"),
        ({"authorization": "Bearer "}, "needs a key"),
        ({"x-api-key": ""}, "needs a key"),
        ({"authorization": "Basic sk-red"}, "needs a key"),
        (bearer("blue"), "not known"),
        ({"authorization": f"Bearer {digest('sk-red')}"}, "not known"),
        ({"authorization": "Bearer sk-r\xe9d\xff"}, "not known"),
    ],
)
def test_whoever_has_none_is_not_let_in(headers, word):
    refusal = refused(lambda: caller_by(access_of(api_key("red")), headers))
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert word in refusal.message
    assert "sk-" not in refusal.message


def test_without_keys_everybody_here_is_the_same_caller():
    assert (
        caller_by(access_of(), {}) == caller_by(access_of(), bearer("any")) == Caller(is_admin=True)
    )


def test_the_admin_is_who_has_the_admin_key():
    access = access_of(api_key("red"), admin_sha256=digest("sk-root"))
    assert caller_by(access, bearer("root")).is_admin
    assert not caller_by(access, bearer("red")).is_admin
    local = access_of(admin_sha256=digest("sk-root"))
    assert caller_by(local, bearer("root")).is_admin
    assert not caller_by(local, {}).is_admin


def test_a_key_may_ask_for_its_models_only():
    access = access_of(api_key("red", models=("fast", "openai/gpt-4o")), api_key("blue"))
    red, blue = caller_by(access, bearer("red")), caller_by(access, bearer("blue"))
    assert red.may_ask("fast")
    assert red.may_ask("openai/gpt-4o")
    assert not red.may_ask("gpt-4o")
    assert not red.may_ask("FAST")
    assert not red.may_ask(None)
    assert blue.may_ask("gpt-4o")
    assert blue.may_ask(None)
    refusal = refused(lambda: access.begin(red, "gpt-4o"))
    assert (refusal.status, refusal.code, refusal.param) == (404, "model_not_found", "model")
    assert refused(lambda: access.begin(red, "none such")).message == refusal.message
    refusal = refused(lambda: access.begin(red, None))
    assert (refusal.status, refusal.param) == (400, "model")
    pay(access.begin(red, "fast"), 0.0)


def test_each_key_has_an_account_of_its_own():
    access = access_of(api_key("red", budget_usd=1), api_key("blue", budget_usd=1))
    red, blue = caller_by(access, bearer("red")), caller_by(access, bearer("blue"))
    pay(access.begin(red, "m"), 1.0)
    assert refused(lambda: access.begin(red, "m")).code == "insufficient_quota"
    use = access.begin(blue, "m")
    usage = {key.name: (key.spent_usd, key.budget_usd, key.in_flight) for key in access.usage()}
    assert usage == {"red": (1.0, 1.0, 0), "blue": (0.0, 1.0, 1)}
    pay(use, 0.0)


def test_whoever_has_no_account_is_counted_nowhere():
    access = access_of(admin_sha256=digest("sk-root"))
    with access.begin(caller_by(access, {}), None) as use:
        use.on_cost(0.5)
    assert access.begin(caller_by(access, bearer("root")), "m").account is None
    assert access.usage() == ()


def test_of_several_workers_each_gives_its_share(clock):
    access = access_of(api_key("red", budget_usd=1, rpm=5), clock=clock, workers=4)
    red = caller_by(access, bearer("red"))
    assert [key.budget_usd for key in access.usage()] == [0.25]
    for _ in range(2):
        pay(access.begin(red, "m"), 0.0)
    assert refused(lambda: access.begin(red, "m")).code == "rate_limit_exceeded"


def test_a_reload_takes_nothing_back(clock):
    before = access_of(api_key("red", budget_usd=1), api_key("gone"), clock=clock)
    red, gone = caller_by(before, bearer("red")), caller_by(before, bearer("gone"))
    pay(before.begin(red, "m"), 0.75)
    under_way = before.begin(red, "m")
    renamed = api_key("red").model_copy(update={"name": "scarlet", "budget_usd": 1.25})
    after = before.successor(ServerSettings(keys=[renamed, api_key("new")]))
    assert caller_by(after, bearer("red")).name == "scarlet"
    pay(under_way, 0.5)
    usage = {key.name: (key.spent_usd, key.budget_usd) for key in after.usage()}
    assert usage == {"scarlet": (1.25, 1.25), "new": (0.0, None)}
    assert refused(lambda: after.begin(caller_by(after, bearer("red")), "m")).status == 429
    assert refused(lambda: caller_by(after, bearer("gone"))).status == 401
    assert after.begin(gone, "m").account is None  # was let in a moment before


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.example.com", "127.1"]
)
def test_without_keys_no_other_address_than_loopback_is_listened_at(host):
    message = setting_refused(lambda: ServerSettings(host=host))
    assert "leave host out to listen on 127.0.0.1" in message
    assert "aigateway key" in message
    assert ServerSettings(host=host, keys=[api_key("red")]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    assert ServerSettings(host=host).is_local


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"keys": [api_key("red"), api_key("red")]}, "two have the same name"),
        ({"keys": [{"name": "admin", "sha256": "0" * 64}]}, "choose another name"),
        ({"keys": [api_key("red")], "admin_sha256": digest("sk-red")}, "admin_sha256"),
        ({"keys": [{"name": "red", "sha256": "sk-red"}]}, "64 hexadecimal digits"),
        ({"keys": [{"name": "red", "sha256": "0" * 64, "budget": 5}]}, "budget"),
        ({"keys": [{"name": "red", "sha256": "0" * 64, "budget_usd": 0}]}, "budget_usd"),
        ({"keys": [{"name": "red", "sha256": "0" * 64, "budget_usd": float("nan")}]}, "budget"),
        ({"keys": [{"name": "red", "sha256": "0" * 64, "rpm": 0}]}, "rpm"),
    ],
)
def test_keys_that_cannot_work_are_refused(fields, word):
    message = setting_refused(lambda: ServerSettings(**fields))
    assert word in message
    assert "sk-red" not in message


def test_no_key_is_in_a_repr():
    caller = caller_by(access_of(api_key("red")), bearer("red"))
    assert "sk-" not in repr(caller)
