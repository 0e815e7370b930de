"""The config: every field with its default, and the errors that a wrong one gives before anything compiles.

A file under configs/ starts from `default()` and sets what its experiment needs; `check` compares a config with that
tree. Errors name the field, its value, and what was expected.
"""

import difflib

from ml_collections import ConfigDict


class ConfigError(ValueError):
  """A config that cannot be run; its message is one line: the field, its value, what was expected."""


def wrong(field: str, value, expected: str) -> ConfigError:
  """The error of one field."""
  return ConfigError(f"config.{field} = {value!r}: {expected}")


def of_file(name: str, error: ConfigError) -> ConfigError:
  """The same error of another config than the run's own, such as "init_config"."""
  return ConfigError(str(error).replace("config.", f"{name}.", 1))


def default() -> ConfigDict:
  """Every field of a run; tuples and numbers keep the types given here."""
  c = ConfigDict()
  c.method = "edm"  # edm, dual_output, decoupled, dpdm, classifier, autoencoder
  c.seed = 0  # of everything: initialisation, order of the data, noise
  c.init_from = ""  # weights to start from: the workdir of a run, or a published EDM pickle (.pkl); dpdm's teacher.
  # dual_output with arch adm also takes OpenAI's guided-diffusion files (.pt)
  c.init_only = ()  # of these, only parameters whose paths match one of these patterns, such as "net/enc_*"; () is all
  c.hang_timeout = 1800.0  # seconds without the end of a step, compilation included, after which a host exits; 0: never

  c.data = ConfigDict()
  c.data.name = "digits"  # digits, photos, scenes (digits on photos), zip, folder, npz, tfds, latents
  c.data.path = ""  # of the zip, folder, npz or latents; for tfds the set's name, such as imagenet_resized/64x64
  c.data.data_dir = ""  # where TFDS keeps its sets; "" is its own default
  c.data.split = "train"
  c.data.transform = ""  # to the resolution: resize, center-crop, center-crop-wide, center-crop-dhariwal; crops: of a
  # folder or zip of larger images, all parts of that size; "": the images have it
  c.data.cache = "auto"  # decoded images: none, host, device; auto is host where they fit in a quarter of its memory
  c.data.resolution = 8
  c.data.channels = 1
  c.data.num_classes = 10  # 0 trains without labels
  c.data.flip = False  # mirror half of the images
  c.data.augment = 0.0  # probability of each transform of EDM's augmentation (which mirrors too); 0 turns it off, and
  # gives the network no inputs for its labels; dpdm augments only with dpdm.score_augment

  c.task = ConfigDict()  # what an image is made from; of the methods edm, dual_output, decoupled
  c.task.name = ""  # superres: its smaller copy; inpaint: itself with holes; saliency: a photograph, of which the image
  # is the mask; "": nothing
  c.task.scale = 4  # of superres
  c.task.masks = "mixed"  # of inpaint: strokes, boxes; mixed: either
  c.task.path = ""  # folder of the smaller copies, holes or photographs that belong, by their names, to the images of
  # data.path, a folder or zip; "": they are made

  c.condition = ConfigDict()  # the network that sees what an image is made from
  c.condition.encoder = "conv"  # conv: like the U-Net's own encoder; swin_t, swin_s, swin_b
  c.condition.weights = ""  # of a Swin: the published ImageNet weights (.pth); "": it starts at random
  c.condition.upsample = 1  # the condition is enlarged so many times before the encoder; Swin sees patches of 4 pixels
  c.condition.resolution = 0  # of the condition; 0: the image's, of latents that before encoding
  c.condition.channels = 0  # of the condition; 0: the image's, of saliency 3
  c.condition.cross_attention = ()  # resolutions at which the U-Net attends to the condition too

  c.latent = ConfigDict()  # diffusion of an autoencoder's latents; of data.name = "latents" alone
  c.latent.autoencoder = ""  # workdir of a run of method autoencoder, or the published KL-f4 weights (.ckpt, .pt)
  c.latent.scale = 0.0  # the network sees scale·z; 0: one over the standard deviation of z, as measured on the data
  c.latent.sha256 = ""  # of the autoencoder that encoded the data; "": what their folder says

  c.autoencoder = ConfigDict()  # method "autoencoder"; its network, KL-f4 by default
  c.autoencoder.channels = 128
  c.autoencoder.channel_mult = (1, 2, 4)
  c.autoencoder.num_blocks = 2
  c.autoencoder.latent_channels = 3
  c.autoencoder.kl_weight = 1e-6  # of KL(q(z|x) ‖ N(0, I)) an image, beside the absolute error a pixel and channel

  c.network = ConfigDict()
  c.network.arch = "ddpmpp"  # ddpmpp, ncsnpp, adm
  c.network.channels = 128
  c.network.channel_mult = (2, 2, 2)
  c.network.num_blocks = 4
  c.network.attention_resolutions = (16,)
  c.network.num_heads = 0  # of every attention; 0: ddpmpp and ncsnpp have one, adm heads of 64 channels
  c.network.dropout = 0.13
  c.network.dtype = "float32"  # of products; parameters are float32
  c.network.remat = False  # recompute activations in the backward pass
  c.network.freqs = ()  # frequencies of ncsnpp's Fourier embedding; () is the fixed draw that all networks share

  c.label_dropout = 0.0  # share of examples trained without their label, for classifier-free guidance

  c.edm = ConfigDict()  # method "edm": a row of EDM's Table 1
  c.edm.preconditioner = "edm"  # edm, vp, ve, iddpm
  c.edm.sigma_data = 0.5
  c.edm.noise = "lognormal"  # lognormal, log_uniform, vp, iddpm
  c.edm.p_mean = -1.2
  c.edm.p_std = 1.2
  c.edm.sigma_min = 0.02  # of the VE column: its law's range, and what its preconditioner is trained on
  c.edm.sigma_max = 100.0  # Song & Ermon 2020: about the largest distance between two images
  c.edm.weight = "edm"  # edm: (σ² + σ_data²)/(σσ_data)²; inverse_variance: 1/σ²
  c.edm.vlb_weight = 0.0  # of iDDPM's L_vlb, by which a second head learns the reverse variance; .001 in the paper

  c.dual = ConfigDict()  # method "dual_output": heads of noise, image, and which of them to trust
  c.dual.process = "linear"  # linear: DDPM's chain of 1000 steps; cosine: iDDPM's of 4000
  c.dual.heads = "dual"  # dual: ε_θ, x_θ and r_θ; eps: ε_θ alone, the network of DDPM and DDIM
  c.dual.eps_weight = 1.0  # λ^ε, of the noise head's loss
  c.dual.x_weight = 1.0  # λ^x, of the image head's
  c.dual.mean_weight = 1.0  # λ^μ, of the mixed mean's, from which r alone learns
  c.dual.relative = False  # L^μ over that of each head alone, so that r learns at all t alike; the paper's does not
  c.dual.vlb_weight = 0.0  # of iDDPM's L_vlb, by which a fourth head learns the reverse variance; .001 in its paper

  c.decoupled = ConfigDict()  # method "decoupled": heads of φ, by which the image fades to zero, and of noise
  c.decoupled.attenuation = "constant"  # h_t: constant, linear, quadratic, exponential, sine
  c.decoupled.t_min = 1e-4  # t ~ U[t_min, 1); near 1 x_t says nothing of the image: a task's becomes a regression
  c.decoupled.clamp = False  # the free parameters of φ to [−1, 1]
  c.decoupled.decoder = "two"  # two: one for each head; branch: one, and two convolutions for the noise; one: shared
  c.decoupled.preconditioned = True  # False: heads are taken as they are
  c.decoupled.weight = "auto"  # of both heads' losses: ones; inverse: 1/t, 1/(1 − t + 1e-4); exponential: e^t, e^(1−t);
  # auto: inverse, but ones where φ has free parameters
  c.decoupled.loss = "l2"  # l2, l1
  c.decoupled.reconstruction_weight = 0.0  # of (1 − t)²·MAE(x̂_0, x_0), x̂_0 = x_t − H_t(φ_θ) − √t·ε_θ; 1 in the code

  c.dpdm = ConfigDict()  # method "dpdm": a pupil of init_from; its σ are drawn by the fields of the teacher's method
  c.dpdm.diffusion = "edm"  # the teacher's method: edm, dual_output
  c.dpdm.score_steps = 1  # of the score network, an update; then one of the generator
  c.dpdm.generator_weight = "diffusion"  # diffusion: that of score matching, λσ⁴; unit: the smoothed KL itself
  c.dpdm.score_augment = False  # pass what the score network is trained on through EDM's augmentation (data.augment)

  c.classifier = ConfigDict()  # method "classifier": of noisy images, for sampling.classifier of other runs
  c.classifier.process = "linear"  # linear: DDPM's chain of 1000 steps; cosine: iDDPM's of 4000

  c.optimizer = ConfigDict()  # Adam
  c.optimizer.learning_rate = 1e-3
  c.optimizer.warmup_images = 10_000_000  # the rate rises linearly over this many images
  c.optimizer.decay_power = 0.0  # the rate falls as (1 − seen/decay_images)^decay_power; 0: it does not
  c.optimizer.decay_images = 0  # 0: those of the whole run, train.num_steps·train.batch_size
  c.optimizer.min_learning_rate = 0.0  # that it falls to
  c.optimizer.beta1 = 0.9
  c.optimizer.beta2 = 0.999
  c.optimizer.epsilon = 1e-8
  c.optimizer.clip_norm = 0.0  # 0 does not clip
  c.optimizer.frozen = ()  # parameters whose paths match one of these patterns, such as "net/enc_*", do not train
  c.optimizer.weight_decay = 0.0  # AdamW's, decoupled: parameters shrink by this share times the rate
  c.optimizer.loss_scale = 1.0  # multiplies the loss before the backward pass; float16 needs 100 and more
  c.optimizer.loss_scale_growth = 0  # updates in a row after which it doubles; one not finite halves it. 0: fixed

  c.ema = ConfigDict()
  c.ema.half_life_images = 500_000
  c.ema.ramp_up = 0.05  # the half-life is at most this share of the images seen; 0 for no ramp
  c.ema.ramp_power = 0.0  # the decay is at most 1 − (1 + n)^(−ramp_power) after n updates; 0 for no such ramp

  c.train = ConfigDict()
  c.train.batch_size = 512  # over all devices of all hosts
  c.train.num_steps = 390_625
  c.train.parallel = "pmap"  # pmap; jit: one program over all devices; fsdp: that, with the state split over them
  c.train.accumulation = 1  # micro-batches an update
  c.train.updates_per_call = 1  # updates a call of the compiled function
  c.train.log_every = 100
  c.train.checkpoint_every = 5_000
  c.train.keep_checkpoints = 2  # the newest; beside them:
  c.train.keep_every = 0  # those of every so many steps
  c.train.keep_best = 1  # the best by score
  c.train.score_every = 0  # Fréchet distance of the averaged network, a multiple of checkpoint_every; 0: never
  c.train.score_images = 1_000
  c.train.score_inception = ""  # weights-inception-2015-12-05-6726825d.pth, which makes it FID
  c.train.sample_every = 5_000  # PNG grid of fixed seeds
  c.train.max_skipped = 20  # stop after this many non-finite updates in a row

  c.sampling = ConfigDict()
  c.sampling.sampler = "heun"
  c.sampling.num_steps = 18
  c.sampling.grid = "edm"  # of noise levels: edm, vp, ve, iddpm, dpdm; of the method's own times: respaced for
  # dual_output, decoupled for decoupled
  c.sampling.process = "own"  # x_t = s(t)·(x_0 + σ(t)·ε): own, the method's; edm, vp, ve
  c.sampling.sigma_min = 0.0  # 0: the grid's own, .002 for edm
  c.sampling.sigma_min_search = False  # by score, not of the published table; of the dpdm grid alone
  c.sampling.sigma_max = 0.0  # 0: the grid's own, 80 for edm
  c.sampling.rho = 7.0  # of the edm grid
  c.sampling.power = 1.0  # of the decoupled grid: t = (1 − i/n)^power
  c.sampling.churn = 0.0  # S_churn, for euler and heun; with S_tmin, S_tmax, S_noise
  c.sampling.s_min = 0.0
  c.sampling.s_max = 1e6
  c.sampling.s_noise = 1.0
  c.sampling.eta = 0.0  # for ddim: 0 deterministic, 1 ancestral
  c.sampling.variance = "posterior"  # for ddpm: posterior, upper, learned
  c.sampling.refit = 0.0  # for decoupled: images become x_t − H_t(φ̂) − √t·ε̂, clipped to [−refit, refit]; 0: not
  c.sampling.snr = 0.16  # for predictor_corrector: signal-to-noise ratio of a corrector step
  c.sampling.guidance = 1.0  # scale of classifier-free guidance, 1 for none
  c.sampling.classifier = ""  # workdir of a run of method classifier, which guides by its gradient
  c.sampling.classifier_scale = 0.0  # scale of its gradient, 0 for none
  c.sampling.clip = 0.0  # clip estimated images to [−clip, clip]; 1 is the range of the data, 0 does not clip
  c.sampling.ratio = "learned"  # r of dual_output: learned; mean, as measured at each t; a number, 0 the noise head
  # alone to 1 the image head alone; or several with commas, for t = T/n, 2T/n, …, T, linear in between
  c.sampling.switch = 0  # of dual_output: this many steps by the image head alone, the others by the noise head alone
  c.lock()
  return c


