"""From the folder of a diffusers pipeline to a folder of images, by workers that may be killed and started again."""

import sys

import diffusers
import torch

import ulam

images = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000


def make_folder(path):
    """Stands for `pipe.save_pretrained(path)` of yours."""
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(16, 16), norm_num_groups=4, num_class_embeds=10,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(path)


if __name__ == "__main__":
    torch.manual_seed(0)
    make_folder("pipeline")
    denoiser = ulam.Denoiser.from_diffusers("pipeline")
    labels = torch.arange(images) % 10
    sampler = ulam.samplers.DPMSolverPP(10)
    job = ulam.bulk.Job(denoiser, sampler, (3, 8, 8), images, seed=0, cond={"y": labels})
    folder = ulam.bulk.run(ulam.bulk.Plan(job, slots=128), "images", workers=1)
    print(folder.status().done_chains, "images; the same call goes on where it stopped, and does nothing now")
    folder.export("npz", "images.npz")  # or "png": a folder of pictures
    first = next(iter(folder.batches()))
    print("a batch:", tuple(first["x"].shape), "labels", first["labels"][:5].tolist())
