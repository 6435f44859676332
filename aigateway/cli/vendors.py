"""`aigateway vendors`: the vendors that can be reached, and the lines that configure each.

First those with a recipe, which the tests send requests through. Then every vendor of litellm's
model map; the map is read as a file, because loading litellm takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import typer
from rich.table import Table

from aigateway.cli.output import errors_as_exit_codes, note, stdout_console
from aigateway.cli.toml import table_lines
from aigateway.errors import ConfigurationError

__all__ = ["RECIPES", "VendorRecipe", "model_map", "recipe_of", "run_vendors"]

_MAP = "model_prices_and_context_window_backup.json"
_EXAMPLES = 3
_PAGES = "https://docs.litellm.ai/docs/providers"
_UNTESTED = (
    "Untested; see litellm's page for its credentials. model is one example of its map.",
    "If the vendor has a key, name the variable that holds it in api_key_env.",
)
"""Of a vendor without a recipe: litellm's map does not have the names of its variables."""


@dataclass(frozen=True, slots=True)
class VendorRecipe:
    """How to reach a vendor.

    Attributes:
        name: What the vendor is searched by; litellm's name for it, where it has one.
        title: The vendor's own name.
        table: A `[[providers]]` table that works once the variables are set.
        variables: Variables that must be set: keys, or what stands in for them.
        gateway: Settings of `[gateway]` that this vendor needs.
        packages: Packages that litellm needs for it, and the extra of aigateway that has them.
        remarks: What is different at this vendor.
        page: Where the vendor says more.
        models: Examples of its models.
    """

    name: str
    title: str
    table: Mapping[str, Any]
    variables: tuple[str, ...] = ()
    gateway: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    page: str = ""
    models: tuple[str, ...] = ()

    def toml(self) -> str:
        """Return the lines for `aigateway.toml`."""
        text = table_lines("[[providers]]", self.table)
        return f"{table_lines('[gateway]', self.gateway)}\n{text}" if self.gateway else text


def _own(name: str, title: str, model: str, variable: str, **more: Any) -> VendorRecipe:
    table = {"provider": name, "model": model, "api_key_env": variable, **more.pop("table", {})}
    return VendorRecipe(name, title, table, (variable,), **more)


def _compatible(name: str, title: str, base: str, model: str, **more: Any) -> VendorRecipe:
    """Return a recipe over the gateway's own OpenAI wire, priced and described by litellm's map."""
    variables = more.pop("variables", (f"{name.upper()}_API_KEY",))
    mapped = more.pop("mapped", f"{name}/{model}")
    table: dict[str, Any] = {
        "provider": "openai_compatible",
        "name": f"{name}/{model}",
        "model": model,
        "api_base": base,
    }
    if variables:
        table["api_key_env"] = variables[0]
    if mapped:
        table |= {"extra": {"base_model": mapped}}
    return VendorRecipe(name, title, {**table, **more.pop("table", {})}, variables, **more)


RECIPES = (
    _own("openai", "OpenAI", "gpt-4o-mini", "OPENAI_API_KEY", page="https://platform.openai.com"),
    _own(
        "azure",
        "Azure OpenAI",
        "my-deployment",
        "AZURE_OPENAI_API_KEY",
        table={
            "api_base": "https://my-resource.openai.azure.com",
            "extra": {"base_model": "azure/gpt-4o-mini"},
        },
        remarks=("model is the deployment; base_model names its price.",),
        page="https://learn.microsoft.com/azure/ai-foundry/openai",
    ),
    _own(
        "gemini",
        "Google Gemini",
        "gemini-3.5-flash-lite",
        "GEMINI_API_KEY",
        page="https://ai.google.dev/gemini-api/docs",
    ),
    _own(
        "anthropic",
        "Anthropic",
        "claude-haiku-4-5",
        "ANTHROPIC_API_KEY",
        page="https://docs.claude.com",
    ),
    _compatible(
        "mistral",
        "Mistral",
        "https://api.mistral.ai/v1",
        "mistral-small-latest",
        remarks=(
            "Ids of tool calls and fields of messages are made as strict as Mistral wants them.",
        ),
        page="https://docs.mistral.ai/api",
    ),
    _compatible(
        "groq",
        "Groq",
        "https://api.groq.com/openai/v1",
        "openai/gpt-oss-120b",
        remarks=("Limits per minute are low; set rpm and tpm to those of your plan.",),
        page="https://console.groq.com/docs",
    ),
    _compatible(
        "openrouter",
        "OpenRouter",
        "https://openrouter.ai/api/v1",
        "mistralai/mistral-small-3.2-24b-instruct",
        mapped=None,
        remarks=(
            "OpenRouter states the price of each answer, and the gateway takes it.",
            "It may answer 200 and then fail; the gateway treats that as a failure.",
        ),
        page="https://openrouter.ai/docs",
    ),
    _compatible(
        "deepseek",
        "DeepSeek",
        "https://api.deepseek.com/v1",
        "deepseek-flash",
        table={
            "extra": {
                "base_model": "deepseek/deepseek-flash",
                "supports_assistant_prefill": False,  # only its beta address continues a text
            },
        },
        remarks=(
            'It thinks first. Off, in extra: extra_body = { thinking = { type = "disabled" } }',
            "Costs are those of its peak hours; at other times it bills half.",
            "Under load it keeps a request waiting. Without another provider, raise the timeouts.",
        ),
        page="https://api-docs.deepseek.com",
    ),
    VendorRecipe(
        "bedrock",
        "Amazon Bedrock",
        {
            "provider": "litellm",
            "model": "bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "extra": {"aws_region_name": "us-east-1"},
        },
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        packages=("boto3", "bedrock"),
        remarks=(
            "Credentials are found as the AWS SDK finds them: variables, profile, role.",
            "A Bedrock API key goes into AWS_BEARER_TOKEN_BEDROCK instead.",
        ),
        page="https://docs.aws.amazon.com/bedrock",
    ),
    VendorRecipe(
        "vertex_ai",
        "Google Vertex AI",
        {
            "provider": "litellm",
            "model": "vertex_ai/gemini-3.5-flash",
            "extra": {"vertex_project": "my-project", "vertex_location": "global"},
        },
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        packages=("google-auth", "vertex"),
        remarks=(
            "The variable names a service account's file.",
            "On Google Cloud, or after `gcloud auth application-default login`, none is needed.",
        ),
        page="https://cloud.google.com/vertex-ai/generative-ai/docs",
    ),
    _compatible(
        "ollama",
        "Ollama",
        "http://localhost:11434/v1",
        "llama3.1",
        variables=(),
        table={"timeout": 300.0, "max_concurrency": 4},
        gateway={"timeout": 600.0, "first_token_timeout": 300.0},
        remarks=(
            "The first request loads the model, which can take minutes; hence the long timeouts.",
            "`ollama pull llama3.1` fetches it, and OLLAMA_KEEP_ALIVE=-1 keeps it loaded.",
        ),
        page="https://docs.ollama.com/openai",
    ),
    _compatible(
        "vllm",
        "vLLM",
        "http://localhost:8000/v1",
        "Qwen/Qwen3-8B",
        variables=(),
        mapped=None,
        table={"extra": {"max_input_tokens": 32_768}},
        remarks=(
            "model is what `vllm serve` was started with; max_input_tokens is its --max-model-len.",
            "With --api-key at the server, name a variable that holds it in api_key_env.",
        ),
        page="https://docs.vllm.ai",
    ),
)


