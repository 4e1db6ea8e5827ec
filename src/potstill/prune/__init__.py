"""Where small students come from: importance, removal, and the loop prune, distil, repeat."""

from potstill.prune.groups import Group, Plan, Slice, Structure
from potstill.prune.removal import masked, removed
from potstill.prune.settings import PruneConfig, TargetConfig
from potstill.prune.structure import find_structure

__all__ = [
    "Group",
    "Plan",
    "PruneConfig",
    "Slice",
    "Structure",
    "TargetConfig",
    "find_structure",
    "masked",
    "removed",
]
