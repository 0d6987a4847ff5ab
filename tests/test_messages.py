"""The sentences that the pipeline says, in one golden file.

`python -m tests.test_messages` writes `tests/messages.txt` again; read the difference before you
commit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from deskpro.pipeline import messages, tables
from deskpro.pipeline.summaries import summarise
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Reason, Result, Stage

GOLDEN = Path(__file__).with_name("messages.txt")


class Example(Stage):
    """A stage that makes one file."""

    name = "train-student"
    params = ("kd_loss",)

    def deps(self) -> list[Dep]:
        return []

    def outs(self) -> list[Path]:
        return [self.folder.student]

    def run(self, job: Job) -> Result:
        return Result()


REASONS = (
    Reason("no-record", "train-student"),
    Reason("out", "student.safetensors", {"student.safetensors": "0" * 64}, {}),
    Reason("param", "kd_loss.T", 5.0, 1.0),
    Reason("param", "student.backbone", None, "osnet"),
    Reason("param", "cache.dtype", "float16", None),
    Reason("dep", "imgs of train", "0" * 64, "1" * 64),
    Reason("dep", "student.pre_train", None, "1" * 64),
    Reason("dep", "student.pre_train", "1" * 64, None),
)


def sentences() -> Iterator[str]:
    folder = RunFolder(Path("runs/demo"))
    stage, before = Example(Options(), folder), Example(Options(), folder)
    for reason in REASONS:
        yield messages.reason(reason, "train-student")
    yield messages.fresh(stage)
    yield messages.stale(stage, REASONS[2:4])
    yield messages.updates(stage, REASONS[2:3])
    yield messages.used_although(stage, REASONS[5:6])
    yield messages.runs_first(stage, before)
    yield messages.never_done(stage)
    yield messages.one_process("eval", 2)
    yield messages.done(stage, 75)
    messages.OPTIONS[:] = [
        "--config", "configs/my recipe.yaml", "--run", "runs/x", "--from", "runs/demo",
        "--set", "kd_loss.T=1",
    ]  # fmt: skip
    yield messages.command("teacher-cache --force")
    messages.OPTIONS.clear()
    for difference, p in ((2.5, 0.001), (-2.5, 0.001), (2.5, 0.01), (1.5, 0.001)):
        yield tables.verdict(difference, p)
    rows = pd.DataFrame(
        [
            {
                "variant": variant,
                "replicate": replicate,
                "run": "",
                "protocol": "market",
                "stream": "all",
                "queries": 57,
                "mAP": mean + 0.01 * replicate + 0.001 * (replicate == number),
                "rank1": 0.5,
            }
            | dict.fromkeys(("parameters", "macs", "minutes"), 1)
            for number, (variant, mean) in enumerate((("plain", 0.25), ("both", 0.3), ("kd", 0.25)))
            for replicate in (0, 1, 2)
        ]
    )
    found = summarise(rows, lambda _: "plain", same={("kd", "all")})
    table = tables.ablation_table(found, "plain")
    facts = {"Replicates": "3", "made by": "`deskpro ablation --replicates 3`"}
    yield tables.ablation_page(table, facts, ["`both`, all − body: +1.0 points of mAP."])
    plain, both, _ = found.to_dict("records")
    yield messages.gain(both, plain, 2.2)


def text() -> str:
    return "\n".join(sentences()) + "\n"


def test_the_messages_are_those_of_the_golden_file() -> None:
    assert text() == GOLDEN.read_text(encoding="utf-8")


def test_the_messages_have_no_private_words() -> None:
    private = ("isn't what", "speaks of", "says otherwise", "mend", "begun", "anew", "silently")
    assert not [word for word in private if word in text()]


if __name__ == "__main__":
    GOLDEN.write_text(text(), encoding="utf-8")
