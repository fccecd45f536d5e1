"""Grades and findings for people and other tools."""
