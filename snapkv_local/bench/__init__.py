"""Measures speed and memory; makes models of a real shape with random weights."""
