"""What the stores that several workers share have in common: a stream as its own worker sees it, and as others do."""
