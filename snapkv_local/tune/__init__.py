"""Finds settings and the smallest budget for a user's own kind of document."""
