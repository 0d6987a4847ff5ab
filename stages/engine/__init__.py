"""What stages have in common: the training loop, its schedule, and descriptors of pictures."""
