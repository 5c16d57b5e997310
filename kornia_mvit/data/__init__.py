"""Batches and the datasets that they come from."""
