"""The machine: mesh, processes, signals, memory, files, the command line."""
