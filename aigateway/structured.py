"""Answers that must parse as a pydantic model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from aigateway.errors import RequestRejectedError
from aigateway.messages import Completion

__all__ = ["fits", "parse"]

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M] | None, completion: Completion) -> M | None:
    """The first answer as an instance of `model`: a new one for each caller, to keep and change.

    None without a model, and where the vendor refused or called tools instead of answering.

    Raises:
        RequestRejectedError: The text is something else; after `fits`, only if the model's
            validators do not always say the same.
    """
    if model is None:
        return None
    choice = completion.choices[0]
    if choice.refusal is not None or (choice.tool_calls and not choice.text):
        return None
    try:
        return model.model_validate_json(choice.text)
    except Exception as error:  # noqa: BLE001 - validators are the application's own code
        problem = type(error).__name__
    # Out here, because pydantic's message quotes the answer.
    raise RequestRejectedError(f"response_format: {model.__name__} refused the answer ({problem}).")


def fits(model: type[BaseModel] | None, completion: Completion) -> bool:
    """Whether `parse` would succeed. Without a model everything does, at no cost.

    A validator of the application's that raises something else refuses the answer, too.
    """
    if model is None:
        return True
    try:
        parse(model, completion)
    except RequestRejectedError:
        return False
    return True
