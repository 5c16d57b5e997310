"""Networks. Nothing here knows of data or training."""
