"""Real clients, each doing the same on a plain Maildir and on a mount."""
