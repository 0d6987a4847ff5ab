"""From body images to faces and masks, in steps that can be exchanged."""
