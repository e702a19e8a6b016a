"""Layer 2: where logs live. A small protocol, and the stores behind it."""
