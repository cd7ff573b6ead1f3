"""One training loop, and what it takes to kill it at any step and lose nothing."""
