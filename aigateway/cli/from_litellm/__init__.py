"""`aigateway init --from-litellm`: make a draft from the configuration of litellm's proxy.

What cannot be taken over is never left out silently: each such option is a remark with its reason,
both on stderr and as a comment at its place in the file. No secret of the YAML is copied, and none
of its values is in a message.
"""
