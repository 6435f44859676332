"""The status page in a real browser, over a running service with simulated vendors."""

import contextlib
import json
import re

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import expect

from aigateway import AsyncGateway
from aigateway.clock import SystemClock
from aigateway.server.service import Service
from aigateway.server.status.recent_events import RecentEvents
from aigateway.settings import ApiKey, ServerSettings
from aigateway.simulator import Fault, Simulator
from tests.processes import PATIENCE
from tests.server.browsing import DESK, PHONE, browser, visiting
from tests.server.running import running
from tests.server.watched import ADMIN, KEYS, USER, digest

__all__ = ["browser"]

# The browser is that of all tests here, and lives on one event loop.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

expect.set_options(timeout=PATIENCE * 1000)


OPENAI = "openai/gpt-4o-mini"
LIMITED = "a-limited-key"
SEVERAL = KEYS.model_copy(
    update={
        "keys": (
            *KEYS.keys,
            ApiKey(
                name="limited",
                sha256=digest(LIMITED),
                models=("gpt-4o-mini",),
                budget_usd=5,
                rpm=90,
            ),
        )
    }
)


class Ahead(SystemClock):
    """The real clock, that can be put forward."""

    seconds = 0.0

    def now(self):
        return super().now() + self.seconds


@pytest.fixture
def clock():
    return Ahead()


@pytest.fixture
def recent_events(clock):
    return RecentEvents(clock)


@pytest_asyncio.fixture(loop_scope="module")
async def simulator():
    async with Simulator() as simulated:
        yield simulated


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(simulator, clock, recent_events):
    """OpenAI before Anthropic, both simulated; circuits open for a minute after two failures."""
    configs = [simulator.openai.config(priority=2), simulator.anthropic.config(priority=1)]
    async with AsyncGateway(
        configs,
        hooks=[recent_events],
        clock=clock,
        cache_enabled=False,
        retry_rounds=0,
        failure_threshold=2,
        reset_timeout_seconds=60,
    ) as made:
        yield made


@pytest.fixture
def serve(gateway, recent_events):
    """Runs a service over the gateway; gives its URL."""

    @contextlib.asynccontextmanager
    async def serving(settings=None, port=0):
        service = Service(gateway, settings or ServerSettings(), recent_events=recent_events)
        async with running(service, port=port) as url:
            yield url
            service.draining = True

    return serving


def provider(page, name):
    return page.get_by_role("row").filter(has_text=name)


def linked(page):
    return page.locator("#link")


async def spills(page):
    """Whether the page is wider than the window."""
    return await page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )


async def test_shows_a_circuit_open_and_close(browser, serve, gateway, simulator, clock):
    async with serve() as url, visiting(browser, url) as visit:
        page = visit.page
        openai, anthropic = provider(page, "openai/"), provider(page, "anthropic/")
        past = page.locator("#events")
        await expect(linked(page)).to_have_text("Live")
        await expect(openai.locator(".state")).to_have_text("Closed")

        simulator.openai.behave(Fault.server_error())
        for number in range(2):
            await gateway.chat(f"broken {number}")
        await expect(openai.locator(".state")).to_have_text("Open")
        await expect(openai).to_contain_text(re.compile(r"next probe in \d+ s"))
        await expect(openai).to_contain_text("server error 2")
        await expect(anthropic.locator(".state")).to_have_text("Closed")
        await expect(past).to_contain_text(
            re.compile(r"openai/\S+ failed \(server_error, HTTP 500\), anthropic/\S+ answered\.")
        )
        await expect(past).to_contain_text(re.compile(r"The circuit of openai/\S+ opened\."))
        await expect(page.locator("#said")).to_contain_text("opened")
        await expect(page.locator("#active")).to_have_text("1 of 2")

        simulator.openai.recover()
        clock.seconds += 61
        await expect(openai.locator(".state")).to_have_text("Probe is due")
        await gateway.chat("mended")
        await expect(openai.locator(".state")).to_have_text("Closed")
        await expect(past).to_contain_text(re.compile(r"The circuit of openai/\S+ closed\."))
        await expect(page.locator("#requests")).to_have_text("3")
        await expect(page.locator("#active")).to_have_text("2 of 2")

        drawn = page.locator("#chart-requests .line")
        await expect(drawn).to_have_attribute("d", re.compile(r"^M[\d. ]+L"))
        assert visit.errors == []
        assert all(asked.startswith((url, "data:")) for asked in visit.asked)