def recipe_of(name: str) -> VendorRecipe:
    """Return the recipe of that name."""
    return next(recipe for recipe in RECIPES if recipe.name == name)


def run_vendors(word: str | None, *, as_json: bool) -> None:
    """Print the vendors, or those that match a word with the lines that configure them."""
    with errors_as_exit_codes():
        vendors = [*RECIPES, *_others()]
        if word is not None:
            vendors = _matching(vendors, word.casefold())
            if not vendors:
                raise ConfigurationError(
                    f"no vendor has {word!r} in its name; `aigateway vendors` lists all, and any"
                    " server that speaks OpenAI's protocol is an openai_compatible provider"
                )
    if as_json:
        rows = [{**asdict(vendor), "toml": vendor.toml()} for vendor in vendors]
        typer.echo(json.dumps(rows, indent=2))
    elif word is None:
        _print_table(vendors)
    else:
        typer.echo("\n".join(map(_details, vendors)), nl=False)


def _matching(vendors: list[VendorRecipe], word: str) -> list[VendorRecipe]:
    same = [vendor for vendor in vendors if word in {vendor.name, vendor.title.casefold()}]
    found = [v for v in vendors if word in v.name or word in v.title.casefold()]
    return same or found


def _others() -> Iterator[VendorRecipe]:
    """Yield the vendors of litellm's map that have no recipe."""
    models: dict[str, list[str]] = defaultdict(list)
    for model, entry in model_map().items():
        vendor = str(entry.get("litellm_provider") or "").partition("-")[0]
        if entry.get("mode") == "chat" and vendor and "/" in model:
            models[model.partition("/")[0]].append(model)
    known = {recipe.name for recipe in RECIPES}
    for name in sorted(models.keys() - known):
        examples = tuple(models[name][: -_EXAMPLES - 1 : -1])
        yield VendorRecipe(
            name,
            name,
            {"provider": "litellm", "model": examples[0]},
            remarks=_UNTESTED,
            page=f"{_PAGES}/{name}",
            models=examples,
        )


@functools.cache
def model_map() -> Mapping[str, Mapping[str, Any]]:
    """Return litellm's map of models, without loading litellm; empty if it has none."""
    spec = importlib.util.find_spec("litellm")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / _MAP
    if file is None or not file.is_file():
        return {}
    content: Mapping[str, Mapping[str, Any]] = orjson.loads(file.read_bytes())
    return content


def _print_table(vendors: list[VendorRecipe]) -> None:
    table = Table()
    for heading in ("name", "provider", "key", "a model"):
        table.add_column(heading, overflow="fold")
    for vendor in vendors:
        values = (vendor.table["provider"], " ".join(vendor.variables), vendor.table["model"])
        table.add_row(vendor.name, *values)
    stdout_console().print(table)
    note("`aigateway vendors NAME` prints the lines for aigateway.toml.")


def _details(vendor: VendorRecipe) -> str:
    lines = [f"# {vendor.title}: {vendor.page}"]
    if vendor.variables:
        lines.append(f"# Set {' and '.join(vendor.variables)}.")
    if vendor.packages:
        package, extra = vendor.packages
        lines.append(f'# Needs {package}: pip install "aigateway[{extra}]"')
    if vendor.models:
        lines.append(f"# Models: {', '.join(vendor.models)}")
    lines += [f"# {remark}" for remark in vendor.remarks]
    return "\n".join(lines) + f"\n{vendor.toml()}"
