"""Layer 1: pure values and rules. No I/O, no asyncio, no clock, no randomness."""
