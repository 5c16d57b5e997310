"""Predictions of whole images: windows, test-time augmentation, engines."""
