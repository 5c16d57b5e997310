"""Readers of annotations, one file a format."""
