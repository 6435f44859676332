"""The small commands: `aigateway chat`, `providers`, `key`, `serve` and `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import select
import stat
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.cli.output import (
    FAILED,
    PIPED_WIDTH,
    WRONG_INPUT,
    advise,
    errors_as_exit_codes,
    missing_server_packages,
    note,
    seconds_text,
    use_config,
)
from aigateway.cli.probe import ProbeResult, probe_all
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse
from aigateway.routing.capabilities import described
from aigateway.routing.provider import ProviderStatus
from aigateway.settings import ApiKey, GatewaySettings, LLMConfig, ServerSettings, load_providers

__all__ = [
    "ChatCommand",
    "open_gateway",
    "run_chat",
    "run_key",
    "run_providers",
    "run_serve",
    "run_simulate",
]

_KEY_PREFIX = "sk-aigw-"
"""Lets secret scanners recognise a leaked key."""

_KEY_BYTES = 32
_PATIENCE = 2.0
"""Seconds without input from a pipe after which a note says what the command waits for."""
_BYTE_ORDER_MARK = "\ufeff"
_NO_KEYS = re.compile(r"^[ \t]*keys[ \t]*=[ \t]*\[\s*\][ \t]*(?:\r?\n|\Z|(?=#))", re.MULTILINE)
_KEYS_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*server[ \t]*\.[ \t]*keys", re.MULTILINE)


@contextlib.asynccontextmanager
async def open_gateway(
    *, simulate: bool, freeze_gc: bool = False
) -> AsyncIterator[tuple[AsyncGateway, list[LLMConfig]]]:
    """Open a gateway over the configured providers, or over four simulated vendors.

    Args:
        simulate: Use simulated vendors.
        freeze_gc: The default of this setting.

    Yields:
        The gateway, and its providers with the highest priority first.
    """
    if not simulate:
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        settings = GatewaySettings.load().with_defaults(freeze_gc=freeze_gc)
        async with AsyncGateway(configs or None, settings=settings) as gateway:
            yield gateway, configs
        return
    from aigateway.simulator import Simulator  # noqa: PLC0415 - it loads aiohttp

    async with Simulator() as simulator:
        configs = [vendor.config(priority=-place) for place, vendor in enumerate(simulator.vendors)]
        settings = GatewaySettings.load().with_defaults(freeze_gc=freeze_gc)
        async with AsyncGateway(configs, settings=settings) as gateway:
            yield gateway, configs


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """The options of `aigateway chat` that are not parameters of the chat.

    Attributes:
        stream: Print the answer as it arrives.
        as_json: Print a JSON object.
        simulate: Use the simulated vendors.
        config: Read instead of `aigateway.toml`.
    """

    stream: bool = False
    as_json: bool = False
    simulate: bool = False
    config: Path | None = None


def run_chat(prompt: str | None, options: Mapping[str, Any], command: ChatCommand) -> None:
    """Send one prompt with these options of `chat`; print the answer.

    Text from a pipe or a file at standard input is appended to the prompt, or is the prompt.
    """
    if command.stream and command.as_json:
        raise typer.BadParameter("give --stream or --json, not both")
    text = _with_standard_input(prompt)
    with errors_as_exit_codes():
        use_config(command.config)
        answering = _streamed if command.stream else _chat
        reply = asyncio.run(answering(text, options, simulate=command.simulate))
        if command.as_json:
            typer.echo(json.dumps(_plain(reply), indent=2))
            return
        if not command.stream:
            typer.echo(reply.text)  # unchanged: rich would wrap it and read its brackets as markup
        note(_summary(reply))


async def _chat(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    async with open_gateway(simulate=simulate) as (gateway, _):
        return await gateway.chat(prompt, **options)


async def _streamed(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    last = "\n"
    async with open_gateway(simulate=simulate) as (gateway, _):
        try:
            async with gateway.stream(prompt, **options) as stream:
                async for chunk in stream:
                    if chunk.text:
                        typer.echo(chunk.text, nl=False)
                        last = chunk.text[-1]
        finally:
            if last != "\n":
                typer.echo()  # a message about a break begins a line of its own, too
        return stream.response


def _with_standard_input(prompt: str | None) -> str:
    """Return the prompt with what standard input holds, if that is a pipe or a file."""
    open_to = sys.stdin is not None and not sys.stdin.isatty()  # None if it is closed
    if prompt == "-" or (prompt is None and open_to):
        return _standard_input()
    if prompt is None:
        raise typer.BadParameter("give a prompt, or pipe one in: aigateway chat < file")
    beside = _standard_input() if open_to and _is_pipe_or_file() else ""
    return f"{prompt}\n\n{beside}" if beside.strip() else prompt


def _is_pipe_or_file() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or in a test no file at all
        return False
    if stat.S_ISFIFO(mode) and not select.select([sys.stdin], [], [], _PATIENCE)[0]:
        note("Waiting for standard input; `< /dev/null` leaves it out.")
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _standard_input() -> str:
    try:
        return "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not text in this locale's encoding") from None


def _summary(reply: ChatResponse) -> str:
    usage, loading = reply.usage, reply.loading_seconds
    cost = "price unknown" if reply.cost_usd is None else f"${reply.cost_usd:.6f}"
    parts = [
        reply.provider,
        seconds_text(reply.latency_seconds - loading)
        + (f" + {loading:.1f} s loading litellm" if loading >= 0.05 else ""),
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        cost,
    ]
    if reply.finish_reason not in {None, "stop"}:
        parts.append(f"ended by {reply.finish_reason}")
    failed = [f"{a.provider}: {a.failure}" for a in reply.attempts if not a.ok]
    if failed:
        parts.append(f"after {', '.join(failed)}")
    return " · ".join(parts)


def _plain(reply: ChatResponse) -> dict[str, Any]:
    return {
        "text": reply.text,
        "provider": reply.provider,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "cost_usd": reply.cost_usd,
        "latency_seconds": round(reply.latency_seconds, 6),
        "loading_seconds": round(reply.loading_seconds, 6),
        "cached": reply.cached,
        "attempts": [asdict(attempt) for attempt in reply.attempts],
        "request_id": reply.request_id,
    }


# ── providers ────────────────────────────────────────────────────────────────────────────────────


def run_providers(*, config: Path | None, as_json: bool, check_seconds: float | None) -> None:
    """Print the configured providers; with `check_seconds`, check each of them first."""
    with errors_as_exit_codes():
        use_config(config)
        configs = sorted(load_providers(), key=lambda config: -config.priority)
        if not configs:
            advise()
            raise typer.Exit(WRONG_INPUT)
        checks = None
        if check_seconds is not None:
            checks = asyncio.run(probe_all(configs, check_seconds))
        known = asyncio.run(_capabilities(configs))
    if as_json:
        typer.echo(json.dumps(_plain_providers(configs, checks, known), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
        console.print(_provider_table(configs, checks, known))
        note("`aigateway vendors` lists the vendors that can be added.")
    if checks is not None and any(check.problem for check in checks):
        raise typer.Exit(FAILED)


async def _capabilities(configs: Sequence[LLMConfig]) -> dict[str, ProviderStatus]:
    """Return what is known of the providers, by name, once litellm's model map is loaded."""
    with contextlib.suppress(ConfigurationError):  # of a provider that cannot be opened
        async with AsyncGateway(configs) as gateway:
            with contextlib.suppress(GatewayError):
                await gateway.warmup()
            return {provider.name: provider for provider in gateway.providers}
    return {}


