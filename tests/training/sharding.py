"""FSDP2 on processors, for tests: accelerate shards on accelerators only, and trains by DDP elsewhere."""

from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


def shard_on_processors():
    """Let accelerate shard by FSDP in processes on CPU as it does in processes on GPU."""
    begin = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = patched


class Shards(TrainerCallback):
    """See whether each process trains parts of parameters only."""

    def __init__(self):
        self.seen = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            self.seen.add(isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor"))


def communicate_by_gloo():
    """Let DeepSpeed communicate by gloo alone: it would compile shared-memory code of its own first, for a minute."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
