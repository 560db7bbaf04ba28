"""What a run is: its config, its family, its program, its folder, what it started from."""
