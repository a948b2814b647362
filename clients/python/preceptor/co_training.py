"""`CoTraining`: how the service trains a run's online model itself; its translation to and from the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from preceptor.v1 import run_pb2

Optimiser = Literal["adamw", "sgd"]
Contrast = Literal["softmax", "sigmoid"]

_OPTIMISERS: dict[Optimiser, run_pb2.Optimiser.ValueType] = {
    "adamw": run_pb2.OPTIMISER_ADAMW,
    "sgd": run_pb2.OPTIMISER_SGD,
}
_CONTRASTS: dict[Contrast, run_pb2.Contrast.ValueType] = {
    "softmax": run_pb2.CONTRAST_SOFTMAX,
    "sigmoid": run_pb2.CONTRAST_SIGMOID,
}


@dataclass(frozen=True)
class CoTraining:
    """How the online model of a run is trained in the service, on the sub-batches that the run hands out.

    Steps are consecutive from `first_step` on, each offered once by every rank. Block m is the steps
    [first_step + m·publish_every, first_step + (m + 1)·publish_every); each step is one update on the sub-batches of
    all ranks together, and each block gives a learner version: 1 is the untrained model, m + 2 is trained on
    blocks 0 to m. A step of block m is scored under version max(1, m + 1 − lag), whatever happens when.

    Attributes:
        learning_rate: at its highest; above 0.
        optimiser: `"adamw"` or `"sgd"`.
        weight_decay: 0 or above; decoupled from the gradient in AdamW.
        beta1, beta2: decay of AdamW's two moments; from 0 to below 1.
        momentum: of SGD; from 0 to below 1.
        total_steps: the learning rate decays to 0 over them by a half cosine, and stays there; None: no decay.
        warm_up_steps: steps over which it grows linearly to `learning_rate`; below `total_steps`.
        contrast: of task image_text: `"softmax"`, CLIP's update loss, or `"sigmoid"`, SigLIP's. Other tasks train on
            the mean of the loss that scores.
        publish_every: steps of one block, K; 1 or above.
        lag: blocks that may be untrained when a block is scored. 0: a block waits until all before it are trained,
            which with `publish_every` 1 is Algorithm 1 to the letter; 1: a block trains while the next is scored.
        ranks: trainer ranks that make up a step, 0 to `ranks` − 1; 1 or above.
        first_step: 0 or above.
        seed: of the initial weights and of dropout; 0 or above.
        reference_examples: the reference is trained in the service too, by the same settings, on so many candidates of
            each super-batch, drawn uniformly; then push none. 0: push a reference, which stays as it is.

    Source: Evans et al., arXiv 2312.05328, Algorithm 1, line 8. Blocks and lag are ours.
    """

    learning_rate: float = 1e-3
    optimiser: Optimiser = "adamw"
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.0
    total_steps: int | None = None
    warm_up_steps: int = 0
    contrast: Contrast = "softmax"
    publish_every: int = 1
    lag: int = 0
    ranks: int = 1
    first_step: int = 0
    seed: int = 0
    reference_examples: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in _OPTIMISERS:
            raise ValueError(f"optimiser is {self.optimiser!r}; choose one of {sorted(_OPTIMISERS)}")
        if self.contrast not in _CONTRASTS:
            raise ValueError(f"contrast is {self.contrast!r}; choose one of {sorted(_CONTRASTS)}")


def co_training_to_proto(spec: CoTraining) -> run_pb2.CoTraining:
    """Returns the wire form of `spec`."""
    return run_pb2.CoTraining(
        optimiser=_OPTIMISERS[spec.optimiser],
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        beta1=spec.beta1,
        beta2=spec.beta2,
        momentum=spec.momentum,
        total_steps=spec.total_steps,
        warm_up_steps=spec.warm_up_steps,
        contrast=_CONTRASTS[spec.contrast],
        publish_every=spec.publish_every,
        lag=spec.lag,
        ranks=spec.ranks,
        first_step=spec.first_step,
        seed=spec.seed,
        reference_examples=spec.reference_examples,
    )


def co_training_from_proto(message: run_pb2.CoTraining) -> CoTraining:
    """Returns the spec that `message` carries.

    Raises:
        ValueError: optimiser or contrast is not set.
    """
    optimisers = {value: name for name, value in _OPTIMISERS.items()}
    contrasts = {value: name for name, value in _CONTRASTS.items()}
    if message.optimiser not in optimisers or message.contrast not in contrasts:
        raise ValueError(
            f"co_training.optimiser is {message.optimiser} and contrast {message.contrast}; choose optimiser of "
            f"{sorted(_OPTIMISERS)} and contrast of {sorted(_CONTRASTS)}"
        )
    return CoTraining(
        learning_rate=message.learning_rate,
        optimiser=optimisers[message.optimiser],
        weight_decay=message.weight_decay,
        beta1=message.beta1,
        beta2=message.beta2,
        momentum=message.momentum,
        total_steps=message.total_steps if message.HasField("total_steps") else None,
        warm_up_steps=message.warm_up_steps,
        contrast=contrasts[message.contrast],
        publish_every=message.publish_every,
        lag=message.lag,
        ranks=message.ranks,
        first_step=message.first_step,
        seed=message.seed,
        reference_examples=message.reference_examples,
    )