UNSAMPLED = ("classifier", "autoencoder")  # methods that draw no images
LATENTS = "latents"  # data.name of what experiments/encode.py writes
LATENT_METHODS = ("edm", "dual_output", "decoupled")  # that run in the latent space of an autoencoder
TRANSFORMS = ("resize", "center-crop", "center-crop-wide", "center-crop-dhariwal")  # see data/transforms.py
CROPS = "crops"  # see data/crops.py
TASKS = ("superres", "inpaint", "saliency")  # see data/tasks.py
_FILES = ("folder", "zip")  # sources of files with names

_POSITIVE = (
  "data.resolution", "data.channels", "edm.sigma_data", "edm.sigma_min", "edm.p_std", "optimizer.learning_rate",
  "optimizer.epsilon", "optimizer.loss_scale", "ema.half_life_images", "train.batch_size", "train.num_steps",
  "train.accumulation", "train.updates_per_call", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints",
  "train.keep_best", "train.score_images", "train.sample_every", "train.max_skipped", "sampling.num_steps",
  "sampling.snr", "sampling.rho", "sampling.power", "dpdm.score_steps", "condition.upsample",
)  # fmt: skip
_NOT_NEGATIVE = (
  "seed", "data.num_classes", "optimizer.warmup_images", "optimizer.clip_norm", "ema.ramp_up", "sampling.guidance",
  "sampling.churn", "sampling.s_min", "sampling.s_noise", "sampling.eta", "sampling.sigma_min", "sampling.sigma_max",
  "condition.resolution", "condition.channels",
  "edm.vlb_weight", "dual.eps_weight", "dual.x_weight", "dual.mean_weight", "dual.vlb_weight", "sampling.switch",
  "sampling.clip", "optimizer.loss_scale_growth", "hang_timeout", "train.keep_every", "train.score_every",
  "optimizer.weight_decay", "optimizer.decay_images", "optimizer.decay_power", "optimizer.min_learning_rate",
  "ema.ramp_power", "decoupled.reconstruction_weight", "sampling.refit", "autoencoder.kl_weight", "latent.scale",
)  # fmt: skip


