"""Vendors that follow a scenario: what they answer, how they break, and who watches them.

They stand where the real ones stand (`aigateway.wires.client`), so all of the gateway above that
line runs as users get it. What a prompt is answered with depends on the prompt alone, so that an
answer that reaches the wrong caller is known at sight.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import Operation
from aigateway.messages import (
    Capability,
    ChatRequest,
    Choice,
    Chunk,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Usage,
)
from aigateway.settings import LLMConfig
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.failures import classify_response
from aigateway.wires.wire import AnswerEnd
from tests.simulation.scenario import Ask, ProviderPlan, Scenario, Trouble

__all__ = [
    "PRICE",
    "SimulatedVendors",
    "VendorCall",
    "Watcher",
    "answer_to",
    "vector_of",
    "would_fail",
]

PRICE = 0.001
"""US dollars for each whole answer."""

REJECTED = "rejected"
"""In a prompt that every vendor calls invalid."""

LONG = "long"
"""In a prompt that is too long for some."""

_CHOKES = re.compile(r" chokes=(\w+)@(\w+)")
"""In a prompt that some vendor, or `all` of them, cannot bear."""


def answer_to(prompt: str) -> str:
    """What every vendor answers."""
    dice = random.Random(f"answer/{prompt}")
    words = [f"<{prompt}>", *(f"w{number}" for number in range(dice.randint(0, 7)))]
    return "".join(word + dice.choice((" ", " ", "  ", "\n")) for word in words) + "end"


def vector_of(text: str) -> tuple[float, ...]:
    """What every vendor makes of a text."""
    return (float(len(text)), float(sum(text.encode())))


@dataclass(eq=False, slots=True)
class VendorCall:
    """One call as the vendor sees it; of a stream until its connection is closed."""

    provider: str
    life: int
    """Which of the providers that had this name one after the other."""
    request_id: str
    prompt: str
    operation: Operation
    began: float
    trouble: str | None = None
    ended: float | None = None
    model: str | None = None
    """As the caller asked for it."""
    how: str = ""
    """How it ended: `answered`, `cancelled`, `left`, or the kind of failure."""

    @property
    def asks(self) -> tuple[str, str, str | None]:
        """What is asked: the same for every repeat of one request."""
        return self.operation, self.prompt, self.model

    @property
    def answered(self) -> bool:
        """Whether the vendor gave a whole answer, and the gateway took it."""
        return self.how == "answered"


class Watcher(Protocol):
    """Whoever looks on."""

    def call_began(self, call: VendorCall) -> None:
        """A call arrived."""

    def call_ended(self, call: VendorCall, how: str) -> None:
        """It is over."""

    def answered(self, call: VendorCall) -> None:
        """The vendor has given a whole answer, though a stream may not be over."""

    def broken(self, promise: str, how: str) -> None:
        """The gateway has broken a promise."""


class SimulatedVendors:
    """All vendors of one run; the gateway's `vendor=`.

    Args:
        seed: For what each call meets.
        troubles: What is wrong when.
        watcher: Is told of each call.
        time: Seconds since the run began.

    Attributes:
        log: Every call that reached a vendor, in the order in which they began.
    """

    def __init__(
        self,
        seed: str,
        troubles: Sequence[Trouble],
        watcher: Watcher,
        time: Callable[[], float],
    ) -> None:
        self.seed = seed
        self.watcher = watcher
        self.time = time
        self.plans: dict[str, ProviderPlan] = {}
        self.lives: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.clients: list[_Client] = []
        self.open_streams = 0
        self.log: list[VendorCall] = []
        self._troubles: dict[str, list[Trouble]] = {}
        for trouble in troubles:
            self._troubles.setdefault(trouble.provider, []).append(trouble)
        self._calls: Counter[tuple[str, str]] = Counter()

    def __call__(self, config: LLMConfig, clock: Clock) -> _Client:
        client = _Client(self, self.plans[config.name], self.lives[config.name], clock)
        self.clients.append(client)
        return client

    def dice(self, provider: str, prompt: str) -> random.Random:
        """The luck of the next call with this prompt."""
        self._calls[provider, prompt] += 1
        return random.Random(f"{self.seed}/{provider}/{prompt}/{self._calls[provider, prompt]}")

    def trouble(
        self, provider: str, dice: random.Random, operation: Operation | None = None
    ) -> Trouble | None:
        """What this call meets."""
        now = self.time()
        for trouble in self._troubles.get(provider, ()):
            luck = dice.random()
            if (
                trouble.begins <= now < trouble.ends
                and luck < trouble.share
                and trouble.operation in {None, operation}
            ):
                return trouble
        return None


def would_fail(scenario: Scenario, plan: ProviderPlan, ask: Ask) -> bool:
    """Whether a provider fails a request that it is asked once, when it comes."""
    dice = random.Random(f"{scenario.seed}/{plan.name}/{ask.text}/1")
    for trouble in scenario.troubles:
        if trouble.provider == plan.name:
            luck = dice.random()
            if trouble.begins <= ask.at < trouble.ends and luck < trouble.share:
                return trouble.kind != "slow"
    return _choked(ask.text, plan.vendor) is not None


class _Client:
    """One provider's connection."""

    def __init__(
        self, vendors: SimulatedVendors, plan: ProviderPlan, life: int, clock: Clock
    ) -> None:
        self._vendors = vendors
        self._plan = plan
        self._life = life
        self._clock = clock
        self.name = plan.name
        self._spent_until: float | None = None
        self.closed = False

    @property
    def has_price(self) -> bool:
        return True

    @property
    def max_input_tokens(self) -> int | None:
        return self._plan.window

    @property
    def operations(self) -> frozenset[Operation] | None:
        return None

    @property
    def capabilities(self) -> Mapping[Capability, bool]:
        return {}

    @property
    def accepts_prefill(self) -> bool:
        return self._plan.continues

    def speaks(self, protocol: Any) -> bool | None:
        return False

    def dropped(self, params: Mapping[str, Any], messages: Any = ()) -> tuple[str, ...]:
        return ()

    async def prepare(self) -> None:
        dice = self._vendors.dice(self._plan.name, "prepare")
        trouble = self._vendors.trouble(self._plan.name, dice)
        await self._clock.sleep(dice.choice((0.0, 0.0, 0.05)))
        if trouble is not None and trouble.kind == "unprepared":
            self._vendors.met["unprepared"] += 1
            raise RuntimeError("cannot be loaded")

    def pause(self) -> float | None:
        until, self._spent_until = self._spent_until, None
        return None if until is None else max(0.0, until - self._clock.now())

    async def chat(self, request: ChatRequest) -> Completion:
        call, dice, trouble = self._begin(request, prompt_of(request), "chat")
        how = "cancelled"
        try:
            await self._wait(dice, trouble)
            self._refuse(call, trouble)
            how = "answered"
            self._vendors.watcher.answered(call)
            return Completion(
                "simulated", "m", (Choice(answer_to(call.prompt), "stop"),), Usage(1, 1, 2), PRICE
            )
        except VendorCallError as error:
            how = str(error.failure.kind)
            raise
        finally:
            await self._end(call, how)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        call, dice, trouble = self._begin(request, str(request.inputs[0]), "embeddings")
        how = "cancelled"
        try:
            await self._wait(dice, trouble)
            self._refuse(call, trouble)
            how = "answered"
            self._vendors.watcher.answered(call)
            vectors = tuple(vector_of(str(each)) for each in request.inputs)
            return Embeddings("m", vectors, Usage(1, 0, 1), PRICE)
        except VendorCallError as error:
            how = str(error.failure.kind)
            raise
        finally:
            await self._end(call, how)

    async def stream(self, request: ChatRequest) -> _Stream:
        call, dice, trouble = self._begin(request, prompt_of(request), "chat")
        begun = False
        how = "cancelled"
        try:
            if trouble is None or not trouble.kind.endswith(("_midway", "_start", "lingering")):
                await self._wait(dice, trouble)
                self._refuse(call, trouble)
            else:
                await self._clock.sleep(self._plan.latency)
            begun = True
            self._vendors.open_streams += 1
            return _Stream(self._vendors, self, call, request, self._plan, dice, trouble)
        except VendorCallError as error:
            how = str(error.failure.kind)
            raise
        finally:
            if not begun:
                await self._end(call, how)

    async def aclose(self) -> None:
        self.closed = True
        await asyncio.sleep(0)

    # ── the way of a call ────────────────────────────────────────────────────────────────────

    def _begin(
        self, request: ChatRequest | EmbeddingRequest, prompt: str, operation: Operation
    ) -> tuple[VendorCall, random.Random, Trouble | None]:
        vendors, name = self._vendors, self._plan.name
        if self.closed:
            vendors.watcher.broken("closed_client", f"{name} was called after it had been closed")
        dice = vendors.dice(name, prompt)
        kind = _choked(prompt, self._plan.vendor)
        if operation == self._plan.refuses:
            kind = self._plan.refuses_by
        if kind is not None:
            trouble: Trouble | None = Trouble(name, kind, 0.0, 0.0)
        else:
            trouble = vendors.trouble(name, dice, operation)
        if trouble is not None:
            vendors.met[trouble.kind] += 1
        call = VendorCall(name, self._life, request.request_id, prompt, operation, vendors.time())
        call.model = request.model
        call.trouble = None if trouble is None else trouble.kind
        vendors.log.append(call)
        vendors.watcher.call_began(call)
        return call, dice, trouble

    async def _wait(self, dice: random.Random, trouble: Trouble | None) -> None:
        kind = None if trouble is None else trouble.kind
        if kind in {"hang", "silent_start", "silent_midway"}:
            await asyncio.get_running_loop().create_future()
        if kind == "refused":
            return
        seconds = self._plan.latency * dice.choice((1, 1, 1, 2))
        if trouble is not None and trouble.factor is not None:
            seconds *= trouble.factor
        elif kind == "slow":
            seconds = seconds * 4 + dice.choice((0.1, 0.5, 1.0))
        await self._clock.sleep(seconds)

    def _refuse(self, call: VendorCall, trouble: Trouble | None) -> None:
        """Fail as the trouble says, or as the request deserves."""
        if trouble is not None:
            _fail(trouble, self._plan.vendor)
            if trouble.kind == "spent":
                self._spent_until = self._clock.now() + (trouble.retry_after or 0.25)
        if LONG in call.prompt and self._plan.window == 100:
            raise VendorCallError(Failure(FailureKind.CONTEXT_WINDOW, 400))
        if REJECTED in call.prompt:
            raise VendorCallError(Failure(FailureKind.REJECTED, 400))

    async def _end(self, call: VendorCall, how: str) -> None:
        """Close the connection, which a cancelled call may take some turns of the loop for."""
        try:
            if how == "cancelled":
                for _ in range(self._plan.cleanup):
                    await asyncio.sleep(0)
        finally:
            call.ended, call.how = self._vendors.time(), how
            self._vendors.watcher.call_ended(call, how)

    def stream_ended(self, call: VendorCall, how: str) -> None:
        """A stream's connection is closed."""
        self._vendors.open_streams -= 1
        call.ended, call.how = self._vendors.time(), how
        self._vendors.watcher.call_ended(call, how)