async def test_a_page_opened_now_shows_the_last_minutes_and_each_provider(
    browser, serve, gateway, simulator
):
    simulator.openai.behave(Fault.server_error())
    await gateway.chat("before the page is open")
    async with serve() as url, visiting(browser, url) as visit:
        page = visit.page
        failures = page.locator("#chart-failures .most")
        await expect(page.locator("#chart-requests .most")).to_have_text("max 0.5")
        await expect(failures).to_have_text("")
        await page.get_by_label("The last three minutes of").select_option(label=OPENAI)
        await expect(failures).to_have_text("max 0.5")
        assert visit.errors == []


async def test_shows_what_each_key_has_used_and_no_figure_wraps(browser, serve, gateway):
    async with serve(SEVERAL) as url, visiting(browser, url) as visit:
        page = visit.page
        headers = {"x-api-key": LIMITED}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE) as client:
            asked = {"message": "hi", "model": "gpt-4o-mini"}
            assert (await client.post("/chat", json=asked)).status_code == 200
            no_key = await client.post("/chat", json=asked, headers={"x-api-key": "other"})
            assert no_key.status_code == 401
        await page.get_by_label("Key", exact=True).fill(LIMITED)
        await page.get_by_role("button", name="Connect").click()
        await expect(linked(page)).to_have_text("Live")
        own = provider(page, "limited")
        await expect(own).to_contain_text(re.compile(r"\$0\.\d+of \$5\.00, 0 %1of 90"))
        await expect(page.locator(".tiles, .charts, .past")).to_have_count(4)
        for hidden in await page.locator(".tiles, .charts, .past").all():
            await expect(hidden).to_be_hidden()
        for name in ("anthropic/", "team"):
            await expect(provider(page, name)).to_have_count(0)

        await page.get_by_role("button", name="Forget key").click()
        await page.get_by_label("Key", exact=True).fill(ADMIN)
        await page.get_by_role("button", name="Connect").click()
        await expect(provider(page, "team")).to_contain_text("no budget")
        await expect(page.locator("#cost")).to_be_visible()
        refused = "Refused by the service itself: invalid api key\xa0"
        await expect(page.locator("#refused")).to_contain_text(refused)

        fed = f"data: {json.dumps(await enlarged(url))}\n\n"
        sent = {"content_type": "text/event-stream", "body": fed}
        await page.route("**/status/feed", lambda route: route.fulfill(**sent))
        await page.reload()
        await expect(page.locator("#requests")).to_have_text("9.9M")
        await expect(provider(page, "limited")).to_contain_text("of 9.9M")
        assert await page.evaluate(WRAPPED, False) == []
        for width in (320, PHONE["width"], 700):
            await page.set_viewport_size({"width": width, "height": 844})
            assert await page.evaluate(WRAPPED, True) == []
        assert visit.of_its_own() == []


WRAPPED = """narrow => {
  const among = narrow ? "td.n > *" : ".tiles dd *, .n > *, thead th";
  return [...document.querySelectorAll(among)].filter(each => {
    const text = document.createRange();
    text.selectNodeContents(each);
    const lines = new Set([...text.getClientRects()].map((box) => Math.round(box.top))).size;
    const cell = each.closest("div, th, td").getBoundingClientRect();
    const box = text.getBoundingClientRect();
    const spills = box.width > 0 && (box.left < cell.left - 1 || box.right > cell.right + 1);
    return (lines > 1 && !each.matches(narrow ? "small" : ".kinds")) || spills;
  }).map((each) => each.outerHTML);
}"""
"""Figures and headings that wrap, or that leave their cell. On a narrow screen notes may wrap."""


