"""What the caller asked for: inputs, target and options, each checked once."""
