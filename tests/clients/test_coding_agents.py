"""Claude Code and Codex do a task with a tool, while the first provider fails."""

from __future__ import annotations

import pytest

from tests.clients.conftest import NODE, agent
from tests.server.services import served

TASK = "Write hi to done.txt"
SHELL = "echo hi > done.txt"


async def test_claude_code(url, vendor, broken, program, tmp_path):
    vendor.answer(agent("Bash", {"command": SHELL, "description": "Write"}, "All done."))
    (claude,) = NODE.glob("node_modules/@anthropic-ai/claude-code-*/claude")
    printed = await program(
        claude,
        "-p",
        TASK,
        "--model=auto",
        "--allowedTools=Bash",
        ANTHROPIC_BASE_URL=url,
        ANTHROPIC_API_KEY="any",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    assert "All done." in printed
    assert (tmp_path / "done.txt").read_text() == "hi\n"
    assert broken.request_count > 0


@pytest.mark.parametrize("model", ["auto", "gpt-5.5"])
async def test_codex(vendor, broken, program, tmp_path, model):
    async with served(broken, vendor, fields={"aliases": ("gpt-5.5",)}) as (_, url):
        vendor.answer(agent("exec_command", {"cmd": SHELL}, "All done."))
        (tmp_path / ".codex").mkdir()
        (tmp_path / ".codex" / "config.toml").write_text(
            f"""
            model = "{model}"
            model_provider = "aigateway"

            [model_providers.aigateway]
            name = "aigateway"
            base_url = "{url}/v1"
            env_key = "AIGATEWAY_KEY"
            wire_api = "responses"
            """
        )
        printed = await program(
            "node",
            NODE / "node_modules/@openai/codex/bin/codex.js",
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            TASK,
            AIGATEWAY_KEY="any",
        )
    assert "All done." in printed
    assert (tmp_path / "done.txt").read_text() == "hi\n"
    assert broken.request_count > 0
