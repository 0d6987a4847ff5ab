"""A small SegFormer, trained for a moment on label maps of the synthetic benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from deskpro.stages.preparation.schemes import SCHEMES

SIZE = {"height": 128, "width": 64}


def train_segformer(root: Path, out: Path, steps: int) -> None:
    """Train on the training split of a benchmark; save in the library's format."""
    names = SCHEMES["atr"].names
    bodies = sorted((root / "imgs" / "bounding_box_train").glob("*.jpg"))
    maps = [root / "labels" / "bounding_box_train" / f"{body.stem}.png" for body in bodies]
    processor = SegformerImageProcessor(size=SIZE, do_reduce_labels=False)
    pixels = processor(images=[Image.open(b) for b in bodies], return_tensors="pt")["pixel_values"]
    resized = [Image.open(m).resize((64, 128), Image.Resampling.NEAREST) for m in maps]
    labels = torch.from_numpy(np.stack([np.asarray(m) for m in resized])).long()

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=len(names), id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], decoder_hidden_size=64,
        num_attention_heads=[1, 2, 4, 4], patch_sizes=[3, 3, 3, 3], strides=[2, 2, 2, 2],
        classifier_dropout_prob=0.0, hidden_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).train()
    rate = 4e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randperm(len(bodies), generator=draw)[:8]
        batch, truth = pixels[rows], labels[rows]
        if torch.rand((), generator=draw) < 0.5:
            batch, truth = batch.flip(3), truth.flip(2)
        loss = model(pixel_values=batch, labels=truth).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(out)
    processor.save_pretrained(out)
