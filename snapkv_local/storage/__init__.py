"""Documents and conversations in files; nothing here knows a Llama."""
