"""The page, and the policy that lets a browser run nothing but what is in it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

__all__ = ["Page", "page"]


@dataclass(frozen=True, slots=True)
class Page:
    """What goes to the browser."""

    html: str
    headers: Mapping[str, str]


@functools.cache
def page() -> Page:
    """The one page. It holds no figures: those come over the feed, for those who may see them."""
    html = resources.files("aigateway.server.status").joinpath("page.html").read_text("utf-8")
    return Page(html, {"Content-Security-Policy": _policy(html), **_HEADERS})


_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _policy(html: str) -> str:
    return "; ".join((
        "default-src 'none'",
        f"script-src {_digests('script', html)}",
        f"style-src {_digests('style', html)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ))  # fmt: skip


def _digests(tag: str, html: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in found)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