_KINDS = {
    "outage": Failure(FailureKind.SERVER_ERROR, 503),
    "brownout": Failure(FailureKind.SERVER_ERROR, 500),
    "overloaded": Failure(FailureKind.SERVER_ERROR, 529),
    "refused": Failure(FailureKind.CONNECTION, unreachable=True),
    "reset": Failure(FailureKind.CONNECTION),
    "reset_midway": Failure(FailureKind.CONNECTION),
    "malformed": Failure(FailureKind.BAD_ANSWER, 200),
    "malformed_midway": Failure(FailureKind.BAD_ANSWER, 200),
    "throttled": Failure(FailureKind.RATE_LIMITED, 429),
}
"""What each kind of trouble raises; the others are in how long things take."""

_OPENAIS: dict[str, tuple[int, Any]] = {
    "bad_key": (
        401,
        {
            "error": {
                "message": "Incorrect API key provided: sk-x.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }
        },
    ),
    "bare_401": (401, None),
    "bare_403": (403, None),
    "bare_404": (404, None),
    "missing_file": (404, {"error": {"message": "No such File object: f", "code": None}}),
    "no_endpoint": (405, None),
    "no_model": (
        403,
        {
            "error": {
                "message": "You are not allowed to generate embeddings from this model",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
    ),
    "no_tools": (
        404,
        {"error": {"message": "No endpoints found that support tool use.", "code": 404}},
    ),
    "not_implemented": (501, None),
}
"""Statuses and bodies of refusals, as OpenAI and those who imitate it send them."""

_OTHERS: dict[str, dict[str, tuple[int, Any]]] = {
    "anthropic": {
        "missing_file": (
            404,
            {
                "type": "error",
                "error": {"type": "not_found_error", "message": "File not found: file_1"},
            },
        ),
    },
    "gemini": {
        "missing_file": (
            403,
            {
                "error": {
                    "code": 403,
                    "message": "You do not have permission to access the File f or it may not"
                    " exist.",
                    "status": "PERMISSION_DENIED",
                }
            },
        ),
        "no_model": (
            404,
            {
                "error": {
                    "code": 404,
                    "message": "models/m is not found for API version v1beta, or is not supported"
                    " for embedContent.",
                    "status": "NOT_FOUND",
                }
            },
        ),
    },
}


@functools.cache
def _refusal(kind: str, vendor: str) -> Failure | None:
    """What a refusal means, as the gateway reads it: what is played is what vendors send."""
    known = _OTHERS.get(vendor, {}).get(kind) or _OPENAIS.get(kind)
    if known is None:
        return None
    status, body = known
    sent = b"" if body is None else json.dumps(body).encode()
    return classify_response(status, {}, sent, now_wall=0.0)


@functools.lru_cache(maxsize=4096)
def _choked(prompt: str, vendor: str) -> str | None:
    """What a prompt brings upon the call that carries it to this vendor."""
    found = _CHOKES.search(prompt)
    return found[1] if found and found[2] in {"all", vendor} else None


def _fail(trouble: Trouble, vendor: str) -> None:
    if trouble.kind == "crash":
        raise RuntimeError("not foreseen")
    failure = _KINDS.get(trouble.kind) or _refusal(trouble.kind, vendor)
    if failure is not None:
        waits = trouble.kind in {"outage", "overloaded", "throttled"}
        raise VendorCallError(replace(failure, retry_after=trouble.retry_after if waits else None))


class _Stream:
    """An answer that is being given."""

    def __init__(
        self,
        vendors: SimulatedVendors,
        client: _Client,
        call: VendorCall,
        request: ChatRequest,
        plan: ProviderPlan,
        dice: random.Random,
        trouble: Trouble | None,
    ) -> None:
        self._vendors = vendors
        self._client = client
        self._call = call
        self._plan = plan
        self._kind = "" if trouble is None else trouble.kind
        self._trouble = trouble
        self._assembly = Assembly("m")
        self._pieces = _pieces(_remainder(request, call, vendors.watcher), dice)
        self._breaks_at = dice.randint(1, max(1, len(self._pieces) - 1))
        self._empties = dice.randint(0, 2)
        self._given = 0
        self._reading = False
        self._open = True
        self._spoilt = False

    @property
    def finished(self) -> bool:
        return self._assembly.finished

    async def read(self) -> Sequence[Chunk] | None:
        if self._reading or self._spoilt or not self._open:
            self._vendors.watcher.broken("stream_read", f"{self._plan.name}: read out of turn")
        self._reading = True
        try:
            return await self._read()
        except BaseException:
            self._spoilt = True
            raise
        finally:
            self._reading = False

    def completion(self) -> Completion:
        whole = self._assembly.usage is not None
        return replace(self._assembly.completion(), cost_usd=PRICE if whole else None)

    async def aclose(self) -> None:
        if self._open:
            await self._close("left")

    async def _read(self) -> Sequence[Chunk] | None:
        await self._vendors_pace()
        if self._empties:
            self._empties -= 1
            return ()
        if self._given == self._breaks_at:
            await self._break()
        if self._given < len(self._pieces):
            chunk = Chunk(self._pieces[self._given])
            self._given += 1
            self._assembly.add(chunk)
            if self._given == len(self._pieces):
                self._finish()
            return (chunk,)
        if not self._pieces:
            self._assembly.add(Chunk())
            self._finish()
        if self._kind == "lingering":
            await asyncio.get_running_loop().create_future()
        self._assembly.usage = Usage(1, 1, 2)
        await self._close("answered")
        return None

    async def _vendors_pace(self) -> None:
        if self._kind == "silent_start" and not self._given and not self._empties:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._plan.gap)

    async def _break(self) -> None:
        if self._kind == "silent_midway":
            await asyncio.get_running_loop().create_future()
        if self._kind.endswith("_midway"):
            raise VendorCallError(_KINDS[self._kind])

    def _finish(self) -> None:
        """Say why the answer ended: from here on it is of use, whatever comes."""
        self._assembly.finish(0, AnswerEnd("stop", "stop"))
        self._vendors.watcher.answered(self._call)

    async def _close(self, how: str) -> None:
        self._open = False
        try:
            for _ in range(self._plan.cleanup if how == "left" else 0):
                await asyncio.sleep(0)
        finally:
            self._client.stream_ended(self._call, how)


def prompt_of(request: ChatRequest) -> str:
    """The user's own words."""
    return str(next(m["content"] for m in request.messages if m["role"] == "user"))


def _remainder(request: ChatRequest, call: VendorCall, watcher: Watcher) -> str:
    """What is still to say, where the assistant has said something already."""
    answer = answer_to(call.prompt)
    last = request.messages[-1]
    if last["role"] != "assistant":
        return answer
    partial = str(last["content"])
    if not answer.startswith(partial) or partial != partial.rstrip():
        watcher.broken("continuation", f"{call.provider} was to go on from {partial!r}")
    return answer[len(partial) :]


def _pieces(text: str, dice: random.Random) -> list[str]:
    """The text in pieces, cut anywhere."""
    pieces = []
    while text:
        length = dice.randint(3, 12)
        pieces.append(text[:length])
        text = text[length:]
    return pieces
