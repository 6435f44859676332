"""One simulated vendor: a wire behind a loopback port, and its interface for tests."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from aigateway.clock import SYSTEM_CLOCK
from aigateway.simulator.answers import (
    AnswerSource,
    Call,
    ChatCall,
    EmbeddingCall,
    ModelsCall,
    Received,
    Reply,
    SimulatedAnswer,
    TokensCall,
    default_answer,
    reply_for,
)
from aigateway.simulator.delivery import send_broken, send_failure, send_plain, send_stream
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.listener import LoopbackServer
from aigateway.simulator.script import Script, Step
from aigateway.simulator.wires.anthropic import AnthropicWire
from aigateway.simulator.wires.azure import AzureWire
from aigateway.simulator.wires.gemini import GeminiWire
from aigateway.simulator.wires.openai import OpenAIWire
from aigateway.simulator.wires.wire import (
    Event,
    SimulatedFailure,
    SimulatedWire,
    files_named_in,
    sse,
)

if TYPE_CHECKING:
    from aigateway.settings import LLMConfig

__all__ = ["WIRES", "SimulatedVendor"]

WIRES: Mapping[str, Callable[[], SimulatedWire]] = {
    "openai": OpenAIWire,
    "azure": AzureWire,
    "gemini": GeminiWire,
    "anthropic": AnthropicWire,
    "openai_compatible": lambda: OpenAIWire(compatible=True),
}

_ONLY_CHATS = re.compile(r"(?!.*embed)(gpt-|chatgpt-|o\d|gemini-)", re.IGNORECASE)
"""Models that are known not to embed."""

_EMBEDDING_MODELS = {"gemini": "gemini-embedding-001", "openai_compatible": "nomic-embed-text"}

_BASE_PATHS = {"openai": "/v1", "openai_compatible": "/v1", "gemini": "/v1beta"}
_AZURE_API_VERSION = "2024-10-21"
_THREAD_SECONDS = 5.0
_Sender = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class SimulatedVendor:
    """A server on one wire. `Simulator` makes and starts it.

    Attributes:
        name: Its name in the simulator.
        key: The key that `config` uses.
        keys: The keys that are accepted; None accepts any; some wires
            require one.
        latency: Seconds before a healthy answer.
        chunk_delay: Seconds before each piece of a stream.
        offers: Ends of the paths that the server has ("chat/completions"); None is all of its wire.
        files: Ids of the files it has; a prompt that names another one is refused.
        headers: Sent with every response of the vendor itself, for example rate limits.
        request_count: How many requests ever arrived; `clear` does not reset it.
    """

    def __init__(self, wire: str, name: str, *, port: int = 0, received_limit: int) -> None:
        if wire not in WIRES:
            raise ValueError(f"unknown wire {wire!r}; known: {', '.join(WIRES)}")
        self._wire = WIRES[wire]()
        self.name = name
        self.key = f"sk-simulated-{name}"
        self.keys: frozenset[str] | None = None
        self.offers: frozenset[str] | None = None
        self.files: frozenset[str] = frozenset()
        self.latency = 0.0
        self.chunk_delay = 0.0
        self.headers: dict[str, str] = {}
        self.request_count = 0
        self._answer: AnswerSource = None
        self._received: deque[Received] = deque(maxlen=received_limit)
        self._script = Script(SYSTEM_CLOCK)
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._listener = LoopbackServer(self._handle, port)
        self._closed = False

    def __repr__(self) -> str:
        return f"<SimulatedVendor {self.name} ({self.wire}) {self.url}>"

    @property
    def strict(self) -> bool:
        """Whether unknown fields of messages are rejected."""
        return bool(getattr(self._wire, "strict", True))

    @strict.setter
    def strict(self, strict: bool) -> None:
        if isinstance(self._wire, OpenAIWire):
            self._wire.strict = strict

    @property
    def wire(self) -> str:
        """The name of its wire."""
        return self._wire.name

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a path."""
        return f"http://127.0.0.1:{self._listener.port}"

    @property
    def api_base(self) -> str:
        """The base URL for clients of this wire."""
        return self.url + _BASE_PATHS.get(self.wire, "")

    @property
    def model(self) -> str:
        """The model (on Azure the deployment) that `config` names by default."""
        return self._wire.default_model

    @property
    def embedding_model(self) -> str:
        """A model of this wire that embeds, for `config(model=...)`. Anthropic has none."""
        return _EMBEDDING_MODELS.get(self.wire, "text-embedding-3-small")

    @property
    def received(self) -> tuple[Received, ...]:
        """Every request that arrived since `clear`, faulty or not, oldest first."""
        return tuple(self._received)

    @property
    def open_connections(self) -> int:
        """Sockets open now, idle ones included."""
        return self._listener.open_connections

    @property
    def fault(self) -> Fault | None:
        """The fault of the next request; None if healthy."""
        return self._script.current()

    def config(self, **fields: Any) -> LLMConfig:
        """Return a provider that calls this vendor.

        Args:
            **fields: Any of `LLMConfig`'s fields, in addition to address, key and model.
        """
        from aigateway.settings import LLMConfig, ProviderType  # noqa: PLC0415 - only here

        defaults: dict[str, Any] = {
            "provider": ProviderType(self.wire),
            "model": self.model,
            "api_key": self.key,
            "api_base": self.api_base,
        }
        if self.wire == "azure":
            defaults["api_version"] = _AZURE_API_VERSION
        if self.name != self.wire:
            defaults["name"] = self.name  # two servers on one wire need two names
        return LLMConfig(**(defaults | fields))

    def behave(self, *faults: Fault | None, times: int | None = None) -> None:
        """Break from now on.

        Args:
            *faults: One fault, or several in turn, request by request; None is healthy.
            times: Only to this many requests; None lasts until `recover`.

        Raises:
            ValueError: No fault, or `refuse` with company or `times`.
        """
        self._in_loop(lambda: self._behave(faults, times))

    def recover(self) -> None:
        """Be healthy from now on. Requests that hang keep hanging."""
        self._in_loop(self._recover)

    def timeline(self, steps: Iterable[Step]) -> None:
        """Follow a script: at each number of seconds from now, this fault (None: healthy)."""
        chosen = list(steps)
        self._in_loop(lambda: self._follow(chosen))

    def answer(self, answer: AnswerSource) -> None:
        """Give this answer from now on: an `Answer`, its text, or a function of the request.

        None restores the default: an echo of the user's last words, "4" for "2+2", and the
        smallest valid instance where a schema or a tool is required.
        """
        self._answer = answer

    def clear(self) -> None:
        """Clear the received requests."""
        self._received.clear()

    async def start(self) -> None:
        """Listen; called by `Simulator`."""
        await self._listener.start()

    async def close(self) -> None:
        """Stop at once, even with hanging requests; called by `Simulator`."""
        self._closed = True
        self._drop_timers()
        await self._listener.close()

    def _behave(self, faults: tuple[Fault | None, ...], times: int | None) -> None:
        self._script.behave(faults, times)
        self._drop_timers()
        self._listen_for(faults[0])

    def _recover(self) -> None:
        self._script.recover()
        self._drop_timers()
        self._listen_for(None)

    def _follow(self, steps: list[Step]) -> None:
        ordered = self._script.timeline(steps)
        self._drop_timers()
        self._listen_for(self._script.current())
        for at, fault in ordered:
            self._timers.append(self._loop.call_later(at, self._listen_for, fault))

    def _listen_for(self, fault: Fault | None) -> None:
        if self._closed:
            return
        if fault is not None and fault.name == "refuse":
            self._listener.refuse()
        else:
            self._listener.accept()

    def _drop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Run `action` on the server's loop, and return when it is done."""
        if self._closed or threading.get_ident() == self._thread:
            action()
            return

        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_THREAD_SECONDS)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        received, complaint = await _receive(request)
        self.request_count += 1
        self._received.append(received)
        fault = complaint or self._script.take(received.body)
        model, stream = self._wire.peek(received)
        if fault is None:
            return await self._answer_to(request, received, None)
        if fault.is_error:
            return await self._complain(request, fault, model, stream=stream)
        if fault.name == "error_in_200":
            failure = self._wire.failure(Fault("server_error", message=fault.message), model)
            return await send_failure(request, replace(failure, status=200))
        if fault.is_blind:
            return await send_broken(request, fault, self._headers())
        return await self._answer_to(request, received, fault)

    async def _answer_to(
        self, request: web.BaseRequest, received: Received, fault: Fault | None
    ) -> web.StreamResponse:
        """Check the request and answer it, with the fault if there is one."""
        try:
            send = self._sender(self._read(received), received, fault)
        except RefusedError as refused:
            return await self._complain(request, refused.fault, self._wire.peek(received).model)
        seconds = self.latency + (fault.seconds if fault else 0.0)
        if seconds > 0:
            await asyncio.sleep(seconds)
        return await send(request)

    def _sender(self, call: Call, received: Received, fault: Fault | None) -> _Sender:
        """Return the answer, ready to send."""
        headers = self._headers()
        if isinstance(call, EmbeddingCall):
            body = self._wire.embeddings(call)
        elif isinstance(call, ModelsCall):
            body = self._wire.models(call)
        elif isinstance(call, TokensCall):
            body = {"input_tokens": call.tokens}
        else:
            reply = self._reply(call, received, fault)
            if call.stream:
                return self._streamer(call, reply, fault, headers)
            body = self._wire.chat(call, reply)
        return partial(send_plain, body=orjson.dumps(body), fault=fault, headers=headers)

    def _streamer(
        self, call: ChatCall, reply: Reply, fault: Fault | None, headers: dict[str, str]
    ) -> _Sender:
        if call.json_array:
            headers["content-type"] = "application/json; charset=utf-8"
        return partial(
            send_stream,
            events=self._wire.events(call, reply),
            fault=fault,
            headers=headers,
            error_event=self._wire.error_event(call),
            delay=self.chunk_delay,
        )

    def _headers(self) -> dict[str, str]:
        return {**self._wire.headers(), **self.headers}

    def _read(self, received: Received) -> Call:
        if self.offers is not None and not received.path.endswith(tuple(self.offers)):
            raise RefusedError(Fault("wrong_path"))
        try:
            call = self._wire.read(received, self.keys)
        except (AttributeError, KeyError, TypeError, ValueError):
            # Wires check common mistakes; this body has an entirely different shape.
            raise RefusedError(Fault.bad_request()) from None
        self._check_abilities(call, received)
        return call

    def _check_abilities(self, call: Call, received: Received) -> None:
        """Reject what this model or server cannot do, as far as names show."""
        if isinstance(call, EmbeddingCall):
            # Compatible servers embed with any model.
            if self.wire != "openai_compatible" and _ONLY_CHATS.match(call.model):
                raise RefusedError(Fault.not_an_embedding_model())
        elif isinstance(call, ChatCall):
            if "embed" in call.model.lower():
                raise RefusedError(Fault.not_a_chat_model())
            if not self.files.issuperset(files_named_in(received.body)):
                raise RefusedError(Fault.file_not_found())

    async def _complain(
        self, request: web.BaseRequest, fault: Fault, model: str, *, stream: bool = False
    ) -> web.StreamResponse:
        failure = self._wire.failure(fault, model)
        headers = self._headers() | dict(failure.headers)
        if failure.status == 200 and stream:
            return await send_stream(
                request,
                [Event(sse(failure.body))],
                None,
                headers=headers,
                error_event=b"",
                delay=0.0,
            )
        return await send_failure(request, SimulatedFailure(failure.status, failure.body, headers))

    def _reply(self, call: ChatCall, received: Received, fault: Fault | None) -> Reply:
        source = self._answer
        said = source(received) if callable(source) else source
        if isinstance(said, str):
            said = SimulatedAnswer(text=said)
        reply = reply_for(_default(call) if said is None else said, call)
        name = fault.name if fault else ""
        return replace(reply, show_usage=name != "no_usage", show_choices=name != "no_choices")


def _default(call: ChatCall) -> SimulatedAnswer:
    try:
        return default_answer(call)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RefusedError(Fault.bad_request("Invalid schema in the request.")) from None


async def _receive(request: web.BaseRequest) -> tuple[Received, Fault | None]:
    """Return the request as it arrived, and an error if it was too big."""
    complaint = None
    body: Any = None
    try:
        raw = await request.read()
        body = orjson.loads(raw) if raw else None
    except web.HTTPRequestEntityTooLarge:
        complaint = Fault.too_large()
    except orjson.JSONDecodeError:
        body = None
    received = Received(
        method=request.method,
        path=request.path,
        query=dict(request.query),
        headers=request.headers,
        body=body,
        at=SYSTEM_CLOCK.now(),
    )
    return received, complaint
