"""What each part of the distillation is worth: the same student without and with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline import config, plan
from pipeline.run_folder import RunFolder
from stages.files import write_aside
from stages.options import Options
from stages.progress import say, table

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {"kd_loss.enable": False, "mse.mse_weight": 0.0},
    "kd": {"mse.mse_weight": 0.0},
    "attention": {"kd_loss.enable": False},
    "both": {},
}
"""Variant → what it changes in the recipe."""


def run(
    options: Options,
    folder: RunFolder,
    *,
    variants: Iterable[str] = tuple(VARIANTS),
    seeds: int = 3,
    force: bool = False,
) -> pd.DataFrame:
    """Train and evaluate every variant with every seed from one cache; continue where it stopped.

    Returns a row per variant, seed and stream: variant, seed, stream, mAP, rank1 (shares in 0..1).
    Seeds count up from `train_student.seed`. The run's own student serves as the variant that has
    its options. The teacher, seeing HR faces, is the last variant: the upper reference of `face`.
    """
    plan.run_stage("teacher-cache", options, folder, chain=True)
    rows: list[dict[str, object]] = []
    for variant in variants:
        for seed in range(options.train_student.seed, options.train_student.seed + seeds):
            changed = config.override(options, VARIANTS[variant] | {"train_student.seed": seed})
            home = folder
            if changed != options:
                home = RunFolder(folder.path / "ablation" / f"{variant}-{seed}", folder.path)
            say(f"ablation: {variant}, seed {seed}, in {home.path}")
            plan.run_stage("train-student", changed, home, force=force)
            plan.run_stage("eval", changed, home, force=force)
            rows += _rows(home, variant, seed)
    teacher = RunFolder(folder.path / "ablation" / "teacher", folder.path)
    plan.evaluate(options, plan.teacher_weights(options, folder), teacher)
    rows += _rows(teacher, "teacher", options.train_teacher.seed)
    return pd.DataFrame(rows)


def _rows(home: RunFolder, variant: str, seed: int) -> list[dict[str, object]]:
    streams = json.loads(home.metrics.read_text())["streams"]
    return [
        {
            "variant": variant,
            "seed": seed,
            "stream": stream,
            "mAP": numbers["mAP"],
            "rank1": numbers["cmc"][0],
        }
        for stream, numbers in streams.items()
    ]


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n−1) over seeds, in percent, and the gain over plain.

    One row per variant and stream, with the columns variant, stream, seeds, mAP, mAP_sd, rank1,
    rank1_sd, gain (of mAP over plain; nan without plain), pooled_sd (of the two mAPs). An sd of one
    seed is nan.
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
    plain = table[table["variant"] == "plain"].set_index("stream").reindex(table["stream"])
    table["gain"] = table["mAP"] - plain["mAP"].to_numpy()
    table["pooled_sd"] = ((table["mAP_sd"] ** 2 + plain["mAP_sd"].to_numpy() ** 2) / 2) ** 0.5
    return table


def verdict(row: pd.Series) -> str:
    """What a gain over plain is worth, measured by the spread over seeds."""
    if row["variant"] in ("plain", "teacher") or pd.isna(row["gain"]):
        return ""
    if pd.isna(row["pooled_sd"]):
        return f"{row['gain']:+.1f} (one seed: no spread)"
    clear = abs(row["gain"]) > 2 * row["pooled_sd"]
    word = ("helps" if row["gain"] > 0 else "harms") if clear else "no clear effect"
    return f"{row['gain']:+.1f} ({word}; pooled sd {row['pooled_sd']:.1f})"


def write(rows: pd.DataFrame, folder: RunFolder, command: str) -> Path:
    """`ablation.json` (the rows) and `ablation.md` (the table) into the run folder; prints it."""
    columns = ("variant", "stream", "seeds", "mAP %", "rank-1 %", "mAP over plain")
    lines = []
    for _, row in summarise(rows).iterrows():
        lines.append(
            (
                row["variant"],
                row["stream"],
                str(row["seeds"]),
                _spread(row["mAP"], row["mAP_sd"]),
                _spread(row["rank1"], row["rank1_sd"]),
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
    with write_aside(folder.path / "ablation.md") as aside:
        aside.write_text("\n".join(text) + "\n")
    with write_aside(folder.path / "ablation.json") as aside:
        aside.write_text(json.dumps(rows.to_dict("records"), indent=1) + "\n")
    return folder.path / "ablation.md"


def _spread(mean: float, sd: float) -> str:
    return f"{mean:.1f}" if pd.isna(sd) else f"{mean:.1f} ± {sd:.1f}"
