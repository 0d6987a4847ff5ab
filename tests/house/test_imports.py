"""Imports run one way, libraries stay in their rooms, and importing does no work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.house.tree import MODULES, check, imports, parse, room, within

ROWS: tuple[tuple[str, ...], ...] = (
    ("cache",),
    ("stages/base",),
    ("stages/data", "stages/models", "stages/losses", "stages/metrics", "stages/reporting"),
    ("stages/training", "stages/targets", "stages/evaluation", "stages/preparation",
     "stages/serving"),
    ("stages/*",),
    ("pipeline",),
    ("deskpro",),
)  # fmt: skip
"""A room imports from the rows before its own, and from itself. `stages/*`: each other module or
folder there is a room of its own: the stages and tools."""

OPTIONS = "deskpro.stages.base.options"
"""Not imported by the rooms of the third row: they take plain arguments."""

LIBRARIES: dict[str, tuple[str, ...]] = {
    "click": ("pipeline",),
    "zarr": ("cache",),
    "numcodecs": ("cache",),
    "google_crc32c": ("cache",),
    "sqlite3": ("cache",),
    "torch.distributed": ("stages/base/distributed.py",),
    "ray": ("stages/base/engine.py",),
    "timm": ("stages/models/timm_networks.py",),
    "matplotlib": ("stages/reporting",),
    "jinja2": ("stages/reporting",),
    "lancedb": ("stages/serving/gallery_table.py",),
    "pyarrow": ("stages/base/foreign.py", "stages/serving/gallery_table.py"),
}
"""Library → the only rooms or modules that import it."""

TORCH_FREE = ("cache", "pipeline", *(f"stages/base/{name}.py" for name in
              ("stage", "options", "params", "prepare_options", "training_options", "section",
               "run_folder")))  # fmt: skip
"""Rooms and modules that never import torch."""

BY_STRING = {"pipeline/stages.py": "STAGES"}
"""Modules that may import a module by its name, and why."""


def row(room: str) -> int:
    for number, rooms in enumerate(ROWS):
        if room in rooms:
            return number
    return ROWS.index(("stages/*",))


def target(name: str) -> str | None:
    """The room that an imported name lies in; None for a library, and for the package itself."""
    first, *below = name.split(".")
    if first != "deskpro" or not below or below[0] not in ("cache", "stages", "pipeline"):
        return None
    return "/".join(below[:2]) if below[0] == "stages" and len(below) > 1 else below[0]


def against(module: str, name: str) -> bool:
    """Whether a module must not import a name."""
    mine, other = room(module), target(name)
    if name.startswith(".") or name.split(".")[0] in ("pipeline", "stages", "cache"):
        return True  # relative, or without `deskpro.`
    if other == "stages":  # the folder stands for nothing
        return True
    if other is not None and other != mine and row(other) >= row(mine):
        return True
    if within(name, [OPTIONS]) and mine in ROWS[2]:
        return True
    if within(name, ["torch"]) and (mine in TORCH_FREE or module in TORCH_FREE):
        return True
    return any(
        within(name, [library]) and mine not in places and module not in places
        for library, places in LIBRARIES.items()
    )


def test_imports_run_one_way() -> None:
    check("imports", {
        f"{module}: {name}"
        for module in MODULES for name in imports(parse(module)) if against(module, name)
    })  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("stages/train_student.py", "deskpro.stages.teacher_cache.TeacherCache"),
        ("stages/models/osnet.py", "deskpro.stages.data.views.render_view"),
        ("stages/models/lmbn.py", "deskpro.stages.training.loop.fit"),
        ("stages/training/loop.py", "deskpro.stages.train_student.TrainStudent"),
        ("stages/training/loop.py", "deskpro.stages.targets.teachers.open_teacher"),
        ("stages/losses/triplet.py", "deskpro.stages.base.options.Options"),
        ("stages/base/engine.py", "deskpro.stages.data.index.class_order"),
        ("stages/evaluate.py", "deskpro.pipeline.stages.STAGES"),
        ("stages/evaluate.py", "stages.base.errors.InputError"),
        ("stages/evaluate.py", "deskpro.stages"),
        ("pipeline/cli.py", ".config.load"),
        ("cache/reader.py", "torch.from_numpy"),
        ("cache/reader.py", "deskpro.stages.base.errors.InputError"),
        ("stages/base/options.py", "torch"),
        ("stages/teacher_cache.py", "zarr"),
        ("stages/base/progress.py", "click.echo"),
        ("stages/training/loop.py", "torch.distributed"),
        ("stages/compare.py", "matplotlib.figure.Figure"),
    ],
)
def test_an_import_against_the_direction_is_seen(module: str, name: str) -> None:
    assert against(module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("stages/train_student.py", "deskpro.stages.training.recipe.train"),
        ("stages/data/loader.py", "deskpro.stages.data.views.render_view"),
        ("stages/data/loader.py", "deskpro.cache.file_index.FileIndex"),
        ("stages/preparation/step.py", "deskpro.stages.base.options.Options"),
        ("pipeline/runner.py", "deskpro.stages.base.stage.Stage"),
        ("stages/base/distributed.py", "torch.distributed.nn"),
        ("stages/models/osnet.py", "torch.nn"),
        ("deskpro/__main__.py", "deskpro.pipeline.cli.main"),
    ],
)
def test_an_import_along_the_direction_is_allowed(module: str, name: str) -> None:
    assert not against(module, name)


def test_modules_are_imported_by_name_only_where_that_is_declared() -> None:
    check("imports by string", {
        module for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Name | ast.Attribute | ast.alias)
        and ast.unparse(node).split(".")[-1].split(" ")[0] in ("import_module", "__import__")
        and module not in BY_STRING
    })  # fmt: skip


DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef
)  # fmt: skip
REGISTRATIONS = ("add_command", "add_implicit_resolver")
"""Methods by which click and yaml are told what a module defines."""


def does_work(statement: ast.stmt) -> bool:
    """Whether a statement of a module does more than define names."""
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) not in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(statement, ast.Expr):
        called = statement.value.func if isinstance(statement.value, ast.Call) else None
        registers = isinstance(called, ast.Attribute) and called.attr in REGISTRATIONS
        return not (registers or isinstance(statement.value, ast.Constant))
    return not isinstance(statement, DEFINITIONS)


def test_importing_a_module_only_defines_names() -> None:
    check("work at import", {
        f"{module}: {ast.unparse(statement).splitlines()[0]}"
        for module in MODULES for statement in parse(module).body if does_work(statement)
    })  # fmt: skip


@pytest.mark.parametrize("code", ["print(1)", "for i in x: pass", "with x: pass", "if y: x = 1"])
def test_work_at_import_is_seen(code: str) -> None:
    assert does_work(ast.parse(code).body[0])


def light_modules() -> list[str]:
    """Modules that must load without torch: those of `TORCH_FREE`, the stages and the package."""
    stages = re.findall(r"\bstages\.(\w+)", (REPOSITORY / "pipeline/stages.py").read_text())
    stages += re.findall(r"\bstages import (\w+)", (REPOSITORY / "pipeline/stages.py").read_text())
    light = {*TORCH_FREE, *(f"stages/{stage}.py" for stage in stages), "deskpro"}
    return [module for module in MODULES if {module, room(module)} & light]


LOADER = """
import sys
from importlib import import_module
WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.system", "subprocess.Popen",
          "socket.connect", "socket.bind", "os.chdir"}
def audit(event, arguments):
    if event in WRITES or event == "open" and set(str(arguments[1])) & set("wax+"):
        print("work", current, event, arguments[0])
def load(name):
    global current
    current = name
    try:
        import_module(name)
    except ImportError as error:
        print("failed", name, error)
sys.modules["torch"] = None  # whoever imports it fails
sys.addaudithook(audit)
for name in sys.argv[1:]:
    load(name)
"""


def test_light_modules_load_without_torch_and_leave_no_trace() -> None:
    names = {
        f"deskpro.{module}".removesuffix(".py").replace("/", ".")
        .removesuffix(".__init__").replace("deskpro.deskpro", "deskpro"): module
        for module in light_modules()
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-B", "-c", LOADER, *names],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    check("traces at import", {names[name] for what, name, _ in lines if what == "work"})
    check("torch at import", {names[name] for what, name, _ in lines if what == "failed"})
    assert not done.stderr


def test_help_loads_neither_torch_nor_pandas_nor_zarr() -> None:
    code = (
        "import sys, deskpro.pipeline.cli\n"
        "sys.argv = ['deskpro', '--help']\n"
        "try: deskpro.pipeline.cli.main()\n"
        "except SystemExit: sys.exit(bool({'torch', 'pandas', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