def _provider_table(
    configs: Sequence[LLMConfig],
    checks: Sequence[ProbeResult] | None,
    known: Mapping[str, ProviderStatus],
) -> Table:
    table = Table()
    for heading in ("name", "vendor", "model"):
        table.add_column(heading, overflow="fold")
    table.add_column("priority", justify="right")
    table.add_column("api_base", overflow="fold")
    table.add_column("key")
    table.add_column("aliases", overflow="fold")
    table.add_column("can do", overflow="fold")
    if checks is not None:
        table.add_column("check", overflow="fold")
        table.add_column("latency", justify="right")
    for index, config in enumerate(configs):
        cells = [
            Text(config.name),
            Text(str(config.provider)),
            Text(config.model),
            Text(str(config.priority)),
            Text(config.api_base or "the vendor's own"),
            Text("yes", "green") if config.api_key else Text("no", "yellow"),
            Text(", ".join(config.aliases)),
            Text(_can_do(known.get(config.name))),
        ]
        if checks is not None:
            check = checks[index]
            cells.append(Text(check.problem or "ok", "red" if check.problem else "green"))
            cells.append(Text(seconds_text(check.latency_seconds)))
        table.add_row(*cells)
    return table


def _can_do(provider: ProviderStatus | None) -> str:
    words = provider and described(provider.capabilities, provider.max_input_tokens)
    return words or "not known"