def check(config: ConfigDict, device_count: int | None = None):
  """Raises ConfigError for an unknown field, a wrong type, a value out of range, or an impossible combination.

  Args:
    config: what a get_config() returned, overrides applied.
    device_count: number of devices that training will use, if it will.
  """
  known, given = flatten(default()), flatten(config)
  for field, value in given.items():
    if field not in known:
      raise unknown_field(field, value, known)
    _check_type(field, value, known[field])
  for field in known:
    if field not in given:
      raise wrong(field, None, "the field is missing; start from diffusion_jax.config.default()")
  for field in _POSITIVE:
    if not given[field] > 0:
      raise wrong(field, given[field], "must be positive")
  for field in _NOT_NEGATIVE:
    if not given[field] >= 0:
      raise wrong(field, given[field], "must not be negative")
  if not 0 < config.decoupled.t_min < 1:
    raise wrong("decoupled.t_min", config.decoupled.t_min, "must be in (0, 1)")
  for field in ("label_dropout", "optimizer.beta1", "optimizer.beta2"):
    if not 0 <= given[field] < 1:
      raise wrong(field, given[field], "must be in [0, 1)")
  scale = config.optimizer.loss_scale
  if config.optimizer.loss_scale_growth and scale < 1:
    raise wrong("optimizer.loss_scale", scale, "must be at least 1 with loss_scale_growth")
  if config.optimizer.min_learning_rate > config.optimizer.learning_rate:
    expected = f"must be at most optimizer.learning_rate ({config.optimizer.learning_rate:g})"
    raise wrong("optimizer.min_learning_rate", config.optimizer.min_learning_rate, expected)
  if config.network.dtype == "float16" and scale == 1:
    raise wrong("optimizer.loss_scale", scale, "too small for network.dtype = 'float16': 100, or 65536 that grows")
  if config.data.transform:
    choose("data.transform", config.data.transform, (*TRANSFORMS, CROPS))
  if config.data.transform == CROPS and config.data.name not in _FILES:
    raise wrong("data.transform", CROPS, f"must be of a folder or zip, not of data.name = {config.data.name!r}")
  choose("data.cache", config.data.cache, ("auto", "none", "host", "device"))
  _check_task(config)
  if not 0 <= config.data.augment <= 1:
    raise wrong("data.augment", config.data.augment, "must be a probability in [0, 1]")
  if config.data.augment and config.data.flip and config.method != "dpdm":
    raise wrong("data.flip", True, "must be False with data.augment, which mirrors half of the images itself")
  if config.edm.vlb_weight and (config.edm.preconditioner, config.edm.noise) != ("iddpm", "iddpm"):
    raise wrong("edm.vlb_weight", config.edm.vlb_weight, "must be 0 unless edm.preconditioner and edm.noise are iddpm")
  if config.edm.sigma_max <= config.edm.sigma_min:
    raise wrong("edm.sigma_max", config.edm.sigma_max, "must be greater than edm.sigma_min")
  if config.method in UNSAMPLED:
    _check_unsampled(config)
  else:
    _check_sampling(config)
  _check_latent(config)
  train = config.train
  for field in ("log_every", "checkpoint_every", "sample_every", "num_steps"):
    if train[field] % train.updates_per_call:
      raise wrong(f"train.{field}", train[field], f"must be a multiple of updates_per_call ({train.updates_per_call})")
  choose("train.parallel", train.parallel, ("pmap", "jit", "fsdp"))
  if train.score_every % train.checkpoint_every:
    expected = f"must be a multiple of checkpoint_every ({train.checkpoint_every})"
    raise wrong("train.score_every", train.score_every, expected)
  if config.method == "dpdm":
    if not config.init_from:
      raise wrong("init_from", "", "dpdm needs its teacher: the workdir of a run, or a published EDM pickle (.pkl)")
    if config.init_only:
      raise wrong("init_only", config.init_only, "must be () for dpdm, whose networks all start from the teacher")
    if config.sampling.variance == "learned":
      raise wrong("sampling.variance", "learned", "dpdm trains no variance: a pupil's is what its teacher's was")
    if config.dpdm.score_augment and not config.data.augment:
      raise wrong("dpdm.score_augment", True, "needs data.augment, the probability of each transform")
  if config.init_only and not config.init_from:
    raise wrong("init_only", config.init_only, "must be () without init_from")
  if device_count and train.batch_size % (device_count * train.accumulation):
    expected = f"must be a multiple of {device_count} devices × accumulation {train.accumulation}"
    raise wrong("train.batch_size", train.batch_size, expected)


