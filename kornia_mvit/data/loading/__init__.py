"""Samplers, loaders and shards."""
