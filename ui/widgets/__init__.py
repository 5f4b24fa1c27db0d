"""Parts of the chat's screens, one a file."""
