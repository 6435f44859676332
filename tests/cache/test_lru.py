import math
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aigateway.cache.memory import ExpiringLRU
from aigateway.cache.size import entry_size
from aigateway.errors import ConfigurationError
from aigateway.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_the_least_recently_used_goes_first(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(2, clock=clock)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert (lru.get("a"), lru.get("b"), lru.get("c")) == (1, None, 3)
    assert lru.evictions == 1


def test_looking_does_not_protect(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(2, clock=clock)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.look("a") == 1
    assert "a" in lru
    lru.put("c", 3)
    assert "a" not in lru
    assert (lru.hits, lru.misses) == (0, 0)


def test_a_value_is_over_exactly_at_its_deadline(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(clock=clock)
    lru.put("a", 1, 10)
    clock.tick(9.999)
    assert lru.get("a") == 1
    clock.tick(0.001)
    assert lru.get("a") is None
    assert lru.get_stale("a") is None
    assert (lru.hits, lru.misses, lru.expirations, len(lru)) == (1, 1, 1, 0)


def test_expired_entries_make_room_before_fresh_ones_do(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(3, clock=clock)
    lru.put("oldest", 1, 100)
    lru.put("short", 2, 1)
    lru.put("newest", 3, 100)
    assert lru.get("short") == 2  # most recently used, and yet
    clock.tick(5)
    lru.put("more", 4, 100)
    assert "oldest" in lru
    assert (lru.evictions, lru.expirations) == (0, 1)


def test_a_stale_value_can_be_had_only_by_asking_for_it(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(clock=clock, stale_seconds=60)
    lru.put("a", 1, 10)
    assert lru.get_stale("a") == 1  # fresh is even better
    clock.tick(69)
    assert lru.get("a") is None
    assert "a" not in lru
    assert (lru.get_stale("a"), len(lru)) == (1, 1)
    clock.tick(1)
    assert (lru.get_stale("a"), len(lru)) == (None, 0)
    assert lru.stale_hits == 2


@pytest.mark.parametrize("lifetime", [0, -1, -math.inf, math.nan])
def test_no_lifetime_means_not_held(clock: FakeClock, lifetime: float) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(clock=clock, stale_seconds=60)
    lru.put("a", 1)
    lru.put("a", 2, lifetime)
    assert lru.get_stale("a") is None


def test_writing_one_key_for_ever_takes_no_memory(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(10, clock=clock)
    lru.put("first to go", 0, 1)  # under this, no outdated deadline comes to the top
    for value in range(1000):
        lru.put("a", value, 60)
    assert len(lru._heap) + len(lru._noted) <= 2 * 2 + 64
    assert lru.get("a") == 999
    clock.tick(60)
    assert len(lru) == 0


def test_clearing_by_prefix_leaves_the_others(clock: FakeClock) -> None:
    lru: ExpiringLRU[int] = ExpiringLRU(clock=clock)
    for key in ("x:a", "x:b", "y:a", 7):
        lru.put(key, 1)
    lru.clear("x:")
    assert sorted(map(str, lru._entries)) == ["7", "y:a"]
    lru.clear()
    assert lru.stats()["entries"] == 0


def test_the_least_recently_used_goes_first_also_when_bytes_are_short(clock: FakeClock) -> None:
    size = entry_size("a", "x" * 1000)
    lru: ExpiringLRU[str] = ExpiringLRU(max_bytes=10 * size, clock=clock)
    for key in "abcdefghij":
        lru.put(key, "x" * 1000, 100 if key == "c" else math.inf)
    assert (lru.bytes, lru.evictions) == (10 * size, 0)
    lru.get("a")
    lru.put("k", "x" * 1000)
    assert ("a" in lru, "b" in lru) == (True, False)
    clock.tick(100)
    lru.put("l", "x" * 1000)  # what is expired goes before what is fresh
    assert (lru.look("c"), lru.evictions, lru.expirations) == (None, 1, 1)
    lru.put("l", "short")
    assert lru.bytes == 9 * size + entry_size("l", "short")
    assert lru.stats()["bytes"] == lru.bytes


def test_what_takes_more_than_an_eighth_is_not_held(clock: FakeClock) -> None:
    size = entry_size("a", "x" * 1000)
    lru: ExpiringLRU[str] = ExpiringLRU(max_bytes=8 * size, clock=clock)
    assert lru.put("a", "x" * 1000)
    assert lru.put("b", "x" * 1000)
    assert not lru.put("a", "x" * 1001)
    assert lru.look("a") is None, "an older value must not stay"
    assert (lru.bytes, lru.evictions, lru.too_large) == (size, 0, 1)


def test_without_a_bound_in_bytes_none_are_counted(clock: FakeClock) -> None:
    lru: ExpiringLRU[str] = ExpiringLRU(2, clock=clock)
    assert lru.put("a", "x" * 1_000_000)
    stats = lru.stats()
    assert (stats["bytes"], stats["max_bytes"], stats["too_large"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_entries": 0}, "max_entries"),
        ({"max_entries": -3}, "max_entries"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": -3}, "max_bytes"),
        ({"stale_seconds": -1}, "stale_seconds"),
        ({"stale_seconds": math.nan}, "stale_seconds"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        ExpiringLRU(**options)


ALL_KEYS = "abcdefghijkl"
KEYS = st.sampled_from(ALL_KEYS)
LIFETIMES = st.sampled_from([-1, 0, 1, 2, 5, math.inf])
MAX_BYTES = 9_000
"""Of eight to twelve values: most have 650 to 1,050 bytes, by `SIZES`, and some are too large."""
SIZES = st.sampled_from([0, 200, 400, 5000])


class AgainstAModel(RuleBasedStateMachine):
    """The structure against the plainest description of it: an ordered dict that is searched."""

    STALE = 4

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model: OrderedDict[str, tuple[str, float, int]] = OrderedDict()
        self.writes = 0
        self.reads = 0

    @initialize(most=st.sampled_from([(3, None), (3, MAX_BYTES), (12, MAX_BYTES)]))
    def bounds(self, most: tuple[int, int | None]) -> None:
        self.max_entries, self.max_bytes = most
        self.lru: ExpiringLRU[str] = ExpiringLRU(
            self.max_entries,
            max_bytes=self.max_bytes,
            stale_seconds=self.STALE,
            clock=self.clock,
        )

    def taken(self) -> int:
        return sum(entry_size(key, value) for key, (value, _, _) in self.model.items())

    def fresh(self, key: str) -> bool:
        return key in self.model and self.model[key][1] > self.clock.now()

    def forget_the_dead(self) -> None:
        for key, (_, deadline, _) in list(self.model.items()):
            if deadline + self.STALE <= self.clock.now():
                del self.model[key]

    def make_room(self) -> None:
        """The dead first, then by deadline what is expired, then by use."""
        expired = [
            (deadline, written, key)
            for key, (_, deadline, written) in self.model.items()
            if deadline <= self.clock.now()
        ]
        victim = min(expired)[2] if expired else next(iter(self.model))
        del self.model[victim]

    @rule(key=KEYS, lifetime=LIFETIMES, length=SIZES)
    def put(self, key: str, lifetime: float, length: int) -> None:
        self.writes += 1
        value = f"{self.writes} " + "x" * length
        size, most = entry_size(key, value), self.max_bytes or math.inf
        is_held = lifetime > 0 and size <= most / 8
        assert self.lru.put(key, value, lifetime) is is_held
        self.model.pop(key, None)
        if not is_held:
            return
        self.forget_the_dead()
        while len(self.model) >= self.max_entries or self.taken() + size > most:
            self.make_room()
        self.model[key] = (value, self.clock.now() + lifetime, self.writes)

    @rule(lifetime=LIFETIMES, length=SIZES)
    def put_many(self, lifetime: float, length: int) -> None:
        for key in ALL_KEYS:
            self.put(key, lifetime, length)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        self.reads += 1
        expected = self.model[key][0] if self.fresh(key) else None
        assert self.lru.get(key) == expected
        if expected is not None:
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def get_stale(self, key: str) -> None:
        self.forget_the_dead()
        assert self.lru.get_stale(key) == (self.model[key][0] if key in self.model else None)

    @rule(key=KEYS, lifetime=st.sampled_from([0, 1, 3, math.inf]))
    def expire(self, key: str, lifetime: float) -> None:
        held = self.fresh(key)
        self.writes += 1
        assert self.lru.expire(key, lifetime) is held
        if held and lifetime == 0:
            del self.model[key]
        elif held:
            self.model[key] = (self.model[key][0], self.clock.now() + lifetime, self.writes)
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def discard(self, key: str) -> None:
        assert self.lru.discard(key) is self.fresh(key)
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([0.5, 1, 3, 10]))
    def time_passes(self, seconds: float) -> None:
        self.clock.tick(seconds)

    @rule()
    def count(self) -> None:
        self.forget_the_dead()
        assert len(self.lru) == len(self.model)
        if self.max_bytes is not None:
            assert self.lru.bytes == self.taken()

    @rule(prefix=st.sampled_from(["", "a"]))
    def clear(self, prefix: str) -> None:
        self.lru.clear(prefix)
        for key in [key for key in self.model if key.startswith(prefix)]:
            del self.model[key]

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.lru._entries) <= self.max_entries
        assert self.lru.bytes <= (self.max_bytes or 0)
        if self.max_bytes is not None:
            held = self.lru._entries.items()
            assert self.lru.bytes == sum(entry_size(key, value) for key, (value, *_) in held)
        assert self.lru.hits + self.lru.misses == self.reads
        for key in ALL_KEYS:
            assert (key in self.lru) is self.fresh(key)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(stateful_step_count=40, deadline=None)
