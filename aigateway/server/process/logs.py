"""Where the service's log goes: stderr, as lines for people or as JSON.

The library itself writes wherever the application wants; here the application is ours.
"""

from __future__ import annotations

import logging
import sys

from aigateway.telemetry.json_logs import configure_json_logs, silence_libraries

__all__ = ["write_logs"]

_TEXT = "%(asctime)s %(levelname)-7s [%(process)d] %(message)s"


def write_logs(*, as_json: bool) -> None:
    """Send the log of this process, and of those it forks, to stderr.

    Others' loggers are heard from WARNING on: they repeat what ours say, and at DEBUG more than
    anybody may know.
    """
    if as_json:
        configure_json_logs("INFO")
        _quiet_uvicorn()
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aigateway").setLevel(logging.INFO)
    silence_libraries()
    _quiet_uvicorn()


def _quiet_uvicorn() -> None:
    """What callers send that is no HTTP is no affair of the log."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
