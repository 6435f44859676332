"""Fit the parameters of a request to a provider.

There are two kinds of parameters. A hint (`temperature`, `seed`, `reasoning_effort`, ...) may
change an answer, but must never cost one: where a model does not take it, it is left out. All
others are shape (`tools`, `response_format`, `n`, `max_tokens`, ...): they say what the answer has
to be, and a provider that cannot do that is passed over.

What a model takes is known from litellm's mapping, from a few rules of the vendors, and from what
the vendor has refused. A refusal is remembered for an hour: for every value if the vendor does not
take the parameter, else for that value alone, so that one caller's odd value changes nothing for
the others.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.messages import CHAT_PARAMS, ChatRequest
from aigateway.settings import LLMConfig
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.error_bodies import snake_case
from aigateway.wires.history import THOUGHT, History
from aigateway.wires.json_bodies import fresh_copy
from aigateway.wires.loading import MUTE, SILENT
from aigateway.wires.pricing import max_output_tokens
from aigateway.wires.registry import wire_of

__all__ = ["HINTS", "LIMITS", "Dropping", "ParameterDraft", "ParameterRules"]

_log = logging.getLogger(__name__)

Dropping = Literal["hints"] | bool
"""Which parameters may be left out: hints, any (True), none (False)."""

_IN_ORDER: tuple[str, ...] = (
    # What is given up first stands first.
    "cache_control",
    "top_k",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "temperature",
    "seed",
    "prediction",
    "verbosity",
    "service_tier",
    "store",
    "user",
    "safety_identifier",
    "safety_settings",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "thinking",
)
HINTS = frozenset(_IN_ORDER)
"""Parameters that never cost an answer."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    # A vendor's word for a parameter, and what the caller may have called it.
    "budget_tokens": ("reasoning_effort", "thinking"),
    "candidate_count": ("n",),
    "effort": ("reasoning_effort",),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "output_config": ("reasoning_effort",),
    "stop_sequences": ("stop",),
    "thinking": ("thinking", "reasoning_effort"),
    "thinking_budget": ("reasoning_effort", "thinking"),
    "thinking_config": ("reasoning_effort", "thinking"),
    "thinking_level": ("reasoning_effort", "thinking"),
    "user_id": ("user",),
}


LIMITS = ("max_tokens", "max_completion_tokens")
"""Both names of the limit of an answer."""

_STREAM_OPTIONS = "stream_options"
_USAGE = "include_usage"

_ONE_CALL = "parallel_tool_calls"

_LONG = frozenset({"extra_body", "extra_headers", "functions", "tools"})

_DECIDING = frozenset({*LIMITS, "functions", "tool_choice", "tools"})
"""What decides how others fit: a budget has to be below a limit, for example. Of long ones only
whether they are there."""

_SHAPES: Mapping[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "stop": ["x"],
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "top_logprobs": 1,
    "web_search_options": {},
}
"""Samples of parameters that are shape."""

_REFUSED_UNDER = frozenset({400, 422})
_REFUSALS_ARE = frozenset({FailureKind.REJECTED, FailureKind.UNSUPPORTED})
_CODES_FOR_EVERY_VALUE = frozenset({"unknown_parameter", "unsupported_parameter"})
_CODES_FOR_A_VALUE = frozenset({"invalid_value", "unsupported_value"})

_FORGOTTEN_AFTER = 3600.0
"""Seconds for which a refusal is remembered: a vendor may have changed its mind."""

_MOST_REFUSALS = 256
_MOST_PLANS = 512

