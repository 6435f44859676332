"""The direct lane: litellm translates, and the gateway sends over connections of its own.

A call costs a tenth of what it costs through `litellm.acompletion`. What may turn out differently
here takes the other lane: vendors of `ProviderType.LITELLM`, embeddings, rare parameters and
message parts, every call while the user has callbacks registered with litellm, and all calls if
litellm's functions are not what they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.messages import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    NativeRequest,
    ProtocolName,
)
from aigateway.settings import LLMConfig
from aigateway.wires.answers import completion_from
from aigateway.wires.client import Failure, VendorCallError, VendorStream, without_stop
from aigateway.wires.direct_stream import DirectStream, StreamOwner
from aigateway.wires.failures import classify, classify_response
from aigateway.wires.json_bodies import parsed
from aigateway.wires.limits import Quota
from aigateway.wires.litellm.lane import LiteLLMClient, ProviderFacts, call_options
from aigateway.wires.loading import in_thread, load_litellm, silent
from aigateway.wires.parameters import Dropping, ParameterRules
from aigateway.wires.pricing import ORDINARY_TIERS, Tariff
from aigateway.wires.registry import speaks, wire_of
from aigateway.wires.stream_reading import EventParser, StreamReading
from aigateway.wires.wire import BrokenOffError, Received, VendorRequest, VendorResponse

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from aigateway.wires.http import SharedSession, VendorAnswer
    from aigateway.wires.native import NativeLane
    from aigateway.wires.translation import Translation

__all__ = ["DirectClient", "keep_tried_lanes"]

_log = logging.getLogger(__name__)

_LONG = 32_768
"""Bytes from which a request is translated in a thread. litellm takes a tenth of a second for a
thousand tools, or for a deeply nested schema."""
_VERY_LONG = 1 << 18
"""Bytes from which also a request that needs nothing of litellm goes to that thread."""

_translators = ThreadPoolExecutor(2, "aigateway-translate")

_TRIAL = ChatRequest(messages=({"role": "user", "content": "hi"},))

_kept: dict[int, tuple[LLMConfig, Mapping[str, Any], Translation | None, bool]] = {}
"""Lanes that were tried for processes to come, by the identity of the configuration."""

_keeps = False
"""Whether lanes that are tried now are kept."""


@contextlib.contextmanager
def keep_tried_lanes() -> Iterator[None]:
    """Keep what is tried meanwhile for the processes that this one forks.

    There the first client of the same configuration takes it. To try a lane again would cost each
    process 2 MB: a copy of the pages that litellm's translation is on.
    """
    global _keeps  # noqa: PLW0603 - a thing of the process
    _keeps = True
    try:
        yield
    finally:
        _keeps = False


class DirectClient(ProviderFacts):
    """One provider, asked over our own connections, on one event loop.

    `drop_unsupported_params` says what is left out of a request if the model does not take it:
    hints, anything (True), or nothing (False). Otherwise the request fails as `UNSUPPORTED`, as a
    rule before anything is sent.
    """

    def __init__(
        self, config: LLMConfig, clock: Clock, *, drop_unsupported_params: Dropping = "hints"
    ) -> None:
        self._config = config
        self._clock = clock
        drop = drop_unsupported_params is True
        self._parameters = ParameterRules(config, clock, drop_unsupported_params)
        self._options = call_options(config, drop_unsupported_params=drop)
        self._quota = Quota(wire_of(config).limits, clock)
        self._other = LiteLLMClient(
            config,
            clock,
            drop_unsupported_params=drop_unsupported_params,
            parameters=self._parameters,
            quota=self._quota,
        )
        self._native: dict[ProtocolName, NativeLane | None] = {}
        self._asked_from: dict[ProtocolName, float] = {}
        self._sessions: list[SharedSession] = []
        self._litellm: ModuleType | None = None
        self._trial: Future[tuple[Translation | None, bool]] | None = None
        self._translation: Translation | None = None
        self._connections: SharedSession | None = None
        self._callbacks: Callable[[], tuple[Any, ...]] = tuple  # empty; `_connect` knows
        self._has_callbacks: Callable[[], bool] = bool
        self._tariff: Tariff | None = None
        self._streams = False
        self._closed = False

    def learn_from(self, other: DirectClient) -> None:
        """Take over what another client of this provider has learned."""
        self._parameters, self._quota = other._parameters, other._quota
        self._asked_from = other._asked_from
        self._other.learn_from(other._other)

    async def prepare(self) -> None:
        """Import litellm, once per process, and try its translation for this provider."""
        if self._litellm is not None or self._closed:
            return
        litellm = await load_litellm()
        trial = self._trial
        if trial is None or (trial.done() and trial.exception() is not None):
            # In a thread: litellm imports and builds more at a first use, 0.1 to 0.2 seconds.
            # Only one: all first calls have waited for litellm, and are here at once.
            trial = in_thread(partial(_tried_lanes, litellm, self._config, self._options))
            self._trial = trial
        self._connect(litellm, *await asyncio.wrap_future(trial))
        if self._translation is None:
            await self._other.prepare()

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer."""
        if self._litellm is None:
            await self.prepare()
        if request.native is not None:
            lane = self._lane(request.native)
            answer = None if lane is None else await lane.chat(request)
            if answer is not None:
                return answer
        translation = self._translation
        fitted = self._parameters.fitted(request)
        if translation is None or (any(self._callbacks()) and self._has_callbacks()):
            return await self._other.chat(request)
        sent = translation.known(fitted) if fitted.size < _VERY_LONG else None
        try:
            if sent is None:
                with silent():
                    sent = await _translated(translation, fitted)
            if sent is not None:
                received = await self._send(self._connections, sent)
                return self._read(translation, fitted, sent, received)
        except VendorCallError as error:
            if not self._parameters.should_retry(error, request, fitted):
                raise
        # Else again, with what has just been learned.
        return await (self._other if sent is None else self).chat(request)

    async def stream(self, request: ChatRequest) -> VendorStream:
        """Ask for an answer piece by piece. Return when the vendor has begun to answer."""
        await self.prepare()
        if request.native is not None:
            lane = self._lane(request.native)
            stream = None if lane is None else await lane.stream(request)
            if stream is not None:
                return stream
        translation = self._translation
        fitted = self._parameters.fitted(request)
        has_callbacks = any(self._callbacks()) and self._has_callbacks()
        if translation is None or not self._streams or has_callbacks:
            return await self._other.stream(request)
        connections = sent = response = None
        translation.counts_streams = self._parameters.counts_streams
        if fitted.size < _VERY_LONG:
            sent = translation.known(fitted, streamed=True)
        try:
            if sent is None:
                with silent():
                    sent = await _translated(translation, fitted, streamed=True)
            if sent is not None:
                connections = self._connections
                response = await self._open(connections, sent)
        except VendorCallError as error:
            if not self._parameters.should_retry(error, request, fitted):
                raise
        if connections is None or response is None:  # if sent, again with what was learned
            return await (self._other if sent is None else self).stream(request)
        assert sent is not None  # noqa: S101 - it was answered
        return DirectStream(
            response,
            translation.reading(sent),
            StreamOwner(
                wall=self._clock.wall,
                cost=self._stream_cost,
                whole=partial(self._read_whole, translation, fitted, sent, response),
                leave=partial(connections.leave, response),
                stops=bool(request.params.get("stop")),
            ),
        )

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors, through the other lane. Raises `VendorCallError`."""
        return await self._other.embed(request)

    async def aclose(self) -> None:
        """Close this provider's connections. May be called twice."""
        self._closed = True
        connections, self._connections = self._connections, None
        if connections is not None:
            self._sessions.append(connections)
        while self._sessions:
            await self._sessions.pop().aclose()
        await self._other.aclose()

    def _connect(self, litellm: ModuleType, translation: Translation | None, streams: bool) -> None:
        # Both need aiohttp, which by now has been loaded off the event loop, with litellm.
        from aigateway.wires.http import SharedSession  # noqa: PLC0415
        from aigateway.wires.litellm.connections import callbacks_of, has_callbacks  # noqa: PLC0415

        # Others may have waited for the same import, or closed this client meanwhile.
        if self._litellm is not None or self._closed:
            return
        self._litellm = litellm
        self._parameters.connect(litellm)
        self._callbacks = callbacks_of(litellm)
        self._has_callbacks = partial(has_callbacks, litellm)
        self._translation, self._streams = translation, streams
        self._tariff = Tariff(litellm, self._config)
        if translation is not None:
            self._connections = SharedSession(translation.url, translation.stream_url)

    def speaks(self, protocol: ProtocolName) -> bool | None:
        """See `VendorClient`."""
        lane = self._native.get(protocol)
        return speaks(self._config, protocol) if lane is None else lane.is_spoken

    def _lane(self, native: NativeRequest) -> NativeLane | None:
        """Return the lane for a request as it is; None if it has to be translated."""
        name = native.protocol
        if name not in self._native:
            self._native[name] = self._native_lane(name)
        lane = self._native[name]
        if lane is None and native.only is not None:
            what = (
                f"{native.only} needs the protocol {name!r}, which this provider does not speak:"
                f" {native.instead}."
            )
            raise VendorCallError(Failure(FailureKind.UNSUPPORTED, detail=what))
        return lane

    def _native_lane(self, name: ProtocolName) -> NativeLane | None:
        from aigateway.wires.http import SharedSession  # noqa: PLC0415 - as in `_connect`
        from aigateway.wires.native import NativeLane  # noqa: PLC0415 - few requests need it

        is_spoken = speaks(self._config, name)
        if is_spoken is False:
            return None
        if self._closed:
            raise RuntimeError("This vendor client is closed.")
        make = wire_of(self._config).native[name]()
        protocol = make(self._config, self._options["api_key"], self._options["api_base"])
        session = SharedSession(protocol.url)
        self._sessions.append(session)
        return NativeLane(
            protocol,
            is_sure=bool(is_spoken),
            asked_from=self._asked_from,
            clock=self._clock,
            exchange=partial(self._send, session),
            open_stream=partial(self._native_stream, session),
            price=self._priced,
        )

    async def _native_stream(
        self,
        session: SharedSession,
        sent: VendorRequest,
        reading: StreamReading,
        read: Callable[[Received], Completion],
        *,
        stops: bool,
    ) -> VendorStream:
        response = await self._open(session, sent)

        def whole(body: bytes) -> Completion:
            return read((response.status, response.headers, body))

        leave = partial(session.leave, response)
        owner = StreamOwner(self._clock.wall, self._stream_cost, whole, leave, stops)
        return DirectStream(response, reading, owner)

    async def _send(self, connections: SharedSession | None, sent: VendorRequest) -> Received:
        if connections is None:
            raise RuntimeError("This vendor client is closed.")
        failure: Failure
        try:
            return await connections.post(sent.headers, sent.body, self._quota.note, sent.added)
        except Exception as error:  # noqa: BLE001 - judged, whatever it is
            failure = classify(error, now_wall=self._clock.wall())
        # Raised here, so that nothing that may quote the request is linked behind it.
        raise VendorCallError(failure)

    async def _open(
        self, connections: SharedSession | None, sent: VendorRequest
    ) -> ClientResponse | VendorAnswer:
        """Send a request whose answer is to be a stream; its headers say success."""
        if connections is None:
            raise RuntimeError("This vendor client is closed.")
        failure: Failure
        try:
            response = await connections.stream(sent.headers, sent.body, sent.added)
            self._quota.note(response.headers)
            if 200 <= response.status < 300:
                return response
            try:
                failure = classify_response(
                    response.status,
                    response.headers,
                    await response.read(),
                    now_wall=self._clock.wall(),
                )
            finally:
                connections.leave(response, kept=response.content.is_eof())
        except Exception as error:  # noqa: BLE001 - judged, whatever it is
            failure = classify(error, now_wall=self._clock.wall())
        raise VendorCallError(failure)

    def _read_whole(
        self,
        translation: Translation,
        request: ChatRequest,
        sent: VendorRequest,
        response: ClientResponse | VendorAnswer,
        body: bytes,
    ) -> Completion:
        """Read an answer that came in one piece though a stream was asked for."""
        received = response.status, response.headers, body
        return self._read(translation, request, sent, received)

    def _read(
        self,
        translation: Translation,
        request: ChatRequest,
        sent: VendorRequest,
        received: Received,
    ) -> Completion:
        failure = None
        (status, headers, content), said = received, None
        if 200 <= status < 300:
            try:
                try:
                    body = orjson.loads(content)
                except orjson.JSONDecodeError:
                    body = parsed(content, whole=True)
                completion, tariff = None, self._tariff
                # Where an answer was asked for as a tool call, a text is not what it seems.
                if "json_mode" not in sent.options:
                    completion = translation.read_plain(body)
                # litellm's own calculation of a price needs its response object.
                if completion is not None and (tariff is None or tariff.price(completion)):
                    return completion
                with silent():  # litellm's advice on how to ask is not for our stdout
                    response = translation.answer(
                        request, sent, VendorResponse(status, headers, content)
                    )
                    completion = completion_from(
                        response,
                        model=self._config.model,
                        status=status,
                        body=parsed(content, whole=True),
                        think_tags=translation.think_tags,
                        stops=bool(request.params.get("stop")),
                    )
                    cost_usd = None if tariff is None else tariff.cost(response, completion)
                    return completion.price(cost_usd)
            except VendorCallError as error:
                failure = error.failure
            except BrokenOffError as error:
                said = error.body
            except Exception as error:  # noqa: BLE001 - the body says what it is
                _log.debug("%s: unreadable answer (%s).", self._config.name, type(error).__name__)
        if failure is None or failure.kind is FailureKind.BAD_ANSWER:
            failure = classify_response(
                status, headers, said or content, now_wall=self._clock.wall()
            )
        raise VendorCallError(failure)

    def _priced(self, completion: Completion) -> Completion:
        """Set the price of a new answer in its own protocol."""
        tariff = self._tariff
        if (
            tariff is not None
            and completion.service_tier in ORDINARY_TIERS
            and tariff.price(completion)
        ):
            return completion
        return completion.price(self._stream_cost(completion, None))

    def _stream_cost(self, completion: Completion, counted: Any) -> float | None:
        """Return what a streamed answer costs so far."""
        usage, litellm, tariff = completion.usage, self._litellm, self._tariff
        if not usage.total_tokens or litellm is None or tariff is None:
            return None
        plain = counted is None and completion.service_tier in ORDINARY_TIERS
        if plain and tariff.is_flat(usage):
            return tariff.cost(None, completion)
        if counted is None:
            counted = litellm.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                prompt_tokens_details={
                    "cached_tokens": usage.cached_tokens,
                    "cache_write_tokens": usage.cache_write_tokens,
                },
                completion_tokens_details={"reasoning_tokens": usage.reasoning_tokens},
            )
        response = litellm.ModelResponse(model=completion.model, usage=counted)
        response.service_tier = completion.service_tier
        return tariff.cost(response, completion)


