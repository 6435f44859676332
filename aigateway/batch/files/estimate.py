"""What a job would cost, provider by provider, before anybody is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aigateway.batch.files.survey import Tally
from aigateway.errors import ConfigurationError
from aigateway.settings import LLMConfig
from aigateway.wires.pricing import Price, price_of

__all__ = ["Estimate", "estimates", "refuse_unpriced"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one provider would take, if it answered all that it can.

    Attributes:
        config: The provider.
        tally: The requests whose model it serves.
        price: US dollars per token; None where it is not known.
    """

    config: LLMConfig
    tally: Tally
    price: Price | None

    @property
    def cost_usd(self) -> float | None:
        """US dollars; None where the price is not known."""
        if self.price is None:
            return None
        tally = self.tally
        return tally.prompt_tokens * self.price.input + tally.answer_tokens * self.price.output


def estimates(tallies: Mapping[str | None, Tally], configs: Sequence[LLMConfig]) -> list[Estimate]:
    """One for each provider, in the order in which they are asked. litellm is loaded."""
    ordered = sorted(configs, key=lambda config: -config.priority)
    return [Estimate(config, _served(tallies, config), price_of(config)) for config in ordered]


def refuse_unpriced(configs: Sequence[LLMConfig]) -> None:
    """See that what a job costs can be known. litellm is loaded.

    Raises:
        ConfigurationError: It cannot, for a provider.
    """
    for config in configs:
        if price_of(config) is None:
            raise ConfigurationError(
                f"--max-cost cannot be kept: no price is known for {config.name}. Give it"
                ' extra = {"input_cost_per_token": ..., "output_cost_per_token": ...}, or do'
                " without it."
            )


def _served(tallies: Mapping[str | None, Tally], config: LLMConfig) -> Tally:
    names = {None, config.name, config.model, *config.aliases}
    mine = [tally for model, tally in tallies.items() if model in names]
    return Tally(
        sum(tally.requests for tally in mine),
        sum(tally.prompt_tokens for tally in mine),
        sum(tally.answer_tokens for tally in mine),
        sum(tally.unbounded for tally in mine),
    )
