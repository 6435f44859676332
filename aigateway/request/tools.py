"""`gateway.run_tools`: Python functions as tools, and the loop that calls them.

Each round is a `chat`. What the functions return goes into the next one, until the model answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Annotated, Any, Generic, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from aigateway.clock import Clock
from aigateway.errors import (
    DeadlineExceededError,
    GatewayError,
    RequestRejectedError,
    ToolRoundsExceededError,
    refuse,
)
from aigateway.messages import TOOL_INPUTS, ChatResponse, P_co, ToolCall, Usage
from aigateway.options import M
from aigateway.records import Record, shown_cost
from aigateway.request.checks import check_seconds
from aigateway.request.validate import copied_messages
from aigateway.wires.client import call_function
from aigateway.wires.json_bodies import whole_characters

__all__ = ["OnToolError", "ToolResult", "ToolRun", "run_tools"]

OnToolError = Literal["return", "raise"]
"""What an exception of a function does: go back to the model as a text, or end the run."""

Chat = Callable[..., Coroutine[Any, Any, ChatResponse[M]]]


@dataclass(frozen=True, slots=True, repr=False)
class ToolResult(Record):
    """One call of a function.

    Attributes:
        call: The model's call.
        text: What the model got: the result as text or JSON, or the error.
        error: Why there is no result: the function's exception, or a `RequestRejectedError` for
            arguments that do not fit and for a function that does not exist. Else None.
        round: The round whose answer called it, from 1; 0 for one that was open before.
        seconds: How long the function took.
    """

    call: ToolCall
    text: str = field(repr=False)
    error: Exception | None
    round: int
    seconds: float

    def _words(self) -> Iterable[Any]:
        ended = "ok" if self.error is None else type(self.error).__name__
        return (self.call.name, ended, f"{self.seconds:.2f} s")


@dataclass(frozen=True, slots=True, repr=False)
class ToolRun(Record, Generic[P_co]):
    """A conversation in which the model has called functions, and its last answer.

    Attributes:
        messages: The whole conversation in OpenAI's form, with the system message and the last
            answer. Another `run_tools` or `chat` can go on from it.
        responses: The answer of each round.
        results: Every call of a function, in the order in which the model asked for them.
    """

    messages: tuple[dict[str, Any], ...] = field(repr=False)
    responses: tuple[ChatResponse[P_co], ...] = field(repr=False)
    results: tuple[ToolResult, ...] = field(repr=False)

    @property
    def response(self) -> ChatResponse[P_co]:
        """The last answer.

        Raises:
            GatewayError: No round has been answered; only in the `tool_run` of an error.
        """
        if not self.responses:
            raise GatewayError("No round of this run was answered.")
        return self.responses[-1]

    @property
    def text(self) -> str:
        """The text of the last answer."""
        return self.response.text

    @property
    def parsed(self) -> P_co:
        """An instance of the pydantic model given as `response_format`, else None."""
        return self.response.parsed

    @property
    def rounds(self) -> int:
        """How often a model was asked."""
        return len(self.responses)

    @property
    def usage(self) -> Usage:
        """Tokens of all rounds; cached and coalesced answers took none."""
        paid = (r.usage for r in self.responses if not (r.cached or r.coalesced))
        return reduce(add, paid, Usage())

    @property
    def cost_usd(self) -> float:
        """US dollars of all rounds, as far as prices are known."""
        return sum(response.cost_usd or 0.0 for response in self.responses)

    def _words(self) -> Iterable[Any]:
        yield from (f"{self.rounds} rounds,", f"{len(self.results)} calls of functions,")
        yield f"{self.usage.prompt_tokens}+{self.usage.completion_tokens} tokens"
        yield shown_cost(self.cost_usd)

    def _values(self) -> Iterator[tuple[str, Any]]:
        if self.responses:
            yield from (("text", self.text), ("parsed", self.parsed))
        yield from self._fields_but()
        yield from (("rounds", self.rounds), ("usage", self.usage), ("cost_usd", self.cost_usd))


async def run_tools(
    chat: Chat[M],
    clock: Clock,
    prompt: object,
    tools: object,
    *,
    max_rounds: int,
    timeout: float | None,  # noqa: ASYNC109 - it spans all rounds
    on_error: OnToolError,
    options: dict[str, Any],
) -> ToolRun[M]:
    """See `AsyncGateway.run_tools`."""
    if type(max_rounds) is not int or max_rounds < 1:
        refuse("max_rounds must be a whole number of at least 1.")
    if on_error not in get_args(OnToolError):
        refuse('on_error must be "return" or "raise".')
    if timeout is not None:
        check_seconds("timeout", timeout)
    messages, known = _messages(prompt, options), _tools_of(tools)
    loop = _Loop(chat, clock, messages, tools=known, options=options, on_error=on_error)
    try:
        if timeout is None:
            return await loop.run(max_rounds)
        return await loop.within(timeout, max_rounds)
    except BaseException as error:
        with contextlib.suppress(AttributeError, TypeError):  # a function's own may have slots
            error.tool_run = loop.so_far()  # type: ignore[attr-defined]
        raise


def _messages(prompt: object, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation so far, with the system message, which leaves `options`.

    It is checked before a function is called, and with each round again.
    """
    if options.get("n") not in (None, 1):
        refuse("n must be 1 with run_tools: a conversation goes on from one answer.")
    return list(copied_messages(prompt, options.pop("system", None), sys.maxsize)[0])


