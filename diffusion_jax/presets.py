"""Settings that several configs share: what a paper's table calls a column or a row, and what fits a CPU."""

import math

from ml_collections import ConfigDict

from diffusion_jax.config import ConfigError, default


def row(text: str, *choices) -> tuple[str, ...]:
  """The parts of --config=FILE:TEXT, which are joined by hyphens; each must be one of its `choices`.

  Raises:
    ConfigError: there are more or fewer parts, or one is none of its choices.
  """
  parts = tuple(text.split("-"))
  if len(parts) != len(choices) or any(part not in known for part, known in zip(parts, choices)):
    expected = "-".join("|".join(known) for known in choices)
    raise ConfigError(f"--config=...:{text}: expected {expected}")
  return parts


def small() -> ConfigDict:
  """`default`, made small: a U-Net of .75M parameters on the digits, for minutes on a CPU."""
  c = default()
  c.network.update(channels=32, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0)
  c.label_dropout = 0.1
  c.optimizer.update(learning_rate=2e-3, warmup_images=10_000)
  c.ema.half_life_images = 20_000
  c.train.update(batch_size=32, log_every=50)
  return c


COLUMNS = ("vp", "ve", "iddpm", "edm")
LETTERS = tuple("ABCDEF")

# The columns of EDM's Table 1: how a denoiser is trained, and its own way of sampling.
_TABLE_1 = {
  "vp": dict(
    network=dict(arch="ddpmpp"),
    edm=dict(preconditioner="vp", noise="vp", weight="inverse_variance"),
    sampling=dict(sampler="euler", grid="vp", process="vp"),
  ),
  "ve": dict(
    network=dict(arch="ncsnpp"),
    edm=dict(preconditioner="ve", noise="log_uniform", weight="inverse_variance"),
    sampling=dict(sampler="euler", grid="ve", process="ve"),
  ),
  "iddpm": dict(
    network=dict(arch="adm"),
    edm=dict(preconditioner="iddpm", noise="iddpm", weight="inverse_variance"),
    sampling=dict(sampler="euler", grid="iddpm", process="edm"),
  ),
  "edm": dict(
    edm=dict(preconditioner="edm", noise="lognormal", weight="edm"),
    sampling=dict(sampler="heun", grid="edm", process="edm"),
  ),
}


def set_table1(config: ConfigDict, training: str, sampling: str | None = None):
  """Puts columns of EDM's Table 1 into a config: that column's training and network, that column's sampling.

  Args:
    config: changed in place.
    training: vp, ve, iddpm or edm (which leaves the network as it is).
    sampling: the same, `training` if None; the training is independent of it.
  """
  column = _TABLE_1[training]
  config.network.update(column.get("network", {}))
  config.edm.update(column["edm"])
  config.sampling.update(_TABLE_1[sampling or training]["sampling"])


def set_table2(
  config: ConfigDict, column: str, letter: str, baseline: dict, tuned: dict, channel_mult: tuple[int, ...]
):
  """Puts a row of EDM's Table 2 into a config: config A, the baseline, and one change a letter up to F.

  A is the training of Song et al. 2021. B takes the tuned hyper-parameters, C redistributes the network's capacity, D
  takes EDM's preconditioning, E its noise law and weight, F the augmentation in place of mirroring. All are sampled by
  EDM's deterministic sampler.

  Args:
    config: changed in place.
    column: of VP and VE, which differ in network, and up to C in preconditioning and up to D in loss: vp or ve.
    letter: A to F.
    baseline: fields (by dotted names) of A.
    tuned: fields from B on; data.augment among them holds for F alone.
    channel_mult: the network's, from C on.
  """
  set_table1(config, column, "edm")
  config.data.flip = letter < "F"
  fields = baseline if letter == "A" else {**tuned, "data.augment": tuned["data.augment"] if letter == "F" else 0.0}
  config.update_from_flattened_dict(fields)
  if letter >= "C":
    config.network.channel_mult = channel_mult
  if letter >= "D":
    config.edm.preconditioner = "edm"
  if letter >= "E":
    config.edm.update(noise="lognormal", weight="edm")


