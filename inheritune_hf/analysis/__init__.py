"""See which layers are lazy, what blocks change, how many layers are worth keeping, and which."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .attention import watch_attention
    from .collapse import NEAR_RANK_ONE, SHARE, SHARES, approximate_rank, column_mass
    from .influence import BlockScores, angular_distances, block_influence, loss_without
    from .measurement import measure_collapse, scores_folder
    from .recommendation import Recommendation, layer_order, measure_order, recommend_layers, resolve_measured
    from .report import AttentionMap, CollapseReport, LayerScores, Uniform, compare_laziness
    from .sequences import default_sequences, paper_tokens, sample_sequences
    from .untrained import UntrainedLosses, measure_untrained
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
    "UntrainedLosses",
    "angular_distances",
    "approximate_rank",
    "block_influence",
    "column_mass",
    "compare_laziness",
    "default_sequences",
    "layer_order",
    "loss_without",
    "measure_collapse",
    "measure_order",
    "measure_untrained",
    "paper_tokens",
    "recommend_layers",
    "resolve_measured",
    "sample_sequences",
    "scores_folder",
    "watch_attention",
]
