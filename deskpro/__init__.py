"""DeSKPro: two-stage offline distillation for cloth-changing person re-identification.

The code lies in the folders `pipeline`, `stages` and `cache`, which are part of this package under
these names: `deskpro.stages.models.osnet`, for one. `deskpro.Encoder` uses a trained student.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deskpro.stages.serving.encoder import Encoder, Features

__version__ = version("deskpro")
__all__ = ["Encoder", "Features", "__version__"]


def __getattr__(name: str) -> object:
    """What loads torch, when it is asked for."""
    if name in ("Encoder", "Features"):
        from deskpro.stages.serving import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
