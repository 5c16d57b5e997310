"""Weights: published ones by name, checkpoints of any layout in and out, folders and repositories of a hub."""

from kornia_mvit.weights.checkpoints import load_checkpoint, read_weights, save_checkpoint
from kornia_mvit.weights.files import CheckpointError, read_checkpoint
from kornia_mvit.weights.hub import push_to_hub, save_pretrained
from kornia_mvit.weights.registry import class_names, find_weights, from_pretrained, list_weights

__all__ = [
    "CheckpointError",
    "class_names",
    "find_weights",
    "from_pretrained",
    "list_weights",
    "load_checkpoint",
    "push_to_hub",
    "read_checkpoint",
    "read_weights",
    "save_checkpoint",
    "save_pretrained",
]
