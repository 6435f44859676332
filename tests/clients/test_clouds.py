"""Bedrock and Vertex AI by their recipes: signed requests, tokens, streams in frames."""

from __future__ import annotations

import binascii
import json
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aigateway import errors
from aigateway.cli.vendors import recipe_of
from aigateway.errors import FailureKind
from tests.wires.test_recipes import chat, kind_of, streamed
from tests.wires.vendor_stub import VendorStub, always, data, pieces

CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "4"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
}
GENERATED = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "4"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
}
FRAMES = "application/vnd.amazon.eventstream"


@pytest.fixture
async def stub():
    async with VendorStub() as running:
        yield running


def frame(kind: str, payload: Any, message: str = "event") -> bytes:
    """Encode one message of Amazon's event streams."""
    headers = b""
    for name, value in ((f":{message}-type", kind), (":message-type", message)):
        headers += bytes([len(name)]) + name.encode() + b"\x07"
        headers += struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    whole = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + body
    return whole + struct.pack(">I", binascii.crc32(whole))


class TestBedrock:
    @pytest.fixture
    def config(self, stub, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        base = f"http://127.0.0.1:{stub.port}"
        return stub.config("bedrock", api_key=None, api_base=base)

    async def test_requests_are_signed(self, stub, config):
        stub.reply = always(CONVERSE)
        reply = await chat(config, system="terse")
        path, headers, body = stub.asked[0]
        assert (reply.text, reply.usage.total_tokens) == ("4", 5)
        assert reply.cost_usd
        assert path.endswith("/converse")
        assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")
        assert body["system"] == [{"text": "terse"}]

    async def test_an_api_key_of_bedrock(self, stub, config, monkeypatch):
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "token")
        stub.reply = always(CONVERSE)
        await chat(config)
        assert stub.asked[0][1]["Authorization"] == "Bearer token"

    async def test_a_stream_is_read_from_its_frames(self, stub, config):
        begun = frame("messageStart", {"role": "assistant"})
        said = frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "4"}})
        end = frame("messageStop", {"stopReason": "end_turn"})
        counted = frame("metadata", {"usage": CONVERSE["usage"], "metrics": {"latencyMs": 5}})
        stub.reply = pieces(begun, said, end, counted, kind=FRAMES)
        reply = await streamed(config)
        assert (reply.text, reply.usage.total_tokens) == ("4", 5)
        throttled = frame("throttlingException", {"message": "Too many requests"}, "exception")
        for last in ((), (throttled,)):
            stub.reply = pieces(begun, said, *last, kind=FRAMES)
            with pytest.raises(errors.StreamInterruptedError):
                await streamed(config)

    @pytest.mark.parametrize(
        ("status", "code", "words", "kind"),
        [
            (429, "ThrottlingException", "Too many requests", "rate_limited"),
            (403, "UnrecognizedClientException", "The security token is invalid", "authentication"),
            (403, "AccessDeniedException", "You don't have access to the model", "permission"),
            (
                400,
                "ValidationException",
                "Invocation of model ID x with on-demand throughput isn't supported.",
                "model_not_found",
            ),
            (503, "ServiceUnavailableException", "x", "server_error"),
        ],
    )
    async def test_failures(self, stub, config, status, code, words, kind):
        stub.reply = always({"message": words}, status, x_amzn_errortype=f"{code}:http://x/")
        assert (await kind_of(config))[0] == kind

    async def test_without_credentials(self, stub, config, monkeypatch, tmp_path):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        assert (await kind_of(config))[0] == FailureKind.AUTHENTICATION
        assert stub.asked == []


class TestVertex:
    @pytest.fixture
    def config(self, stub, monkeypatch, tmp_path):
        project = f"project-{stub.port}"  # litellm remembers the token of each project
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        base = f"http://127.0.0.1:{stub.port}"
        account = {
            "type": "service_account",
            "project_id": project,
            "private_key": key.decode(),
            "client_email": f"a@{project}.iam.gserviceaccount.com",
            "token_uri": f"{base}/token",
        }
        file = tmp_path / "account.json"
        file.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        extra = {**recipe_of("vertex_ai").table["extra"], "vertex_project": project}
        return stub.config("vertex_ai", api_key=None, api_base=base, extra=extra)

    @staticmethod
    def replying(whole, token=None):
        async def reply(request, body):
            if request.path == "/token":
                given = token or always({"access_token": "ya29.token", "expires_in": 3600})
                return await given(request, body)
            if "stream" in request.path:
                return await pieces(data(GENERATED))(request, body)
            return await whole(request, body)

        return reply

    async def test_a_service_account_gets_a_token(self, stub, config):
        stub.reply = self.replying(always(GENERATED))
        reply = await chat(config)
        assert (reply.text, reply.usage.total_tokens) == ("4", 5)
        assert reply.cost_usd
        assert (await streamed(config)).text == "4"
        paths = [path for path, _, _ in stub.asked]
        place = f"/v1/projects/project-{stub.port}/locations/global/publishers/google/models"
        assert paths[:2] == ["/token", f"{place}/gemini-3.5-flash:generateContent"]
        assert stub.asked[1][1]["Authorization"] == "Bearer ya29.token"

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (403, "PERMISSION_DENIED", "permission"),
            (404, "NOT_FOUND", "model_not_found"),
            (429, "RESOURCE_EXHAUSTED", "rate_limited"),
        ],
    )
    async def test_failures(self, stub, config, status, code, kind):
        message = "Publisher Model `m` was not found" if status == 404 else "denied"
        error = {"error": {"code": status, "message": message, "status": code}}
        stub.reply = self.replying(always(error, status))
        assert (await kind_of(config))[0] == kind

    async def test_an_account_that_gets_no_token(self, stub, config):
        refused = always({"error": "invalid_grant", "error_description": "Invalid JWT"}, 400)
        stub.reply = self.replying(always(GENERATED), refused)
        assert (await kind_of(config))[0] == FailureKind.AUTHENTICATION