class _Loop(Generic[M]):
    def __init__(
        self,
        chat: Chat[M],
        clock: Clock,
        messages: list[dict[str, Any]],
        *,
        tools: dict[str, _PythonTool],
        options: dict[str, Any],
        on_error: OnToolError,
    ) -> None:
        self._chat = chat
        self._clock = clock
        self._messages: list[Any] = messages
        self._tools = tools
        self._options = {"session": uuid.uuid4().hex, **options}
        self._options["tools"] = [tool.spec for tool in tools.values()]
        self._on_error = on_error
        self._results: list[ToolResult] = []
        self._responses: list[ChatResponse[M]] = []
        self._ends: float | None = None

    def so_far(self) -> ToolRun[M]:
        return ToolRun(tuple(self._messages), tuple(self._responses), tuple(self._results))

    async def run(self, max_rounds: int) -> ToolRun[M]:
        await self._call(_open_calls(self._messages))
        for _ in range(max_rounds):
            response = await self._ask()
            if not response.tool_calls:
                return self.so_far()
            if len(self._responses) < max_rounds:
                await self._call(response.tool_calls)
        names = ", ".join(sorted({call.name for call in response.tool_calls}))
        raise ToolRoundsExceededError(
            f"The model still calls tools ({names}) after {max_rounds} rounds. Allow more with"
            " max_rounds; `error.tool_run.messages` goes on where this run has ended."
        )

    async def within(self, seconds: float, max_rounds: int) -> ToolRun[M]:
        """As `run`, with a bound on its time."""
        self._ends = self._clock.now() + seconds
        try:
            async with self._clock.timeout(seconds) as limit:
                return await self.run(max_rounds)
        except TimeoutError:
            if not limit.expired():
                raise  # a function's own
        raise DeadlineExceededError(
            f"The run was not done after {seconds:g} s and {len(self._responses)} rounds."
        )

    async def _ask(self) -> ChatResponse[M]:
        left = {} if self._ends is None else {"timeout": max(self._ends - self._clock.now(), 1e-3)}
        response = await self._chat(list(self._messages), **self._options, **left)
        self._responses.append(response)
        self._messages.append(response.to_openai()["choices"][0]["message"])
        if self._options.get("tool_choice") not in (None, "auto", "none"):
            del self._options["tool_choice"]  # else the model could never answer
        return response

    async def _call(self, calls: Sequence[ToolCall]) -> None:
        """Call functions at once, and append their results in the order of the calls.

        If that is cut short, the results that are there are appended: they are not called again.
        """
        results: list[ToolResult | None] = [None] * len(calls)
        try:
            async with asyncio.TaskGroup() as group:
                for place, call in enumerate(calls):
                    group.create_task(self._put_result(results, place, call))
        except BaseExceptionGroup as raised:  # no `Exception`: SystemExit and the like
            raise raised.exceptions[0] from None
        finally:
            ended = [result for result in results if result is not None]
            self._results += ended
            self._messages += [
                {"role": "tool", "tool_call_id": result.call.id, "content": result.text}
                for result in ended
            ]
        if None in results:
            name = calls[results.index(None)].name
            raise GatewayError(f"The task of a call of {name} was cancelled from outside the run.")
        if self._on_error == "raise":
            for result in ended:
                if result.error is not None and not isinstance(result.error, _ModelsFaultError):
                    raise result.error

    async def _put_result(
        self, results: list[ToolResult | None], place: int, call: ToolCall
    ) -> None:
        results[place] = await self._result(call)

    async def _result(self, call: ToolCall) -> ToolResult:
        begun, error = self._clock.now(), None
        try:
            text = await self._tool(call).call(call.arguments)
        except Exception as raised:  # noqa: BLE001 - functions are the application's own
            error, named = raised, type(raised).__name__
            text = f"Error: {'' if isinstance(raised, _ModelsFaultError) else f'{named}: '}{raised}"
        except asyncio.CancelledError as raised:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            error = GatewayError(f"{call.name} raised CancelledError; nothing had cancelled it.")
            error.__cause__ = raised
            text = f"Error: CancelledError: {raised}"
        text, seconds = whole_characters(text), self._clock.now() - begun
        return ToolResult(call, text, error, len(self._responses), seconds)

    def _tool(self, call: ToolCall) -> _PythonTool:
        tool = self._tools.get(call.name)
        if tool is None or call.type != "function":
            known = ", ".join(self._tools)
            raise _ModelsFaultError(f"there is no function {call.name}; there are: {known}.")
        return tool


