"""What `deskpro --help` shows: the commands in groups, in the order of use, with examples."""

from __future__ import annotations

from typing import Any

import click

SECTIONS = {
    "Start": ("demo", "init", "options", "check-data"),
    "Stages, in order": (
        "prepare",
        "train-teacher",
        "teacher-cache",
        "train-student",
        "eval",
        "report",
        "all",
    ),
    "Several students": ("ablation", "sweep", "compare"),
    "Tools": ("export", "gallery", "cache", "embed", "import-checkpoint", "make-benchmark"),
}
"""Title → its commands."""

EXAMPLES = {
    "ablation": "deskpro ablation --config demo --replicates 5 --jobs 2",
    "all": "deskpro all --config demo --update",
    "cache": "deskpro cache verify runs/demo",
    "cache audit": "deskpro cache audit runs/demo --samples 64",
    "cache import": "deskpro cache import mine.npz --teacher mine --run runs/demo",
    "cache info": "deskpro cache info runs/demo",
    "cache pack": "deskpro cache pack runs/demo demo-targets.zip",
    "cache plan": "deskpro cache plan --samples 4e6 --views 16 --run runs/demo",
    "cache render": "deskpro cache render runs/demo rendered --kinds hr_face,imgs --views 0,1",
    "cache unpack": "deskpro cache unpack demo-targets.zip --run runs/other",
    "cache verify": "deskpro cache verify runs/demo/targets.zarr",
    "cache views": "deskpro cache views runs/demo --csv views.csv",
    "check-data": "deskpro check-data --config celeb --set data.root=/data/celeb",
    "compare": "deskpro compare runs/demo runs/T1",
    "demo": "deskpro demo --config demo",
    "embed": "deskpro embed --checkpoint t.pth --data celeb --split query --out q.npz",
    "eval": "deskpro eval --run runs/demo --set eval.rerank.enable=true",
    "export": "deskpro export runs/demo --streams body",
    "gallery": "deskpro gallery search people query.jpg",
    "gallery add": "deskpro gallery add people photos --student runs/demo --camera door",
    "gallery check": "deskpro gallery check people",
    "gallery info": "deskpro gallery info people",
    "gallery list": "deskpro gallery list people --camera door --format csv",
    "gallery remove": "deskpro gallery remove people --before 2024-05-01",
    "gallery search": "deskpro gallery search people query.jpg --after 2024-05-01 --top 20",
    "import-checkpoint": "deskpro import-checkpoint published.ckpt --out models/celeb",
    "init": "deskpro init celeb mine.yaml",
    "make-benchmark": "deskpro make-benchmark --out data/other --set seed=1",
    "options": "deskpro options kd_loss",
    "prepare": "deskpro prepare --config own --set prepare.root=photos",
    "report": "deskpro report runs/demo --failed 20",
    "sweep": "deskpro sweep --config demo --grid kd_loss.T=1,2,5 --seeds 3 --jobs 2",
    "teacher-cache": "deskpro teacher-cache --config demo --set cache.views=16",
    "train-student": "deskpro train-student --run runs/T1 --from runs/demo --set kd_loss.T=1",
    "train-teacher": "deskpro train-teacher --config demo",
}
"""Command → a call of it, at the end of its help."""


_LARGEST = 10**9


class Commands(click.Group):
    """A group whose help lists commands by section, and ends each command's own with an example."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, command in self.commands.items():
            _add_example(command, name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        super().add_command(cmd, name)
        _add_example(cmd, name or str(cmd.name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self._sections().values() for name in names]

    def _sections(self) -> dict[str, list[str]]:
        """As `SECTIONS`; a command that is in none comes last."""
        found = {
            title: [name for name in names if name in self.commands]
            for title, names in SECTIONS.items()
        }
        others = self.commands.keys() - {name for names in found.values() for name in names}
        return found | ({"Others": sorted(others)} if others else {})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        column = max(map(len, self.commands))
        width = formatter.width - column - 6
        for title, names in self._sections().items():
            with formatter.section(title):
                helps = [self.commands[name].get_short_help_str(width) for name in names]
                formatter.write_dl(list(zip((n.ljust(column) for n in names), helps, strict=True)))


class Between(click.IntRange):
    """An integer in a range that the help says in words."""

    name = "integer"

    def _describe_range(self) -> str:
        if self.max is None:
            return f"{self.min} or more"
        return f"{self.min} to {self.max}"


class Whole(click.ParamType):
    """A whole number above 0, also as 4e6."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails with what is allowed."""
        try:
            found = float(value)
            if 1 <= found <= _LARGEST and found.is_integer():
                return int(found)
        except ValueError:
            pass
        self.fail(f"{value!r} must be a whole number from 1 to {_LARGEST:,}, such as 4e6.", param)


def _add_example(command: click.Command, words: str) -> None:
    """End the help of a command, and of those below it, with an example where there is one."""
    if words in EXAMPLES:
        command.epilog = f"\b\nExample:\n  {EXAMPLES[words]}"
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            _add_example(below, f"{words} {name}")
