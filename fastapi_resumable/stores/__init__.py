"""Layer 3: where logs live. A small protocol, and the stores behind it."""