class _ModelsFaultError(RequestRejectedError):
    """A call that the model has to correct."""


def _open_calls(messages: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """Return the calls with which a conversation ends, but for those that have their results."""
    answered: list[str] = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        answered.append(message["tool_call_id"])
    else:
        return []
    made = (message.get("tool_calls") or ()) if message["role"] == "assistant" else ()
    calls = []
    for given in made:
        kind = "custom" if given.get("type") == "custom" else "function"
        if given["id"] in answered:
            answered.remove(given["id"])
        else:
            inputs = given[kind][TOOL_INPUTS[kind]]
            calls.append(ToolCall(given["id"], given[kind]["name"], inputs, kind))
    return calls


# ── functions as tools ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _PythonTool:
    """A function, and what a model is shown of it.

    Attributes:
        function: The function.
        spec: OpenAI's form of the tool.
        arguments: Checks arguments. Its fields are numbered and have the parameters as aliases,
            since a parameter may be called like a method of pydantic's.
        positional: How many of the parameters have no name for callers.
    """

    function: Callable[..., Any]
    spec: dict[str, Any]
    arguments: type[BaseModel]
    positional: int

    async def call(self, arguments: str) -> str:
        """Call the function with arguments in JSON, and return its result as text."""
        given, named = self._checked(arguments or "{}")
        result = await call_function(self.function, *given, **named)
        if isinstance(result, str):
            return result
        try:
            return to_json(result, fallback=str).decode()
        except PydanticSerializationError:  # half a surrogate pair, as in names of files
            return json.dumps(to_jsonable_python(result, fallback=str))

    def _checked(self, arguments: str) -> tuple[list[Any], dict[str, Any]]:
        try:
            values = self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
        else:
            fields = [
                (place, info.alias or "", getattr(values, name))
                for place, (name, info) in enumerate(self.arguments.model_fields.items())
                if place < self.positional or name in values.model_fields_set
            ]
            given = [value for place, _, value in fields if place < self.positional]
            return given, {name: value for place, name, value in fields if place >= self.positional}
        places = [".".join(map(str, problem["loc"])) or "JSON" for problem in problems]
        listed = "; ".join(f"{at}: {p['msg']}" for at, p in zip(places, problems, strict=True))
        raise _ModelsFaultError(f"the arguments do not fit. {listed}.")


def _tools_of(functions: object) -> dict[str, _PythonTool]:
    if not isinstance(functions, Iterable) or isinstance(functions, str | bytes | Mapping):
        refuse(f"tools must be a list of functions, not {type(functions).__name__}.")
    tools: dict[str, _PythonTool] = {}
    for place, function in enumerate(functions):
        if not callable(function):
            refuse(f"tools[{place}] must be a function, not {type(function).__name__}.")
        original = getattr(function, "func", function)
        name = getattr(original, "__name__", type(original).__name__)
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name) is None:
            refuse(f"tools[{place}] must have a name that a model can call: write it with `def`.")
        if any(map(_yields, (function, type(function).__call__))):
            refuse(f"tools[{place}] ({name}) yields; write a function that returns its result.")
        if name in tools:
            refuse(f"tools[{place}]: two functions are named {name}; rename one.")
        tools[name] = _python_tool(f"tools[{place}] ({name})", name, function, original)
    if not tools:
        refuse("tools must have at least one function; without any, call chat().")
    return tools


