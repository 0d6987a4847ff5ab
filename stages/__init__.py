"""The stages of the pipeline, one module each, and the blocks they are made of."""
