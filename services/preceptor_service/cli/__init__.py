"""The `preceptor` command, a module per command that is more than a few lines."""
