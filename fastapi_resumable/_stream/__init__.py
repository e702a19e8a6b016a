"""Layer 2: a stream in this process: its log, who follows it, and the loop that serves one reader."""
