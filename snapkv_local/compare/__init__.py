"""Records of measurements side by side: tables, plots, a page."""
