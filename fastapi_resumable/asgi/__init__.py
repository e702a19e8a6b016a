"""Layer 4: run an ASGI application in the background, record what it sends, serve the log."""
