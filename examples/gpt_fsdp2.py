"""A small GPT under FSDP2: rates by kind of parameter, clipping and averaged weights in the same launches.

Run: torchrun --nproc-per-node 2 examples/gpt_fsdp2.py
"""

import argparse
import copy
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import stackelberg_fused as sf

VOCABULARY, CONTEXT, WIDTH = 64, 32, 64


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.blocks = nn.ModuleList(copy.deepcopy(layer) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        x = self.embed(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.lm_head(self.norm(x))


def counting(rank: int, step: int, device: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(1000 * step + rank)
    first, stride = torch.randint(VOCABULARY, (2, 16, 1), generator=random)
    return ((first + (1 + stride % 3) * torch.arange(CONTEXT + 1)) % VOCABULARY).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group()
    rank = dist.get_rank()
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.manual_seed(0)  # the same weights on all ranks
    model = GPT().to(device)
    for module in (*model.blocks, model):
        fully_shard(module)
    groups = sf.kinds(model, {"embedding": {"lr": 1e-2}}, head="lm_head")
    optimizer = sf.StackelbergAdamW(groups, lr=2e-3, max_grad_norm=1.0, ema_decay=0.9)
    for step in range(steps):
        ids = counting(rank, step, device)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step(zero_grad=True)
        if rank == 0 and (step + 1) % (steps // 3) == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, {optimizer.launches} launches")
    where = [tempfile.mkdtemp()]
    dist.broadcast_object_list(where, 0)
    weights, state = get_state_dict(model, optimizer)
    for access in (dcp.save, dcp.load):
        access({"model": weights, "optimizer": state}, checkpoint_id=where[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    print(f"rank {rank} saved and loaded {where[0]}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
