"""The lane through `litellm.acompletion` and `litellm.aembedding`.

litellm translates. The gateway keeps control of the connections (one request per call), the
classification of failures (from what really came over the wire), the secrets (no exception of
litellm's, which may hold prompt and key, leaves this module) and the process (no global of
litellm's is set).

For `ProviderType.LITELLM` the connections are litellm's own pools: it picks the client by the model
string, so it may re-send once after a refused or dropped connection, and its pools stay open when
this client is closed, until their event loop ends. The gateway does not see what goes over them and
believes litellm: a Gemini stream that ends early but in good order passes for a whole answer. The
same holds for the few OpenAI and Azure models that litellm bridges to the Responses API.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import Operation
from aigateway.messages import (
    CHAT_PARAMS,
    Capability,
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    ProtocolName,
)
from aigateway.settings import LLMConfig
from aigateway.wires.answers import completion_from, embeddings_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError, VendorStream, retrieve_exception
from aigateway.wires.failures import classify, classify_response
from aigateway.wires.json_bodies import fresh_copy, parsed
from aigateway.wires.limits import Quota
from aigateway.wires.loading import load_litellm, missing_package
from aigateway.wires.openai.translation import openai_completion
from aigateway.wires.parameters import Dropping, ParameterRules
from aigateway.wires.pricing import (
    OWN_OPTIONS,
    Tariff,
    accepts_prefill,
    capabilities_of,
    max_input_tokens,
    operations_of,
    own_price_of,
    price_of,
)
from aigateway.wires.registry import wire_of
from aigateway.wires.tool_calls import asks_for_custom_tools
from aigateway.wires.wire import BrokenOffError, part_types, with_caller_headers

if TYPE_CHECKING:
    from aigateway.wires.litellm.connections import Witness
    from aigateway.wires.litellm.sdk_clients import SDKClient

__all__ = ["LiteLLMClient", "ProviderFacts", "call_options"]


_T = TypeVar("_T")

_NO_KEY = "not-needed"
"""Sent to a server that wants no key, so that none is taken from the environment."""


_HOP = 0.1
"""Seconds that a cancellation may wait for a thread."""


_WITHOUT_PACKAGE = frozenset({FailureKind.AUTHENTICATION, FailureKind.UNKNOWN})
"""What a call fails with for want of a package."""
_LITELLMS_OWN = frozenset(
    {
        FailureKind.BAD_ANSWER,
        FailureKind.MODEL_NOT_FOUND,
        FailureKind.NOT_OFFERED,
        FailureKind.REJECTED,
        FailureKind.UNKNOWN,
    }
)
"""What litellm's own complaints about a request look like."""


@dataclass(frozen=True, slots=True)
class _Called:
    """The result of a call: litellm's response, what went over the wire, and the context."""

    result: Any
    witness: Witness
    context: contextvars.Context


class ProviderFacts:
    """What clients of both lanes know about a provider without asking it."""

    _config: LLMConfig
    _parameters: ParameterRules
    _quota: Quota

    @property
    def max_input_tokens(self) -> int | None:
        """See `VendorClient`."""
        return max_input_tokens(self._config)

    @property
    def has_price(self) -> bool:
        """See `VendorClient`."""
        return price_of(self._config) is not None

    @property
    def operations(self) -> frozenset[Operation] | None:
        """See `VendorClient`."""
        return operations_of(self._config)

    @property
    def capabilities(self) -> Mapping[Capability, bool]:
        """See `VendorClient`."""
        return capabilities_of(self._config)

    @property
    def accepts_prefill(self) -> bool:
        """See `VendorClient`."""
        return accepts_prefill(self._config)

    def speaks(self, _protocol: ProtocolName) -> bool | None:
        """See `VendorClient`."""
        return False

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[str, ...]:
        """See `VendorClient`."""
        return self._parameters.dropped(params, messages)

    def pause(self) -> float | None:
        """See `VendorClient.pause`."""
        quota = self._quota
        return None if quota.over is None else quota.pause()


