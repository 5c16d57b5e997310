"""Pure functions on tensors and numbers: nothing here holds state or knows of models, data or training."""
