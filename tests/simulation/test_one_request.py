"""One request, whatever it does to its vendors, never changes what another is answered."""

from dataclasses import replace
from itertools import cycle

import pytest

from tests.simulation.scenario import CHOKES, Ask, Trouble
from tests.simulation.traffic import Traffic, providers, steady

BAD = 10_000
"""The number of the first request that vendors choke on."""


def innocent(ask):
    return ask.number < BAD


def bad(count, burst=0, *, same, chokes, begins=5.0, apart=0.1, **fields):
    return tuple(
        Ask(
            BAD + 100 * burst + number,
            begins + apart * number,
            prompt=BAD if same else BAD + 100 * burst + number,
            chokes=chokes,
            cache=not same,  # else those that are out together are one
            **fields,
        )
        for number in range(count)
    )


ILL = ("brownout", "malformed", "reset")
"""500, an empty answer, a reset."""


@pytest.mark.parametrize("kind", ["chat", "stream", "embed"])
@pytest.mark.parametrize("chokes", ILL)
def test_a_bad_prompt_sent_again_and_again_harms_nobody(chokes, kind):
    asks = steady(1, 30, kind=kind) + bad(5, same=True, chokes=chokes, kind=kind)
    traffic = Traffic(providers(0, 0), [], asks)
    assert traffic.answered(innocent) == 1
    assert traffic.answered(lambda ask: not innocent(ask)) == 0


def test_a_prompt_that_takes_too_long_harms_nobody():
    asks = steady(5, 60) + bad(5, same=True, chokes="hang", apart=0.0)
    traffic = Traffic(providers(1, 0), [], asks, settings={"attempt_timeout": 10.0})
    assert traffic.answered(innocent) == 1


@pytest.mark.parametrize("chokes", ILL)
def test_many_bad_prompts_harm_nobody(chokes):
    bursts = [
        ask
        for burst in range(5)
        for ask in bad(11, burst, same=False, chokes=chokes, begins=5.0 + 8 * burst, apart=0.0)
    ]
    asks = (*steady(10, 45), *bursts)
    traffic = Traffic(providers(0, 0), [], asks)
    assert traffic.answered(innocent) == 1


@pytest.mark.parametrize("chokes", ILL)
def test_many_bad_prompts_at_once_harm_nobody(chokes):
    asks = steady(10, 30) + bad(55, same=False, chokes=chokes, apart=0.0)
    traffic = Traffic(providers(0, 0), [], asks)
    assert traffic.answered(innocent) == 1


@pytest.mark.parametrize(
    ("chokes", "vendor"), [*zip(CHOKES, cycle(["openai", "anthropic", "gemini"]), strict=False)]
)
def test_a_prompt_that_one_vendor_chokes_on_harms_nobody(chokes, vendor):
    sent = bad(5, same=True, chokes=chokes, choking=vendor, begins=5.05)
    plans = providers(1, 0, vendors=[vendor, "openai_compatible"])
    traffic = Traffic(plans, [], steady(1, 40) + sent, settings={"attempt_timeout": 5.0})
    # The other vendor answers the bad prompt, too.
    assert traffic.answered() == 1
    assert not traffic.opened()


@pytest.mark.parametrize("seed", range(len(CHOKES)))
def test_what_innocents_get_is_the_same_without_the_bad_prompts(seed):
    plans = providers(0, 0, 0)
    troubles = [Trouble(plan.name, "brownout", 0.0, 1e6, 0.3) for plan in plans]
    innocents = steady(5, 30)
    chokes = CHOKES[seed]
    sent = bad(20, same=seed % 2 == 0, chokes=chokes, apart=1.0)
    settings = {"attempt_timeout": 5.0}
    alone = Traffic(plans, troubles, innocents, str(seed), settings=settings)
    beside = Traffic(plans, troubles, innocents + sent, str(seed), settings=settings)
    assert beside.answered(innocent) >= alone.answered() - 0.02


@pytest.mark.parametrize(
    "by", ["no_model", "bare_403", "bare_404", "no_endpoint", "not_implemented"]
)
def test_vectors_asked_of_a_chat_model_leave_chat_alone(by):
    plans = tuple(replace(p, refuses="embeddings", refuses_by=by) for p in providers(0, 0))
    vectors = steady(1, 20, begins=5.0, first=BAD, kind="embed")
    streams = steady(5, 30, first=1000, begins=0.1, kind="stream")
    traffic = Traffic(plans, [], steady(5, 30) + streams + vectors)
    assert traffic.answered(innocent) == 1


@pytest.mark.parametrize("kind", ["outage", "bad_key"])
def test_what_is_wrong_with_one_operation_says_nothing_of_the_other(kind):
    trouble = Trouble("a", kind, 0.0, 1e6, operation="embeddings")
    vectors = steady(20, 10, begins=5.0, first=BAD, kind="embed")
    traffic = Traffic(providers(0), [trouble], steady(2, 30) + vectors)
    assert traffic.answered(innocent) == 1


@pytest.mark.parametrize("chokes", ["missing_file", "no_tools", "bare_401", "bare_403", "bare_404"])
@pytest.mark.parametrize("vendor", ["openai", "anthropic", "gemini"])
def test_a_refusal_of_one_request_disables_nobody(chokes, vendor):
    sent = bad(3, same=True, chokes=chokes)
    traffic = Traffic(providers(0, vendors=[vendor]), [], steady(2, 30) + sent)
    assert traffic.answered(innocent) == 1
