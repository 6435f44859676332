"""Any exception to a failure, and the table of what each failure leads to."""

import asyncio
import errno
import json
import socket
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import multidict
import openai
import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import FailureKind
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.failures import VERDICTS, Failover, Gate, classify
from tests import descriptors

NOW = 1_700_000_000.0
URL = "http://127.0.0.1/v1"
REQUEST: Any = httpx.Request("POST", URL)  # to type checkers the newest SDK wants httpx2's
ASKED: Any = SimpleNamespace(real_url=URL)


def kind_of(exc, **options):
    return classify(exc, now_wall=NOW, **options).kind


def litellms(name, base=Exception, **attributes):
    """An exception of litellm's, whose words are not to be trusted."""
    made = type(name, (base,), {"__module__": "litellm.exceptions"})("lies")
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def answered(status, body=b"", headers=None):
    response = httpx.Response(status, content=body, headers=headers, request=REQUEST)
    return httpx.HTTPStatusError("words", request=REQUEST, response=response)


def came(status, **content) -> Any:
    return httpx.Response(status, request=REQUEST, **content)


def behind(top, *, cause=None, context=None, original=None):
    top.__cause__, top.__context__ = cause, context
    if original is not None:
        top.original_exception = original
    return top


class TestVerdicts:
    def test_every_kind_has_one(self):
        assert set(VERDICTS) == set(FailureKind)

    def test_is_as_the_design_says(self):
        said = {
            str(kind): (str(verdict.failover), verdict.counts, str(verdict.gate))
            for kind, verdict in VERDICTS.items()
        }
        another, ill = ("always", False, "none"), ("always", True, "none")
        misconfigured = ("always", False, "disable")
        assert said == {
            "rejected": ("second_opinion", False, "none"),
            "content_policy": ("never", False, "none"),
            "context_window": ("larger_window", False, "none"),
            "cancelled": ("never", False, "none"),
            "deadline": another,
            "outrun": another,
            "unsupported": another,
            "not_offered": ("always", False, "not_offered"),
            "invalid_output": another,
            "authentication": misconfigured,
            "permission": misconfigured,
            "no_credit": misconfigured,
            "model_not_found": misconfigured,
            "rate_limited": ("always", False, "cooldown"),
            "server_error": ("always", True, "cooldown"),
            "bad_answer": ("always", True, "cooldown"),
            "connection": ill,
            "timeout": ill,
            "unknown": ill,
            "circuit_open": another,
            "cooling_down": another,
            "disabled": another,
            "saturated": another,
        }

    @pytest.mark.parametrize(
        "kind",
        ["server_error", "bad_answer", "connection", "timeout", "unknown"],
    )
    def test_the_breaker_counts_the_providers_health(self, kind):
        assert VERDICTS[FailureKind(kind)].counts
        assert VERDICTS[FailureKind(kind)].failover is Failover.ALWAYS

    def test_nothing_else_counts(self):
        counted = {kind for kind, verdict in VERDICTS.items() if verdict.counts}
        assert len(counted) == 5

    @pytest.mark.parametrize(
        "kind", ["authentication", "permission", "no_credit", "model_not_found"]
    )
    def test_a_misconfigured_provider_is_disabled(self, kind):
        assert VERDICTS[FailureKind(kind)].gate is Gate.DISABLE
        assert VERDICTS[FailureKind(kind)].failover is Failover.ALWAYS

    @pytest.mark.parametrize("kind", ["content_policy", "cancelled"])
    def test_the_callers_fault_is_raised(self, kind):
        assert VERDICTS[FailureKind(kind)].failover is Failover.NEVER

    def test_a_plain_rejection_asks_for_a_second_opinion(self):
        assert VERDICTS[FailureKind.REJECTED].failover is Failover.SECOND_OPINION

    def test_a_long_prompt_goes_to_a_larger_window(self):
        assert VERDICTS[FailureKind.CONTEXT_WINDOW].failover is Failover.LARGER_WINDOW

    def test_a_rate_limit_only_cools_down(self):
        verdict = VERDICTS[FailureKind.RATE_LIMITED]
        assert (verdict.gate, verdict.counts) == (Gate.COOLDOWN, False)


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (TimeoutError(), "timeout"),
        (httpx.ReadTimeout("", request=REQUEST), "timeout"),
        (httpx.ConnectTimeout("", request=REQUEST), "timeout"),
        (httpx.PoolTimeout("", request=REQUEST), "saturated"),
        (openai.APITimeoutError(REQUEST), "timeout"),
        (aiohttp.ServerTimeoutError(), "timeout"),
        (aiohttp.ConnectionTimeoutError(), "timeout"),
        (httpx.ConnectError("", request=REQUEST), "connection"),
        (httpx.ReadError("", request=REQUEST), "connection"),
        (httpx.RemoteProtocolError("", request=REQUEST), "connection"),
        (httpx.ProxyError("", request=REQUEST), "connection"),
        (aiohttp.ServerDisconnectedError(), "connection"),
        (aiohttp.ClientPayloadError(), "connection"),
        (ConnectionResetError(), "connection"),
        (ConnectionRefusedError(), "connection"),
        (BrokenPipeError(), "connection"),
        (socket.gaierror(-2, "Name or service not known"), "connection"),
        (ssl.SSLCertVerificationError("bad certificate"), "connection"),
        (asyncio.IncompleteReadError(b"", 5), "connection"),
        (json.JSONDecodeError("", "", 0), "bad_answer"),
        (httpx.DecodingError("", request=REQUEST), "bad_answer"),
        (httpx.TooManyRedirects("", request=REQUEST), "bad_answer"),
        (UnicodeDecodeError("utf-8", b"", 0, 0, ""), "bad_answer"),
        (httpx.UnsupportedProtocol("", request=REQUEST), "connection"),
        (httpx.InvalidURL(""), "connection"),
        (aiohttp.ContentTypeError(ASKED, ()), "bad_answer"),
        (
            openai.APIResponseValidationError(came(200), None),
            "bad_answer",
        ),
        pytest.param(
            type("APIResponseValidationError", (Exception,), {})(), "bad_answer", id="unreadable"
        ),
        (answered(503), "server_error"),
        (answered(401), "authentication"),
        (litellms("UnsupportedParamsError", status_code=400), "unsupported"),
        pytest.param(
            type("UnsupportedParamsError", (Exception,), {})(), "unsupported", id="not litellm's"
        ),
        (litellms("ContextWindowExceededError", status_code=400), "context_window"),
        (litellms("ContentPolicyViolationError", status_code=400), "content_policy"),
        (litellms("Timeout", status_code=408), "timeout"),
        pytest.param(litellms("Timeout"), "timeout", id="Timeout without a status"),
        (litellms("RateLimitError", status_code=429), "rate_limited"),
        (litellms("AuthenticationError", status_code=401), "authentication"),
        (litellms("InternalServerError", status_code=500), "unknown"),
        (litellms("APIConnectionError", status_code=500), "unknown"),
        (litellms("ServiceUnavailableError", status_code=503), "server_error"),
        (RuntimeError("anything"), "unknown"),
        (ValueError("not of the wire"), "unknown"),
        (VendorCallError(Failure(FailureKind.NO_CREDIT, 402)), "no_credit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_kinds(exc, kind):
    assert kind_of(exc) == kind


KEY: Any = SimpleNamespace(host="vendor.invalid", port=443, is_ssl=True, ssl=True)


@pytest.mark.parametrize(
    ("exc", "unreachable"),
    [
        (ConnectionRefusedError(), True),
        (OSError(errno.ECONNREFUSED, "refused"), True),
        (aiohttp.ClientOSError(errno.ECONNREFUSED, "refused"), True),
        (OSError(errno.EHOSTDOWN, "host is down"), True),
        (OSError(errno.ENETDOWN, "network is down"), True),
        (OSError(errno.ENETUNREACH, "no network"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (socket.gaierror(-2, "Name or service not known"), True),
        (ssl.SSLCertVerificationError("bad certificate"), True),
        (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError()), True),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror()), True),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError()), True),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError()), True),
        (aiohttp.ClientProxyConnectionError(KEY, ConnectionRefusedError()), True),
        (aiohttp.ConnectionTimeoutError(), True),
        (httpx.ConnectError("", request=REQUEST), True),
        (httpx.ConnectTimeout("", request=REQUEST), True),
        (httpx.ProxyError("", request=REQUEST), True),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), False),
        (aiohttp.ServerDisconnectedError(), False),
        (aiohttp.ClientPayloadError(), False),
        (aiohttp.SocketTimeoutError(), False),
        (httpx.ReadError("", request=REQUEST), False),
        (httpx.ReadTimeout("", request=REQUEST), False),
        (httpx.RemoteProtocolError("", request=REQUEST), False),
        (ConnectionResetError(), False),
        (BrokenPipeError(), False),
        (TimeoutError(), False),
        (ssl.SSLError("bad record"), False),
        (asyncio.IncompleteReadError(b"", 5), False),
        (answered(503), False),
        (RuntimeError("anything"), False),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, BaseException) else None,
)
def test_whether_there_was_a_connection_at_all(exc, unreachable):
    wrapped = behind(openai.APIConnectionError(request=REQUEST), cause=exc)
    outer = behind(litellms("InternalServerError", status_code=500), context=wrapped)
    for given_exc in (exc, wrapped, outer):
        assert classify(given_exc, now_wall=NOW).unreachable is unreachable


