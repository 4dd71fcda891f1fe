"""Everything the commands do, as functions: one per command, each returns its result.

    from pvdm_cli import api
    model = api.load_model("demo")
"""

from pvdm_cli.describe import Description, describe
from pvdm_cli.environment import environment
from pvdm_cli.model import Model, load_model

__all__ = ["Description", "Model", "describe", "environment", "load_model"]
