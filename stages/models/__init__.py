"""OSNet, LMBN, spatial attention, teacher, student and their weights on disk."""
