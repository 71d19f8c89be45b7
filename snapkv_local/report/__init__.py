"""What reports have in common: byte sizes in words, HTML templates."""
