"""Evaluation: features of images, kept in a store, and the scores made of them."""
