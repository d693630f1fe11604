"""MTEB's interface of encoders: batches of PIL images, of texts, or of both."""

from __future__ import annotations

from typing import Any

import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import Tensor
from tqdm.auto import tqdm

from backbones.backbone import Preprocessing, in_memory_format
from backbones.registry import create
from cliptex_common.device import current_device


class MtebEncoder(AbsEncoder):
    """See ``backbones.as_mteb``. Its revision in MTEB's results is the backbone's identity."""

    def __init__(self, name: str, device: str | None, **options: Any) -> None:
        self.device = torch.device(device) if device else current_device()
        self.model = create(name, **options).to(self.device)
        self.prepare = Preprocessing(self.model.data)
        unknown = (
            *("release_date", "languages", "memory_usage_mb", "max_tokens", "license"),
            *("open_weights", "public_training_code", "public_training_data"),
            *("use_instructions", "training_datasets"),
        )
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=f"cliptex-benchmark/{name.replace('/', '_')}",
            revision=self.model.key(),
            n_parameters=sum(each.numel() for each in self.model.parameters()),
            embed_dim=self.model.embed_dim,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            modalities=["image", "text"] if self.model.has_text else ["image"],
            **dict.fromkeys(unknown),
        )

    @torch.inference_mode()
    def encode(self, inputs: Any, *, show_progress_bar: bool = True, **context: Any) -> Tensor:
        """(N, D) float32 on the CPU. Of a text with an image the sum, as MTEB's CLIP models do."""
        batches = tqdm(inputs, disable=not show_progress_bar)
        return torch.cat([self._encode(batch).float().cpu() for batch in batches])

    def _encode(self, batch: dict[str, Any]) -> Tensor:
        embeddings = []
        if "image" in batch:
            images = torch.stack([self.prepare(image) for image in batch["image"]])
            images = in_memory_format(images.to(self.device), self.model)
            embeddings.append(self.model.encode_image(images))
        if "text" in batch and (self.model.has_text or not embeddings):
            embeddings.append(self.model.encode_text(batch["text"]))
        return torch.stack(embeddings).sum(dim=0)
