"""In-process clients for other libraries. Each needs an extra, and is loaded when it is used."""
