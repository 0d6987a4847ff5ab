"""Names of `base.distributed` by their earlier place, for modules that import them from here."""

import torch

from deskpro.stages.base.distributed import pick_device as pick

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
use_threads = torch.set_num_threads

__all__ = ["PRECISION", "pick", "use_threads"]
