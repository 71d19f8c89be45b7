"""What a prefill kept: of which tokens, in which layers and heads."""