class LiteLLMClient(ProviderFacts):
    """One provider, asked through litellm, on one event loop.

    `drop_unsupported_params` is as for `DirectClient`, which shares its `parameters` and `quota`.
    """

    def __init__(
        self,
        config: LLMConfig,
        clock: Clock,
        *,
        drop_unsupported_params: Dropping = "hints",
        parameters: ParameterRules | None = None,
        quota: Quota | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._price = own_price_of(config)
        self._tariff: Tariff | None = None
        self._wire = wire = wire_of(config)
        self._quota = quota or Quota(wire.limits, clock)
        self._drop = drop_unsupported_params is True
        self._parameters = parameters or ParameterRules(config, clock, drop_unsupported_params)
        self._defaults = {k: v for k, v in config.extra.items() if k not in OWN_OPTIONS}
        self._options = call_options(config, drop_unsupported_params=self._drop)
        self._without = None if wire.takes_cache_marks else "cache_control"
        self._litellm: ModuleType | None = None
        self._client: SDKClient | None = None
        self._closed = False

    def learn_from(self, other: LiteLLMClient) -> None:
        """Take over what another client of this provider has learned."""
        self._parameters, self._quota = other._parameters, other._quota

    async def prepare(self) -> None:
        """Import litellm, once per process, and build this provider's client."""
        if self._litellm is not None or self._closed:
            return
        litellm = await load_litellm()
        self._connect(litellm)

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer."""
        return await self._fitted(self._chat, request)

    async def _chat(self, litellm: ModuleType, request: ChatRequest) -> Completion:
        self._refuse_unsupported(request)
        messages = fresh_copy(request.messages, self._without)
        called = await self._call(
            litellm, litellm.acompletion, self._arguments(request, messages=messages)
        )
        response, witness = called.result, called.witness
        if isinstance(response, Completion):
            return response.price(self._unread_cost(response))
        try:
            completion = completion_from(
                response,
                model=self._config.model,
                status=witness.status,
                body=_body(witness),
                think_tags=self._wire.think_tags,
                stops=bool(request.params.get("stop")),
            )
        except BrokenOffError as error:
            failure = self._judge(error, witness)
        else:
            return replace(completion, cost_usd=self._cost(response, completion))
        raise VendorCallError(failure)

    async def stream(self, request: ChatRequest) -> VendorStream:
        """Ask for an answer piece by piece. Return when the vendor has begun to answer."""
        return await self._fitted(self._stream, request)

    async def _stream(self, litellm: ModuleType, request: ChatRequest) -> VendorStream:
        from aigateway.wires.litellm.streams import (  # noqa: PLC0415 - needs litellm
            LiteLLMStream,
            StreamOrigin,
            opened,
        )

        self._refuse_unsupported(request)
        messages = fresh_copy(request.messages, self._without)
        arguments = self._arguments(request, messages=messages, stream=True)
        options = arguments.pop("stream_options", None) or {}
        if self._parameters.counts_streams:
            arguments["stream_options"] = {**options, "include_usage": True}
        expected = arguments.get("n")
        opening = partial(opened, litellm.acompletion)
        called = await self._call(litellm, opening, arguments, streamed=True)
        witness = called.witness
        origin = StreamOrigin(
            litellm,
            called.context,
            witness.body,
            witness.status,
            failure=lambda error: self._judge(error, witness),
            tariff=Tariff(litellm, self._config) if self._tariff is None else self._tariff,
            stops=bool(request.params.get("stop")),
        )
        assembly = Assembly(
            self._config.model,
            expected if isinstance(expected, int) else 1,
            think_tags=self._wire.think_tags,
        )
        return LiteLLMStream(called.result, origin, assembly)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors."""
        litellm = await self._ready()
        inputs = [each if isinstance(each, str) else list(each) for each in request.inputs]
        if not self._wire.like_openai and not isinstance(inputs[0], str):
            refused = Failure(FailureKind.UNSUPPORTED, code="token_arrays", param="input")
            raise VendorCallError(refused)
        embed = litellm.aembedding if self._wire.embed is None else self._wire.embed()
        called = await self._call(litellm, embed, self._arguments(request, input=inputs))
        response, status = called.result, called.witness.status
        model, count = self._config.model, len(request.inputs)
        embeddings = embeddings_from(response, model=model, count=count, status=status)
        return replace(embeddings, cost_usd=self._cost(response, embeddings))

    async def aclose(self) -> None:
        """Close this provider's connections. May be called twice."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _fitted(
        self, call: Callable[[ModuleType, ChatRequest], Awaitable[_T]], request: ChatRequest
    ) -> _T:
        """Make a call with fitted parameters, and again while the vendor's refusals teach some."""
        litellm = await self._ready()
        sent = self._parameters.fitted(request)
        try:
            return await call(litellm, sent)
        except VendorCallError as error:
            if not self._parameters.should_retry(error, request, sent):
                raise
        return await self._fitted(call, request)

    async def _ready(self) -> ModuleType:
        await self.prepare()
        if self._closed or self._litellm is None:
            raise RuntimeError("This vendor client is closed.")
        return self._litellm

    def _refuse_unsupported(self, request: ChatRequest) -> None:
        """Refuse what only OpenAI has, and litellm would leave out silently."""
        wire, param, code = self._wire, None, None
        if not wire.like_openai and asks_for_custom_tools(request):
            param, code = "tools", "custom_tools"
        elif wire.has_part and not all(starmap(wire.has_part, part_types(request))):
            param = "messages"
        elif wire.not_taken and not self._drop:
            param = wire.not_taken(request.params)
        if param is not None:
            raise VendorCallError(Failure(FailureKind.UNSUPPORTED, code=code, param=param))

    def _connect(self, litellm: ModuleType) -> None:
        # Others may have waited for the same import, or closed this client meanwhile.
        if self._litellm is None and not self._closed:
            # All that calls will need: then there may be no descriptor to load it with.
            from aigateway.wires.litellm import streams  # noqa: F401, PLC0415 - needs litellm
            from aigateway.wires.litellm.sdk_clients import (  # noqa: PLC0415 - likewise
                close_litellms_pools_with_the_loop,
                sdk_client,
            )

            if self._wire.embed is not None:
                self._wire.embed()
            close_litellms_pools_with_the_loop(litellm)
            self._client = sdk_client(self._config, self._defaults | self._options)
            self._tariff = Tariff(litellm, self._config)
            self._parameters.connect(litellm)
            self._litellm = litellm

    def _arguments(self, request: ChatRequest | EmbeddingRequest, **more: Any) -> dict[str, Any]:
        """Return the arguments: the caller's parameters override `extra`, and the gateway's both.

        In a chat, those of a chat in `extra` have been fitted to the model with the caller's.
        """
        defaults = self._defaults
        if isinstance(request, ChatRequest):
            defaults = {n: v for n, v in defaults.items() if n not in CHAT_PARAMS}
        client = {} if self._client is None else {"client": self._client.handle}
        arguments = {
            **fresh_copy(defaults),
            **fresh_copy(request.params),
            **self._options,
            **client,
            **more,
        }
        choice = arguments.get("tool_choice")
        if isinstance(choice, Mapping) and "function" not in choice and self._wire.like_openai:
            # litellm refuses OpenAI's newer forms ("custom", "allowed_tools").
            extra = arguments.get("extra_body") or {}
            arguments["extra_body"] = {"tool_choice": arguments.pop("tool_choice"), **extra}
        if request.headers:
            own = arguments.get("extra_headers") or {}
            arguments["extra_headers"] = with_caller_headers(own, request.headers)
        return arguments

    async def _call(
        self,
        litellm: ModuleType,
        function: Callable[..., Coroutine[Any, Any, Any]],
        arguments: dict[str, Any],
        *,
        streamed: bool = False,
    ) -> _Called:
        """Let litellm send; return its response and what came over the wire."""
        from aigateway.wires.litellm.connections import own_call  # noqa: PLC0415 - needs httpx

        with own_call(litellm, streamed=streamed) as witness:
            if not self._wire.takes_extra_body:
                witness.extra = arguments.pop("extra_body", None)
            context = contextvars.copy_context()
        # A task of its own, so that an exception that the caller is handling is not linked behind
        # litellm's.
        task = asyncio.create_task(function(**arguments), context=context)
        try:
            await _wait_for_call(task, witness if self._client else None)
        except asyncio.CancelledError:
            witness.close()
            raise
        if witness.response is not None:
            self._quota.note(witness.response.headers)
        if not task.cancelled() and task.exception() is None:
            return _Called(task.result(), witness, context)
        unread = None if streamed or task.cancelled() else self._unread_answer(witness)
        if unread is not None:
            return _Called(unread, witness, context)
        failure = self._judge(
            asyncio.CancelledError() if task.cancelled() else task.exception(), witness
        )
        witness.close()
        # Neither behind our exception nor among the locals of its traceback is litellm's, nor a
        # key.
        arguments.clear()
        del task, witness, context
        raise VendorCallError(failure)

    def _unread_answer(self, witness: Witness) -> Completion | None:
        """Read an answer that litellm cannot read: content in a list of parts."""
        response = witness.response
        if response is None or not response.is_success or not self._wire.think_tags:
            return None
        try:
            return openai_completion(parsed(response.content, whole=True))
        except ValueError:
            return None

    def _unread_cost(self, completion: Completion) -> float | None:
        """Return the price of an answer that has no object of litellm's."""
        tariff = self._tariff
        return (
            tariff.cost(None, completion) if tariff and tariff.is_flat(completion.usage) else None
        )

    def _judge(self, error: BaseException | None, witness: Witness) -> Failure:
        failure = self._classified(error, witness)
        if failure.status is None and failure.kind in _WITHOUT_PACKAGE:
            missing = missing_package(self._config.model)
            if missing is not None:
                kind = FailureKind.AUTHENTICATION
                return Failure(kind, code="missing_package", param=missing, certain=True)
        return failure

    def _classified(self, error: BaseException | None, witness: Witness) -> Failure:
        now_wall = self._clock.wall()
        response, body = witness.response, witness.body
        broken = witness.error if body is None else body.error
        if isinstance(error, BrokenOffError):
            headers = {} if response is None else response.headers
            return classify_response(witness.status, headers, error.body, now_wall=now_wall)
        if broken is not None:
            return classify(broken, now_wall=now_wall)
        if response is not None:
            content = response.content if body is None else body.instead
            return classify_response(
                response.status_code, response.headers, content, now_wall=now_wall
            )
        if error is None:
            return Failure(FailureKind.BAD_ANSWER)
        failure = classify(error, now_wall=now_wall)
        own = failure.status is None and failure.kind in _LITELLMS_OWN
        unsent = self._client is not None and (own or not witness.requests)
        if unsent and failure.kind is not FailureKind.SATURATED:
            # litellm could not put this request into the vendor's words, whatever its exception
            # says: its text may quote the request. The vendor is not to blame, and the next one's
            # words may do.
            return Failure(FailureKind.UNSUPPORTED, param=failure.param)
        return failure

    def _cost(self, response: Any, answer: Completion | Embeddings) -> float | None:
        if self._price is not None:
            return self._price.cost(answer.usage)
        if isinstance(answer, Completion) and answer.cost_usd is not None:
            return answer.cost_usd
        is_in_the_map = self._wire.lists_models or "base_model" in self._config.extra
        if not answer.usage.total_tokens or not is_in_the_map:
            return None
        hidden = getattr(response, "_hidden_params", None)
        cost = hidden.get("response_cost") if isinstance(hidden, Mapping) else None
        return float(cost) if isinstance(cost, int | float) and 0 <= cost < math.inf else None


def _body(witness: Witness) -> Any:
    """Return what the vendor sent, if it was seen and is JSON."""
    try:
        return None if witness.response is None else parsed(witness.response.content, whole=True)
    except ValueError:
        return None


def call_options(config: LLMConfig, *, drop_unsupported_params: bool) -> dict[str, Any]:
    """Return the arguments that are the same for every call of one provider."""
    wire = wire_of(config)
    key = _NO_KEY if wire.litellm_name else None
    if isinstance(config.api_key, SecretStr):
        key = config.api_key.get_secret_value()
    options: dict[str, Any] = {
        "model": f"{wire.litellm_name}/{config.model}" if wire.litellm_name else config.model,
        "api_key": key,
        # Always passed, so that no environment variable litellm knows can redirect a provider.
        "api_base": config.api_base or wire.base,
        "api_version": config.api_version,
        "extra_headers": dict(config.headers) or None,
        "max_retries": 0,
        "num_retries": 0,
        "drop_params": drop_unsupported_params or None,
        "timeout": 600.0,
    }
    return {name: value for name, value in options.items() if value is not None}


async def _wait_for_call(task: asyncio.Task[Any], witness: Witness | None) -> None:
    """Wait for litellm's call, and keep a cancellation away from its hop through a thread.

    The thread makes a coroutine that, after a cancellation, is never awaited: Python reports that
    on stderr. So if nothing has been sent, the witness bars sending, and the call ends by itself
    within milliseconds.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(retrieve_exception)
        if witness is not None and not witness.requests:
            witness.bar()
            await asyncio.wait([task], timeout=_HOP)
        task.cancel()
        await asyncio.wait([task])
        raise
