"""What the gateway costs and what it saves, beside other libraries. Start: README.md here."""

import os

# Before anything imports litellm: no price map from the network, no `.env`, no proxy on loopback.
os.environ.update(LITELLM_MODE="PRODUCTION", LITELLM_LOCAL_MODEL_COST_MAP="True", NO_PROXY="*")
