"""Weights of the published implementation: names and shapes both ways, sizes, files."""
