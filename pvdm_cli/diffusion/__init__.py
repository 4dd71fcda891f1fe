"""Schedule, objectives and samplers; knows no network, only callables."""
