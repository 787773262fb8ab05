"""Train `DigitsVAE` on the digits of `models.mnist`: `python -m ulam.training.digits_vae`.

Writes `digits_vae.safetensors` (fp16) and `digits_vae.json` (how it was made: seed, split, curve of the bound). With
`--picture FILE` it draws real digits, samples of the VAE (the decoder's mean) and of the diffusion model instead.
"""

import argparse
import json
import time
from pathlib import Path

import safetensors.torch
import torch

from ..files import whole
from ..models.built_in import BUILT_IN
from ..models.digits import NULL_CLASS
from ..models.digits_vae import BELOW, TOP, WEIGHTS, DigitsVAE, load_digits_vae
from ..models.mnist import load_mnist5k
from ..objectives import elbo
from ..vae import HierarchicalVAE, Level
from .digits import BATCH, batches

RATE, WARM_KL = 2e-3, 0.3  # the KL's weight rises from 0 to 1 over this share of the run
FREE_NATS = (8.0, 24.0)  # of each level, top first, that cost nothing: against posterior collapse [Kingma 2016]


def hierarchy(net: DigitsVAE) -> HierarchicalVAE:
    """The networks as a hierarchical VAE, top level first."""
    levels = [Level(TOP, None, net.posterior_top), Level(BELOW, net.prior, net.posterior_below)]
    return HierarchicalVAE(levels, net.decode, scale=None)


def train(steps: int, seed: int = 0) -> tuple[DigitsVAE, dict[str, object]]:
    """A trained network and the record of its training."""
    torch.manual_seed(seed)
    data, held_out = load_mnist5k(seed)
    net, stream = DigitsVAE(), batches(data, torch.Generator().manual_seed(seed))
    model = hierarchy(net)
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.05)
    curve: list[dict[str, float]] = []
    begin = time.monotonic()
    for step in range(steps):
        x, _ = next(stream)
        beta = min(1.0, step / (WARM_KL * steps))
        loss = elbo(model, x, beta=beta, free_bits=FREE_NATS, seed=seed, step=step).mean() / x[0].numel()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            with torch.no_grad():
                bound = model.elbo(x, step=step)
            top, below = bound.kl.mean(0).tolist()
            curve.append({"step": step, "nats": float(bound.value.mean()), "kl_top": top, "kl_below": below})
            print(f"step {step}: bound {curve[-1]['nats']:.1f} nats, KL {top:.1f} + {below:.1f}", flush=True)
    net.eval()
    with torch.no_grad():
        final = model.elbo(held_out.images, samples=20)
        active = [int(units.sum()) for units in model.active_units(held_out.images)]
    record: dict[str, object] = {
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "seconds": round(time.monotonic() - begin),
        "train_rows_sha256": data.rows_sha256,
        "held_out_rows_sha256": held_out.rows_sha256,
        "held_out_nats": float(final.value.mean()),
        "held_out_kl": final.kl.mean(0).tolist(),
        "active_units": active,
        "curve": curve,
    }
    return net, record


def picture(file: Path, columns: int = 10, rows: int = 4) -> None:
    """Three blocks from top to bottom: held-out digits, the VAE's decoder means, the diffusion model's samples."""
    from PIL import Image

    from ..engine.sample import sample
    from ..samplers import DDIM

    count = rows * columns
    _, held_out = load_mnist5k()
    real = held_out.images[torch.arange(count) * (len(held_out.labels) // count)]
    blurred = hierarchy(load_digits_vae()).sample(count, seed=0, slots=count)
    digits = BUILT_IN["digits"]()
    labels = torch.arange(count) % 10
    drawn = sample(
        digits.denoiser, DDIM(50), (1, 28, 28), count, cond={"y": labels}, guidance=2.0,
        uncond={"y": torch.full((count,), NULL_CLASS)}, progress=False,
    )  # fmt: skip
    blocks = []
    for images in (real, blurred, drawn):
        tiles = ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().view(rows, columns, 28, 28)
        blocks.append(tiles.permute(0, 2, 1, 3).reshape(rows * 28, columns * 28))
        blocks.append(torch.full((6, columns * 28), 128, dtype=torch.uint8))
    image = Image.fromarray(torch.cat(blocks[:-1]).numpy())
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)


def main() -> None:
    """Read the command line; train, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="only draw the picture, from the weights that are there")
    options = parser.parse_args()
    if options.picture is not None:
        picture(options.picture)
        return
    net, record = train(options.steps, options.seed)
    weights = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    with whole(WEIGHTS, WEIGHTS.with_suffix(".json")) as (network, report):
        network.write_bytes(safetensors.torch.save(weights))
        report.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
