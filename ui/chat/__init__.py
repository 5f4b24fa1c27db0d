"""What the chat does, without a terminal: conversations, commands, keys, and what fits into the context."""
