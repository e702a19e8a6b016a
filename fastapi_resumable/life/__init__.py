"""Layer 3: the life of a stream: its producer, its readers, and the manager that owns both."""
