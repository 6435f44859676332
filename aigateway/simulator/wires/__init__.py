"""One module per wire: how a vendor's requests are read and its answers written. No sockets."""
