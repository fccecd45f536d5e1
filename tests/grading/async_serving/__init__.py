"""The suite of the assignment `async_serving`."""
