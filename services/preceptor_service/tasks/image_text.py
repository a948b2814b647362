"""`ImageText`: images with a caption each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from preceptor_service.columns import ATTENTION_MASK, INPUT_IDS
from preceptor_service.tasks.task import Columns, input_columns_named

if TYPE_CHECKING:
    import torch


class ImageText:
    """`image`, and a caption as a tokenizer gives it: int64 `input_ids` and `attention_mask`, both `[L]`.

    The module's `forward(image, input_ids, attention_mask)` gives two tensors of equal shape `[N, D]`: image and
    text embeddings, of any length. The loss is `ℓ = −z_im·z_txt` with both embeddings brought to length 1, in
    float32: from −1 for a pair that fits to 1. No other pair of the batch enters it, so it is a loss per example,
    although the learner trains with a contrastive loss (`models/contrastive.py`). A caption of padding alone has none.

    Source: Evans et al., arXiv 2312.05328 (ActiveCLIP, ActiveSigLIP). With `easy_reference` the score is
    CLIPScore (Hessel et al., EMNLP 2021) without its weight 2.5 and its cut at 0.
    """

    image = "image"

    def columns(self, module: torch.nn.Module) -> Columns:
        """Returns `image`, `input_ids`, `attention_mask` as `module` reads them."""
        names = (self.image, INPUT_IDS, ATTENTION_MASK)
        return input_columns_named(module, names, "task 'image_text' needs a dual encoder")

    def loss(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns −z_im·z_txt of each pair, float32 `[N]`; NaN where the mask is 0 throughout."""
        import torch
        from torch.nn.functional import normalize

        mask = features[ATTENTION_MASK]
        embeddings = module(image=features[self.image], input_ids=features[INPUT_IDS], attention_mask=mask)
        if not isinstance(embeddings, tuple) or len(embeddings) != 2:
            raise TypeError("its forward must give the tuple (image embeddings, text embeddings)")
        image, text = embeddings
        if image.ndim != 2 or image.shape != text.shape:
            raise ValueError(
                f"image embeddings have shape {tuple(image.shape)}, text embeddings {tuple(text.shape)}; "
                "both must be [N, D]"
            )
        losses = -(normalize(image.float(), dim=1) * normalize(text.float(), dim=1)).sum(1)
        return torch.where(mask.any(1), losses, torch.nan)