def _check_task(config: ConfigDict):
  task, data = config.task, config.data
  choose("task.name", task.name, ("", *TASKS))
  choose("task.masks", task.masks, ("strokes", "boxes", "mixed"))
  own = {"scale": "superres", "masks": "inpaint"}
  for field, value in default().task.items():
    idle = not task.name or task.name != own.get(field, task.name)
    if field != "name" and idle and task[field] != value:
      raise wrong(f"task.{field}", task[field], f"must be {value!r} for task {task.name or 'none'!r}")
  if not task.name:
    for field, value in default().condition.items():
      if config.condition[field] != value:
        raise wrong(f"condition.{field}", config.condition[field], f"must be {value!r} without a task")
    return
  if config.method not in ("edm", "decoupled", "dual_output"):
    expected = f"must be '' for method {config.method!r}; edm, dual_output and decoupled have tasks"
    raise wrong("task.name", task.name, expected)
  if data.augment:
    raise wrong("data.augment", data.augment, "must be 0 with a task, whose condition is not augmented")
  if config.train.score_every:
    raise wrong("train.score_every", config.train.score_every, "must be 0 with a task")
  refused = {"classifier_scale": 0.0, "sigma_min_search": False}  # which would draw images without a condition
  for field, value in refused.items():
    if config.sampling[field] != value:
      raise wrong(f"sampling.{field}", config.sampling[field], f"must be {value!r} with a task")
  if config.sampling.ratio == "mean":
    raise wrong("sampling.ratio", "mean", "must be learned or numbers with a task: none are measured")
  if data.name == LATENTS:
    return _check_encoded_task(task)
  if task.name == "superres" and (task.scale < 2 or data.resolution % task.scale):
    raise wrong("task.scale", task.scale, f"must be at least 2 and divide data.resolution ({data.resolution})")
  if task.name == "saliency" and data.channels != 1:
    raise wrong("data.channels", data.channels, "must be 1 for task 'saliency', whose images are masks")
  if task.path:
    _check_task_files(task, data)