def _tried_lanes(
    litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]
) -> tuple[Translation | None, bool]:
    """Return a provider's translation, if it works, and whether it reads streams."""
    # Taken only once, since a translation has the state of one client.
    kept = None if _keeps else _kept.pop(id(config), None)
    if kept is not None and kept[1] == options:
        return kept[2:]
    translation = _tried_translation(litellm, config, options)
    streams = translation is not None and _can_stream(translation, config)
    if _keeps:
        _kept[id(config)] = config, options, translation, streams
    return translation, streams


def _tried_translation(
    litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]
) -> Translation | None:
    """Make a provider's translation and try it; warn once and return None if it fails."""
    from aigateway.wires.translation import translation_for  # noqa: PLC0415 - needs litellm

    translation = None

    def reads_answers() -> bool:
        nonlocal translation
        translation = translation_for(litellm, config, options)
        if translation is None:
            return True
        sent = translation.request(_TRIAL)
        assert sent is not None  # noqa: S101 - else the trial fails
        received = VendorResponse(200, {}, translation.sample)
        answer = translation.answer(_TRIAL, sent, received)
        return completion_from(answer, model=config.model).choices[0].text == "ok"

    return translation if _succeeds(reads_answers, "Calls", config) else None


def _can_stream(translation: Translation, config: LLMConfig) -> bool:
    """Try to read a stream, likewise."""

    def reads_streams() -> bool:
        sent = translation.request(_TRIAL, streamed=True)
        assert sent is not None  # noqa: S101 - else the trial fails
        reading = translation.reading(sent)
        reading.take(EventParser().feed(translation.stream_sample))
        reading.count()
        completion = reading.assembly.completion()
        return completion.choices[0].text == "ok" and completion.usage.total_tokens == 2

    return translation.streams and _succeeds(reads_streams, "Streams", config)


