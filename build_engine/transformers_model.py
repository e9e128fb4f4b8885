"""transformers' model of a checkpoint, one block or one tower at a time, in float32.

It shares no arithmetic with the runtime: values are dequantized here by the plain formula, and
computed by transformers. Source: transformers 5.23.0, `nemotron_h` and `nemotron_h_omni`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# Nothing is asked of a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import NemotronHConfig, ParakeetFeatureExtractor, PreTrainedTokenizerFast
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock, NemotronHRMSNorm
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import NemotronH_Omni_Reasoning_V3

from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import ROOT
from build_engine.inventory import AUDIO, FINAL_NORMS, VISION, audio_tensors, vision_tensors
from edge.model.config_keys import numbers, published_names
from edge.types import Float32

transformers.logging.set_verbosity_error()  # it says that its kernels are the plain ones

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3_LARGEST = 448.0
SMALL_TEXT = {"vocab_size": 8, "layers_block_type": ["mlp"], "intermediate_size": 8}
SMALL_VISION = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SMALL_VISION |= {"max_img_size": 32, "video_temporal_patch_size": 2}
"""In the place of parts that are not compared."""
VISION_NAMES = {
    f"{VISION}.model.patch_generator.embedder.": "vision_model.embeddings.patch_projection.",
    f"{VISION}.model.patch_generator.video_embedder.": (
        "vision_model.embeddings.video_patch_projection."
    ),
    f"{VISION}.model.patch_generator.pos_embed": "vision_model.embeddings.position_embedding",
    f"{VISION}.model.patch_generator.cls_token.token": (
        "vision_model.embeddings.cls_register_token"
    ),
    f"{VISION}.model.blocks.": "vision_model.encoder.layer.",
    ".attn.proj.": ".attention.o_proj.",
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
    f"{FINAL_NORMS[1]}.": f"{FINAL_NORMS[0]}.",
}
AUDIO_NAMES = {
    f"{AUDIO}.": "audio_tower.",
    "sound_projection.norm.": "embed_audio.layer_norm.",
    "sound_projection.linear1.": "embed_audio.linear_1.",
    "sound_projection.linear2.": "embed_audio.linear_2.",
}
"""Beginnings and parts of published names, and transformers' own."""
HAVE_OWN_VALUES = (
    *("layer_scale1.lambda1", "layer_scale2.lambda1", "summary_idxs", "norm_mean", "norm_std"),
    *("vision_final_layernorm.weight", "vision_final_layernorm.bias", "num_batches_tracked"),
)


def versions() -> dict[str, str]:
    """Of what the comparison depends on."""
    return {"transformers": str(transformers.__version__), "torch": str(torch.__version__)}


