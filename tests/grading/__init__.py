"""Suites: one package per assignment, with the checks, their points and their oracles."""
