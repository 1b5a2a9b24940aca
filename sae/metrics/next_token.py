"""Effect of a reconstruction on the LM's predictions, over a stream of batches."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import functional
from sae.errors import ConfigError
from sae.metrics.grouped import GroupedSums

ABLATIONS = ("zero", "mean")


class NextToken(GroupedSums):
    """Cross entropy clean, spliced and ablated, with what is derived from it.

    All means are over the predictions that count, of all batches: those of
    `functional.prediction_mask`, less those made at positions that do not count;
    `predictions_left_out` is the share of these. Results: `ce_clean`, `ce_sae`, `delta_ce`, `kl` in
    nats, `perplexity_clean`, `perplexity_sae`, `top1_agreement`, and for each ablation `ce_<it>`,
    `ce_recovered_<it>` and `kl_<it>`.

    Args:
        ablations: Ablations that are measured, out of zero and mean.
        keep_first: Count predictions made at position 0.
        num_groups: Upper limit to the number of resampled units.
    """

    count = "predictions"

    def __init__(
        self,
        ablations: Sequence[str] = ABLATIONS,
        keep_first: bool = False,
        num_groups: int = 1024,
    ):
        if unknown := sorted(set(ablations) - set(ABLATIONS)):
            raise ConfigError(f"Unknown ablations {unknown}; known: {', '.join(ABLATIONS)}.")
        names = ["predictions", "eligible", "clean", "sae", "kl", "top1", *ablations]
        names += [f"kl_{name}" for name in ablations]
        super().__init__(dict.fromkeys(names), num_groups)
        self.ablations = tuple(ablations)
        self.keep_first = keep_first

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means and ratios of means, for any leading axes."""
        mean = {name: value / sums["predictions"] for name, value in sums.items()}
        clean, spliced = mean["clean"], mean["sae"]
        metrics = {
            "ce_clean": clean,
            "ce_sae": spliced,
            "delta_ce": spliced - clean,
            "kl": mean["kl"],
            "perplexity_clean": functional.perplexity(clean),
            "perplexity_sae": functional.perplexity(spliced),
            "top1_agreement": mean["top1"],
            "predictions_left_out": 1 - sums["predictions"] / sums["eligible"],
        }
        for name in self.ablations:
            metrics[f"ce_{name}"] = mean[name]
            metrics[f"ce_recovered_{name}"] = functional.ce_recovered(clean, spliced, mean[name])
            metrics[f"kl_{name}"] = mean[f"kl_{name}"]
        return metrics

    def update(
        self,
        tokens: Int[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"],
        logits: Mapping[str, Float[Tensor, "batch ctx vocab"]],
        counted: Bool[Tensor, "batch ctx"] | None = None,
    ) -> None:
        """Add contexts.

        Args:
            tokens: Token ids.
            document: Document id of every token.
            logits: Logits under `clean` and `sae`, and under the ablations that are measured
                here (or leave them to `update_ablation` or `set_ablation`).
            counted: Positions whose predictions count; None: all that `prediction_mask` counts.
        """
        eligible = document[:, :-1][functional.prediction_mask(document, self.keep_first)]
        self.add({"eligible": torch.ones_like(eligible, dtype=torch.float64)}, eligible)
        for part, document_of, target in self._counted(tokens, document, logits["clean"], counted):
            clean, spliced = logits["clean"][part], logits["sae"][part]
            terms = functional.compare_predictions(clean, spliced, target)
            terms["sae"] = terms.pop("other")
            terms["predictions"] = torch.ones_like(terms["clean"])
            self.add(terms, document_of)
        for name in self.ablations:
            if name in logits:
                self.update_ablation(name, tokens, document, logits["clean"], logits[name], counted)

    def update_ablation(
        self,
        name: str,
        tokens: Int[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"],
        clean: Float[Tensor, "batch ctx vocab"],
        ablated: Float[Tensor, "batch ctx vocab"],
        counted: Bool[Tensor, "batch ctx"] | None = None,
    ) -> None:
        """Add contexts under an ablation only; `update` must get the same ones."""
        for part, document_of, target in self._counted(tokens, document, ablated, counted):
            terms = functional.compare_predictions(clean[part], ablated[part], target)
            self.add({name: terms["other"], f"kl_{name}": terms["kl"]}, document_of)

    def _counted(
        self, tokens: Tensor, document: Tensor, logits: Tensor, counted: Tensor | None
    ) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor, Tensor]]:
        """Positions of the predictions that count, with their documents and targets.

        A few at a time: float32 copies of all logits would decide memory, and on a CPU those that
        do not fit its cache the time.
        """
        mask = functional.prediction_mask(document, self.keep_first)
        if counted is not None:
            mask = mask & counted[:, :-1]
        context, position = mask.nonzero(as_tuple=True)
        at_once = max(1, (2**21 if logits.device.type == "cpu" else 2**26) // logits.shape[-1])
        for part in zip(context.split(at_once), position.split(at_once), strict=True):
            following = (part[0], part[1] + 1)
            yield part, document[part], tokens[following]

    def num_eligible(self) -> int:
        """Predictions seen so far, by all processes, those made where nothing counts included."""
        with self.sync_context():
            return int(self._sum("eligible").sum().item())

    def ablation(self, name: str) -> Float[Tensor, "2 groups"]:
        """Summed cross entropy and KL under an ablation; they do not depend on the SAE."""
        return torch.stack([self._sum(name), self._sum(f"kl_{name}")])

    def set_ablation(self, name: str, sums: Float[Tensor, "2 groups"]) -> None:
        """Take the sums of an ablation from an earlier measurement on the same contexts."""
        for own, given in zip((name, f"kl_{name}"), sums, strict=True):
            self._sum(own).copy_(given)
