"""The suite of the assignment `basic_api`."""
