"""Models of a real shape with random weights: speed and memory without a download."""