def _check_encoded_task(task):
  for field, value in default().task.items():
    if field != "name" and task[field] != value:
      expected = f"must be {value!r} for data.name = {LATENTS!r}, whose folder says with what they were made"
      raise wrong(f"task.{field}", task[field], expected)


def _check_task_files(task, data):
  if data.name not in _FILES:
    raise wrong("task.path", task.path, f"must be '' for data.name = {data.name!r}; a folder or zip may have partners")
  if task.name == "inpaint" and task.masks != "mixed":
    raise wrong("task.masks", task.masks, "must be 'mixed' with task.path, which has the holes")
  refused = {"superres": TRANSFORMS, "inpaint": (CROPS,)}.get(task.name, ())
  if data.transform in refused:
    expected = f"must be '' or {CROPS!r}" if task.name == "superres" else f"must not be {CROPS!r}"
    raise wrong("data.transform", data.transform, f"{expected} for task {task.name!r} with task.path")


def _check_sampling(config: ConfigDict):
  sampling = config.sampling
  if sampling.sigma_max and sampling.sigma_max < sampling.sigma_min:
    raise wrong("sampling.sigma_max", sampling.sigma_max, "must be at least sampling.sigma_min")
  if sampling.churn and sampling.sampler not in ("euler", "heun"):
    raise wrong("sampling.churn", sampling.churn, f"must be 0 for the sampler {sampling.sampler}; euler and heun churn")
  choose("sampling.variance", sampling.variance, ("posterior", "upper", "learned"))
  if (sampling.sampler, sampling.variance) == ("ddpm", "learned"):
    part, process = ("dual", "own") if config.method == "dual_output" else ("edm", "vp")
    if not (config[part].vlb_weight and sampling.process == process):
      expected = f"needs a network with {part}.vlb_weight > 0, and sampling.process = {process!r}"
      raise wrong("sampling.variance", "learned", expected)
  _check_ratio(config)
  _check_decoupled(config)
  if sampling.s_max < sampling.s_min:
    raise wrong("sampling.s_max", sampling.s_max, "must be at least sampling.s_min")
  if sampling.eta > 1:
    raise wrong("sampling.eta", sampling.eta, "must be in [0, 1]")
  if sampling.eta and sampling.sampler != "ddim":
    raise wrong("sampling.eta", sampling.eta, f"must be 0 for the sampler {sampling.sampler}; ddim has an eta")
  if sampling.guidance != 1 and not (config.data.num_classes and config.label_dropout):
    raise wrong("sampling.guidance", sampling.guidance, "must be 1 for a run without classes and label_dropout")
  check_guide(sampling)


