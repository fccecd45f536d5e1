"""Where student code runs: isolation levels and what each covers."""
