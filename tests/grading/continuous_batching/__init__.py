"""The suite of the assignment `continuous_batching`."""