@pytest.mark.parametrize(
    ("behind_it", "unreachable"),
    [
        (httpx.ConnectTimeout("", request=REQUEST), True),
        (httpx.ReadTimeout("", request=REQUEST), False),
        (TimeoutError(), False),
    ],
    ids=["connect", "read", "plain"],
)
def test_the_sdks_timeout_leaves_it_to_what_is_behind(behind_it, unreachable):
    failure = classify(behind(openai.APITimeoutError(REQUEST), cause=behind_it), now_wall=NOW)
    assert failure == Failure(FailureKind.TIMEOUT, unreachable=unreachable)


@pytest.mark.parametrize(
    "broken",
    [
        aiohttp.ClientOSError(errno.ECONNABORTED, "aborted"),
        aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
        aiohttp.ClientOSError(errno.EPIPE, "broken pipe"),
        aiohttp.ServerDisconnectedError(),
        httpx.ReadError("", request=REQUEST),
        httpx.ReadTimeout("", request=REQUEST),
        httpx.RemoteProtocolError("", request=REQUEST),
        httpx.WriteError("", request=REQUEST),
    ],
    ids=repr,
)
def test_litellms_transport_calls_a_broken_connection_a_connect_error(broken):
    failure = classify(behind(httpx.ConnectError("", request=REQUEST), cause=broken), now_wall=NOW)
    assert failure == Failure(FailureKind.CONNECTION)


