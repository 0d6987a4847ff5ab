"""The losses, a file each, of one signature: (prediction, target, **settings) → float32 scalar.

`terms.TERMS` says which networks they train. Importing them loads no torch.
"""

from deskpro.stages.losses.attention import attention
from deskpro.stages.losses.cross_entropy import cross_entropy
from deskpro.stages.losses.distillation import distillation
from deskpro.stages.losses.embedding import embedding
from deskpro.stages.losses.triplet import triplet

__all__ = ["attention", "cross_entropy", "distillation", "embedding", "triplet"]
