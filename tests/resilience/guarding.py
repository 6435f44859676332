"""What guards are told, and what they tell."""

from aigateway.errors import FailureKind
from aigateway.resilience.guard import AttemptOutcome, Effect

__all__ = [
    "Heard",
    "allowance",
    "answered",
    "failed",
    "misconfigured",
    "neutral",
    "outcome",
    "throttled",
]


class Heard:
    """A listener that notes what it hears."""

    def __init__(self):
        self.events = []

    def cooled_down(self, seconds, *, limited, by_others=False):
        self.events.append(("cooled down", round(seconds, 6)))

    def disabled(self, reason, status, seconds):
        self.events.append(("disabled", reason, status, round(seconds, 6)))

    def enabled(self):
        self.events.append(("enabled",))

    def degraded(self, reason, share):
        self.events.append(("degraded", reason, round(share, 6)))

    def recovered(self):
        self.events.append(("recovered",))


_serial = iter(range(10**9))


def outcome(effect, cause=None, **fields):
    """The end of an attempt; each of a request of its own, unless a cause is given."""
    digest = next(_serial) if cause is None else cause
    return AttemptOutcome(effect, lambda: digest, **fields)


def answered(seconds=0.0):
    return outcome(Effect.ANSWERED, seconds=seconds)


def failed(cause=None, *, retry_after=None):
    return outcome(
        Effect.FAILED, cause, kind=FailureKind.SERVER_ERROR, status=500, retry_after=retry_after
    )


def throttled(retry_after=None):
    kind = FailureKind.RATE_LIMITED
    return outcome(Effect.THROTTLED, kind=kind, status=429, retry_after=retry_after)


def misconfigured(cause=None, kind=FailureKind.AUTHENTICATION, *, certain=False):
    return outcome(Effect.MISCONFIGURED, cause, kind=kind, status=401, certain=certain)


def neutral():
    return outcome(Effect.NEUTRAL, kind=FailureKind.CANCELLED)


def allowance(watch, clock, limit):
    """What a timeout of so many seconds that begins now asks of a `StallDetector`."""
    began = looked = clock.now()

    def more():
        nonlocal looked
        given = watch.more(limit, began, looked)
        looked = clock.now()
        return given

    return more