def check_guide(sampling: ConfigDict):
  """Raises ConfigError where a config.sampling guides by a classifier that it does not name, or by no proper scale."""
  scale = sampling.classifier_scale
  if not 0 <= scale < float("inf"):
    raise wrong("sampling.classifier_scale", scale, "must be a number of at least 0")
  if scale and not sampling.classifier:
    raise wrong("sampling.classifier_scale", scale, "guidance without a classifier: sampling.classifier names its run")


def _check_unsampled(config: ConfigDict):
  """What is of no use, or impossible, for a run that draws no images and is given no labels."""
  method = config.method
  if method == "classifier" and not config.data.num_classes:
    raise wrong("data.num_classes", 0, "must be positive for method 'classifier', which learns the classes")
  refused = {"data.augment": "has no inputs for its labels", "train.score_every": "draws no images"}
  refused["label_dropout"] = "learns the labels" if method == "classifier" else "is given no labels"
  given = flatten(config)
  for field, why in refused.items():
    if given[field]:
      raise wrong(field, given[field], f"must be 0 for method {method!r}, which {why}")


def _check_latent(config: ConfigDict):
  """What cannot be in the latent space of an autoencoder, and what is for it alone."""
  given = flatten(config)
  if config.data.name != LATENTS:
    for field in ("latent.autoencoder", "latent.scale", "latent.sha256"):
      if given[field]:
        expected = f"must be {type(given[field])()!r} for data.name = {config.data.name!r}, which are no latents"
        raise wrong(field, given[field], expected)
    return
  choose("method", config.method, LATENT_METHODS)
  if not config.latent.autoencoder:
    raise wrong("latent.autoencoder", "", "names what decodes: a run of method autoencoder, or KL-f4's weights (.ckpt)")
  refused = {
    "data.flip": "the latents of a mirrored image are not its latents mirrored: experiments/encode.py --flip",
    "data.augment": "its warps are those of images",
    "sampling.clip": "latents have no range",
    "sampling.refit": "latents have no range",
    "sampling.sigma_min_search": "its score is one of images",
    "sampling.classifier_scale": "a classifier sees images",
    "decoupled.reconstruction_weight": "its error is one of images",
  }
  for field, why in refused.items():
    if given[field]:
      raise wrong(field, given[field], f"must be {type(given[field])()!r} for data.name = {LATENTS!r}: {why}")


