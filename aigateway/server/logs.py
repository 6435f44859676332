"""Where the service's log goes: stderr, as lines for people or as JSON.

The library itself writes wherever the application wants; here the application is ours.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.stdlib import ProcessorFormatter

__all__ = ["write_logs"]

_TEXT = "%(asctime)s %(levelname)-7s [%(process)d] %(message)s"


def write_logs(*, as_json: bool) -> None:
    """Send the log of this process, and of those it forks, to stderr.

    Others' loggers are heard from WARNING on: they repeat what ours say, and at DEBUG more than
    anybody may know.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json() if as_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aigateway").setLevel(logging.INFO)


def _json() -> logging.Formatter:
    """One object a line, of our events and of everybody's plain lines alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.CallsiteParameterAdder(
                [structlog.processors.CallsiteParameter.PROCESS]
            ),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
