"""One submission: the judge, its view of the worker, what it measures."""