@pytest.mark.parametrize(
    ("first", "behind_it", "unreachable"),
    [
        (httpx.ConnectError("", request=REQUEST), ValueError(), True),
        (httpx.ConnectError("", request=REQUEST), litellms("ReadError"), True),
        (httpx.DecodingError("", request=REQUEST), httpx.ConnectError("", request=REQUEST), False),
    ],
    ids=["nothing known", "litellm's word", "an older failure"],
)
def test_what_is_behind_counts_where_it_tells_more(first, behind_it, unreachable):
    assert classify(behind(first, cause=behind_it), now_wall=NOW).unreachable is unreachable


def test_an_older_failure_says_nothing_about_a_reset():
    failure = classify(
        behind(ConnectionResetError(), context=ConnectionRefusedError()), now_wall=NOW
    )
    assert not failure.unreachable


class TestOurOwnExhaustion:
    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda error: error,
            lambda error: aiohttp.ClientConnectorError(KEY, error),
            lambda error: behind(aiohttp.ClientConnectorDNSError(KEY, OSError()), cause=error),
            lambda error: behind(httpx.ConnectError("", request=REQUEST), cause=error),
            lambda error: behind(openai.APIConnectionError(request=REQUEST), cause=error),
            lambda error: behind(litellms("InternalServerError", status_code=500), context=error),
            lambda error: ExceptionGroup("both addresses", [ConnectionRefusedError(), error]),
        ],
        ids=["bare", "aiohttp", "looked up", "httpx", "the SDK", "litellm", "one of several"],
    )
    def test_is_found_anywhere(self, number, wrapped):
        failure = classify(wrapped(OSError(number, "words")), now_wall=NOW)
        assert failure == Failure(FailureKind.SATURATED)

    def test_an_answer_that_came_stands_over_it(self):
        older = behind(answered(503), context=OSError(errno.EMFILE, "words"))
        assert kind_of(older) == "server_error"

    def test_what_the_caller_was_handling_is_not_looked_at(self):
        callers = OSError(errno.EMFILE, "words")
        failed = behind(ConnectionResetError(), context=callers)
        assert kind_of(failed, outside=callers) == "connection"

    def test_where_sockets_fail_for_other_reasons_it_is_no_lack_of_ours(self, monkeypatch):
        def refused(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket, "socket", refused)
        unknown = aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-2, "Name not known"))
        unknown.__cause__ = socket.gaierror(-2, "Name not known")
        assert classify(unknown, now_wall=NOW).kind is FailureKind.CONNECTION

    def test_a_name_that_cannot_be_looked_up_without_a_socket(self):
        unknown = aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-2, "Name not known"))
        unknown.__cause__ = socket.gaierror(-2, "Name not known")
        with descriptors.none_left():
            assert classify(unknown, now_wall=NOW) == Failure(FailureKind.SATURATED)
        said = classify(unknown, now_wall=NOW)
        assert said == Failure(FailureKind.CONNECTION, unreachable=True)


