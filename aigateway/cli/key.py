"""`aigateway key`: make a key for the service, and add it to a file of TOML."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from aigateway.cli.output import errors_as_exit_codes, note, use_config
from aigateway.errors import ConfigurationError
from aigateway.settings import ApiKey, ServerSettings

__all__ = ["run_key"]

_KEY_PREFIX = "sk-aigw-"
"""Lets secret scanners recognise a leaked key."""

_KEY_BYTES = 32
_BYTE_ORDER_MARK = "\ufeff"
_NO_KEYS = re.compile(r"^[ \t]*keys[ \t]*=[ \t]*\[\s*\][ \t]*(?:\r?\n|\Z|(?=#))", re.MULTILINE)
_KEYS_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*server[ \t]*\.[ \t]*keys", re.MULTILINE)


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
            is_new = _append_key(append, lines, name=None if admin else name)
    if not admin and limits.get("models") is None and not limits.get("monitor"):
        note("Without --models it sees the totals and events of the whole service, too.")
    note("The key, shown only now. Clients send it as Authorization: Bearer KEY.")
    typer.echo(key)
    if append is None:
        note("For aigateway.toml, which holds only a digest of the key:")
        note("\n" + "\n".join(("[server]" if admin else "[[server.keys]]", *lines)))
    else:
        note(
            f"Its digest is in {append}, which is a new file."
            if is_new
            else f"Its digest is in {append}. A service that runs takes it within two seconds."
        )


def _append_key(path: Path, lines: Sequence[str], name: str | None) -> bool:
    """Add a key to a file, or the admin's without a name. The rest of it stays as it is.

    Returns:
        Whether the file is new.

    Raises:
        ConfigurationError: It has this key already, is no TOML, is not what the service reads, or
            cannot be written.
    """
    if path.exists() and not path.is_file():  # /dev/stdout would wait, /dev/null be replaced
        raise ConfigurationError(f"{path} is not a regular file.")
    target = path.resolve()  # a link stays one
    try:
        with _locked(target.parent):
            is_new = not target.exists()
            before = "" if is_new else target.read_bytes().decode()
            text = before.removeprefix(_BYTE_ORDER_MARK)
            mark = before[: len(before) - len(text)]
            _replace_file(path, target, mark + _with_key(path, text, lines, name))
            return is_new
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