# Config A of Table 2, the training of Song et al. 2021 on images of 32×32, for VP and VE alike; EMA decay .9999.
SONG_BASELINE = {
  "train.batch_size": 128,
  "train.num_steps": 1_562_500,  # 200 million images
  "optimizer.learning_rate": 2e-4,
  "optimizer.warmup_images": 640_000,
  "optimizer.clip_norm": 1.0,
  "ema.half_life_images": 887_000,
  "ema.ramp_up": 0.0,
  "network.channel_mult": (1, 2, 2, 2),
  "network.dropout": 0.1,
}

# Table 2 at 64×64. What A to C are there the paper's text leaves open: A takes the batch and schedule of 32×32.
SONG_BASELINE_64 = {**SONG_BASELINE, "network.channel_mult": (1, 1, 2, 2, 2)}
TUNED_64 = {
  "train.batch_size": 256,
  "train.num_steps": 781_250,
  "optimizer.learning_rate": 2e-4,
  "network.channel_mult": (1, 1, 2, 2, 2),
  "data.augment": 0.15,
}

# Table 2 on a CPU.
SMALL_BASELINE = {
  "optimizer.learning_rate": 1e-3,
  "optimizer.clip_norm": 1.0,
  "ema.ramp_up": 0.0,
  "network.dropout": 0.1,
}
SMALL_TUNED = {"network.dropout": 0.0, "data.augment": 0.12}


def set_dpdm(config: ConfigDict, teacher: str, learning_rate: float = 1e-5):
  """Puts DPDM into the config of its teacher: the paper's optimizer for both networks, and its sampler at NFE 5.

  Dropout, which would act in the score step alone, and flips are off: the paper names none. config.data.augment must be
  positive where the teacher's network has inputs for augmentation labels, and then augments nothing by itself.

  Args:
    config: changed in place.
    teacher: workdir of a run, or a published EDM pickle.
    learning_rate: of generator and score network, from the first step on.
  """
  config.method, config.init_from, config.data.flip = "dpdm", teacher, False
  config.network.dropout = 0.0
  config.optimizer.update(learning_rate=learning_rate, warmup_images=0, beta1=0.0, beta2=0.99)
  config.sampling.update(sampler="dpdm", grid="dpdm", num_steps=5)


def set_dual(config: ConfigDict, process: str, vlb_weight: float = 0.0):
  """Puts Dual-Output diffusion into a config, sampled by DDIM at 10 of the chain's times.

  Args:
    config: changed in place.
    process: linear or cosine.
    vlb_weight: of iDDPM's loss for the reverse variance, 0 for none.
  """
  config.method = "dual_output"
  config.dual.update(process=process, vlb_weight=vlb_weight)
  config.sampling.update(sampler="ddim", grid="respaced", num_steps=10)


ATTENUATIONS = ("constant", "linear", "quadratic", "exponential", "sine")


def set_decoupled(config: ConfigDict, attenuation: str, end_rate: float = 0.1):
  """Puts a decoupled process into a config, sampled by Algorithm 2 in 10 uniform steps, with the code's refit.

  The rate falls to `end_rate` of itself over the run, from its first image on; AdamW with the published code's weight
  decay .01 and clipping at 1.

  Args:
    config: changed in place.
    attenuation: h_t, one of ATTENUATIONS.
    end_rate: least learning rate as a share of the first.
  """
  config.method = "decoupled"
  config.decoupled.attenuation = attenuation
  config.optimizer.update(decoupled_optimizer(config.optimizer.learning_rate, end_rate))
  config.sampling.update(sampler="decoupled", grid="decoupled", num_steps=10, refit=1.0)


def decoupled_optimizer(learning_rate: float, end_rate: float = 0.1) -> dict:
  """The fields of config.optimizer with which the published code trains decoupled diffusion; see `set_decoupled`."""
  return dict(
    learning_rate=learning_rate, min_learning_rate=end_rate * learning_rate, decay_power=0.96, warmup_images=0,
    clip_norm=1.0, weight_decay=0.01,
  )  # fmt: skip


