"""Files and stdin become text."""
