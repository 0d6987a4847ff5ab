"""Targets: computed by a teacher, stored in the cache, read by a student."""
