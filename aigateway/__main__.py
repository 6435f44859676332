"""`python -m aigateway`: the same as the command `aigateway`."""

from aigateway.cli import app

app(prog_name="aigateway")
