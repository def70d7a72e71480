"""The command line: options, commands, help, and the entry point."""
