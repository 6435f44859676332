"""Gemini's requests, answers, streams and embeddings.

litellm translates; plain answers and ordinary events are read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx

from aigateway.errors import FailureKind
from aigateway.messages import Audio, ChatRequest, Choice, Chunk, Completion, Usage
from aigateway.wires.answers import UnusualError, counted_usage, usage_from
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.content import speech_in
from aigateway.wires.gemini import GEMINI_ENDS, blocks_prompt, unify_candidates
from aigateway.wires.json_bodies import mend_usage
from aigateway.wires.loading import MUTE, silent
from aigateway.wires.plain_requests import (
    ASKED,
    CALLED,
    PARTS,
    SYSTEM,
    NotPlainError,
    Shape,
    arguments_of,
    calls_of,
    checked,
    texts_of,
)
from aigateway.wires.stream_reading import StreamReading, counted
from aigateway.wires.translation import LoggingStandIn, Translation
from aigateway.wires.wire import BrokenOffError, VendorRequest, end_of

__all__ = ["GeminiReading", "GeminiTranslation", "gemini_completion", "gemini_embedding"]

_NOTHING: Mapping[str, Any] = {}


def gemini_completion(body: Any) -> Completion | None:
    """Read a plain answer; None if it is of another kind."""
    try:
        if not body.keys() <= _BODY:
            return None
        answers, usage = body["candidates"], body["usageMetadata"]
        choices = (
            (_candidate(answers[0]),) if len(answers) == 1 else tuple(map(_candidate, answers))
        )
        if not (choices and usage.keys() <= _USAGE):
            return None
        for part in usage.get("promptTokensDetails") or ():
            if part["modality"] != "TEXT":
                return None
        thought = usage.get("thoughtsTokenCount", 0)
        counted = counted_usage(usage["promptTokenCount"], usage["candidatesTokenCount"], thought)
        name, model = body.get("responseId", "-"), body["modelVersion"]
        if usage["totalTokenCount"] != counted.total_tokens or not (
            type(name) is str and name and type(model) is str and model
        ):
            return None
        return Completion(name, model, choices, counted)
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None


_BODY = frozenset({"candidates", "usageMetadata", "modelVersion", "responseId"})
_FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"}
_USAGE = frozenset(
    {
        "candidatesTokenCount",
        "promptTokenCount",
        "promptTokensDetails",
        "serviceTier",
        "thoughtsTokenCount",
        "totalTokenCount",
    }
)
_CANDIDATE = frozenset({"content", "finishReason", "index", "safetyRatings"})
_PART = frozenset({"text", "thoughtSignature"})


def _candidate(candidate: Mapping[str, Any]) -> Choice:
    content = candidate["content"]
    (part,) = content["parts"]
    text = part["text"]
    if (
        not (candidate.keys() <= _CANDIDATE and part.keys() <= _PART)
        or not (type(text) is str and text)
        or "<think" in text
    ):
        raise UnusualError
    signed = part.get("thoughtSignature")
    if not isinstance(signed, str | None):
        raise UnusualError
    signatures = (signed,) if signed else ()
    return Choice(text, _FINISHES[candidate["finishReason"]], thought_signatures=signatures)


class GeminiReading(StreamReading):
    """Streams of partial responses.

    litellm's reader counts tool calls, and every response with one goes through it. Texts need not.

    Every response has a count, and the last one is almost always all that matters. To mend and add
    each would cost more than the rest of a piece, so the latest waits until it is needed.
    """

    _mends_late = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._latest: dict[str, Any] = {}  # count, as the vendor wrote it; not added
        self._grounding: dict[str, Any] = {}  # the searches that litellm counts and prices

    def count(self) -> Any:
        """See `StreamReading`."""
        self._add_count(_mended(self._latest))
        return super().count()

    def _read(self, name: bytes, event: Mapping[str, Any]) -> None:
        if event.get("error") or name == b"error":
            raise BrokenOffError(event)
        assembly = self.assembly
        if not assembly.id:
            assembly.id = str(event.get("responseId") or "-")
            assembly.model = str(event.get("modelVersion") or assembly.model)
        usage = event.get("usageMetadata")
        if type(usage) is dict:
            if not _replaces(usage, self._latest):
                self._add_count(_mended(self._latest))
            self._latest = usage
        if "promptFeedback" in event and blocks_prompt(event):
            self._finish(0, end_of(GEMINI_ENDS, "PROHIBITED_CONTENT"), sure=True)
        for position, candidate in enumerate(event.get("candidates") or ()):
            self._candidate(event, candidate, candidate.get("index", position))

    def _candidate(
        self, event: Mapping[str, Any], candidate: Mapping[str, Any], index: int
    ) -> None:
        reason = candidate.get("finishReason")
        ending = end_of(GEMINI_ENDS, reason) if reason else None
        text = _text(candidate)
        if text is None:
            mend_usage(event)
            unify_candidates(event)
            read = self._parse({**event, "candidates": [{**candidate, "index": index}]})
            self._grounding |= {name: candidate[name] for name in candidate.keys() & _GROUNDING}
            self._add_speech(candidate, index)  # before its end
            for choice in read.choices:
                self._take_choice(choice, ending, beside=read)
            return
        if text:
            self._emit(Chunk(text, index=index))
        if ending is not None:
            self._finish(index, ending, sure=not text)

    def _add_speech(self, candidate: Mapping[str, Any], index: int) -> None:
        """Add speech, which litellm's reader of streams leaves out."""
        for data in speech_in(candidate):
            self._emit(Chunk(index=index, audio=Audio(data=data)))

    def _usage(self, given: Any) -> tuple[Usage, Any]:
        details = given.get("promptTokensDetails") or ()
        plain = given.keys() <= _STREAM_USAGE and not self._grounding
        if plain and all(d.get("modality") == "TEXT" for d in details):
            return counted(given, "promptTokenCount", "candidatesTokenCount"), None
        event: dict[str, Any] = {"usageMetadata": given}
        if self._grounding:
            event["candidates"] = [{**self._grounding, "content": {"parts": []}}]
        read = self._parse(event).usage
        return usage_from(read), read