def test_a_proxy_that_lets_nobody_through_is_not_the_vendor():
    url, headers = yarl.URL(URL), multidict.CIMultiDict({"Via": "proxy"})
    exc = aiohttp.ClientHttpProxyError(
        aiohttp.RequestInfo(url, "CONNECT", multidict.CIMultiDictProxy(headers), url),
        (),
        status=407,
    )
    assert classify(exc, now_wall=NOW) == Failure(FailureKind.CONNECTION, unreachable=True)


class TestChain:
    @pytest.mark.parametrize("link", ["cause", "context", "original"])
    def test_the_response_that_came_stands_over_litellms_word(self, link):
        top = litellms("InternalServerError", status_code=500, response=httpx.Response(500))
        failure = classify(
            behind(top, **{link: answered(429, headers={"retry-after": "7"})}), now_wall=NOW
        )
        assert failure == Failure(FailureKind.RATE_LIMITED, 429, 7.0)

    def test_a_refused_connection_is_not_a_500(self):
        wrapped = behind(openai.APIConnectionError(request=REQUEST), cause=ConnectionRefusedError())
        assert kind_of(
            behind(litellms("InternalServerError", status_code=500), context=wrapped)
        ) == ("connection")

    def test_the_nearest_link_decides(self):
        far = answered(401)
        near = behind(httpx.ReadTimeout("", request=REQUEST), context=far)
        assert kind_of(behind(litellms("Timeout"), context=near)) == "timeout"

    def test_what_the_caller_was_handling_is_not_the_vendors(self):
        callers = answered(401)
        assert kind_of(behind(RuntimeError(), context=callers)) == "authentication"
        assert kind_of(behind(RuntimeError(), context=callers), outside=callers) == "unknown"

    def test_a_circle_ends(self):
        one, two = RuntimeError(), RuntimeError()
        one.__context__, two.__cause__ = two, one
        assert kind_of(one) == "unknown"

    def test_a_very_long_chain_ends(self):
        top = RuntimeError()
        for _ in range(5000):
            top = behind(RuntimeError(), context=top)
        assert kind_of(top) == "unknown"

    @pytest.mark.parametrize(("before", "kind"), [(63, "authentication"), (64, "unknown")])
    def test_so_far_it_is_followed(self, before, kind):
        top: BaseException = answered(401)
        for _ in range(before):
            top = behind(RuntimeError(), context=top)
        assert kind_of(top) == kind

    def test_one_that_is_linked_twice_is_looked_at_once(self):
        top: BaseException = answered(401)
        for _ in range(20):
            top = behind(RuntimeError(), cause=top, context=top)
        assert kind_of(top) == "authentication"

    def test_what_is_no_exception_is_no_link(self):
        assert kind_of(behind(RuntimeError(), context=answered(401), original="text")) == (
            "authentication"
        )

    def test_groups_are_looked_into(self):
        group = ExceptionGroup("several", [ValueError(), httpx.ReadTimeout("", request=REQUEST)])
        assert kind_of(group) == "timeout"

    def test_litellms_reading_sharpens_a_plain_rejection_only(self):
        top = litellms("ContextWindowExceededError", status_code=400)
        assert kind_of(behind(top, context=answered(400))) == "context_window"
        assert kind_of(behind(top, context=answered(503))) == "server_error"
        refused = litellms("ContentPolicyViolationError", status_code=400)
        assert kind_of(behind(refused, context=answered(400))) == "content_policy"
        assert kind_of(behind(litellms("Timeout"), context=answered(400))) == "rejected"
        elsewhere = type("ContextWindowExceededError", (Exception,), {})()
        assert kind_of(behind(elsewhere, context=answered(400))) == "rejected"

    def test_where_nothing_came_litellms_words_tell_the_kind_and_no_status(self):
        top = litellms(
            "RateLimitError",
            status_code=429,
            headers={"retry-after": "9"},
            litellm_response_headers={"retry-after": "7"},
            body={"error": {"code": "rate_limit_exceeded"}},
        )
        said = Failure(FailureKind.RATE_LIMITED, None, 7.0, "rate_limit_exceeded")
        assert classify(top, now_wall=NOW) == said
        top.body = {"error": {"code": "insufficient_quota"}}
        said = Failure(FailureKind.NO_CREDIT, None, 7.0, "insufficient_quota", certain=True)
        assert classify(top, now_wall=NOW) == said
        plain = litellms("RateLimitError", status_code=429, headers={"retry-after": "9"})
        assert classify(plain, now_wall=NOW) == Failure(FailureKind.RATE_LIMITED, None, 9.0)

    def test_only_litellm_says_500_for_everything(self):
        for module, kind in (("litellm.exceptions", "unknown"), ("litellmish", "server_error")):
            made: Any = type("InternalServerError", (Exception,), {"__module__": module})()
            made.status_code = 500
            assert kind_of(made) == kind
        top = litellms("InternalServerError", status_code=500)
        top.body = {"error": {"code": "invalid_api_key"}}
        assert classify(top, now_wall=NOW) == Failure(FailureKind.UNKNOWN, code="invalid_api_key")

    def test_anybody_may_have_a_class_of_that_name(self):
        assert kind_of(type("Timeout", (Exception,), {})()) == "unknown"

    def test_litellms_own_names_tell_nothing_of_the_wire(self):
        assert kind_of(litellms("DecodingError", status_code=503)) == "server_error"

    def test_a_response_that_litellm_made_up_is_not_read(self):
        made_up = httpx.Response(401, request=REQUEST)
        top = litellms("APIConnectionError", status_code=500, response=made_up)
        assert kind_of(top) == "unknown"

    def test_litellms_masked_copy_of_a_response_is_read(self):
        base = type(answered(404))
        masked = type("MaskedHTTPStatusError", (base,), {"__module__": "litellm.llms.x"})
        response = httpx.Response(404, request=REQUEST)
        assert kind_of(masked("", request=REQUEST, response=response)) == "model_not_found"

    def test_the_sdks_status_error(self):
        body = {"error": {"code": "insufficient_quota"}}
        response = came(429, json=body)
        failure = classify(openai.RateLimitError("", response=response, body=None), now_wall=NOW)
        assert failure == Failure(
            FailureKind.NO_CREDIT, 429, None, "insufficient_quota", certain=True
        )

    def test_a_body_that_the_sdk_unwrapped(self):
        response = came(400)
        exc = openai.BadRequestError(
            "", response=response, body={"code": "context_length_exceeded", "message": ""}
        )
        assert kind_of(exc) == "context_window"

    def test_aiohttps_response_error(self):
        url, headers = yarl.URL(URL), multidict.CIMultiDict({"Retry-After": "3"})
        exc = aiohttp.ClientResponseError(
            aiohttp.RequestInfo(url, "POST", multidict.CIMultiDictProxy(headers), yarl.URL(URL)),
            (),
            status=503,
            headers=headers,
        )
        assert classify(exc, now_wall=NOW) == Failure(FailureKind.SERVER_ERROR, 503, 3.0)

    @pytest.mark.parametrize(
        ("behind_it", "said"),
        [
            (None, Failure(FailureKind.SERVER_ERROR, 503)),
            (ValueError(), Failure(FailureKind.SERVER_ERROR, 503)),
            (aiohttp.http.HttpProcessingError(), Failure(FailureKind.BAD_ANSWER)),
        ],
        ids=["alone", "for another reason", "not HTTP"],
    )
    def test_a_status_that_aiohttp_made_up_is_not_read(self, behind_it, said):
        given: multidict.CIMultiDict[str] = multidict.CIMultiDict()
        url, headers = yarl.URL(URL), multidict.CIMultiDictProxy(given)
        asked = aiohttp.RequestInfo(url, "POST", headers, url)
        exc = behind(aiohttp.ClientResponseError(asked, (), status=503), cause=behind_it)
        assert classify(exc, now_wall=NOW) == said

    def test_botocores_client_error(self):
        exc = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})()
        exc.response = {
            "Error": {"Code": "ThrottlingException", "Message": "slow down"},
            "ResponseMetadata": {"HTTPStatusCode": 429},
        }
        assert classify(exc, now_wall=NOW) == Failure(
            FailureKind.RATE_LIMITED, 429, None, "ThrottlingException"
        )

    def test_the_words_of_botocores_client_error(self):
        exc = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})()
        exc.response = {
            "Error": {
                "Code": "ValidationException",
                "Message": "The provided model identifier is invalid.",
            },
            "ResponseMetadata": {"HTTPStatusCode": 400},
        }
        assert classify(exc, now_wall=NOW) == Failure(
            FailureKind.MODEL_NOT_FOUND, 400, None, "ValidationException", certain=True
        )

    def test_a_client_error_without_an_answer(self):
        made: Any = type("ConnectTimeoutError", (TimeoutError,), {"__module__": "botocore"})()
        made.response = {"ResponseMetadata": None}
        assert kind_of(made) == "timeout"
        made.response = {"ResponseMetadata": {"HTTPStatusCode": 429}, "Error": None}
        assert classify(made, now_wall=NOW) == Failure(FailureKind.RATE_LIMITED, 429)

    def test_a_response_may_call_its_status_so(self):
        assert kind_of(with_response(status=503)) == "server_error"

    def test_any_number_that_is_called_status_is_none(self):
        exc: Any = RuntimeError()
        exc.status = 503
        assert kind_of(exc) == "unknown"


