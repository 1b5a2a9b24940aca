"""Sets of latents as files, so that what one evaluation found another can read."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae.artifacts.placed import PlacedSAE
from sae.checksums import read_sealed, seal, sha256_of
from sae.errors import ArtifactError, ConfigError
from sae.provenance import content_key, write_json

FORMAT = "lightning-sae.features"
FORMAT_VERSION = 1
_MOST = sys.float_info.max


@dataclass(frozen=True)
class FeatureSet:
    """Latents of an SAE with a weight each.

    Args:
        latents: Their numbers, the most important first.
        weights: Weight of each latent, by the evaluation's own measure.
        sae: Hash of the SAE (`sae_key`).
        point: Point where it reads and writes.
        made_by: The evaluation, its settings and what it measured; plain JSON values.
    """

    latents: tuple[int, ...]
    weights: tuple[float, ...]
    sae: str
    point: str
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Plain JSON values, as in the file."""
        return {
            "format": FORMAT, "version": FORMAT_VERSION, "latents": list(self.latents),
            "weights": list(self.weights), "sae": self.sae, "point": self.point,
            "made_by": dict(self.made_by),
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write with a checksum; a reader sees the old file or the new one."""
        write_json(path, seal(self.content()))


def feature_set(
    one: PlacedSAE, latents: Sequence[int], weights: Sequence[float], **made_by: Any
) -> FeatureSet:
    """A set of latents of an SAE at its place."""
    return FeatureSet(
        tuple(map(int, latents)), tuple(map(float, weights)), sae_key(one), str(one.point), made_by
    )


def read_features(path: str | Path, one: PlacedSAE | None = None) -> FeatureSet:
    """Read a set of latents.

    Args:
        path: The file.
        one: The SAE that they must be of; None: any.

    Raises:
        ArtifactError: If the file is damaged, holds no such set, or latents that `one` lacks.
        ConfigError: If there is no file, or it is of another SAE.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"There is no file {path}. Give a features.json that an evaluation wrote."
        )
    content = read_sealed(file)
    if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} is not a {FORMAT} of version {FORMAT_VERSION}. Give a features.json that an "
            "evaluation of this version wrote."
        )
    latents: Any = content.get("latents")
    weights: Any = content.get("weights")
    made_by: Any = content.get("made_by") or {}
    if (
        not (isinstance(latents, list) and isinstance(weights, list))
        or len(weights) != len(latents)
        or not all(type(i) is int and i >= 0 for i in latents)
        or not all(type(weight) in (int, float) and abs(weight) <= _MOST for weight in weights)
    ):
        raise ArtifactError(
            f"{path}: latents must be whole numbers of at least 0, each with a finite weight."
        )
    if not isinstance(made_by, dict):
        raise ArtifactError(f"{path}: made_by must be an object, and is {made_by!r}.")
    found = FeatureSet(
        tuple(latents), tuple(map(float, weights)), str(content.get("sae")),
        str(content.get("point")), made_by,
    )  # fmt: skip
    if one is not None and found.sae != sae_key(one):
        raise ConfigError(
            f"{path} holds latents of another SAE (at {found.point}) than {one.name}. Numbers of "
            "latents mean nothing to another SAE."
        )
    if one is not None and max(found.latents, default=0) >= one.sae.d_sae:
        raise ArtifactError(
            f"{path} holds latent {max(found.latents)}; {one.name or 'this SAE'} has latents 0 to "
            f"{one.sae.d_sae - 1}. Give a features.json that an evaluation wrote."
        )
    return found


def first_latent(feature: int | str, one: PlacedSAE) -> int | str:
    """The latent that a setting names: a file's name stands for the first latent of its set.

    Args:
        feature: The setting; all but the name of a `.json` file are given back.
        one: The SAE that the set must be of.

    Raises:
        ArtifactError: If the file is damaged or holds no set.
        ConfigError: If there is no file, it is of another SAE, or its set is empty.
    """
    if not isinstance(feature, str) or not feature.endswith(".json"):
        return feature
    found = read_features(feature, one)
    if not found.latents:
        raise ConfigError(f"{feature} holds no latent. Give the number of one.")
    return found.latents[0]


def weights_by_set(paths: Sequence[str], one: PlacedSAE) -> dict[str, dict[str, float]]:
    """Weights of the latents of several sets, by a heading for each set.

    Raises:
        ArtifactError: If a file is damaged or holds no set.
        ConfigError: If there is no such file, or it is of another SAE.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        of = read_features(path, one)
        words = [str(of.made_by[name]) for name in ("eval", "task") if name in of.made_by]
        heading = " ".join(words) or "set"
        alike = sum(name.split(" #")[0] == heading for name in found)
        found[f"{heading} #{alike + 1}" if alike else heading] = {
            str(latent): weight for latent, weight in zip(of.latents, of.weights, strict=True)
        }
    return found


def sae_key(one: PlacedSAE) -> str:
    """A hash of the SAE's tensors and configuration: a basis and its top-k share the tensors."""
    tensors = sha256_of(one.sae.state_dict())
    return content_key({"tensors": tensors, "config": asdict(one.sae.config)})