_STREAM_USAGE = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "promptTokensDetails"}
)
_GROUNDING = frozenset({"groundingMetadata", "urlContextMetadata"})
_STREAM_CANDIDATE = frozenset({"content", "finishReason", "index", "safetyRatings", "avgLogprobs"})


def _text(candidate: Mapping[str, Any]) -> str | None:
    """Return a candidate's text; None if it is of another kind."""
    content: Mapping[str, Any] = candidate.get("content") or _NOTHING
    parts: list[Any] = content.get("parts") or []
    if not candidate.keys() <= _STREAM_CANDIDATE:
        return None
    for part in parts:
        if len(part) != 1 or type(part.get("text")) is not str:
            return None
    return parts[0]["text"] if len(parts) == 1 else "".join([part["text"] for part in parts])


def _mended(usage: dict[str, Any]) -> dict[str, Any]:
    mend_usage({"usageMetadata": usage})
    return usage


def _replaces(usage: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Return whether a count repeats every figure of the previous one.

    Only figures above zero do, and lists of details: whatever else a count holds may be none once
    it is mended, and then the one before still holds.
    """
    for name, known in before.items():
        count: Any = usage.get(name)
        kind = type(count)
        if kind is not type(known):
            return False
        if kind is int:
            if not 0 < count < 2**53:
                return False
        elif kind is not list or not count or type(count[0]) is not dict:
            return False
    return True


class _CallForm(NamedTuple):
    """How litellm writes calls of tools for a model: with ids, and with which signature."""

    has_ids: bool
    signature: str | None


_NAMES = {"assistant": "model", "user": "user"}
"""What Gemini calls those who speak."""


class _GeminiTalk:
    """Plain messages in Gemini's form: neighbours of one role are put together."""

    def __init__(self, call_form: Callable[[], _CallForm]) -> None:
        self.system: list[Any] = []
        self.contents: list[Any] = []
        self.shape = 0
        self._call_form = call_form
        self._parts: list[Any] = []
        self._role = ""
        self._open: dict[str, str] = {}  # names by ids of calls whose results have not come

    def add(self, message: Mapping[str, Any]) -> None:
        """Add a message. Raises `NotPlainError`, and other errors that mean the same."""
        content = message.get("content")
        if len(message) == 2 and type(content) is str and message["role"] in _NAMES:
            self._say_text(message["role"], content)  # almost every message
            return
        role = checked(message)
        if role == "system":
            self.shape |= SYSTEM
            self.system.append({"text": "".join(self._texts(content))})
        elif role == "tool":
            self._add_result(message["tool_call_id"], content)
        elif self._open:
            raise NotPlainError
        elif role == "user":
            self._turn(role, "user")
            self._parts += [{"text": text} for text in self._texts(content)]
        else:
            self.shape |= ASKED
            self._turn(role, "model")
            calls = message.get("tool_calls")
            if content is not None or not calls:
                self._parts += [{"text": text} for text in self._texts(content)]
            if calls:
                self._call(message)

    def _say_text(self, role: str, text: str) -> None:
        if self._open or not text or text.isspace():
            raise NotPlainError
        if role == "assistant":
            self.shape |= ASKED
        if role != self._role:
            self._turn(role, _NAMES[role])
        self._parts.append({"text": text})

    def _texts(self, content: Any) -> Sequence[str]:
        if type(content) is not str:
            self.shape |= PARTS
        return texts_of(content)

    def _turn(self, role: str, name: str) -> None:
        if role != self._role:
            self._role, self._parts = role, []
            self.contents.append({"role": name, "parts": self._parts})

    def _call(self, message: Mapping[str, Any]) -> None:
        self.shape |= CALLED
        form, first = self._call_form(), True
        for call in calls_of(message):
            function = {"name": call.name, "args": arguments_of(call)}
            part: dict[str, Any] = {"function_call": function}
            if call.id in self._open or part in self._parts:
                raise NotPlainError
            if form.has_ids:
                function["id"] = call.id
            if form.signature and first:
                part["thoughtSignature"] = form.signature
            first = False
            self._open[call.id] = call.name
            self._parts.append(part)

    def _add_result(self, given: str, content: Any) -> None:
        self._turn("tool", "user")
        name = self._open.pop(given)  # an unknown one is a KeyError
        result = {"name": name, "response": _response(content)}
        if self._call_form().has_ids:
            result["id"] = given
        self._parts.append({"function_response": result})


def _response(content: Any) -> dict[str, Any]:
    """Return the result of a tool, which is to be an object."""
    if type(content) is not str or content[:5].lower() == "data:":
        raise NotPlainError
    if content.lstrip().startswith("{"):
        if "ref" in content or "\\u" in content:  # litellm may look for what is referred to
            raise NotPlainError
        try:
            return dict(json.loads(content))
        except ValueError:
            pass
    return {"content": content}


class GeminiTranslation(Translation):
    """Translates for Gemini."""

    read_plain = staticmethod(gemini_completion)
    _own_params = frozenset({"top_k"})
    _slots = frozenset({"contents", "system_instruction"})
    _form: _CallForm | None = None
    sample = (
        b'{"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "ok"}]},'
        b' "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 1,'
        b' "candidatesTokenCount": 1, "totalTokenCount": 2}, "modelVersion": "m"}'
    )

    def _arranged(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Shape, Mapping[str, Any]]:
        talk = _GeminiTalk(self._call_form)
        for message in messages:
            talk.add(message)
        if not talk.contents:
            raise NotPlainError
        slots: dict[str, Any] = {"contents": talk.contents}
        if talk.system:
            slots["system_instruction"] = {"parts": talk.system}
        return talk.shape, slots

    def _call_form(self) -> _CallForm:
        if self._form is None:  # it depends on the model
            function = {"name": "f", "arguments": "{}"}
            call = {"id": "call_1", "type": "function", "function": function}
            asked = {"role": "user", "content": "x"}
            messages: list[Any] = [asked, {"role": "assistant", "tool_calls": [call]}]
            muted = MUTE.set(True)
            try:
                with silent():
                    body = self._body(messages, {}, {}, {}, plain=False)
                (part,) = body["contents"][1]["parts"]
                has_ids = "id" in part["function_call"]
                self._form = _CallForm(has_ids, part.get("thoughtSignature"))
            except Exception as error:
                raise NotPlainError from error  # litellm may raise anything
            finally:
                MUTE.reset(muted)
        return self._form

    def _addresses(self) -> tuple[str, str]:
        from litellm.llms.vertex_ai.gemini.transformation import (  # noqa: PLC0415
            sync_transform_request_body,
        )
        from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import (  # noqa: PLC0415
            ModelResponseIterator,
        )

        self._transform = sync_transform_request_body
        self._iterator = ModelResponseIterator
        self._fixed_headers = {
            "Content-Type": "application/json",
            "x-goog-api-key": self._key,
            **self._extra_headers,
        }
        model = f"{self._base}/models/{self._model}"
        return f"{model}:generateContent", f"{model}:streamGenerateContent?alt=sse"

    stream_sample = (
        b'data: {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "hm",'
        b' "thought": true}, {"text": "ok"}]}, "finishReason": "STOP"}], "usageMetadata": {'
        b'"promptTokenCount": 1, "thoughtsTokenCount": 1, "totalTokenCount": 2},'
        b' "modelVersion": "m"}\n\n'
    )
    _count_option = "candidate_count"

    def _reading(
        self, _sent: VendorRequest, assembly: Assembly, make_parser: Callable[[], Any]
    ) -> StreamReading:
        return GeminiReading(assembly, make_parser)

    def _parser(self, sent: VendorRequest) -> Any:
        log = LoggingStandIn()
        log.optional_params = dict(sent.options)
        return self._iterator(iter(()), True, log)

    def _streaming(self, _request: ChatRequest) -> dict[str, Any]:
        return {}  # the address says it

    def _body(
        self,
        messages: list[Any],
        options: dict[str, Any],
        _headers: Mapping[str, str],
        _notes: dict[str, Any],
        *,
        plain: bool,  # noqa: ARG002
    ) -> dict[str, Any]:
        body: dict[str, Any] = self._transform(
            gemini_api_key=self._key,
            messages=messages,
            api_base=self._base,
            model=self._model,
            client=None,
            timeout=None,
            extra_headers=None,
            optional_params=dict(options),
            logging_obj=LoggingStandIn(),
            custom_llm_provider="gemini",
            litellm_params={},
            vertex_project=None,
            vertex_location=None,
            vertex_auth_header=None,
        )
        return body


_PARAMS = {"dimensions": "outputDimensionality", "task_type": "taskType", "title": "title"}
"""OpenAI's (and litellm's) names, and the wire's."""

_WITHOUT_EFFECT = {"encoding_format", "max_retries", "num_retries", "timeout"}


async def gemini_embedding(
    *,
    client: Any,
    model: str,
    input: Sequence[str],  # noqa: A002
    api_key: str,
    api_base: str,
    extra_headers: dict[str, str] | None = None,
    drop_params: bool | None = None,
    **params: Any,
) -> SimpleNamespace:
    """Replace `litellm.aembedding`, which loses the client it is given on this one path.

    It would send over other connections, and twice after a reset; and it loads a tokenizer to count
    what the vendor did not. Returns a response of OpenAI's shape.

    Raises:
        VendorCallError: A parameter that Gemini does not know, and may not be dropped.
        httpx.HTTPError: No answer, or not a good one.
    """
    name = f"models/{model.removeprefix('gemini/')}"
    options = {_PARAMS[key]: value for key, value in params.items() if key in _PARAMS}
    unknown = params.keys() - _PARAMS.keys() - _WITHOUT_EFFECT
    if params.get("encoding_format", "float") != "float":
        unknown.add("encoding_format")
    if unknown and not drop_params:
        raise VendorCallError(Failure(FailureKind.UNSUPPORTED))
    connection: httpx.AsyncClient = client.client
    response = await connection.post(
        f"{api_base}/{name}:batchEmbedContents",
        headers={"x-goog-api-key": api_key, **(extra_headers or {})},
        json={
            "requests": [
                {"model": name, "content": {"parts": [{"text": text}]}, **options} for text in input
            ]
        },
    )
    response.raise_for_status()
    body = response.json()
    tokens = (body.get("usageMetadata") or {}).get("promptTokenCount", 0)
    return SimpleNamespace(
        model=model.removeprefix("gemini/"),
        data=[
            {"index": index, "embedding": entry["values"]}
            for index, entry in enumerate(body["embeddings"])
        ],
        usage={"prompt_tokens": tokens, "total_tokens": tokens},
    )
