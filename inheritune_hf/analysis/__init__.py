"""See the lazy layers: which layers' attention has collapsed, what blocks change, how many are worth keeping."""

from .attention import watching_attention
from .collapse import (
    NEAR_RANK_ONE,
    SHARES,
    approximate_rank,
    avg_mass,
    avg_rank,
    column_mass,
    is_lazy_group,
    is_lazy_layer,
    max_rank,
    rank_of_batch_mean,
)
from .influence import BlockScores, angular_distances, block_influence, loss_without
from .measurement import measure_collapse
from .recommendation import Recommendation, is_measured, layers_by_measure, recommend_layers, resolve_measured
from .report import AttentionMap, CollapseReport, LayerScores, LazinessComparison, compare_laziness

__all__ = [
    "NEAR_RANK_ONE",
    "SHARES",
    "AttentionMap",
    "BlockScores",
    "CollapseReport",
    "LayerScores",
    "LazinessComparison",
    "Recommendation",
    "angular_distances",
    "approximate_rank",
    "avg_mass",
    "avg_rank",
    "block_influence",
    "column_mass",
    "compare_laziness",
    "is_lazy_group",
    "is_lazy_layer",
    "is_measured",
    "layers_by_measure",
    "loss_without",
    "max_rank",
    "measure_collapse",
    "rank_of_batch_mean",
    "recommend_layers",
    "resolve_measured",
    "watching_attention",
]
