"""Export: write the student's files, evaluate them as they are, and keep them if they are right."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_folder_aside
from deskpro.pipeline.arguments import options_of
from deskpro.pipeline.config import override
from deskpro.stages import export as stage
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.run_folder import ENCODER, RunFolder
from deskpro.stages.base.stage import Job


def export(
    run: Path, out: Path | None, ask: stage.Ask, overrides: tuple[str, ...], force: bool
) -> dict[str, object]:
    """Export the student of an evaluated run; returns what the summary shows.

    Raises:
        InputError: the run is not evaluated, or the folder exists.
        DiffersError: the exported files score otherwise than the student; nothing is kept.
    """
    from deskpro.stages.evaluate import Evaluate
    from deskpro.stages.reporting.record import read_metrics

    folder, out = RunFolder.open(run), out or run / "export"
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; use --force or another --out")
    if out.exists() and not (out / ENCODER).is_file() and any(out.iterdir()):
        raise InputError(f"{out}: is no exported folder, and is left as it is; use another --out")
    output = folder.metrics if folder.features.exists() else folder.features
    command = shlex.join(["eval", "--run", str(run)])
    options = options_of(folder.manifest("eval"), overrides, output, command)
    read_metrics(run)  # of this very student
    index = FileIndex()
    with write_folder_aside(out) as aside:
        settings, sizes = stage.write(folder, aside, ask, options, index)
        evaluated = RunFolder(aside / ".evaluation")
        # Files of projected vectors see the mirrored image themselves, and are compared by image.
        own = {} if ask.dim is None else {"eval.flip": False, "eval.unit": "picture"}
        Evaluate(override(options, own), evaluated, settings, "student").run(Job(index))
        facts = stage.finish(folder, settings, evaluated, options, sizes)
        shutil.rmtree(evaluated.path)
    return facts | {"folder": out}
