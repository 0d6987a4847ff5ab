"""DeSKPro: two-stage offline distillation for cloth-changing person re-identification.

The code lies in the folders `pipeline`, `stages` and `cache`, which are part of this package under
these names: `deskpro.stages.models.osnet`, for one.
"""

from importlib.metadata import version

__version__ = version("deskpro")
