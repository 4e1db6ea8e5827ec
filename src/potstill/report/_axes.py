"""What the parts are called that pruning removes."""

__all__ = ["AXES"]

AXES = {
    "layers": "layers",
    "channels": "channels",
    "mlp": "neurons",
    "heads": "heads",
    "kv_groups": "key-value groups",
    "hidden": "hidden width",
}
