"""Sparse autoencoders on language models: train them, measure them, look at their features.

Names are imported when they are first used, so that `import sae` costs nothing.

    load(path) -> SAE           a saved SAE: run folder, SAE folder, another library's, hub id
    save(path, sae, format)     write one, also for another library
    save_sae(folder, sae)       write one over an older one, as a run does
    push_to_hub(sae, repo_id)   publish one
    to_saebench(sae)            wrap one for SAEBench
    place(run) -> PlacedSAE     a saved SAE with its LM, text and activations
    evaluate(run, evals)        measure one, and write the results into its folder
    records(run) -> Records     where each latent fires; a notebook shows `records[123]`
    latents_on(placed, text)    latents that fire on a text
    intervene(lm, *edits)       edit activations while an LM runs or writes
    set_to, scaled, added       edits of latents, for `placed.intervention(…)`
    SAE, SAEConfig              four tensors and how they encode
    Point                       a place in the LM: site and layer
    SAEError                    base of all errors that a user can cause
"""

from typing import TYPE_CHECKING

from sae.lazy import lazily

if TYPE_CHECKING:
    from sae.artifacts import load, push_to_hub, save, save_sae, to_saebench
    from sae.dictionaries.sae import SAE, SAEConfig
    from sae.errors import SAEError
    from sae.evaluation import evaluate, place
    from sae.features import latents_on, records
    from sae.interventions import added, intervene, scaled, set_to
    from sae.types import Point

_HOMES = {
    "added": "sae.interventions",
    "intervene": "sae.interventions",
    "scaled": "sae.interventions",
    "set_to": "sae.interventions",
    "latents_on": "sae.features",
    "records": "sae.features",
    "evaluate": "sae.evaluation",
    "place": "sae.evaluation",
    "load": "sae.artifacts",
    "push_to_hub": "sae.artifacts",
    "save": "sae.artifacts",
    "save_sae": "sae.artifacts",
    "to_saebench": "sae.artifacts",
    "SAE": "sae.dictionaries.sae",
    "SAEConfig": "sae.dictionaries.sae",
    "SAEError": "sae.errors",
    "Point": "sae.types",
}

__all__ = [
    "SAE",
    "Point",
    "SAEConfig",
    "SAEError",
    "added",
    "evaluate",
    "intervene",
    "latents_on",
    "load",
    "place",
    "push_to_hub",
    "records",
    "save",
    "save_sae",
    "scaled",
    "set_to",
    "to_saebench",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
