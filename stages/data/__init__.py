"""Dataset index, layouts, views, sampler, loader and the made benchmark."""