def _plain_providers(
    configs: Sequence[LLMConfig],
    checks: Sequence[ProbeResult] | None,
    known: Mapping[str, ProviderStatus],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, config in enumerate(configs):
        found = known.get(config.name)
        row: dict[str, object] = {
            "name": config.name,
            "vendor": str(config.provider),
            "model": config.model,
            "priority": config.priority,
            "api_base": config.api_base,
            "key_present": config.api_key is not None,
            "aliases": list(config.aliases),
            "capabilities": dict(found.capabilities) if found else {},
            "max_input_tokens": found.max_input_tokens if found else None,
        }
        if checks is not None:
            check = checks[index]
            row["check"] = {
                "ok": check.problem is None,
                "problem": check.problem,
                "latency_seconds": check.latency_seconds,
            }
        rows.append(row)
    return rows


# ── key ──────────────────────────────────────────────────────────────────────────────────────────


def run_key(
    name: str, *, admin: bool, limits: Mapping[str, Any], append: Path | None = None
) -> None:
    """Print a new key to stdout. Its lines for `aigateway.toml` go to that file, or to stderr.

    Args:
        name: The name of its owner.
        admin: Make the admin key.
        limits: Further settings of the key, None for those that are not set.
        append: The file.
    """
    key = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = {"sha256": digest, **{k: value for k, value in limits.items() if value is not None}}
    if admin and len(entry) > 1:
        raise typer.BadParameter("the admin key has no limits", param_hint="--admin")
    try:
        ApiKey.model_validate({"name": name, **entry})
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        reason = (
            'must be visible text with no whitespace at its ends, and not "admin"'
            if field in {"name", "models"}
            else "must be above zero"
        )
        raise typer.BadParameter(reason, param_hint=f"--{field.removesuffix('_usd')}") from None
    # A JSON string is also a TOML string, and so are these lists and numbers.
    values = {"admin_sha256": digest} if admin else {"name": name, **entry}
    lines = [f"{k} = {json.dumps(value, ensure_ascii=False)}" for k, value in values.items()]
    if append is not None:
        with errors_as_exit_codes():
            _append_key(append, lines, name=None if admin else name)
    if not admin and limits.get("models") is None and not limits.get("monitor"):
        note("Without --models it sees the totals and events of the whole service, too.")
    note("The key, shown only now. Clients send it as Authorization: Bearer KEY.")
    typer.echo(key)
    if append is None:
        note("For aigateway.toml, which holds only a digest of the key:")
        note("\n" + "\n".join(("[server]" if admin else "[[server.keys]]", *lines)))
    else:
        note(f"Its digest is in {append}. A service that runs takes it within two seconds.")


def _append_key(path: Path, lines: Sequence[str], name: str | None) -> None:
    """Add a key to a file, or the admin's without a name. The rest of it stays as it is.

    Raises:
        ConfigurationError: It has this key already, is no TOML, is not what the service reads, or
            cannot be written.
    """
    if path.exists() and not path.is_file():  # /dev/stdout would wait, /dev/null be replaced
        raise ConfigurationError(f"{path} is not a regular file.")
    target = path.resolve()  # a link stays one
    try:
        with _locked(target.parent):
            before = target.read_bytes().decode() if target.exists() else ""
            text = before.removeprefix(_BYTE_ORDER_MARK)
            mark = before[: len(before) - len(text)]
            _replace_file(path, target, mark + _with_key(path, text, lines, name))
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8; save it as that.") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be changed: {error.strerror}.") from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one command at a time read and replace a file: two at once would lose a key."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _with_key(path: Path, before: str, lines: Sequence[str], name: str | None) -> str:
    try:
        old = tomllib.loads(before)
    except ValueError:
        raise ConfigurationError(f"{path} is no TOML file.") from None
    server = old.get("server")
    server = server if isinstance(server, dict) else {}
    keys = server.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(each, dict) for each in keys):
        raise ConfigurationError(f"{path}: keys must be tables, each headed [[server.keys]].")
    if name is None and "admin_sha256" in server:
        raise ConfigurationError(f"{path} has an admin key already. Remove it there first.")
    if name is not None and name in {each.get("name") for each in keys}:
        raise ConfigurationError(
            f"{path} has a key named {name!r} already. Remove it there, or choose another name."
        )
    if name is not None and not keys:
        before = _NO_KEYS.sub("", before, count=1)  # [[server.keys]] cannot follow it
    after = _with_lines(before, lines, is_admin=name is None)
    added = tomllib.loads("\n".join(lines))
    more = added if name is None else {"keys": [*keys, added]}
    if _is_toml_of(after, {**old, "server": {**server, **more}}):
        return after
    if name is not None and keys and not _KEYS_HEADER.search(before):
        raise ConfigurationError(
            f"{path} has its keys in one list (keys = [...]), to which no key can be added: write"
            " each of them under a heading [[server.keys]] of its own, and run the command again."
        )
    raise ConfigurationError(
        f"{path} is written in a way to which no key can be added: run the command without"
        " --append, and add the lines by hand."
    )