_REFUSING = (
    r"deprecated|unknown|unrecognized|not (?:a )?supported|unsupported param|extra inputs"
    r"|extraneous|(?:does|do)(?: not|n't) support|not permitted|not allowed|invalid option"
)
_FOR_EVERY_VALUE = re.compile(_REFUSING, re.IGNORECASE)
"""Words that refuse a parameter, and not one value of it."""
_REFUSES_STREAM_OPTIONS = re.compile(
    rf"(?:{_REFUSING}|un(?:expected|supported)).{{0,40}}\bstream_options\b"
    rf"|\bstream_options\b.{{0,40}}(?:{_REFUSING}|un(?:expected|supported))",
    re.DOTALL | re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_SPEAKS_OF_MESSAGES = re.compile(r"\b(messages?|content|prompt|roles?)\b", re.IGNORECASE)
"""Such an error is about what the caller has written, and may quote it."""
_IN_PROSE = frozenset({"prediction", "store", "thinking", "user", "verbosity"})
"""Hints whose names are words that an error may hold in another sense."""
_CALLED = (
    r"""[`'"\[]{0}[`'"\]]"""
    r"|(?:argument|field|key|model|option|parameter|param|property|support)s?:?\s+{0}"
    r"(?=\s*(?:[.,;:]|$|is\b|must\b|cannot\b))"
)
"""How an error speaks of them as parameters."""


_PLAIN = HINTS - {"reasoning_effort", "temperature", "thinking", "top_p"}
"""Hints that a model takes or not, whatever their value is and what else is asked for."""

_SAMPLES: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 1.3},
)
_THINKING: Mapping[str, Any] = {"reasoning_effort": "low"}
"""A model that takes these, together and apart, takes any temperature."""

_OPTIONAL_AT_OPENAI = frozenset(
    {
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "user",
        "verbosity",
    }
)
"""Hints that litellm keeps from a model of OpenAI's wire that it does not know."""


class _LearnedRefusal(NamedTuple):
    """Something that a vendor has refused. None stands for any value, and for no condition."""

    name: str
    value: str | None = None
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to do with certain parameters.

    `dropped` are left out. `instead`, with a value in range or under another name, take the place
    of those `replaced`.
    """

    dropped: tuple[str, ...] = ()
    instead: Mapping[str, Any] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()

    def carried_out(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters as they are sent."""
        without = self.replaced.union(self.dropped)
        return {n: value for n, value in params.items() if n not in without} | dict(self.instead)


_AS_GIVEN = _Plan()


class ParameterDraft:
    """A `_Plan` in the making. `left` are the parameters that would be sent."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.left = {name: value for name, value in params.items() if value is not None}
        self.dropped: list[str] = []
        self.instead: dict[str, Any] = {}
        self.replaced: set[str] = set()

    def drop(self, name: str) -> None:
        """Leave a parameter out, if it is there."""
        if name in self.left:
            self.left.pop(name)
            self.dropped.append(name)

    def put(self, name: str, value: Any, *, was: str) -> None:
        """Send this in the place of another."""
        self.left.pop(was, None)
        self.replaced.add(was)
        self.left[name] = self.instead[name] = value

    @property
    def limit(self) -> Any:
        """Tokens that the answer may have; infinite if nothing is said of it."""
        return next((self.left[name] for name in LIMITS if name in self.left), math.inf)

    def asks_to_think(self, mapped: Callable[..., Mapping[str, Any] | None]) -> Mapping[str, Any]:
        """Return what asks for thinking, in the vendor's form; empty if nothing does."""
        asked = {name: self.left[name] for name in THOUGHT if name in self.left}
        return (mapped(asked) if asked else None) or {}

    def do_not_think(self) -> None:
        """Leave out all that asks for thinking."""
        for name in THOUGHT:
            self.drop(name)

    def think(self, thinking: Mapping[str, Any]) -> None:
        """Send this in the place of all that asks for thinking."""
        self.put("thinking", thinking, was="thinking")
        if self.left.pop("reasoning_effort", None) is not None:
            self.replaced.add("reasoning_effort")

    def plan(self) -> _Plan:
        """Return the plan, as it is now."""
        names, instead = (
            tuple(self.dropped),
            {n: v for n, v in self.instead.items() if n in self.left},
        )
        return _Plan(names, instead, frozenset(self.replaced)) if names or instead else _AS_GIVEN


