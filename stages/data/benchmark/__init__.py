"""The synthetic benchmark: drawn people who change clothes, seen by poor cameras.

`make_benchmark` writes it in the prepared layout. The same person wears other clothes in `query`
than in the gallery, where other people wear them; face, hair, stature and build tell who it is.
"""

from deskpro.stages.data.benchmark.make import FORMAT, make_benchmark
from deskpro.stages.data.benchmark.options import BenchmarkOptions

__all__ = ["FORMAT", "BenchmarkOptions", "make_benchmark"]