async def enlarged(url):
    """What the feed says, with figures as large as they get."""
    async with (
        httpx.AsyncClient(base_url=url, headers={"x-api-key": ADMIN}, timeout=PATIENCE) as client,
        client.stream("GET", "/status/feed") as answer,
    ):
        said = json.loads((await anext(answer.aiter_lines())).removeprefix("data: "))

    def grown(value):
        match value:
            case dict():
                return {name: grown(each) for name, each in value.items()}
            case list():
                return [grown(each) for each in value]
            case bool() | str() | None:
                return value
            case int():
                return 9_876_543
            case _:
                return 98_765.432

    picture = said["snapshot"]
    for each in picture["providers"]:
        each["failures"] = {"model_not_found": 0, "server_error": 0}
        each["latency_seconds"] = dict.fromkeys(("p50", "p95", "p99"), 0.0)
    return {"admin": True, "snapshot": grown(picture), "history": None}


async def test_the_first_visit_brings_no_error(browser, serve, gateway):
    for settings, text in ((None, "Live"), (SEVERAL, "A key is needed")):
        async with serve(settings) as url, visiting(browser, url) as visit:
            await expect(linked(visit.page)).to_have_text(text)
            assert (visit.errors, visit.refused) == ([], [])
            if settings is not None:
                assert not any("/status/feed" in asked for asked in visit.asked)
                await visit.page.get_by_label("Key", exact=True).fill(ADMIN)
                await visit.page.get_by_role("button", name="Connect").click()
                await expect(linked(visit.page)).to_have_text("Live, as operator")
                assert (visit.errors, visit.refused) == ([], [])


async def test_asks_for_the_key_and_keeps_it_in_the_tab_only(browser, serve, gateway):
    async with serve(KEYS) as url, visiting(browser, url) as visit:
        page = visit.page
        await expect(linked(page)).to_have_text("A key is needed")
        await expect(page.get_by_role("dialog")).to_contain_text("This service needs a key.")
        await expect(page.get_by_label("Key", exact=True)).to_be_focused()
        assert "openai/" not in await page.content()

        await page.keyboard.type("nonsense")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("This key is unknown.")
        await page.keyboard.type(USER)
        await page.keyboard.press("Enter")
        await expect(linked(page)).to_have_text("Live")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(provider(page, "openai/").locator(".state")).to_have_text("Closed")
        await expect(page.get_by_role("button", name="Open", exact=True)).to_have_count(0)

        await page.reload()
        await expect(linked(page)).to_have_text("Live")
        kept = "[JSON.stringify(sessionStorage), localStorage.length, document.cookie]"
        assert await page.evaluate(kept) == [f'{{"aigateway-key":"{USER}"}}', 0, ""]
        assert not any(USER in asked for asked in visit.asked)

        await page.get_by_role("button", name="Forget key").click()
        await expect(linked(page)).to_have_text("A key is needed")
        assert await page.evaluate("sessionStorage.length") == 0
        assert visit.of_its_own() == []


async def test_the_admin_forces_a_circuit(browser, serve, gateway):
    async with serve(KEYS) as url, visiting(browser, url) as visit:
        page = visit.page
        await page.get_by_label("Key", exact=True).fill(ADMIN)
        await page.get_by_role("button", name="Connect").click()
        await expect(linked(page)).to_have_text("Live, as operator")
        openai = provider(page, "openai/")
        open_it = openai.get_by_role("button", name="Open", exact=True)
        left_alone = openai.get_by_role("button", name="Auto", exact=True)
        await expect(left_alone).to_have_attribute("aria-pressed", "true")

        await open_it.click()
        await expect(page.get_by_role("dialog")).to_contain_text("Force the circuit open?")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert not gateway.providers[0].forced

        await open_it.focus()  # and now with the keyboard alone
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(openai.locator(".state")).to_have_text("Open")
        await expect(openai).to_contain_text("forced by an operator")
        await expect(open_it).to_have_attribute("aria-pressed", "true")
        await expect(page.locator("#events")).to_contain_text("forced open by admin.")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert (await gateway.chat("hi")).provider.startswith("anthropic/")

        await left_alone.click()
        await page.get_by_role("button", name="Release").click()
        await expect(openai.locator(".state")).to_have_text("Closed")
        await expect(left_alone).to_have_attribute("aria-pressed", "true")
        assert (await gateway.chat("again")).provider.startswith("openai/")
        assert visit.of_its_own() == []


