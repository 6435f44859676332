"""No key is told on, wherever a vendor repeats it."""

import pytest

from aigateway.settings.secrets import keep_secret, masked, tells_a_key


@pytest.mark.parametrize("keys", [("short-secret", "short-secret-and-more"), None], ids=str)
def test_no_part_of_a_key_is_left(keys):
    first, second = keys or ("longer-secret-here", "longer-secret")
    keep_secret([first, second])
    assert masked(f"Bad key {second} or {first}.") == "Bad key *** or ***."


def test_a_key_that_is_configured_later_is_known_from_then_on():
    name = "plain-name-of-a-model"
    assert not tells_a_key(name)
    keep_secret([name])
    assert tells_a_key(name)
