"""`fedmutual export`: a class's network as a folder that diffusers loads."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler

from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.diffusion.sampling import betas
from fedmutual.errors import UserError
from fedmutual.networks.unet import UNet
from fedmutual.run_folder import RunFacts, read_facts
from fedmutual.settings import write_settings
from simulations.runs.networks import class_networks, publishes_in_part, run_config

CARD = """---
library_name: diffusers
tags:
- unconditional-image-generation
- ddpm
---

# {name}

A denoising diffusion model (DDPM) of images of shape {shape}, of class {name} alone, trained by fedmutual: each class
has a network of its own, trained on its own images{peers}. This is the network that class {name} published in
round {round}{images}.

```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/of/this/folder")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
```

{steps} steps are all it was trained for, and the most the pipeline takes. Fewer are quicker; `fedmutual steps` measures
what they lose.

**What it may give away.** A diffusion model can reproduce images that it was trained on, the more so the fewer there
were. Sharing this folder shares what the network has learnt from them: nothing here makes it anonymous. Measure
near copies before you do (`fedmutual evaluate`: memorisation).

## Settings

```toml
{settings}```
"""

PREDICTION = {"noise": "epsilon", "velocity": "v_prediction"}
"""What diffusers calls that which a network puts out."""


def export(run: Path, name: str, folder: Path, which: str = "last") -> None:
    """Write class `name`'s network (its name or its number) of the run's checkpoint `which` into the new `folder`.

    The folder holds diffusers' `DDPMPipeline`: the U-Net in float32, a `DDPMScheduler` with the run's own betas and
    clipping, and a model card. All steps at the same noise give the samples of `sampler = "ddpm"`.

    Raises:
        UserError: a network or process that is not diffusers' DDPM, no such class, or a folder that holds something.
    """
    config, facts = run_config(run), read_facts(run)
    for setting, known in (("process", ("ddpm",)), ("parametrisation", tuple(PREDICTION))):
        if (value := config.settings()[setting]) not in known:
            needed = " or ".join(known)
            raise UserError(f"diffusers' DDPMPipeline needs {setting} = {needed}, and this run has {setting} = {value}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a new folder")
    names = list(facts.class_names)
    if name not in (*names, *map(str, range(len(names)))):
        raise UserError(f"no class {name!r}: there are {', '.join(names)}, numbered from 0")
    y = names.index(name) if name in names else int(name)
    if publishes_in_part(run):
        raise UserError(
            f"diffusers' DDPMPipeline holds one network, and with publish = {config.publishing.mode} a class has two, "
            "one of which never leaves its owner: train with publish = network to export"
        )
    round_, networks = class_networks(run, which, torch.device("cpu"))
    if y not in networks:
        raise UserError(f"class {names[y]} has never reported, so that it has no network to export")
    network = networks[y]
    if not isinstance(network, UNet):
        raise UserError(
            f"diffusers' DDPMPipeline takes a class's own U-Net, and this run has none: its method is "
            f"{facts.method}, its network = {config.network.kind}"
        )
    if any(network.padding):
        raise UserError(
            f"the network pads images of shape {facts.shape} to sides that its levels divide, which diffusers' "
            f"DDPMPipeline does not: train with fewer levels, such as multipliers = 1,2,2"
        )
    process = make_process(config.diffusion)
    scheduler = DDPMScheduler(
        num_train_timesteps=len(process),
        trained_betas=betas(process).tolist(),
        clip_sample=config.measuring.clip_samples,
        prediction_type=PREDICTION[config.diffusion.parametrisation],
        timestep_spacing="linspace",  # as fedmutual.diffusion.sampling spreads its steps
    )
    partial = folder.with_name(f".{folder.name}.partial")  # so that a folder of that name is always a whole one
    unet: Any = network.unet
    pipeline: Any = DDPMPipeline(unet.float(), scheduler)
    pipeline.save_pretrained(partial)
    (partial / "README.md").write_text(_card(config, facts, y, round_), encoding="utf-8")
    partial.replace(folder)


def _card(config: RunConfig, facts: RunFacts, y: int, round_: int) -> str:
    counts = facts.training_counts
    private = ("data-path", "out", "store", "extractor")  # places on the trainer's own disk
    settings = {key: value for key, value in config.settings().items() if key not in private}
    return CARD.format(
        name=facts.class_names[y],
        shape="x".join(map(str, facts.shape or ())),
        peers=" and on what the networks of other classes say of them" if config.mutual.beta else "",
        round=round_,
        images=f", from {counts[y]} training images" if counts else "",
        steps=config.diffusion.steps,
        settings=write_settings(settings),
    )
