"""The service's own settings: what they refuse, and in which words."""

import pytest

from aigateway.errors import ConfigurationError
from aigateway.settings import ServerSettings

DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cors_origins": ["example.com"]}, 'an origin is "https://host"'),
        ({"cors_origins": ["https://example.com/page"]}, 'an origin is "https://host"'),
        ({"drain_seconds": 1, "drain_notice_seconds": 5}, "drain_notice_seconds: is part of"),
        ({"host": "0.0.0.0"}, "without keys everybody"),
        ({"host": ""}, "without keys everybody"),
        ({"keys": [{"name": "a", "sha256": "sk-secret"}]}, "64 hexadecimal digits"),
        ({"keys": [{"name": "a", "sha256": DIGEST, "key": "sk-secret"}]}, "key"),
        (
            {"keys": [{"name": "b", "sha256": DIGEST}, {"name": "a", "budgt": 3}]},
            'the key \'a\': there is no setting "budgt"; did you mean "budget_usd"',
        ),
        ({"keys": [{"name": "a", "sha256": DIGEST, "rpm": -1}]}, "the key 'a': rpm: "),
        ({"keys": [{"sha256": DIGEST}]}, "key number 1: name: "),
        ({"keys": [{"name": "a", "sha256": DIGEST}] * 2}, "two have the same name"),
        ({"pass_params": ["min_p", "api_base"]}, "pass_params.*never passed on"),
        ({"pass_params": ["Extra_Headers"]}, "pass_params.*never passed on"),
        ({"pass_params": ["aws_secret_access_key"]}, "pass_params.*never passed on"),
        ({"pass_params": ["default_headers"]}, "pass_params.*never passed on"),
        ({"pass_params": ["input_cost_per_token"]}, "pass_params.*never passed on"),
        ({"pass_params": ["model_list"]}, "pass_params.*never passed on"),
        ({"pass_params": ["Authorization"]}, "pass_params.*never passed on"),
        ({"pass_params": ["model"]}, "pass_params.*never passed on"),
        ({"pass_params": ["a-b"]}, "no name of a parameter"),
        ({"pass_params": ["x" * 65]}, "no name of a parameter"),
        ({"port": 70_000}, "port"),
        ({"prot": 1}, 'did you mean "port"'),
    ],
)
def test_what_cannot_work_is_refused_without_a_key_in_the_words(fields, says):
    with pytest.raises(ConfigurationError, match=says) as raised:
        ServerSettings(**fields)
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(raised.value)


@pytest.mark.parametrize("origins", [[], ["*"], ["https://a.example", "http://localhost:3000"]])
def test_origins_that_a_browser_would_send(origins):
    assert ServerSettings(cors_origins=origins).cors_origins == tuple(origins)


def test_each_source(monkeypatch, tmp_path):
    (tmp_path / "aigateway.toml").write_text("[server]\nport = 1\nworkers = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIGATEWAY_SERVER_PORT", "3")
    assert (ServerSettings().port, ServerSettings().workers) == (3, 2)
    assert ServerSettings(port=4).port == 4
    monkeypatch.setenv("AIGATEWAY_SERVER_PROT", "3")
    with pytest.raises(ConfigurationError, match=r"AIGATEWAY_SERVER_PROT .*AIGATEWAY_SERVER_PORT"):
        ServerSettings()


def test_a_relative_state_dir_begins_where_the_file_is(monkeypatch, tmp_path):
    (tmp_path / "aigateway.toml").write_text('[server]\nstate_dir = "kept/here"\n')
    monkeypatch.setenv("AIGATEWAY_CONFIG", str(tmp_path / "aigateway.toml"))
    assert ServerSettings().state_directory == tmp_path / "kept" / "here"
    assert ServerSettings(state_dir=str(tmp_path)).state_directory == tmp_path
    assert ServerSettings(state_dir=":memory:").state_directory is None
