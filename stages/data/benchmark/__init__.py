"""The benchmark that the project makes itself: drawn people, seen by poor cameras.

`make_benchmark` writes it in the prepared layout. The same person wears other clothes in `query`
than in the gallery, where other people wear them; only the face tells who it is.
"""

from deskpro.stages.data.benchmark.make import FORMAT, make_benchmark
from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.sheet import contact_sheet

__all__ = ["FORMAT", "BenchmarkOptions", "contact_sheet", "make_benchmark"]
