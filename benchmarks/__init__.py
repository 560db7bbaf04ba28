"""What is timed; each module is a command that prints one JSON line a figure."""
