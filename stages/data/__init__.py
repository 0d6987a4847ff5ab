"""Dataset index, layouts, views, sampler, loader and the synthetic benchmark."""