class ParameterRules:
    """The rules of one provider; `dropping` says which parameters may be left out."""

    def __init__(self, config: LLMConfig, clock: Clock, dropping: Dropping) -> None:
        self._config = config
        self._wire = wire_of(config)
        self._clock = clock
        self._dropping = dropping
        self._history = History(config, clock, self._wire.base)
        self._model = str(config.extra.get("base_model") or config.model)
        if self._wire.names_deployments:
            self._model = self._model.removeprefix("azure/")
        self._stands_for_another = self._model != config.model
        self._is_unknown = not self._wire.lists_models
        self._map: Callable[..., Any] | None = None
        self._defaults = {n: v for n, v in config.extra.items() if n in CHAT_PARAMS}
        self._free = CHAT_PARAMS - HINTS if dropping else CHAT_PARAMS
        if self._stands_for_another:
            self._free -= frozenset(LIMITS)
        self._plans: dict[tuple[tuple[str, str], ...], _Plan] = {}
        self._refusals: dict[_LearnedRefusal, float] = {}
        self._renamed: dict[str, str] = {}
        self._renamed_at = 0.0
        self._not_taken: set[str] = set()
        self._sampling: frozenset[str] | None = None
        self._logged: set[str] = set()
        self._counted_from = 0.0
        self._most_output = math.inf
        self._single_calls: bool | None = None

    @property
    def counts_streams(self) -> bool:
        """Whether the server takes `stream_options`, as far as is known."""
        return self._clock.now() >= self._counted_from

    def connect(self, litellm: ModuleType) -> None:
        """Use litellm's mapping of parameters from now on."""
        if self._map is not None:
            return
        from litellm.utils import get_optional_params  # noqa: PLC0415 - needs litellm

        if self._dropping:
            self._most_output = max_output_tokens(self._config) or math.inf
        if self._wire.names_deployments:
            known = litellm.model_cost
            self._is_unknown = self._model not in known and f"azure/{self._model}" not in known
        model, name = self._model, self._wire.litellm_name
        if not name:
            try:
                model, name = litellm.get_llm_provider(self._config.model)[:2]
            except Exception:  # noqa: BLE001 - a call will say what is wrong
                return
        self._map = partial(
            get_optional_params,
            model=model,
            custom_llm_provider=name,
            messages=[{"role": "user", "content": "x"}],
            api_version=self._config.api_version,
        )
        if self._dropping is True and self._wire.lists_models:
            # A few samples tell which of the others the model does not take.
            self._not_taken = {n for n, v in _SHAPES.items() if self._mapped({n: v}) is None}
            # What a wire says of others depends on their values.
            self._free -= (
                self._not_taken if self._wire.not_taken is None else _SHAPES.keys() - _LONG
            )

    def fitted(self, request: ChatRequest) -> ChatRequest:
        """Return the request as the provider takes it: the same one if nothing changes.

        Parameters in the provider's `extra` are in it, as far as the caller says nothing else.
        """
        if self._defaults:
            request = replace(request, params=self._completed(request.params))
        given = request.params
        request = self._history.fitted(request)
        params = request.params
        if params is not given:
            self._log_once([name for name in THOUGHT if name in given])
        if not params:
            return request
        if (
            request.native is not None
            and self._dropping
            and params.get(_ONE_CALL) is False
            and not self._makes_single_calls()
        ):
            # In other protocols it is a wish: their clients take several calls.
            params = _without(params, _ONE_CALL)
            request = replace(request, params=params)
        for name in LIMITS:  # more than the model gives is refused by most vendors
            if name in params and params[name] > self._most_output:
                params = {**params, name: self._most_output}
                request = replace(request, params=params)
        if params.keys() <= self._free:
            return request
        plan = self._plan(params)
        if plan is _AS_GIVEN:
            return request
        self._log_once(plan.dropped)
        return replace(request, params=plan.carried_out(params))

    def _makes_single_calls(self) -> bool:
        if self._single_calls is None:
            trial = {_ONE_CALL: False, "tools": _SHAPES["tools"]}
            not_taken = self._wire.not_taken and self._wire.not_taken(trial)
            self._single_calls = not not_taken and self._mapped(trial) is not None
        return self._single_calls

    def _log_once(self, dropped: Sequence[str]) -> None:
        for name in dropped:
            if name not in self._logged:
                self._logged.add(name)
                _log.warning(
                    "%s: the parameter %s is left out, since the model does not take it as it was"
                    " given. Each parameter is logged once.",
                    self._config.name,
                    name,
                )

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[str, ...]:
        """Name what would be left out of these parameters, with these messages."""
        if params.keys() <= self._free:
            return ()
        foreign = () if self._history.thinks(messages, params) else THOUGHT
        dropped = (
            *(name for name in foreign if name in params),
            *self._plan(self._completed(_without(params, *foreign))).dropped,
        )
        return tuple([n for n in dropped if n in params]) if self._defaults else dropped

    def _completed(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._defaults:
            return params
        own = self._defaults
        if not params.keys().isdisjoint(LIMITS):  # two names of one thing
            own = {name: value for name, value in own.items() if name not in LIMITS}
        return {**own, **params}

    # ── refusals ─────────────────────────────────────────────────────────────────────────────

    def should_retry(self, error: VendorCallError, given: ChatRequest, sent: ChatRequest) -> bool:
        """Learn from a failure what the provider refuses; return whether to send again at once.

        If not, `error` then says what the failure means. `given` is the caller's request, `sent`
        the one that was refused.
        """
        if self._history.learn(error.failure, sent):
            return True
        if self._dropping and given.native is not None and _is_limit_too_high(error.failure):
            # Its protocol wants a limit; the one of the model is as good.
            limits = [name for name in LIMITS if name in sent.params]
            for name in limits:
                self._note(_LearnedRefusal(name, repr(sent.params[name])))
            if limits:
                return True
        judged = self._judged(error.failure, self._history.fitted(given), sent)
        if judged is not None:
            error.failure = judged
        return judged is None

    def _judged(self, failure: Failure, given: ChatRequest, sent: ChatRequest) -> Failure | None:
        if failure.kind is FailureKind.UNSUPPORTED and failure.status is None:
            return self._explained(failure, sent)
        name = _name_of(failure, sent.params)
        if name == _STREAM_OPTIONS:
            counted = self.counts_streams
            self._counted_from = self._clock.now() + _FORGOTTEN_AFTER
            return None if counted else failure
        if name is None or self._is_renamed(name, failure):
            return None if name else failure
        if not (self._dropping is True or (self._dropping and name in HINTS)):
            return failure
        self._note(_refusal_of(name, failure, sent.params))
        params = self._completed(given.params)
        if self._plan(params).carried_out(params) == sent.params:
            return failure  # nothing would be different
        changed = replace(failure, kind=FailureKind.UNSUPPORTED, mendable=True)
        return None if self._dropping is True else changed

    def _is_renamed(self, name: str, failure: Failure) -> bool:
        """Return whether the vendor refuses one name of the limit because it wants the other."""
        if name not in LIMITS:
            return False
        other, detail = LIMITS[name == LIMITS[0]], failure.detail or ""
        if other not in detail and not _FOR_EVERY_VALUE.search(detail):
            return False
        if name in self._renamed:
            return True  # it was sent before that was known
        self._plans.clear()
        if self._renamed:  # the other name is not taken either
            self._renamed.clear()
            return False
        self._renamed[name] = other
        self._renamed_at = self._clock.now()
        self._free -= {name}
        return True

    def _note(self, refusal: _LearnedRefusal) -> None:
        self._refusals.pop(refusal, None)
        if len(self._refusals) >= _MOST_REFUSALS:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[refusal] = self._clock.now()
        self._free -= {refusal.name}
        self._plans.clear()

    def _forget(self) -> None:
        before = self._clock.now() - _FORGOTTEN_AFTER
        if self._renamed and self._renamed_at <= before:
            self._renamed.clear()
            self._plans.clear()
        while self._refusals:
            oldest = next(iter(self._refusals))
            if self._refusals[oldest] > before:
                return
            del self._refusals[oldest]
            self._plans.clear()

    def _explained(self, failure: Failure, sent: ChatRequest) -> Failure:
        """Name the parameter that litellm could not map."""
        if failure.param is not None or self._map is None:
            return failure
        for name, value in sent.params.items():
            if name not in _LONG and self._mapped({name: value}) is None:
                return replace(failure, param=name)
        return failure

    # ── plans ────────────────────────────────────────────────────────────────────────────────

    def _plan(self, params: Mapping[str, Any]) -> _Plan:
        if self._refusals or self._renamed:
            self._forget()
        deciding = [n for n in params if n not in self._free or n in _DECIDING]
        short = self._free & _LONG
        key = tuple([(n, repr(bool(params[n]) if n in short else params[n])) for n in deciding])
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._planned(params)
        return plan

    def _planned(self, params: Mapping[str, Any]) -> _Plan:
        draft = ParameterDraft(params)
        for name, other in self._renamed.items():
            if name in draft.left:
                draft.put(other, draft.left[name], was=name)
        if self._dropping:
            for name in [n for n in draft.left if self._is_refused(n, draft.left)]:
                draft.drop(name)
            for name in self._wire.foreign_params:
                draft.drop(name)
            if self._wire.fit is not None:
                self._wire.fit(draft, self._model, self._mapped)
        if self._dropping is True and self._wire.not_taken is not None:
            draft.drop(self._wire.not_taken(draft.left) or "")
        if self._map is not None:
            self._fit_to_litellm(draft)
        return draft.plan()

    def _is_refused(self, name: str, left: Mapping[str, Any]) -> bool:
        value = repr(left[name])
        return any(
            refusal.name == name
            and refusal.value in {None, value}
            and (refusal.beside is None or refusal.beside in left)
            for refusal in self._refusals
        ) or (self._dropping is True and name in self._not_taken)

    def _fit_to_litellm(self, draft: ParameterDraft) -> None:
        """Leave out what litellm refuses, or would leave out silently."""
        hints = [n for n in _IN_ORDER if n in draft.left]
        trial = {n: draft.left[n] for n in (*hints, *LIMITS) if n in draft.left}
        allowed = [n for n in hints if n in _OPTIONAL_AT_OPENAI]
        if self._is_unknown:
            if allowed:
                draft.instead["allowed_openai_params"] = allowed
                draft.left["allowed_openai_params"] = allowed
            return
        if self._dropping:
            self._leave_out(draft, hints, trial)
        if self._stands_for_another:
            self._adopt_base_model(draft, [n for n in allowed if n in draft.left])

    def _leave_out(self, draft: ParameterDraft, hints: list[str], trial: dict[str, Any]) -> None:
        mapped = self._mapped(trial)
        if mapped is None:
            alone = [n for n in hints if self._mapped({n: trial[n]}) is None]
            trial = _without(trial, *alone)
            mapped = self._mapped(trial)
            if mapped is None:  # each may be sent, but not beside the others
                rest = [n for n in hints if n in trial]
                one = next((n for n in rest if self._mapped(_without(trial, n)) is not None), None)
                trial = _without(trial, *(rest if one is None else (one,)))
                mapped = self._mapped(trial)
            for name in hints:
                if name not in trial:
                    draft.drop(name)
        for name in [n for n in hints if n in trial and n in _PLAIN]:
            if mapped is not None and mapped == self._mapped(_without(trial, name)):
                draft.drop(name)
            elif name not in {refusal.name for refusal in self._refusals}:
                self._free |= {name}
        if not self._refusals:
            self._free |= self._free_sampling() & trial.keys()

    def _free_sampling(self) -> frozenset[str]:
        """Return `temperature` and `top_p` if the model takes any value, also while it thinks."""
        if self._sampling is not None:
            return self._sampling
        thinks = self._mapped(_THINKING) is not None
        samples = [*_SAMPLES, *({**s, **_THINKING} for s in _SAMPLES if thinks)]
        free = all(self._mapped(s) is not None and self._is_in_range(s) for s in samples)
        self._sampling = frozenset({"temperature", "top_p"} if free else ())
        return self._sampling

    def _is_in_range(self, params: Mapping[str, Any]) -> bool:
        draft = ParameterDraft(params)
        if self._wire.fit is not None:
            self._wire.fit(draft, self._model, self._mapped)
        return draft.plan() is _AS_GIVEN

    def _adopt_base_model(self, draft: ParameterDraft, allowed: list[str]) -> None:
        """Use the parameter names of the model behind a deployment, which litellm does not."""
        if allowed:
            draft.left["allowed_openai_params"] = draft.instead["allowed_openai_params"] = allowed
        limit, other = LIMITS
        if limit in draft.left and other in (self._mapped({limit: 1}) or {}):
            draft.put(other, draft.left[limit], was=limit)

    def _mapped(self, params: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return these parameters in the vendor's form; None if litellm refuses."""
        if self._map is None:
            return {}
        token, muted = SILENT.set(True), MUTE.set(True)
        try:
            mapped: Mapping[str, Any] = self._map(**fresh_copy(params))
        except Exception:  # noqa: BLE001 - whatever it is, these parameters cannot be sent
            return None
        finally:
            SILENT.reset(token)
            MUTE.reset(muted)
        return mapped


_LIMIT_TOO_HIGH = re.compile(
    r"max_(completion_|output_)?tokens|maxOutputTokens|(in the|for the) completion"
    r"|(completion|output) tokens",
    re.IGNORECASE,
)


def _is_limit_too_high(failure: Failure) -> bool:
    """Return whether a server refuses the limit of the answer's tokens."""
    return failure.status in _REFUSED_UNDER and bool(
        _LIMIT_TOO_HIGH.search(f"{failure.param or ''} {(failure.detail or '')[:1000]}")
    )


def _name_of(failure: Failure, params: Mapping[str, Any]) -> str | None:
    """Return which of these parameters a vendor has refused, by its own name or the caller's."""
    if failure.status not in _REFUSED_UNDER or failure.kind not in _REFUSALS_ARE:
        return None
    path = snake_case(failure.param or "")
    if _refuses_stream_options(path, (failure.detail or "")[:400], params):
        return _STREAM_OPTIONS
    params = _without(params, _STREAM_OPTIONS)  # what else is in it is the caller's own
    first, last = path.partition(".")[0], path.rpartition(".")[2].partition("[")[0]
    words = (last, *_ALIASES.get(last, ()), first, *_ALIASES.get(first, ()))
    if path:
        return next((name for name in words if name in params), None)
    return _hint_in((failure.detail or "")[:400], params)


def _hint_in(words: str, params: Mapping[str, Any]) -> str | None:
    """Return the one hint that a vendor's words name; None if they name none, or several."""
    if _SPEAKS_OF_MESSAGES.search(words):
        return None
    said = {snake_case(word) for word in _WORD.findall(words)}
    said.update(name for word in said & _ALIASES.keys() for name in _ALIASES[word])
    named = [n for n in _IN_ORDER if n in said and n in params]
    named = [
        n for n in named if n not in _IN_PROSE or re.search(_CALLED.format(n), words, re.IGNORECASE)
    ]
    return named[0] if len(named) == 1 or (named and "both" in words) else None


def _refuses_stream_options(path: str, words: str, params: Mapping[str, Any]) -> bool:
    """Return whether a vendor refuses `stream_options`, or what the gateway itself puts there."""
    if path:
        return path in {_STREAM_OPTIONS, f"{_STREAM_OPTIONS}.{_USAGE}"} and not any(
            option in words for option in (params.get(_STREAM_OPTIONS) or {}) if option != _USAGE
        )
    return bool(_REFUSES_STREAM_OPTIONS.search(words))


def _refusal_of(name: str, failure: Failure, params: Mapping[str, Any]) -> _LearnedRefusal:
    words = (failure.detail or "")[:400]
    if "both" in words:
        pair = [n for n in _IN_ORDER if n in params and n in words]
        if len(pair) > 1:
            return _LearnedRefusal(pair[0], beside=pair[1])
    refusing = _FOR_EVERY_VALUE.search(words)
    if refusing and failure.param is None:  # has it been said of this parameter?
        place = snake_case(words).find(name)
        refusing = _FOR_EVERY_VALUE.search(words[max(0, place - 60) : place + len(name) + 60])
    whole = failure.code in _CODES_FOR_EVERY_VALUE or (
        failure.code not in _CODES_FOR_A_VALUE and refusing
    )
    return _LearnedRefusal(name) if whole else _LearnedRefusal(name, repr(params[name]))


def _without(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {n: value for n, value in params.items() if n not in names}