def _check_ratio(config: ConfigDict):
  sampling = config.sampling
  ratios(sampling.ratio)
  for field, default in (("ratio", "learned"), ("switch", 0)):
    if sampling[field] != default and config.method != "dual_output":
      raise wrong(f"sampling.{field}", sampling[field], f"must be {default!r} for method {config.method!r}")
  alone = config.method == "dual_output" and config.dual.heads != "dual"
  if alone and (sampling.switch or sampling.ratio == "mean" or any(ratios(sampling.ratio) or ())):
    field = "switch" if sampling.switch else "ratio"
    raise wrong(f"sampling.{field}", sampling[field], f"must be 0 for dual.heads = {config.dual.heads!r}")
  if sampling.switch > sampling.num_steps:
    raise wrong("sampling.switch", sampling.switch, f"must be at most sampling.num_steps ({sampling.num_steps})")
  if sampling.switch and sampling.ratio != "learned":
    raise wrong("sampling.ratio", sampling.ratio, "must be 'learned' with sampling.switch, which chooses the heads")


def _check_decoupled(config: ConfigDict):
  sampling = config.sampling
  if config.method != "decoupled" or config.decoupled.attenuation == "constant":
    return
  plain = {"process": "own", "grid": "decoupled", "churn": 0.0, "eta": 0.0, "classifier_scale": 0.0}
  for field, value in plain.items():  # all of them ask for noise levels
    if sampling[field] != value:
      expected = f"must be {value!r} for decoupled.attenuation {config.decoupled.attenuation!r}, not a Gaussian process"
      raise wrong(f"sampling.{field}", sampling[field], expected)


