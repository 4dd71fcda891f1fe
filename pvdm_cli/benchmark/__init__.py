"""Time, memory and maximum batch, beside the paper's figures."""