def _is_toml_of(text: str, expected: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == expected
    except ValueError:
        return False


def _with_lines(text: str, lines: Sequence[str], *, is_admin: bool) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    if is_admin and (header := re.search(r"^[ \t]*\[[ \t]*server[ \t]*\].*$", text, re.MULTILINE)):
        place = header.end() - (text[header.end() - 1] == "\r")
        return text[:place] + "".join(end + line for line in lines) + text[place:]
    table = "[server]" if is_admin else "[[server.keys]]"
    begin = "" if not text else end if text.endswith("\n") else end * 2
    return text + begin + "".join(line + end for line in (table, *lines))


def _replace_file(path: Path, target: Path, text: str) -> None:
    """Write a file at once or not at all, with the mode and the owner that it had.

    Raises:
        ConfigurationError: The service would refuse it.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            file.write(text.encode())
            if target.exists():
                about = target.stat()
                os.fchmod(file.fileno(), about.st_mode & 0o7777)
                if (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), about.st_uid, about.st_gid)
            file.flush()
            os.fsync(file.fileno())
        _check_as_service(path, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _check_as_service(path: Path, beside: Path) -> None:
    """Raise `ConfigurationError` if the service would refuse the file that takes a path's place."""
    named = os.environ.get("AIGATEWAY_CONFIG")
    use_config(beside)
    try:
        # An admin's key may come before the first other one, without which `host` is refused.
        host = {} if "keys" in ServerSettings.places() else {"host": "127.0.0.1"}
        ServerSettings.load(**host)
    except ConfigurationError as error:
        reason = str(error).replace(str(beside), str(path)).removeprefix("ServerSettings: ")
        raise ConfigurationError(f"The service would refuse the file: {reason}") from None
    finally:
        os.environ.pop("AIGATEWAY_CONFIG")
        if named is not None:
            os.environ["AIGATEWAY_CONFIG"] = named


# ── serve ────────────────────────────────────────────────────────────────────────────────────────


def run_serve(
    overrides: Mapping[str, Any], *, config: Path | None, simulate: bool, as_json: bool
) -> None:
    """Run the service until it stops, and exit with its code."""
    with errors_as_exit_codes():
        if missing := missing_server_packages():
            raise ConfigurationError(
                f"`aigateway serve` needs packages that are not installed ({', '.join(missing)}):"
                ' pip install "aigateway[server]"'
            )
        use_config(config)
        from aigateway.server.process.serve import (  # noqa: PLC0415 - needs the extra
            ServeOptions,
            serve,
        )
        from aigateway.telemetry.json_logs import configure_service_logs  # noqa: PLC0415 - slow

        configure_service_logs(as_json=as_json)

        def announce(line: str) -> None:
            typer.echo(json.dumps({"event": "service.listening", "message": line}))

        code = serve(ServeOptions(overrides, simulate, announce if as_json else typer.echo))
    raise typer.Exit(code)


# ── simulate ─────────────────────────────────────────────────────────────────────────────────────


def run_simulate(port: int, *, latency: float, timeline: str | None) -> None:
    """Serve the simulated vendors until Ctrl-C, which is the normal end."""
    from aigateway.simulator.serve import serve_forever  # noqa: PLC0415 - it loads aiohttp

    serving = serve_forever(port, print_line=typer.echo, timeline=timeline, latency=latency)
    with errors_as_exit_codes(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)
    note("stopped")
