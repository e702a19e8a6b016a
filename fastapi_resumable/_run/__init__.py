"""Layer 4: the run of a request: an ASGI application in the background, recorded, and served from its log."""
