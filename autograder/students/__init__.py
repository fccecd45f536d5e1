"""What students run: `check(...)`, `autograder check`, the paired files."""