def with_response(**attributes):
    exc: Any = RuntimeError()
    exc.response = SimpleNamespace(**attributes)
    return exc


class HostileError(Exception):
    """Every attribute is a trap."""

    def __getattr__(self, name):
        raise RuntimeError(name)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["status_code", "status", "response", "body", "headers", "original_exception", "message"]
)


@given(
    st.lists(st.dictionaries(NAMES, ANYTHING), min_size=1, max_size=4),
    st.sampled_from([Exception, OSError, ValueError, httpx.HTTPError, BaseException]),
    st.sampled_from(["litellm.exceptions", "httpx", "elsewhere"]),
)
def test_whatever_comes_in_a_failure_comes_out(links, base, module):
    top: BaseException = Exception()
    for attributes in links:
        made = type("Made", (base,), {"__module__": module})("words")
        for name, value in attributes.items():
            setattr(made, name, value)
        top = behind(made, context=top)
    failure = classify(top, now_wall=NOW)
    assert isinstance(failure.kind, FailureKind)
    assert failure.retry_after is None or 0 <= failure.retry_after <= 86_400


class HostileHeaders(dict[str, str]):
    def items(self):
        raise RuntimeError


def test_hostile_headers():
    exc = with_response(status_code=503, headers=HostileHeaders({"retry-after": "1"}))
    assert classify(exc, now_wall=NOW) == Failure(FailureKind.UNKNOWN)


