"""llama_cpp.Llama with compressed prompts: the drop-in, and all that knows a Llama."""
