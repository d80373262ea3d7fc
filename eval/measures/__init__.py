"""Measures of answers, rankings and groundedness, and intervals of their means."""
