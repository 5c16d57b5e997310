"""Pictures of batches, predictions and runs."""
