"""Protocols of callers beside OpenAI's chat: Anthropic's Messages, OpenAI's Responses.

Each protocol has a module that turns a request into a chat, and answers back. A provider that
speaks the protocol itself gets the request as it is (`aigateway/wires/native.py`).
"""