@pytest.mark.parametrize(
    ("status", "known"), [(99, False), (100, True), (599, True), (600, False), (True, False)]
)
def test_what_is_a_status(status, known):
    failure = classify(with_response(status_code=status), now_wall=NOW)
    assert failure.status == (status if known else None)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({5: "x", "retry-after": "3"}, 3.0), ({"retry-after": 3}, None)]
)
def test_headers_that_are_no_text_are_left_out(headers, seconds):
    failure = classify(with_response(status_code=503, headers=headers), now_wall=NOW)
    assert failure == Failure(FailureKind.SERVER_ERROR, 503, seconds)


def test_a_body_that_is_no_bytes_leaves_it_to_the_exceptions():
    for content in ("text", b""):
        exc = with_response(status_code=400, content=content)
        exc.body = {"error": {"code": "context_length_exceeded"}}
        assert kind_of(exc) == "context_window"


def test_an_attribute_that_cannot_be_read_or_is_none_leaves_it_to_the_next():
    class Response(SimpleNamespace):
        @property
        def status_code(self):
            raise RuntimeError

    exc: Any = RuntimeError()
    exc.response = Response(status=503)
    assert kind_of(exc) == "server_error"
    assert kind_of(with_response(status_code=None, status=503)) == "server_error"


def test_hostile_attributes():
    assert kind_of(HostileError()) == "unknown"
    assert kind_of(behind(HostileError(), context=TimeoutError())) == "timeout"
