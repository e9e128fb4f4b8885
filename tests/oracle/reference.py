"""The independent oracle: transformers' own model on a checkpoint in the published layout.

It shares no code with the project: the configuration is translated from config.json here, and the
weights are renamed by transformers. All arithmetic is float32 on the CPU.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ParakeetFeatureExtractor
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
    compute_retention_mask,
)

Float32 = NDArray[np.float32]

NOT_IN_THE_FILE = ("layer_scale1.lambda1", "layer_scale2.lambda1", "summary_idxs")
NOT_IN_THE_MODEL = ("input_conditioner.norm_mean", "input_conditioner.norm_std", "featurizer.fb")
NOT_IN_THE_MODEL += ("featurizer.window",)
MTP_NORM = "vision_final_layernorm."


def load(folder: Path) -> Reference:
    """The oracle of a checkpoint folder; every weight must find its place."""
    published = json.loads((folder / "config.json").read_text())
    model, info = NemotronH_Omni_Reasoning_V3.from_pretrained(
        folder, config=oracle_config(published), dtype=torch.float32, output_loading_info=True
    )
    missing = [k for k in info["missing_keys"] if not k.endswith(NOT_IN_THE_FILE)]
    missing = [k for k in missing if not k.startswith(MTP_NORM)]  # it is 1 and 0 by itself
    unexpected = [k for k in info["unexpected_keys"] if not k.endswith(NOT_IN_THE_MODEL)]
    others = [k for k, v in info.items() if v and k not in ("missing_keys", "unexpected_keys")]
    assert [missing, unexpected, others] == [[], [], []]
    for name, values in model.named_parameters():
        assert values.dtype == torch.float32, name
        assert "layer_scale" not in name or bool((values == 1).all()), name
    model.vision_model.config.torch_dtype = torch.float32  # the features are cast to it
    for layer in model.language_model.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            # 5.23.0 clamps dt at time_step_min in prefill; the published model does not
            layer.mixer.time_step_limit = (0.0, float("inf"))
    return Reference(model.eval(), published)


def oracle_config(published: dict[str, Any]) -> NemotronH_Omni_Reasoning_V3_Config:
    """The published config.json in the words of transformers."""
    vision, args = published["vision_config"], published["vision_config"]["args"]
    sound = {k: v for k, v in published["sound_config"].items() if k != "model_type"}
    # RadioConfig reads nothing from `args`, and knows ViT-H only by its defaults
    radio = {
        "hidden_size": vision.get("hidden_size", 1280),
        "num_hidden_layers": vision.get("num_hidden_layers", 32),
        "num_attention_heads": vision.get("num_attention_heads", 16),
        "patch_size": vision["patch_size"],
        "max_img_size": args["cpe_max_size"],
        "num_cls_tokens": 4,
        "num_registers": args["register_multiple"] - 4,
        "video_temporal_patch_size": vision["video_temporal_patch_size"],
        "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
    }
    radio["mlp_ratio"] = vision.get("intermediate_size", 4 * radio["hidden_size"])
    radio["mlp_ratio"] /= radio["hidden_size"]
    return NemotronH_Omni_Reasoning_V3_Config(
        text_config=dict(published["llm_config"]),
        vision_config=radio,
        audio_config={"attention_bias": False, "scale_input": False, **sound},
        projector_hidden_size=published["projector_hidden_size"],
        vision_hidden_size=radio["hidden_size"],
        downsample_ratio=published["downsample_ratio"],
        image_token_id=published["img_context_token_id"],
        video_token_id=published["video_context_token_id"],
        audio_token_id=published["sound_context_token_id"],
        video_temporal_patch_size=vision["video_temporal_patch_size"],
        video_pruning_rate=0.0,  # evs_mask prunes; the model's own way assumes a square grid
    )


class Reference:
    """One loaded model; every method takes and returns numpy arrays."""

    def __init__(self, model: Any, published: dict[str, Any]) -> None:
        self.model, self.published = model, published
        self.features = ParakeetFeatureExtractor(
            feature_size=published["sound_config"]["num_mel_bins"], sampling_rate=16000
        )

    def patches(self, image: NDArray[np.uint8], rows: int, columns: int) -> Float32:
        """An RGB image (height, width, 3), resized to the grid -> (rows * columns, 768)."""
        side = self.published["patch_size"]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        pixels = torch.nn.functional.interpolate(
            pixels, size=(rows * side, columns * side), mode="bicubic", antialias=True
        )
        mean, std = (
            torch.tensor(self.published[k]).view(3, 1, 1) for k in ("norm_mean", "norm_std")
        )
        pixels = ((pixels / 255 - mean) / std).view(3, rows, side, columns, side)
        return pixels.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1).numpy()

    @torch.no_grad()
    def image_features(self, patches: Float32, rows: int, columns: int) -> Float32:
        """Patches of one image -> (rows * columns / 4, hidden)."""
        grid = torch.tensor([[rows, columns]])
        out = self.model.get_image_features(torch.from_numpy(patches), grid, return_dict=True)
        return out.pooler_output[0].numpy()

    @torch.no_grad()
    def tubelet_features(self, frames: Float32) -> Float32:
        """Normalised frames (n, 3, height, width) -> (tubelets, tokens, hidden)."""
        out = self.model.get_video_features(torch.from_numpy(frames), return_dict=True)
        return out.pooler_output.numpy()

    def mel(self, samples: Float32, *, exact: bool = True) -> Float32:
        """16 kHz samples (n,) -> the valid rows (n // 160, mel bins).

        exact: run transformers' own code with a float64 transform. Its float32 transform rounds by
        up to 1.6e-4 in a few cells whose energy is far below their neighbours'.
        """
        with _float64_transform(self.features) if exact else contextlib.nullcontext():
            out = self.features([samples], sampling_rate=16000, return_tensors="pt")
        rows = out.input_features[0, : int(out.attention_mask.sum())]
        return rows.float().numpy()

    def audio_features(self, mel: Float32) -> Float32:
        """Valid rows (frames, mel bins) -> (ceil(frames / 8), hidden), as vLLM counts them.

        Without the row that comes of padding alone.
        """
        return self.all_audio_features(mel)[: -(-len(mel) // 8)]

    @torch.no_grad()
    def all_audio_features(self, mel: Float32) -> Float32:
        """The same as the model gives it: as from its feature extractor, it gets one row more than
        is valid, and a mask."""
        padded = torch.nn.functional.pad(torch.from_numpy(mel), (0, 0, 0, 1))[None]
        mask = torch.arange(len(mel) + 1)[None] < len(mel)
        out = self.model.get_audio_features(padded, mask, return_dict=True)
        return out.pooler_output.numpy()

    def evs_mask(
        self, embeddings: Float32, tubelets: int, rows: int, columns: int, q: float
    ) -> NDArray[np.bool_]:
        """Which of (tubelets * rows * columns, hidden) embeddings stay at pruning rate q."""
        mask = compute_retention_mask(
            video_embeds=torch.from_numpy(embeddings),
            thw=(tubelets, rows, columns),
            spatial_merge_size=1,
            q=q,
        )
        return mask.numpy()

    @torch.no_grad()
    def embed(self, ids: list[int]) -> Float32:
        """Token ids -> (n, hidden)."""
        return self.model.get_input_embeddings()(torch.tensor(ids)).numpy()

    @torch.no_grad()
    def hidden_states(self, embeddings: Float32) -> tuple[Float32, Float32]:
        """A whole prompt (tokens, hidden), without a cache.

        Returns:
            The output of every block, (blocks, tokens, hidden), and the logits, (tokens, vocab).
        """
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, out: outputs.append(out[0]))
            for layer in self.model.language_model.model.layers
        ]
        try:
            prompt = torch.from_numpy(embeddings)[None]
            logits = self.model(inputs_embeds=prompt, use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(outputs).numpy(), logits.float().numpy()

    @torch.no_grad()
    def greedy(self, embeddings: Float32, n: int) -> list[int]:
        """The n most likely next tokens, one after the other with the cache; none stops it."""
        out = self.model(inputs_embeds=torch.from_numpy(embeddings)[None], use_cache=True)
        ids = [int(out.logits[0, -1].argmax())]
        while len(ids) < n:
            out = self.model(
                input_ids=torch.tensor([ids[-1:]]),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            ids.append(int(out.logits[0, -1].argmax()))
        return ids


@contextlib.contextmanager
def _float64_transform(features: ParakeetFeatureExtractor) -> Iterator[None]:
    stft, filters = torch.stft, features.mel_filters
    window = torch.hann_window(features.win_length, periodic=False, dtype=torch.float64)

    def float64_stft(signal: torch.Tensor, n_fft: int, **settings: Any) -> torch.Tensor:
        return stft(signal.double(), n_fft, **{**settings, "window": window})

    torch.stft, features.mel_filters = float64_stft, filters.double()
    try:
        yield
    finally:
        torch.stft, features.mel_filters = stft, filters
