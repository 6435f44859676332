"""What callers see of an outage: how long they wait, and who meets the dead provider."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chart import Bars
from benchmarks.clients import OURS, PAIRS, ROUTER_BEST, ROUTER_DEFAULTS, Pair
from benchmarks.crowd import Crowd, Herd, crowd, herd
from benchmarks.measure import fresh_prompt, percentile
from benchmarks.options import Options
from benchmarks.outage import HEALTHY, Call, asked, broken, heal, pair_of
from benchmarks.report import Result, Table
from benchmarks.server import Servers

HOW = (
    "A primary and a backup on loopback, each answering in 50 ms when healthy; the primary breaks."
    " Attempt timeout 1 s, reset or cooldown time 1 s where it can be set (aigateway's doubling is"
    " off), every prompt new. LangChain and pydantic-ai have no memory of a failure, so they have"
    " no open time. Retries are off, but for litellm's Router as it comes."
)
MODES = {
    "500": "answers 500",
    "refuse": "refuses",
    "reset": "resets",
    "hang": "hangs",
    "429": "answers 429",
}
CROWD_MODES = ("500", "hang")
BUDGET = 5.6
"""Seconds after which a sequence begins no other call; Router's defaults are given one call."""


@dataclass(frozen=True)
class Sequence20:
    """Calls one after the other from the moment the primary broke."""

    calls: Sequence[Call]
    wasted: int

    def show(self) -> str:
        """First; median of the others; how many were slow."""
        first = self.calls[0].seconds * 1000
        rest = [call.seconds * 1000 for call in self.calls[1:]]
        slow = sum(call.seconds > 4 * HEALTHY for call in self.calls)
        errors = sum(not call.ok for call in self.calls)
        text = f"{first:.0f}"
        if rest:
            text += f"; {statistics.median(rest):.0f}; {slow} of {len(self.calls)}"
        return text + (f"; {errors} errors" if errors else "")


async def run(options: Options) -> Result:
    peers = [OURS, ROUTER_BEST] if options.quick else list(PAIRS)
    modes = ["500", "hang"] if options.quick else list(MODES)
    async with Servers.started() as servers:
        pair = pair_of(servers)
        sequences = {
            m: {p: await sequence(servers, pair, p, m, options) for p in peers} for m in modes
        }
        crowded = [peer for peer in peers if peer != ROUTER_DEFAULTS]
        crowds = {
            mode: {peer: await crowd(servers, pair, peer, mode, options) for peer in crowded}
            for mode in CROWD_MODES
        }
        herds = {peer: await herd(servers, pair, peer) for peer in (OURS, ROUTER_BEST)}
    tables = [_sequences(sequences), *(_crowds(m, c) for m, c in crowds.items()), _herds(herds)]
    data = {"sequences": sequences, "crowds": crowds, "herds": herds}
    slow = [(peer, _p95(crowds["hang"][peer])) for peer in crowded]
    chart = Bars("p95 of 50 callers while the primary hangs", "milliseconds", slow)
    return Result("failover", HOW, tables, chart, data)


async def sequence(
    servers: Servers, pair: Pair, peer: str, mode: str, options: Options
) -> Sequence20:
    """Up to 20 calls, one after the other."""
    await heal(servers)
    async with PAIRS[peer](pair) as ask:
        for _ in range(3):
            await ask(fresh_prompt())
        await broken(servers, mode)
        calls: list[Call] = []
        budget = 0.0 if peer == ROUTER_DEFAULTS else BUDGET
        while len(calls) < options.pick(20, 8):
            calls.append(await asked(ask))
            if sum(call.seconds for call in calls) > budget:
                break
        wasted = (await servers.state())["received"]
    return Sequence20(calls, wasted)


def _sequences(sequences: dict[str, dict[str, Sequence20]]) -> Table:
    title = (
        "**One caller, calls 1 to 20 of the outage.** ms of the first; median of the others; how"
        f" many took over {4 * HEALTHY * 1000:.0f} ms; in [ ] the requests that reached the broken"
        " primary (a refused connection reaches no vendor)"
    )
    peers = list(next(iter(sequences.values())))
    rows = [
        [peer, *(_cell(mode, by_peer[peer]) for mode, by_peer in sequences.items())]
        for peer in peers
    ]
    return Table(title, ["", *(f"primary {MODES[mode]}" for mode in sequences)], rows)


def _cell(mode: str, found: Sequence20) -> str:
    return found.show() if mode == "refuse" else f"{found.show()} [{found.wasted}]"


def _p95(found: Crowd) -> float:
    return percentile([call.seconds * 1000 for call in found.calls], 0.95)


def _crowds(mode: str, found: dict[str, Crowd]) -> Table:
    rows = []
    for peer, each in found.items():
        times = [call.seconds * 1000 for call in each.calls]
        shares = [f"{percentile(times, share):.0f}" for share in (0.5, 0.95, 0.99)]
        back = "not seen" if each.back_seconds is None else f"{each.back_seconds:.2f}"
        errors = str(sum(not call.ok for call in each.calls))
        rows.append([peer, *shares, errors, f"{each.wasted} of {len(times)}", back])
    columns = ["", "p50 ms", "p95 ms", "p99 ms", "errors", "calls wasted", "seconds until back"]
    title = (
        f"**50 callers, each asking about once a second, while the primary {MODES[mode]}.** Calls"
        " begun during the outage; requests that reached the dead primary; seconds from its healing"
        " to its first answer"
    )
    return Table(title, columns, rows)


def _herds(found: dict[str, Herd]) -> Table:
    rows = [
        [peer, f"{each.met} of {each.callers}", str(each.errors)] for peer, each in found.items()
    ]
    title = "**40 callers at once when the open time ends and the primary is still dead**"
    return Table(title, ["", "met the dead primary", "errors"], rows)
