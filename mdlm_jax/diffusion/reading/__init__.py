"""Reading out: only the positions that are needed, in slots, and what is drawn there."""
