"""Read streams in Anthropic's protocol as its SDKs do."""

import json


def read_events(text):
    """Every event's data; its name has to be its type."""
    read = []
    for event in filter(None, text.split("\n\n")):
        name, data = event.split("\n")
        assert data.startswith("data: ")
        read.append(json.loads(data[6:]))
        assert name == f"event: {read[-1]['type']}"
    return read


def put_together(events):
    """Put a stream together as Anthropic's SDK does, and be strict about the order."""
    assert [e["type"] for e in (events[0], events[-1])] == ["message_start", "message_stop"]
    message = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    blocks, is_open, arguments = message["content"], False, ""
    for event in events[1:-1]:
        kind = event["type"]
        if kind == "content_block_start":
            assert (is_open, event["index"]) == (False, len(blocks))
            blocks.append(event["content_block"])
            is_open, arguments = True, ""
        elif kind == "message_delta":
            assert not is_open
            message |= event["delta"]
            message["usage"] |= event["usage"]
        elif kind != "ping":
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
            if kind == "content_block_delta":
                arguments += _add(blocks[-1], event["delta"])
            elif arguments:
                blocks[-1]["input"] = json.loads(arguments)
            is_open = kind != "content_block_stop"
    return message


def _add(block, delta):
    """Add a delta to its block; return what it adds to the arguments of a tool."""
    kind = delta.pop("type").removesuffix("_delta")
    if kind == "input_json":
        assert block["type"] == "tool_use"
        return delta["partial_json"]
    assert block["type"] == ("thinking" if kind == "signature" else kind)
    block[kind] += delta[kind]
    return ""