def _yields(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class _Untitled(GenerateJsonSchema):
    """Leave out titles, which repeat the names and cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        written = super().generate(schema, mode)
        written.pop("title", None)
        return written


def _python_tool(
    place: str, name: str, function: Callable[..., Any], original: Callable[..., Any]
) -> _PythonTool:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        refuse(f"{place}: its parameters cannot be read ({error}); define their types in a module.")
    text, described = _docs(inspect.getdoc(original))
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(parameters):
        if parameter.kind in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
            refuse(f"{place}: *args and **kwargs say nothing to a model; name the parameters.")
        fields[f"p{number}"] = _field(parameter, described.get(parameter.name))
    try:
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = arguments.model_json_schema(schema_generator=_Untitled)
    except PydanticUserError as error:
        refuse(f"{place}: no JSON schema for its parameters ({str(error).splitlines()[0]}).")
    spec: dict[str, Any] = {"name": name, "parameters": schema}
    if text:
        spec["description"] = text
    positional = sum(p.kind is p.POSITIONAL_ONLY for p in parameters)
    return _PythonTool(function, {"type": "function", "function": spec}, arguments, positional)


def _field(parameter: inspect.Parameter, description: str | None) -> tuple[Any, Any]:
    empty = parameter.empty
    annotation = Any if parameter.annotation is empty else parameter.annotation
    beside = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    if any(isinstance(each, FieldInfo) and each.description for each in beside):
        description = None  # it stands there already
    else:
        description = next((each for each in beside if isinstance(each, str)), description)
    default: Any = ... if parameter.default is empty else parameter.default
    info: Any = Field(default, alias=parameter.name)
    if description is not None:
        info = Field(default, alias=parameter.name, description=description)
    return annotation, info


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_PARAMETER = re.compile(r"\s+(\w+)(?:\s*\([^)]*\))?:\s*(.*)|:param (?:\S+ )?(\w+):\s*(.*)")


def _docs(docstring: str | None) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and its words about parameters (Google's form, Sphinx's)."""
    text: list[str] = []
    described: dict[str, str] = {}
    section = last = ""
    for line in (docstring or "").splitlines():
        if found := _SECTION.match(line):
            section, last = found[1], ""
        elif (found := _PARAMETER.fullmatch(line)) and (found[3] or section[:3] in {"Arg", "Par"}):
            last = found[1] or found[3]
            described[last] = found[2] or found[4] or ""
        elif line.startswith(":"):
            section, last = "other", ""
        elif last and line.strip():
            described[last] += f" {line.strip()}"
        elif not section:
            text.append(line)
    return "\n".join(text).strip(), described
