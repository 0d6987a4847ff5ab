"""From body pictures to faces and masks, in steps that can be exchanged."""
