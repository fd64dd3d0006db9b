"""Time and memory of one fine-tuning step of MAE's ViT-L, with 16 of 24 blocks frozen and with none.

    python bench/finetune.py                                   about four minutes on an idle core
    python bench/finetune.py --out docs/benchmarks/finetune.md

Full-size network with random weights, 224 x 224 pixels, float32 on the CPU, one thread, one process per row. Seconds
are CPU time; memory is the peak resident memory of the process, including 1.2 GB of weights.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

ROWS = (  # blocks frozen, what is before them frozen, recomputed, frames
    (16, True, False, 4),
    (16, True, True, 4),
    (0, False, False, 4),
    (0, False, True, 4),
)


def measure(frozen: int, embedding: bool, recompute: bool, batch: int) -> tuple[float, float, float]:
    """CPU seconds of a step, peak memory in GB, millions of tuned parameters."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEModel

    from affectrace import losses
    from affectrace.features.image import Backbone
    from affectrace.finetune.config import FinetuneConfig
    from affectrace.finetune.encoder import LAYER_GROUPS, checkpoint_blocks, freeze, parameter_groups, training_mode

    torch.set_num_threads(1)
    sizes = ViTMAEConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    sizes.mask_ratio = 0.0
    backbone = Backbone("vit-mae", ViTMAEModel(sizes))
    head = torch.nn.Linear(1024, 2)
    network = torch.nn.Sequential(backbone, head)
    groups = LAYER_GROUPS["vit-mae"](backbone.network)
    freeze(network, groups, embedding=embedding, n_blocks=frozen)
    if recompute:
        checkpoint_blocks(groups)
    c = FinetuneConfig()
    optimizer = torch.optim.AdamW(parameter_groups(network, groups, decay=1.0, weight_decay=c.weight_decay))
    pixels, target = torch.randn(batch, 3, 224, 224), torch.rand(batch, 1, 2)
    spent = 0.0
    for _ in range(2):  # the first step creates the optimizer's state
        began = time.process_time()
        training_mode(network, groups)
        optimizer.zero_grad()
        losses.loss(c.loss, network(pixels)[:, None], target).backward()
        optimizer.step()
        spent = time.process_time() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return spent, most, sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        frozen, embedding, recompute, batch = ROWS[args.row]
        print(*measure(frozen, embedding, recompute, batch))
        return
    lines = [
        "# Fine-tuning ViT-L: cost of a step",
        "",
        "    python bench/finetune.py --out docs/benchmarks/finetune.md",
        "",
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread, float32; "
        "full-size network with random weights.",
        "",
        "| frozen | gradient checkpointing | frames/step | tuned, millions | s/step | s/frame | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for i, (frozen, embedding, recompute, batch) in enumerate(ROWS):
        command = [sys.executable, __file__, "--row", str(i)]
        made = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        spent, most, tuned = (float(x) for x in made[-3:])
        what = f"patch embedding, {frozen} of 24 blocks" if embedding else "nothing"
        recomputed = "yes" if recompute else "no"
        lines.append(
            f"| {what} | {recomputed} | {batch} | {tuned:.1f} | {spent:.1f} | {spent / batch:.2f} | {most:.1f} |"
        )
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
