"""Ranking of a gallery for every query, and the numbers that the field reads off it."""
