"""Where a prompt's question, system prompt and sentences stand."""
