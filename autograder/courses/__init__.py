"""The nbgrader course: what it collects, its gradebook, its feedback."""