async def test_an_order_that_is_refused_is_told(browser, serve, gateway):
    async with serve() as url, visiting(browser, url) as visit:
        page = visit.page
        openai = provider(page, "openai/")
        await openai.get_by_role("button", name="Closed", exact=True).click()
        await page.route("**/circuit", lambda route: route.abort())
        await page.get_by_role("button", name="Force closed").click()
        await expect(page.get_by_role("alert")).to_have_text("The service cannot be reached.")
        await page.unroute("**/circuit")
        await page.get_by_role("button", name="Force closed").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(openai).to_contain_text("forced by an operator")


async def test_fits_and_is_readable_on_every_screen(browser, serve, gateway, simulator):
    long = "a-name/" + "without-an-end" * 6
    gateway.add_provider(simulator.gemini.config(priority=-1, name=long))
    simulator.openai.behave(Fault.server_error())
    await gateway.chat("hi")
    async with serve() as url, visiting(browser, url) as visit:
        page = visit.page
        await expect(provider(page, long).locator(".state")).to_have_text("Closed")
        await expect(page.locator("#events")).to_contain_text("failed")
        for width in (PHONE["width"], 700, 1000, DESK["width"]):
            await page.set_viewport_size({"width": width, "height": 844})
            assert not await spills(page)
            await provider(page, long).get_by_role("button", name="Open", exact=True).click()
            await expect(page.get_by_role("dialog")).to_contain_text(long)
            assert not await spills(page)
            await page.keyboard.press("Escape")
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            ground = await brightness(page, "body", "backgroundColor")
            assert ground < 0.1 if scheme == "dark" else ground > 0.8
            assert await contrast(page, "#requests") > 7
            for each in ("small", ".quiet", ".state", "time", "[aria-pressed=true]"):
                assert await contrast(page, each) > 4.5, (scheme, each)
        assert visit.errors == []


async def test_comes_back_after_the_service_does(browser, serve, gateway):
    await gateway.warmup()
    async with contextlib.AsyncExitStack() as stack:
        async with serve() as url:
            visit = await stack.enter_async_context(visiting(browser, url))
            page = visit.page
            await expect(linked(page)).to_have_text("Live")
        await expect(linked(page)).to_have_text("Connection lost, trying again")
        await gateway.chat("meanwhile")
        async with serve(port=int(url.rpartition(":")[2])):
            await expect(linked(page)).to_have_text("Live")
            await expect(page.locator("#requests")).to_have_text("1")
            assert visit.of_its_own() == []


async def test_what_it_shows_is_text_and_never_markup(browser, serve, gateway, simulator):
    evil = "<img src=x onerror=alert(1)>"
    gateway.add_provider(simulator.gemini.config(priority=9, name=evil))
    simulator.gemini.behave(Fault.server_error())
    await gateway.chat("hi")
    async with serve() as url, visiting(browser, url) as visit:
        await expect(provider(visit.page, evil).locator(".state")).to_have_text("Closed")
        await expect(visit.page.locator("#events")).to_contain_text(f"{evil} failed")
        assert await visit.page.locator("img").count() == 0
        assert visit.errors == []


async def brightness(page, selector, what):
    """Relative luminance of a colour of an element, as WCAG has it."""
    script = "([selector, what]) => getComputedStyle(document.querySelector(selector))[what]"
    colour = await page.evaluate(script, [selector, what])
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


async def contrast(page, selector):
    """Between an element's text and a card's background."""
    text = await brightness(page, selector, "color")
    ground = await brightness(page, ".card", "backgroundColor")
    return (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
