"""The service: the gateway over HTTP, for teams that share one, and for OpenAI's clients.

Thin: who may ask (`access`), what may arrive (`limits`), what it means (`openai_api`,
`documented`), how an error is said (`refusals`), what operators see (`status`) and do (`operator`).
Whatever an answer takes is the gateway's affair.
"""
