"""One loop, two stages, exact resume."""
