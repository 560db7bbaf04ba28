"""What a person looks at: reports, tables, plots, animations."""