def _succeeds(trial: Callable[[], bool], what: str, config: LLMConfig) -> bool:
    try:
        with silent():
            if trial():
                return True
        problem = "another answer than was sent"
    except Exception as error:  # noqa: BLE001 - whatever it is, there is the other lane
        problem = type(error).__name__
    _log.warning(
        "%s: this version of litellm translates differently (%s). %s go through"
        " litellm.acompletion, which works but costs about ten times the CPU.",
        config.name,
        problem,
        what,
    )
    return False


async def _translated(
    translation: Translation, request: ChatRequest, *, streamed: bool = False
) -> VendorRequest | None:
    """Translate a request, a long one in a thread; None if the other lane has to take it.

    Raises:
        VendorCallError: litellm cannot translate a long one. The other lane would block the event
            loop for as long again.
    """
    is_long = request.size >= _LONG
    try:
        if not is_long:
            return translation.request(request, streamed=streamed)
        translate = partial(translation.request, request, streamed=streamed)
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_translators, context.run, without_stop(translate))
    except Exception as error:  # noqa: BLE001 - litellm raises anything, and quotes the request
        _log.debug("A request takes the other lane: %s.", type(error).__name__)
    if is_long:
        raise VendorCallError(Failure(FailureKind.UNSUPPORTED))
    return None
