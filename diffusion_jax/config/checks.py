"""What makes a config impossible: unknown fields, wrong types, values out of range, fields that exclude each other."""

from ml_collections import ConfigDict

from diffusion_jax.config.errors import choose, flatten, unknown_field, wrong
from diffusion_jax.config.fields import CROPS, LATENT_METHODS, LATENTS, TASKS, TRANSFORMS, UNSAMPLED, default, ratios

_FILES = ("folder", "zip")  # sources of files with names
_ITEMS = {
  "init_only": str, "optimizer.frozen": str, "condition.cross_attention": int, "lpips.weights": str
}  # of tuples that begin empty; fmt: skip
_POSITIVE = (
  "data.resolution", "data.channels", "edm.sigma_data", "edm.sigma_min", "edm.p_std", "optimizer.learning_rate",
  "optimizer.epsilon", "optimizer.loss_scale", "ema.half_life_images", "train.batch_size", "train.num_steps",
  "train.accumulation", "train.updates_per_call", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints",
  "train.keep_best", "train.score_images", "train.sample_every", "train.max_skipped", "sampling.num_steps",
  "sampling.snr", "sampling.rho", "sampling.power", "dpdm.score_steps", "condition.upsample", "dddm.num_steps",
  "dddm.in_step_iterations", "dddm.buffer_slices",
)  # fmt: skip
_NOT_NEGATIVE = (
  "seed", "data.num_classes", "optimizer.warmup_images", "optimizer.clip_norm", "ema.ramp_up", "sampling.guidance",
  "sampling.churn", "sampling.s_min", "sampling.s_noise", "sampling.eta", "sampling.sigma_min", "sampling.sigma_max",
  "condition.resolution", "condition.channels", "sampling.guidance_sigma_min",
  "edm.vlb_weight", "dual.eps_weight", "dual.x_weight", "dual.mean_weight", "dual.vlb_weight", "sampling.switch",
  "sampling.clip", "optimizer.loss_scale_growth", "hang_timeout", "train.keep_every", "train.score_every",
  "optimizer.weight_decay", "optimizer.decay_images", "optimizer.decay_power", "optimizer.min_learning_rate",
  "ema.ramp_power", "decoupled.reconstruction_weight", "sampling.refit", "autoencoder.kl_weight", "latent.scale",
  "dddm.metric_c", "dddm.num_examples",
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
  if config.method == "dddm":
    _check_dddm(config, device_count)
  if config.decoupled.reconstruction_lpips and not config.decoupled.reconstruction_weight:
    raise wrong("decoupled.reconstruction_lpips", True, "needs decoupled.reconstruction_weight > 0, by which it counts")
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
  if sampling.sampler == "dddm" and sampling.grid != "dddm":
    raise wrong("sampling.grid", sampling.grid, "must be 'dddm' for the sampler dddm, whose times are all T")
  if sampling.grid == "dddm" and sampling.sampler != "dddm":
    raise wrong("sampling.grid", "dddm", f"must be another for the sampler {sampling.sampler}: its times are all T")
  choose("sampling.variance", sampling.variance, ("posterior", "upper", "learned"))
  if (sampling.sampler, sampling.variance) == ("ddpm", "learned"):
    part, process = ("dual", "own") if config.method == "dual_output" else ("edm", "vp")
    if not (config[part].vlb_weight and sampling.process == process):
      expected = f"needs a network with {part}.vlb_weight > 0, and sampling.process = {process!r}"
      raise wrong("sampling.variance", "learned", expected)
  _check_ratio(config)
  _check_decoupled(config)
  choose("sampling.variant", sampling.variant, ("bh1", "bh2"))
  if sampling.tau_max < sampling.tau_min:
    raise wrong("sampling.tau_max", sampling.tau_max, "must be at least sampling.tau_min")
  for name in ("rtol", "atol"):
    if not sampling[name] > 0:
      raise wrong(f"sampling.{name}", sampling[name], "must be positive")
  if sampling.s_max < sampling.s_min:
    raise wrong("sampling.s_max", sampling.s_max, "must be at least sampling.s_min")
  if sampling.eta > 1:
    raise wrong("sampling.eta", sampling.eta, "must be in [0, 1]")
  if sampling.eta and sampling.sampler != "ddim":
    raise wrong("sampling.eta", sampling.eta, f"must be 0 for the sampler {sampling.sampler}; ddim has an eta")
  if sampling.guidance != 1 and not (config.data.num_classes and config.label_dropout):
    raise wrong("sampling.guidance", sampling.guidance, "must be 1 for a run without classes and label_dropout")
  _check_guidance(sampling)
  check_guide(sampling)


def _check_guidance(sampling: ConfigDict):
  """The options of classifier-free guidance, and of clipping."""
  unguided, plain = sampling.guidance == 1, default().sampling
  for field in ("guidance_sigma_min", "guidance_sigma_max", "guidance_rescale"):
    if unguided and sampling[field] != plain[field]:
      expected = f"must be {plain[field]:g} without guidance, which sampling.guidance = 1 is"
      raise wrong(f"sampling.{field}", sampling[field], expected)
  if not sampling.guidance_sigma_max >= sampling.guidance_sigma_min:
    expected = f"must be at least sampling.guidance_sigma_min ({sampling.guidance_sigma_min:g})"
    raise wrong("sampling.guidance_sigma_max", sampling.guidance_sigma_max, expected)
  for field in ("guidance_sigma_min", "guidance_sigma_max"):
    if sampling.sampler == "dddm" and sampling[field] != plain[field]:
      expected = f"must be {plain[field]:g} for the sampler dddm, which stays at one noise level"
      raise wrong(f"sampling.{field}", sampling[field], expected)
  if not 0 <= sampling.guidance_rescale <= 1:
    raise wrong("sampling.guidance_rescale", sampling.guidance_rescale, "must be in [0, 1]")
  if sampling.clip_percentile and not 0 < sampling.clip_percentile < 1:
    raise wrong("sampling.clip_percentile", sampling.clip_percentile, "must be in (0, 1), such as .995, or 0 for none")
  if sampling.clip_percentile and not sampling.clip:
    raise wrong("sampling.clip_percentile", sampling.clip_percentile, "must be 0 without sampling.clip, the limit")
  if sampling.clip_percentile and sampling.ratio == "mean":
    expected = "must be 0 with sampling.ratio = 'mean', which is measured without"
    raise wrong("sampling.clip_percentile", sampling.clip_percentile, expected)


def check_guide(sampling: ConfigDict):
  """Raises ConfigError where a config.sampling guides by a classifier that it does not name, or by no proper scale."""
  scale = sampling.classifier_scale
  if not 0 <= scale < float("inf"):
    raise wrong("sampling.classifier_scale", scale, "must be a number of at least 0")
  if scale and not sampling.classifier:
    raise wrong("sampling.classifier_scale", scale, "guidance without a classifier: sampling.classifier names its run")


def _check_dddm(config: ConfigDict, device_count: int | None):
  setting, train = config.dddm, config.train
  choices = {
    "conditioning": ("attention", "concat"),
    "estimates": ("buffer", "in_step", "noise"),
    "buffer_dtype": ("float32", "bfloat16", "float16"),
    "buffer_memory": ("device", "host"),
    "buffer_writes": ("estimate", "clean"),
  }
  for field, known in choices.items():
    choose(f"dddm.{field}", setting[field], known)
  if setting.num_steps <= 20:
    raise wrong("dddm.num_steps", setting.num_steps, "must be more than 20: β ends at 20/T, which is below 1")
  if setting.conditioning == "attention" and not (setting.attention_resolutions or setting.attention_bottleneck):
    raise wrong("dddm.attention_resolutions", (), "must hold a resolution for dddm.conditioning = 'attention'")
  if setting.estimates != "in_step":
    _check_idle(setting, ("in_step_iterations",))
  if not 0 <= setting.buffer_refresh <= 1:
    raise wrong("dddm.buffer_refresh", setting.buffer_refresh, "must be a probability in [0, 1]")
  if setting.estimates != "buffer":
    _check_idle(setting, ("buffer_writes", "buffer_refresh", "buffer_memory", "consistency_weight"))
    return
  if device_count and setting.buffer_slices % device_count:
    raise wrong("dddm.buffer_slices", setting.buffer_slices, f"must be a multiple of {device_count} devices")
  if train.batch_size % setting.buffer_slices:
    expected = f"must be a multiple of dddm.buffer_slices ({setting.buffer_slices})"
    raise wrong("train.batch_size", train.batch_size, expected)
  if setting.buffer_memory == "host" and train.updates_per_call > 1:
    raise wrong("train.updates_per_call", train.updates_per_call, "must be 1 for dddm.buffer_memory = 'host'")


def _check_idle(setting: ConfigDict, fields: tuple[str, ...]):
  """Raises ConfigError for a field of config.dddm that is set and of no use."""
  for field in fields:
    if setting[field] != (value := default().dddm[field]):
      raise wrong(f"dddm.{field}", setting[field], f"must be {value!r} for dddm.estimates = {setting.estimates!r}")


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
    "decoupled.reconstruction_lpips": "LPIPS sees images",
    "decoupled.reconstruction_weight": "its error is one of images",
  }
  for field, why in refused.items():
    if given[field]:
      raise wrong(field, given[field], f"must be {type(given[field])()!r} for data.name = {LATENTS!r}: {why}")


def _check_ratio(config: ConfigDict):
  sampling = config.sampling
  ratios(sampling.ratio)
  for field, plain in (("ratio", "learned"), ("switch", 0)):
    if sampling[field] != plain and config.method != "dual_output":
      raise wrong(f"sampling.{field}", sampling[field], f"must be {plain!r} for method {config.method!r}")
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
  plain |= {name: default().sampling[name] for name in ("guidance_sigma_min", "guidance_sigma_max")}
  for field, value in plain.items():  # all of them ask for noise levels
    if sampling[field] != value:
      expected = f"must be {value!r} for decoupled.attenuation {config.decoupled.attenuation!r}, not a Gaussian process"
      raise wrong(f"sampling.{field}", sampling[field], expected)


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
