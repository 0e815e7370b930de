"""Saliency detection on DUTS 384×384 by decoupled diffusion, in the 96×96×3 latents of its masks by KL-f4.

  python experiments/encode.py --config=configs/ddm_saliency_duts.py:images --autoencoder=kl-f4.ckpt --flip \\
    --out=datasets/duts_saliency
  python experiments/train.py --config=configs/ddm_saliency_duts.py --workdir=runs/ddm_saliency_duts
  python experiments/evaluate.py --workdir=runs/ddm_saliency_duts --nfe=5,10 --data=folder:DUTS-TE/DUTS-TE-Mask \\
    --task_path=DUTS-TE/DUTS-TE-Image --transform=resize

DUTS-TR and DUTS-TE are the folders of its zips. The images are the masks, as three equal channels for the autoencoder.

kl-f4.ckpt: the weights of latent diffusion's autoencoder of that name; swin_b-68c6b09e.pth: torchvision's ImageNet
weights. Width, batch, rate and number of updates are the paper's Table 6, weight decay, clipping and averages those of
its code; where attention is, and dropout, are choices. Not trained here.
"""

from diffusion_jax import presets


def get_config(row="latents"):
  images = {"data.name": "folder", "data.path": "DUTS-TR/DUTS-TR-Mask", "data.transform": "resize"}
  images["task.path"] = "DUTS-TR/DUTS-TR-Image"
  network = {"network.channels": 128, "network.channel_mult": (1, 2, 4, 4), "train.batch_size": 16}
  presets.row(row, ("images", "latents"))
  return presets.paper_task(row, "saliency", images, "datasets/duts_saliency", 384, network, 5e-5)
