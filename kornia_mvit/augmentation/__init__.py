"""Augmentation and preprocessing of images together with their targets. Nothing here knows of models."""
