"""What a reconstruction does to the LM's predictions, over a stream of batches."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from sae import functional
from sae.errors import ConfigError
from sae.metrics.grouped import GroupedSums

ABLATIONS = ("zero", "mean")


class NextToken(GroupedSums):
    """Cross entropy clean, spliced and ablated, with what is derived from it.

    All means are over the predictions that count (`functional.prediction_mask`), of all batches.
    Results: `ce_clean`, `ce_sae`, `delta_ce`, `kl` in nats, `perplexity_clean`,
    `perplexity_sae`, `top1_agreement`, and for each ablation `ce_<it>` and `ce_recovered_<it>`.

    Args:
        ablations: Which of zero and mean ablation are measured.
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
        names = ("predictions", "clean", "sae", "kl", "top1", *ablations)
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
        }
        for name in self.ablations:
            metrics[f"ce_{name}"] = mean[name]
            metrics[f"ce_recovered_{name}"] = functional.ce_recovered(clean, spliced, mean[name])
        return metrics

    def update(
        self,
        tokens: Int[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"],
        logits: Mapping[str, Float[Tensor, "batch ctx vocab"]],
    ) -> None:
        """Add contexts.

        Args:
            tokens: Token ids.
            document: Document id of every token.
            logits: Logits under `clean` and `sae`, and under the ablations that are measured
                here (sums of the others can be set with `set_ablation`).
        """
        # One context at a time: float32 copies of all logits would decide the memory needed.
        for row in range(len(tokens)):
            one = slice(row, row + 1)
            mask = functional.prediction_mask(document[one], self.keep_first)
            # What several terms read is converted once; on a CPU, argmax of bfloat16 is slow, too.
            floats = {name: logits[name][one].float() for name in ("clean", "sae")}
            clean, spliced = (values[:, :-1][mask] for values in floats.values())
            terms = {
                name: functional.next_token_cross_entropy(
                    floats.get(name, values[one]), tokens[one], mask
                )
                for name, values in logits.items()
            }
            terms["kl"] = functional.kl_divergence(clean, spliced)
            terms["top1"] = functional.top1_agreement(clean, spliced).double()
            terms["predictions"] = terms["clean"].new_ones(len(terms["clean"]))
            self.add(terms, document[one, :-1][mask])

    def ablation(self, name: str) -> Float[Tensor, " groups"]:
        """Summed cross entropy under an ablation; it does not depend on the SAE."""
        return self._sum(name)

    def set_ablation(self, name: str, sums: Float[Tensor, " groups"]) -> None:
        """Take the sums of an ablation from an earlier measurement on the same contexts."""
        self._sum(name).copy_(sums)