class TransformersModel:
    """Parts of transformers' model; each is made for one call."""

    ERRORS = (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        StrictDataclassError,
    )
    """What transformers and torch raise where a model of these sizes is not possible there."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        config = published_names(checkpoint.config)
        self._llm = {k: v for k, v in config["llm_config"].items() if v is not None}
        self._llm["time_step_limit"] = numbers(self._llm.get("time_step_limit", (0.0, np.inf)))
        self._sound = {k: v for k, v in config["sound_config"].items() if k != "model_type"}

    def _values(self, name: str) -> Float32:
        """A tensor of the checkpoint in float32."""
        checkpoint = self._checkpoint
        stored = checkpoint.tensor(name, checkpoint.shape(name))
        module = name.removesuffix(".weight")

        def scale(kind: str) -> Float32:
            sibling = f"{module}.{kind}"
            return checkpoint.tensor(sibling, checkpoint.shape(sibling)).astype(np.float32)

        if stored.dtype == np.uint8 and checkpoint.has(f"{module}.weight_scale_2"):
            pairs = np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)
            codes = np.where(pairs & 8, -E2M1[pairs & 7], E2M1[pairs & 7])
            blocks = np.repeat(_without_nan(scale("weight_scale")), 16, axis=1)
            values = codes * blocks * scale("weight_scale_2")
            return values.astype(np.float32)
        if stored.dtype == np.uint8:
            halves = np.stack([stored & 15, stored >> 4], axis=1).reshape(-1, stored.shape[1])
            signed = np.where(halves > 7, halves.astype(np.int8) - 16, halves.astype(np.int8))
            return signed * np.repeat(scale("weight_scale"), 128, axis=1)
        plain: Float32 = stored.astype(np.float32)
        if checkpoint.has(f"{module}.weight_scale"):
            plain = np.nan_to_num(plain) * scale("weight_scale")
        return plain

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._values(name)))

    def embeddings(self, ids: NDArray[np.int32]) -> Float32:
        """[n] -> [n, H]."""
        name = f"{ROOT}.embeddings.weight"
        table = self._checkpoint.tensor(name, self._checkpoint.shape(name))
        return np.asarray(table[ids].astype(np.float32))

    def _text_config(self) -> Any:
        config = NemotronHConfig(**self._llm)
        config._attn_implementation = config._experts_implementation = "eager"
        return config

    @torch.no_grad()
    def mixed(
        self, layer: int, rows: Float32, chosen: NDArray[np.int32]
    ) -> tuple[Float32, Float32 | None]:
        """What one block adds to the residual stream `rows` [n, H].

        Args:
            chosen: [m, k] experts.
        Returns:
            That, and of a block with experts what those chosen sum up to for the first m rows.
        """
        with torch.device("meta"):
            block = NemotronHBlock(self._text_config(), layer)
        block = block.to_empty(device="cpu").eval()
        at = f"{ROOT}.layers.{layer}"
        for name, parameter in (*block.named_parameters(), *block.named_buffers()):
            if name in ("mixer.experts.up_proj", "mixer.experts.down_proj"):
                kind = name.rpartition(".")[2]
                for expert, matrix in enumerate(parameter):
                    matrix.copy_(self._tensor(f"{at}.mixer.experts.{expert}.{kind}.weight"))
            else:
                parameter.copy_(self._tensor(f"{at}.{name}").reshape(parameter.shape))
        if hasattr(block.mixer, "time_step_limit"):
            # 5.23.0 clamps steps at time_step_min in prefill; the published model does not
            block.mixer.time_step_limit = (0.0, float("inf"))
        normed = block.norm(torch.from_numpy(rows)[None])
        if block.block_type == "full_attention":
            hidden = torch.full((len(rows), len(rows)), float("-inf"))
            mask = torch.triu(hidden, diagonal=1)[None, None]
            added, _ = block.mixer(normed, attention_mask=mask)
        else:
            added = block.mixer(normed)
        each = None
        if block.block_type == "moe":
            ids = torch.from_numpy(chosen.astype(np.int64))
            weights = torch.ones(ids.shape)
            each = block.mixer.experts(torch.from_numpy(rows[: len(chosen)]), ids, weights).numpy()
        return added[0].numpy(), each

    @torch.no_grad()
    def head(self, rows: Float32) -> Float32:
        """[n, H] after the last block -> logits [n, vocabulary]."""
        spec = self._checkpoint.spec.decoder
        norm = NemotronHRMSNorm(spec.hidden_size, eps=spec.norm_eps)
        norm.weight.copy_(self._tensor(f"{ROOT}.norm_f.weight"))
        head = self._tensor("language_model.lm_head.weight")
        logits = torch.nn.functional.linear(norm(torch.from_numpy(rows)), head)
        return np.asarray(logits.numpy())

    def _model(self, vision: Mapping[str, Any], sound: Mapping[str, Any] | None) -> Any:
        spec = self._checkpoint.spec
        predicted = self._llm.get("num_nextn_predict_layers", 0)
        text = {**SMALL_TEXT, "hidden_size": spec.decoder.hidden_size}
        config = NemotronH_Omni_Reasoning_V3_Config(
            text_config={**text, "num_nextn_predict_layers": predicted},
            vision_config=dict(vision),
            audio_config=sound,
            projector_hidden_size=spec.vision.projector_size,
            vision_hidden_size=vision["hidden_size"],
            video_temporal_patch_size=vision["video_temporal_patch_size"],
            image_token_id=0,
        )
        return NemotronH_Omni_Reasoning_V3(config).eval()

    def _load(
        self, model: Any, tensors: Mapping[str, torch.Tensor], parts: tuple[str, ...]
    ) -> None:
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        missing = [name for name in missing if name.startswith(parts)]
        missing = [name for name in missing if not name.endswith(HAVE_OWN_VALUES)]
        if missing or unexpected:
            raise ValueError(f"transformers has {missing}, and not {unexpected}")

    @torch.no_grad()
    def vision(self, patches: Float32, frames: Float32, grid: tuple[int, int]) -> Any:
        """Features of one picture's patches, and of one tubelet's frames [n, 3, height, width]."""
        spec = self._checkpoint.spec.vision
        sizes = {
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.n_layers,
            "num_attention_heads": spec.n_heads,
            "mlp_ratio": spec.mlp_size / spec.hidden_size,
            "patch_size": spec.patch_size,
            "max_img_size": spec.position_grid * spec.patch_size,
            "num_cls_tokens": 1,
            "num_registers": spec.n_prefix_tokens - 1,
            "summary_idxs": [0],
            "video_temporal_patch_size": spec.tubelet_frames,
            "layer_norm_eps": spec.norm_eps,
        }
        model, tensors = self._model(sizes, None), {}
        names = [n for n, _ in vision_tensors(spec, self._checkpoint.spec.decoder.hidden_size)]
        norms = [f"{n}.{k}" for n in FINAL_NORMS for k in ("weight", "bias") if spec.final_norm]
        for name in (*names, *(n for n in norms if self._checkpoint.has(n))):
            values, renamed = self._tensor(name), _renamed(name, VISION_NAMES)
            if ".attn.qkv." in renamed:
                for kind, part in zip("qkv", values.chunk(3), strict=True):
                    tensors[renamed.replace("attn.qkv", f"attention.{kind}_proj")] = part.clone()
            else:
                tensors[renamed] = values
        self._load(model, tensors, ("vision_", "multi_modal_projector"))
        model.vision_model.config.torch_dtype = torch.float32  # the features are cast to it
        image = model.get_image_features(
            torch.from_numpy(patches), torch.tensor([grid]), return_dict=True
        )
        video = model.get_video_features(torch.from_numpy(frames), return_dict=True)
        return image.pooler_output[0].numpy(), video.pooler_output.numpy()

    @torch.no_grad()
    def audio(self, mel: Float32) -> Float32:
        """Valid mel frames -> [tokens, H]; the row that comes of padding alone is dropped."""
        spec = self._checkpoint.spec
        sound = {"attention_bias": False, "scale_input": False, "projection_bias": False}
        model = self._model(SMALL_VISION, {**sound, **self._sound})
        names = [n for n, _ in audio_tensors(spec.audio, spec.decoder.hidden_size)]
        tensors = {_renamed(name, AUDIO_NAMES): self._tensor(name) for name in names}
        self._load(model, tensors, ("audio_tower", "embed_audio"))
        padded = torch.nn.functional.pad(torch.from_numpy(mel), (0, 0, 0, 1))[None]
        mask = torch.arange(len(mel) + 1)[None] < len(mel)
        features = model.get_audio_features(padded, mask, return_dict=True).pooler_output
        return np.asarray(features[: -(-len(mel) // 8)].numpy())

    def mel(self, samples: Float32) -> Float32:
        """16 kHz samples -> the valid log-mel frames."""
        extractor = ParakeetFeatureExtractor(
            feature_size=self._checkpoint.spec.audio.n_mels, sampling_rate=16_000
        )
        out = extractor([samples], sampling_rate=16_000, return_tensors="pt")
        rows = out.input_features[0, : int(out.attention_mask.sum())]
        return np.asarray(rows.float().numpy())

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer and template, as transformers loads them."""
        folder = self._checkpoint.folder
        template = (folder / "chat_template.jinja").read_text()
        loaded = PreTrainedTokenizerFast.from_pretrained(folder)
        loaded.chat_template = template
        return loaded


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old) or old.startswith("."):
            name = name.replace(old, new, 1)
    return name


def _without_nan(scales: Float32) -> Float32:
    """As saturated ones are read. Over zeros it does not matter which number they are."""
    return np.nan_to_num(scales, nan=E4M3_LARGEST)
