"""The direct lane: litellm translates, prices and classifies, and we carry.

A call costs a tenth of what it costs through `litellm.acompletion`. What this lane does not surely
carry in the same way goes through the other one by itself: vendors of `ProviderType.LITELLM`,
embeddings, rare parameters and message parts, every call where the user has registered callbacks
with litellm, and everything, should litellm's functions not be what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.settings import LLMConfig
from aigateway.vendor.answers import completion_from
from aigateway.vendor.client import Failure, VendorCallError
from aigateway.vendor.failures import classify, classify_response
from aigateway.vendor.litellm_lane import LiteLLMClient, call_options
from aigateway.vendor.loading import SILENT, load_litellm
from aigateway.vendor.pricing import Tariff
from aigateway.vendor.wire import VendorRequest, VendorResponse

if TYPE_CHECKING:
    from aigateway.vendor.sessions import SharedSession
    from aigateway.vendor.translation import Translation

__all__ = ["DirectClient"]

_log = logging.getLogger(__name__)

_TRIAL = ChatRequest(messages=({"role": "user", "content": "hi"},))


class DirectClient:
    """One provider, asked over our own connections, on one event loop.

    Args:
        config: The provider.
        clock: Reads dates in `Retry-After`.
        drop_unsupported_params: Leave out what the model cannot take, where litellm knows; else
            such a request fails as `UNSUPPORTED` before anything is sent.
    """

    def __init__(
        self, config: LLMConfig, clock: Clock, *, drop_unsupported_params: bool = False
    ) -> None:
        self._config = config
        self._clock = clock
        self._options = call_options(config, drop_unsupported_params=drop_unsupported_params)
        self._other = LiteLLMClient(config, clock, drop_unsupported_params=drop_unsupported_params)
        self._litellm: ModuleType | None = None
        self._translation: Translation | None = None
        self._connections: SharedSession | None = None
        self._is_listened_to: Callable[[], bool] = bool  # nobody; found out with litellm
        self._tariff: Tariff | None = None
        self._closed = False

    @property
    def max_input_tokens(self) -> int | None:
        """The model's context window for input, if it is known. Asked only after `prepare`."""
        return self._other.max_input_tokens

    async def prepare(self) -> None:
        """Import litellm, once per process, and try its translation for this provider."""
        if self._litellm is not None or self._closed:
            return
        litellm = await load_litellm()
        self._connect(litellm)
        if self._translation is None:
            await self._other.prepare()

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer.

        Raises:
            VendorCallError: Whatever went wrong at the vendor or on the way to it.
        """
        await self.prepare()
        translation = self._translation
        if translation is None or not translation.carries(request) or self._is_listened_to():
            return await self._other.chat(request)
        token = SILENT.set(True)  # litellm's advice on how to ask is not for our stdout
        try:
            sent = _translated(translation, request)
            if sent is None:
                return await self._other.chat(request)
            received = await self._carry(sent)
            return self._read(translation, request, sent, received)
        finally:
            SILENT.reset(token)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors, through the other lane.

        Raises:
            VendorCallError: Whatever went wrong at the vendor or on the way to it.
        """
        return await self._other.embed(request)

    async def aclose(self) -> None:
        """Close this provider's connections. May be called twice."""
        self._closed = True
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()
        await self._other.aclose()

    def _connect(self, litellm: ModuleType) -> None:
        # Both need aiohttp, which by now has been loaded off the event loop, with litellm.
        from aigateway.vendor.own_call import has_callbacks  # noqa: PLC0415
        from aigateway.vendor.sessions import SharedSession  # noqa: PLC0415

        # Others may have waited for the same import, or closed this client meanwhile.
        if self._litellm is not None or self._closed:
            return
        self._litellm = litellm
        self._is_listened_to = partial(has_callbacks, litellm)
        self._translation = _tried(litellm, self._config, self._options)
        if self._translation is not None:
            self._tariff = Tariff(litellm, self._config)
            self._connections = SharedSession(self._translation.url)

    async def _carry(self, sent: VendorRequest) -> VendorResponse:
        if self._connections is None:
            raise RuntimeError("This vendor client is closed.")
        failure: Failure
        try:
            async with self._connections.post(sent.headers, sent.body) as response:
                return VendorResponse(response.status, response.headers, await response.read())
        except Exception as error:  # noqa: BLE001 - judged, whatever it is
            failure = classify(error, now_wall=self._clock.wall())
        # Out here, so that what may quote the request is nowhere behind ours.
        raise VendorCallError(failure)

    def _read(
        self,
        translation: Translation,
        request: ChatRequest,
        sent: VendorRequest,
        received: VendorResponse,
    ) -> Completion:
        failure = None
        status = received.status_code
        if 200 <= status < 300:
            try:
                response = None
                completion = translation.plain_answer(sent, received)
                if completion is None or self._needs_whole(completion):
                    response = translation.answer(request, sent, received)
                    completion = completion_from(response, model=self._config.model, status=status)
                return replace(completion, cost_usd=self._cost(response, completion))
            except VendorCallError as error:
                failure = error.failure
            except Exception as error:  # noqa: BLE001 - the body says what it is
                _log.debug("%s: unreadable answer (%s).", self._config.name, type(error).__name__)
        if failure is None or failure.kind is FailureKind.BAD_ANSWER:
            failure = classify_response(
                status, received.headers, received.content, now_wall=self._clock.wall()
            )
        raise VendorCallError(failure)

    def _needs_whole(self, completion: Completion) -> bool:
        """Whether this answer's price takes litellm's calculation, and so its response object."""
        return self._tariff is not None and not self._tariff.is_flat(completion.usage)

    def _cost(self, response: Any, completion: Completion) -> float | None:
        return None if self._tariff is None else self._tariff.cost(response, completion.usage)


def _tried(
    litellm: ModuleType, config: LLMConfig, options: Mapping[str, Any]
) -> Translation | None:
    """A provider's translation, if it does what it is held to; else one warning."""
    from aigateway.vendor.translation import translation_for  # noqa: PLC0415 - needs litellm

    token = SILENT.set(True)
    try:
        translation = translation_for(litellm, config, options)
        if translation is None:
            return None
        sent = translation.request(_TRIAL)
        received = VendorResponse(200, {}, translation.sample)
        answer = translation.answer(_TRIAL, sent, received)
        if completion_from(answer, model=config.model).choices[0].text == "ok":
            return translation
        problem = "another answer than was sent"
    except Exception as error:  # noqa: BLE001 - whatever it is, there is the other lane
        problem = type(error).__name__
    finally:
        SILENT.reset(token)
    _log.warning(
        "%s: this version of litellm translates differently (%s). Calls go through"
        " litellm.acompletion, which works but costs about ten times the CPU.",
        config.name,
        problem,
    )
    return None


def _translated(translation: Translation, request: ChatRequest) -> VendorRequest | None:
    """The request in the vendor's words; None if the other lane had better say what is wrong."""
    try:
        return translation.request(request)
    except Exception as error:  # noqa: BLE001 - the other lane meets it again, and judges
        _log.debug("Not carried directly: %s.", type(error).__name__)
        return None
