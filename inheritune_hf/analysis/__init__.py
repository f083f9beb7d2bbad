"""See which layers are lazy, what blocks change, how many layers are worth keeping, and which."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .attention import watching_attention
    from .collapse import (
        NEAR_RANK_ONE,
        SHARE,
        SHARES,
        approximate_rank,
        column_mass,
        rank_of_batch_mean,
    )
    from .influence import BlockScores, angular_distances, block_influence, loss_without
    from .measurement import (
        AttentionMap,
        CollapseReport,
        LayerScores,
        Uniform,
        compare_laziness,
        default_sequences,
        leading_sequences,
        measure_collapse,
        paper_tokens,
        scores_folder,
    )
    from .recommendation import Recommendation, layers_by_measure, recommend_layers, resolve_measured
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "NEAR_RANK_ONE",
    "SHARE",
    "SHARES",
    "AttentionMap",
    "BlockScores",
    "CollapseReport",
    "LayerScores",
    "Recommendation",
    "Uniform",
    "angular_distances",
    "approximate_rank",
    "block_influence",
    "column_mass",
    "compare_laziness",
    "default_sequences",
    "layers_by_measure",
    "leading_sequences",
    "loss_without",
    "measure_collapse",
    "paper_tokens",
    "rank_of_batch_mean",
    "recommend_layers",
    "resolve_measured",
    "scores_folder",
    "watching_attention",
]
