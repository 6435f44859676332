"""Requests and tokens per minute, limited by the gateway before the vendor refuses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from aigateway.clock import Clock

__all__ = ["WINDOW", "CallRates", "RateEntry", "RateLimits"]

WINDOW = 60.0
"""Seconds. The window slides, so it fits a vendor's window wherever that begins."""

_BUCKET = 1.0
"""Seconds whose tokens are counted together, until the last of them leaves the window."""


@dataclass(slots=True)
class _Bucket:
    began: float
    tokens: int = 0


class CallRates(Protocol):
    """Limits of calls and tokens per minute: of this process, or of all that share them."""

    def wait(self, tokens: int) -> float:
        """Return the seconds until a call of so many tokens may begin; 0.0 if now.

        A call larger than a whole minute's tokens may begin when the window is empty; else it never
        could.
        """

    def begin(self, tokens: int) -> RateEntry:
        """Record that a call of about so many tokens begins."""

    def correct(self, bucket: Any, by: int) -> None:
        """Change the tokens that were counted there, if they are still in the window."""


class RateEntry:
    """The share of one call in the rates."""

    __slots__ = ("_bucket", "_estimate", "_limits")

    def __init__(self, limits: CallRates, bucket: object, estimate: int) -> None:
        self._limits = limits
        self._bucket = bucket
        self._estimate = estimate

    def settle(self, tokens: int | None) -> None:
        """Replace the estimate by the vendor's count. A second time does nothing.

        Args:
            tokens: None if the vendor did not count: the estimate stays.
        """
        bucket, self._bucket = self._bucket, None
        if bucket is not None and tokens is not None:
            self._limits.correct(bucket, tokens - self._estimate)


class RateLimits:
    """The rates of one provider. Synchronous, for one event loop.

    Args:
        clock: The gateway's.
        rpm: Most calls begun in any 60 seconds; None is no limit.
        tpm: Most tokens of the calls begun in any 60 seconds; None is no limit.
    """

    __slots__ = ("_buckets", "_calls", "_clock", "_rpm", "_tokens", "_tpm")

    def __init__(self, clock: Clock, rpm: int | None, tpm: int | None) -> None:
        self._clock = clock
        self._rpm = rpm
        self._tpm = tpm
        self._calls: deque[float] = deque()
        self._buckets: deque[_Bucket] = deque()
        self._tokens = 0

    def wait(self, tokens: int) -> float:
        """See `CallRates`."""
        now = self._clock.now()
        return max(self._wait_for_call(now), self._wait_for_tokens(now, tokens))

    @property
    def used(self) -> int:
        """Calls begun in the last minute; without `rpm`, their tokens."""
        now = self._clock.now()
        self._drop_old_calls(now)
        self._drop_old_buckets(now)
        return self._tokens if self._rpm is None else len(self._calls)

    def begin(self, tokens: int) -> RateEntry:
        """See `CallRates`."""
        return RateEntry(self, self.count(tokens), tokens)

    def count(self, tokens: int) -> _Bucket | None:
        """Record that a call begins whose tokens stay as they are; return where those are."""
        now = self._clock.now()
        if self._rpm is not None:
            self._calls.append(now)
            self._drop_old_calls(now)
        if self._tpm is None:
            return None
        bucket = self._buckets[-1] if self._buckets else None
        if bucket is None or bucket.began + _BUCKET <= now:
            self._drop_old_buckets(now)
            bucket = _Bucket(now)
            self._buckets.append(bucket)
        bucket.tokens += tokens
        self._tokens += tokens
        return bucket

    def correct(self, bucket: _Bucket, by: int) -> None:
        """Change the tokens of one second, if it is still in the window."""
        bucket.tokens += by
        if self._buckets and bucket.began >= self._buckets[0].began:
            self._tokens += by

    def _wait_for_call(self, now: float) -> float:
        if self._rpm is None:
            return 0.0
        self._drop_old_calls(now)
        calls = self._calls
        return 0.0 if len(calls) < self._rpm else calls[len(calls) - self._rpm] + WINDOW - now

    def _drop_old_calls(self, now: float) -> None:
        calls = self._calls
        while calls and calls[0] + WINDOW <= now:
            calls.popleft()

    def _wait_for_tokens(self, now: float, tokens: int) -> float:
        if self._tpm is None:
            return 0.0
        self._drop_old_buckets(now)
        left = self._tokens
        wait = 0.0
        for bucket in self._buckets:
            if left <= 0 or left + tokens <= self._tpm:
                break
            left -= bucket.tokens
            wait = bucket.began + _BUCKET + WINDOW - now
        return wait

    def _drop_old_buckets(self, now: float) -> None:
        buckets = self._buckets
        while buckets and buckets[0].began + _BUCKET + WINDOW <= now:
            self._tokens -= buckets.popleft().tokens
