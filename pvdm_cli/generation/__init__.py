"""Sampling runs: videos drawn, written as their clips become ready, and described beside them."""
