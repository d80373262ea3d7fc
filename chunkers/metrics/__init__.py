"""Intrinsic measures of a segmentation: one measure, one file."""
