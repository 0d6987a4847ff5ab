"""What a part of the distillation is worth: the same student without and with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from deskpro.cache.files import write_aside
from deskpro.pipeline import runner as running
from deskpro.pipeline import stages as plan
from deskpro.pipeline.studies import Student, Variants, members, primary_streams, train_and_evaluate
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import table
from deskpro.stages.base.run_folder import RunFolder

STUDIES: dict[str, Variants] = {
    "parts": {
        "plain": {"kd_loss.enable": False, "mse.mse_weight": 0.0},
        "kd": {"mse.mse_weight": 0.0},
        "attention": {"kd_loss.enable": False},
        "both": {},
    },
    "views": {
        "unmatched": {"train_student.fresh_views": True},
        "V=1": {"train_student.views": 1},
        "V=4": {"train_student.views": 4},
        "V=16": {"train_student.views": 16},
        "live": {"train_student.fresh_views": True, "train_student.live_teacher": True},
    },
    "storage": {
        "float16": {},
        "int8": {"cache.logits_dtype": "int8"},
    },
}
"""Study → variant → what it changes in the recipe; gains are counted from the first variant."""
BASES = tuple(next(iter(variants)) for variants in STUDIES.values())


def run(
    options: Options,
    folder: RunFolder,
    *,
    study: str = "parts",
    variants: Iterable[str] | None = None,
    seeds: int = 3,
    jobs: int = 1,
    force: bool = False,
) -> pd.DataFrame:
    """Train and evaluate a study's variants with every seed from one cache; continue if stopped.

    A variant that changes the cache has one of its own, of the same teacher.

    Returns a row per variant, seed and stream: variant, seed, stream, mAP, rank1 (shares in 0..1).
    Seeds count up from `train_student.seed`. The run's own student serves as the variant that has
    its options. The teacher, seeing HR faces, is the last variant: the upper reference of `face`.
    `jobs` students train at a time, each with its share of the cores.
    """
    off = {
        "kd_loss.enable": not options.kd_loss.enable or options.kd_loss.alpha == 0,
        "mse.mse_weight": options.mse.mse_weight == 0,
        "forward_mode": options.forward_mode != "all",
    }
    if any(off.values()):
        raise InputError(
            "an ablation switches parts of the recipe off one by one, so all must be on: "
            f"{', '.join(name for name, is_off in off.items() if is_off)} says otherwise"
        )
    most = max(int(str(v.get("train_student.views", 1))) for v in STUDIES[study].values())
    if options.cache.views < most:
        raise InputError(
            f"the study of {study} needs {most} views a sample, cache.views is "
            f"{options.cache.views}: --set cache.views={most}"
        )
    running.run_stage("teacher-cache", options, folder, chain=True)
    chosen = {variant: STUDIES[study][variant] for variant in variants or STUDIES[study]}
    students = members(options, folder, chosen, seeds)
    train_and_evaluate(students, jobs, force)
    rows = [row for student in students for row in _rows(student)]
    teacher = RunFolder(folder.path / "ablation" / "teacher", folder.path)
    plan.evaluate(options, plan.teacher_weights(options, folder), teacher, "teacher")
    rows += _rows(Student("teacher", options.train_teacher.seed, options, teacher))
    return pd.DataFrame(rows)


def _rows(student: Student) -> list[dict[str, object]]:
    streams = primary_streams(student)
    return [
        {
            "variant": student.variant,
            "seed": student.seed,
            "stream": stream,
            "mAP": numbers["mAP"],
            "rank1": numbers["cmc"][0],
        }
        for stream, numbers in streams.items()
    ]


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n−1) over seeds, in percent, and the gain over the base.

    One row per variant and stream, with the columns variant, stream, seeds, mAP, mAP_sd, rank1,
    rank1_sd, gain (of mAP over the study's first variant; nan without it), pooled_sd (of the two
    mAPs). An sd of one seed is nan.
    """
    table = (
        rows.assign(mAP=100 * rows["mAP"], rank1=100 * rows["rank1"])
        .groupby(["variant", "stream"], sort=False)
        .agg(
            seeds=("seed", "size"),
            mAP=("mAP", "mean"),
            mAP_sd=("mAP", "std"),
            rank1=("rank1", "mean"),
            rank1_sd=("rank1", "std"),
        )
        .reset_index()
    )
    base = table[table["variant"].isin(BASES)].set_index("stream").reindex(table["stream"])
    table["gain"] = table["mAP"] - base["mAP"].to_numpy()
    table["pooled_sd"] = ((table["mAP_sd"] ** 2 + base["mAP_sd"].to_numpy() ** 2) / 2) ** 0.5
    return table


def verdict(row: pd.Series) -> str:
    """What a gain over the base is worth, measured by the spread over seeds."""
    if row["variant"] in (*BASES, "teacher") or pd.isna(row["gain"]):
        return ""
    if pd.isna(row["pooled_sd"]):
        return f"{row['gain']:+.1f} (one seed: no spread)"
    clear = abs(row["gain"]) > 2 * row["pooled_sd"]
    word = ("helps" if row["gain"] > 0 else "harms") if clear else "no clear effect"
    return f"{row['gain']:+.1f} ({word}; pooled sd {row['pooled_sd']:.1f})"


def write(rows: pd.DataFrame, folder: RunFolder, study: str, command: str) -> Path:
    """The rows as JSON and the table as Markdown into the run folder; prints the table.

    They are called `ablation` for the study of parts, `ablation-<study>` for another.
    """
    base = next(iter(STUDIES[study]))
    columns = ("variant", "stream", "seeds", "mAP %", "rank-1 %", f"mAP over {base}")
    lines = []
    for _, row in summarise(rows).iterrows():
        lines.append(
            (
                row["variant"],
                row["stream"],
                str(row["seeds"]),
                spread(row["mAP"], row["mAP_sd"]),
                spread(row["rank1"], row["rank1_sd"]),
                verdict(row),
            )
        )
    table("ablation", columns, lines)
    seeds = ", ".join(map(str, sorted(set(rows.loc[rows["variant"] != "teacher", "seed"]))))
    text = [
        f"Mean ± standard deviation over the seeds {seeds}; Market rule; made by `{command}`.",
        "A gain helps (harms) where it exceeds twice the pooled standard deviation. The teacher",
        "sees HR faces: an upper reference for `face`, from one seed.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(line) + " |" for line in lines),
    ]
    written = folder.path / ("ablation.md" if study == "parts" else f"ablation-{study}.md")
    with write_aside(written) as aside:
        aside.write_text("\n".join(text) + "\n")
    with write_aside(written.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(rows.to_dict("records"), indent=1) + "\n")
    return written


def spread(mean: float, sd: float) -> str:
    """A mean over seeds with its standard deviation; alone where there is one seed."""
    return f"{mean:.1f}" if pd.isna(sd) else f"{mean:.1f} ± {sd:.1f}"