def decay_images(config: ConfigDict) -> int:
  """The images over which a run's learning rate falls, where it does."""
  return config.optimizer.decay_images or config.train.num_steps * config.train.batch_size


def ratios(text: str) -> tuple[float, ...] | None:
  """The numbers of a config.sampling.ratio; None for "learned" and "mean".

  Raises:
    ConfigError: it is neither of them nor numbers in [0, 1].
  """
  if text in ("learned", "mean"):
    return None
  try:
    numbers = tuple(float(part) for part in text.split(","))
  except ValueError:
    near = difflib.get_close_matches(text, ("learned", "mean"), 1, 0.0)
    expected = f"expected learned, mean, or numbers in [0, 1] such as 0.5; nearest: {near[0]}"
    raise wrong("sampling.ratio", text, expected) from None
  if not all(0 <= number <= 1 for number in numbers):
    raise wrong("sampling.ratio", text, "r must be in [0, 1]")
  return numbers


def choose(field: str, value: str, choices):
  """choices[value] of a dict, or `value` of a tuple; a ConfigError that names the nearest choice if it is none."""
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, 1, 0.0)
    raise wrong(field, value, f"expected one of {', '.join(choices)}" + (f"; nearest: {near[0]}" if near else ""))
  return choices[value] if isinstance(choices, dict) else value


def flatten(config: ConfigDict, prefix: str = "") -> dict:
  """{"train.batch_size": 64, …}: leaves by their dotted names."""
  leaves = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      leaves.update(flatten(value, f"{prefix}{name}."))
    else:
      leaves[prefix + name] = value
  return leaves


def unknown_field(field: str, value, known) -> ConfigError:
  near = difflib.get_close_matches(field, known, 1, 0.0)
  return wrong(field, value, "unknown field" + (f"; nearest: config.{near[0]}" if near else ""))


_ITEMS = {"init_only": str, "optimizer.frozen": str, "condition.cross_attention": int}  # of tuples that begin empty


def _check_type(field, value, example):
  wanted = type(example)
  fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
  if wanted is float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
  if wanted is tuple:
    item = type(example[0]) if example else _ITEMS.get(field, float)
    fits = isinstance(value, tuple) and all(isinstance(v, item) for v in value)
  if not fits:
    name = f"tuple of {item.__name__}" if wanted is tuple else wanted.__name__
    raise wrong(field, value, f"expected {name}, got {type(value).__name__}")
