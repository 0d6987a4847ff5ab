"""The target cache: arrays keyed by (sample, view) in zarr, written in blocks, read mapped.

Knows nothing of re-identification and nothing of torch.
"""
