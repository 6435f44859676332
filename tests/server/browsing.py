"""A real Chromium, headless, and what its pages said and asked for."""

import contextlib
import shutil
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright

from tests.processes import PATIENCE

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@dataclass
class Visit:
    """One page that is open.

    Attributes:
        page: Playwright's.
        errors: What went wrong in it, in its own words.
        asked: Every address that it asked for.
        refused: Answers that are errors, and requests that got none.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def of_its_own(self):
        """Errors but for those that the browser writes about a refused or lost connection."""
        return [error for error in self.errors if "Failed to load resource" not in error]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(request):
    """A browser; skips where there is none, unless one must be there."""
    if CHROMIUM is None:
        missing = "no chromium, chromium-browser or google-chrome on PATH"
        if request.config.getoption("--need-browser"):
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        await found.close()


@contextlib.asynccontextmanager
async def visiting(browser, url):
    """A page with nothing remembered of others, at that address."""
    async with await browser.new_context(reduced_motion="reduce", viewport=DESK) as context:
        page = await context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        visit = Visit(page)
        page.on("request", lambda request: visit.asked.append(request.url))
        page.on("requestfailed", lambda request: visit.refused.append(request.url))
        page.on(
            "response",
            lambda answer: visit.refused.append(answer.url) if answer.status >= 400 else None,
        )
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on(
            "console",
            lambda said: visit.errors.append(said.text) if said.type == "error" else None,
        )
        await page.goto(url)
        yield visit
