"""Answers that must parse as a pydantic model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from aigateway.messages import Completion

__all__ = ["fits", "parse"]

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M] | None, completion: Completion) -> M | None:
    """The first answer as an instance of `model`: a new one for each caller, to keep and change.

    None without a model, and where the vendor refused or called tools instead of answering.

    Raises:
        pydantic.ValidationError: The text is something else. The message quotes the answer.
    """
    if model is None:
        return None
    choice = completion.choices[0]
    if choice.refusal is not None or (choice.tool_calls and not choice.text):
        return None
    return model.model_validate_json(choice.text)


def fits(model: type[BaseModel] | None, completion: Completion) -> bool:
    """Whether `parse` would succeed. Without a model everything does, at no cost.

    A validator of the application's that raises something else refuses the answer, too.
    """
    if model is None:
        return True
    try:
        parse(model, completion)
    except Exception:  # noqa: BLE001 - it is the application's own code
        return False
    return True