def paper_task(row: str, task: str, images: dict, latents: str, size: int, network: dict, rate: float) -> ConfigDict:
  """A task as the paper trains it (its Table 6): in KL-f4's latents, with a Swin-B that sees the condition.

  Args:
    row: images, what experiments/encode.py encodes; or latents, what is trained on.
    task: superres, inpaint or saliency.
    images: fields, by dotted names, of `data` and `task`, that say what the images are.
    latents: folder of what encode.py writes.
    size: of the images, in pixels.
    network: channels and channel_mult of Table 6, and train.batch_size.
    rate: the first learning rate, which falls to a tenth.

  Returns:
    The config.
  """
  c = default()
  c.method = "decoupled"
  c.task.name = task
  c.data.num_classes = 0
  if row == "images":
    c.data.update(resolution=size, channels=1 if task == "saliency" else 3)
    c.update_from_flattened_dict(images)
    return c
  c.data.update(name="latents", path=latents, resolution=size // 4, channels=3)
  c.latent.autoencoder = "kl-f4.ckpt"
  c.network.update(num_blocks=2, attention_resolutions=(size // 16, size // 32), dropout=0.0)
  c.update_from_flattened_dict(network)
  c.condition.update(
    encoder="swin_b", weights="swin_b-68c6b09e.pth", cross_attention=(size // 16, size // 32)
  )
  c.optimizer.learning_rate = rate
  c.train.num_steps = 400_000
  half_life = c.train.batch_size * math.log(0.5) / math.log(0.999)
  c.ema.update(half_life_images=round(half_life), ramp_up=0.0, ramp_power=2 / 3)
  set_decoupled(c, "constant")
  c.sampling.refit = 0.0  # latents have no range
  return c


def set_dddm(config: ConfigDict, metric: str, attention_resolutions: tuple[int, ...], num_steps: int = 1000):
  """Puts DDDM into a config, sampled in one iteration, with estimates in the range of images as in the published code.

  The learning rate is constant from the first image on.

  Args:
    config: changed in place.
    metric: d, of which config.dddm.metric has the choices.
    attention_resolutions: at which blocks attend to the estimate.
    num_steps: T.
  """
  config.method = "dddm"
  config.dddm.update(num_steps=num_steps, metric=metric, attention_resolutions=attention_resolutions)
  config.optimizer.warmup_images = 0
  config.sampling.update(sampler="dddm", grid="dddm", num_steps=1, clip=1.0)


def set_classifier(config: ConfigDict, process: str):
  """Makes a config that of a classifier of noisy images.

  Args:
    config: changed in place.
    process: linear or cosine.
  """
  config.method = "classifier"
  config.classifier.process = process
  config.label_dropout = 0.0


TASK_METHODS = ("ddm", "ddpm", "regression")


def small_task(task: str, data: str, method: str) -> ConfigDict:
  """A conditional task on 16×16 images, for minutes on a CPU.

  Args:
    task: superres, inpaint or saliency.
    data: photos or scenes.
    method: ddm, one decoder for both heads, Algorithm 2 in 5 steps; ddpm, the same network with the noise head alone,
      ancestral in as many; regression, ddm trained at t near 1 alone, where x_t says nothing of the image, sampled in
      one step.

  Returns:
    The config.
  """
  c = small()
  c.task.name = task
  channels = 1 if task == "saliency" else 3
  c.data.update(name=data, resolution=16, channels=channels, num_classes=0, flip=True)
  c.network.attention_resolutions = (8,)
  c.condition.cross_attention = (8,)
  c.label_dropout = 0.0
  c.train.update(num_steps=2_000, checkpoint_every=500, sample_every=1_000)
  set_decoupled(c, "constant")
  c.decoupled.decoder = "one"
  c.sampling.num_steps = 5
  if method == "ddpm":
    set_dual(c, "linear")
    c.dual.heads = "eps"
    c.sampling.update(sampler="ddpm", num_steps=5, refit=0.0, clip=1.0)
  if method == "regression":
    c.decoupled.update(t_min=0.999, weight="ones")
    c.sampling.num_steps = 1
  return c
