"""The published architecture in torch, for training: same tensors, same names, nothing else.

Weights live in one dictionary under the checkpoint's own names, so writing a checkpoint is writing
the dictionary. The forward passes are those of the runtime (`edge/model/decoder.py`,
`build_engine/graphs`), over batches and with gradients; `tests/oracle` holds both to transformers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from make_tiny_checkpoint import decoder_tensors, encoder_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from edge.features.positions import interpolation_weights

SOUND_DROPOUT = 0.1
"""In training: few people lent their voices, and they must not be learnt by heart."""
CHUNK = 64
"""Positions that the selective scan takes at a time."""
FROZEN = ("norm_mean", "norm_std", ".fb", ".window", "num_batches_tracked", "running_mean")
FROZEN += ("running_var", "e_score_correction_bias")


class TinyOmni(nn.Module):
    """All tensors of a checkpoint, with the forward pass of each part."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.llm, self.vis, self.snd = (
            config[f"{part}_config"] for part in ("llm", "vision", "sound")
        )
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.ParameterDict()
        self.load: dict[int, Tensor] = {}
        shapes = [
            *decoder_tensors(self.llm),
            *encoder_tensors(config),
        ]
        for name, shape in shapes:
            values = initial(name, shape, generator)
            key = name.replace(".", "/")
            self.w[key] = nn.Parameter(values, requires_grad=not name.endswith(FROZEN))

    def t(self, name: str) -> Tensor:
        """A tensor by its published name."""
        return self.w[name.replace(".", "/")]

    def lin(self, x: Tensor, name: str) -> Tensor:
        bias = f"{name}.bias".replace(".", "/")
        return F.linear(x, self.t(f"{name}.weight"), self.w.get(bias))

    # Vision.

    def see(self, patches: Tensor, embedder: str, grid: tuple[int, int]) -> Tensor:
        """[B, rows * columns, features] -> [B, rows * columns / 4, hidden]."""
        return self.project(self.vit(patches, embedder, grid), grid)

    def vit(self, patches: Tensor, embedder: str, grid: tuple[int, int]) -> Tensor:
        """[B, rows * columns, features] -> [B, rows * columns, width]."""
        root = "vision_model.radio_model.model"
        width, heads = self.vis["hidden_size"], self.vis["num_attention_heads"]
        x = F.linear(patches, self.t(f"{root}.patch_generator.{embedder}.weight"))
        side = math.isqrt(self.t(f"{root}.patch_generator.pos_embed").shape[1])
        table = self.t(f"{root}.patch_generator.pos_embed").view(side, side, width)
        by_row, by_column = (
            torch.from_numpy(interpolation_weights(n, max(grid), side)) for n in grid
        )
        x = x + torch.einsum("hr,rcd,wc->hwd", by_row, table, by_column).reshape(-1, width)
        prefix = self.t(f"{root}.patch_generator.cls_token.token")
        x = torch.cat([prefix.expand(len(x), -1, -1), x], 1)
        for b in range(self.vis["num_hidden_layers"]):
            at = f"{root}.blocks.{b}"
            y = self.norm(x, f"{at}.norm1", 1e-6)
            q, k, v = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in self.lin(y, f"{at}.attn.qkv").chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.lin(y, f"{at}.attn.proj")
            y = F.gelu(self.lin(self.norm(x, f"{at}.norm2", 1e-6), f"{at}.mlp.fc1"))
            x = x + self.lin(y, f"{at}.mlp.fc2")
        return x[:, prefix.shape[0] :]

    def project(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixel shuffle and projector: [B, rows * columns, width] -> [B, .. / 4, hidden]."""
        n, _, width = x.shape
        x = x.reshape(n, grid[0] // 2, 2, grid[1] // 2, 2 * width)
        x = x.transpose(2, 3).reshape(n, -1, 4 * width)
        x = rms(x, self.t("mlp1.0.weight"))
        return self.lin(relu2(self.lin(x, "mlp1.1")), "mlp1.3")

    # Sound.

    def hear(self, mel: Tensor) -> Tensor:
        """[B, frames, mels], all of one length -> [B, ceil(frames / 8), hidden]."""
        root = "sound_encoder.encoder"
        drop = partial(F.dropout, p=SOUND_DROPOUT, training=self.training)
        x = mel[:, None]
        for layer in (0, 2, 3, 5, 6):
            weight, bias = (self.t(f"{root}.subsampling.layers.{layer}.{n}") for n in _WB)
            if layer in (3, 6):
                x = F.relu(F.conv2d(x, weight, bias))
            else:
                groups = 1 if layer == 0 else len(weight)
                x = F.conv2d(x, weight, bias, stride=2, padding=1, groups=groups)
                x = F.relu(x) if layer == 0 else x
        x = self.lin(x.transpose(1, 2).flatten(2), f"{root}.subsampling.linear")
        n, width = x.shape[1:]
        place = torch.arange(n - 1, -n, -1.0)[:, None]
        angles = place * 10_000.0 ** (-torch.arange(0, width, 2) / width)
        table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        index = (n - 1 - torch.arange(n))[:, None] + torch.arange(n)
        for i in range(self.snd["num_hidden_layers"]):
            at = f"{root}.layers.{i}"
            x = x + 0.5 * drop(self._ff(x, at, "feed_forward1"))
            y = self._relative_attention(self.norm(x, f"{at}.norm_self_att"), at, table, index)
            x = x + drop(y)
            x = x + drop(self._conv_module(self.norm(x, f"{at}.norm_conv"), f"{at}.conv"))
            x = x + 0.5 * drop(self._ff(x, at, "feed_forward2"))
            x = self.norm(x, f"{at}.norm_out")
        x = rms(x, self.t("sound_projection.norm.weight"))
        return self.lin(relu2(self.lin(x, "sound_projection.linear1")), "sound_projection.linear2")

    def _ff(self, x: Tensor, at: str, name: str) -> Tensor:
        y = self.lin(self.norm(x, f"{at}.norm_{name}"), f"{at}.{name}.linear1")
        return self.lin(F.silu(y), f"{at}.{name}.linear2")

    def _relative_attention(self, x: Tensor, at: str, table: Tensor, index: Tensor) -> Tensor:
        heads, at = self.snd["num_attention_heads"], f"{at}.self_attn"
        q, k, v = (
            self.lin(x, f"{at}.{n}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv"
        )
        u, w = (self.t(f"{at}.bias_{n}")[:, None] for n in "uv")
        r = self.lin(table, f"{at}.relative_k_proj").unflatten(-1, (heads, -1)).transpose(0, 1)
        position = ((q + w) @ r.transpose(-1, -2)).gather(-1, index.expand(*q.shape[:2], -1, -1))
        scores = ((q + u) @ k.transpose(-1, -2) + position) * q.shape[-1] ** -0.5
        return self.lin((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{at}.o_proj")

    def _conv_module(self, x: Tensor, at: str) -> Tensor:
        x = F.glu(F.linear(x, self.t(f"{at}.pointwise_conv1.weight")[:, :, 0]), -1)
        weight = self.t(f"{at}.depthwise_conv.weight")
        x = F.conv1d(x.transpose(1, 2), weight, padding=weight.shape[-1] // 2, groups=len(weight))
        statistics = (self.t(f"{at}.norm.running_mean"), self.t(f"{at}.norm.running_var"))
        scale = (self.t(f"{at}.norm.weight"), self.t(f"{at}.norm.bias"))
        x = F.batch_norm(x, *(s.data for s in statistics), *scale, self.training, 0.05)
        x = F.silu(x).transpose(1, 2)
        return F.linear(x, self.t(f"{at}.pointwise_conv2.weight")[:, :, 0])

    # Decoder.

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.t("language_model.backbone.embeddings.weight"))

    def decode(self, x: Tensor) -> Tensor:
        """Embeddings [B, L, hidden] -> logits [B, L, vocabulary]."""
        root = "language_model.backbone"
        mixers = {"M": self._mamba, "*": self._attention, "E": self._moe}
        for i, letter in enumerate(self.llm["hybrid_override_pattern"]):
            at = f"{root}.layers.{i}"
            x = x + mixers[letter](rms(x, self.t(f"{at}.norm.weight")), f"{at}.mixer", i)
        x = rms(x, self.t(f"{root}.norm_f.weight"))
        return F.linear(x, self.t("language_model.lm_head.weight"))

    def _mamba(self, x: Tensor, at: str, _layer: int) -> Tensor:
        llm, (b, n, _) = self.llm, x.shape
        heads, p, groups, s = (
            llm[k] for k in ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size")
        )
        inner, kernel = heads * p, llm["conv_kernel"]
        parts = [inner, inner + 2 * groups * s, heads]
        gate, mixed, dt = self.lin(x, f"{at}.in_proj").split(parts, -1)
        weight = self.t(f"{at}.conv1d.weight")
        mixed = F.pad(mixed, (0, 0, kernel - 1, 0)).transpose(1, 2)
        mixed = F.conv1d(mixed, weight, self.t(f"{at}.conv1d.bias"), groups=len(weight))
        u, B, C = F.silu(mixed.transpose(1, 2)).split([inner, groups * s, groups * s], -1)
        dt = F.softplus(dt + self.t(f"{at}.dt_bias"))
        log_decay = (-torch.exp(self.t(f"{at}.A_log")) * dt).transpose(1, 2)
        B, C = (z.view(b, n, groups, s).transpose(1, 2) for z in (B, C))
        u = u.view(b, n, heads, p).transpose(1, 2)
        y = selective_scan(u * dt.transpose(1, 2)[..., None], log_decay, B, C)
        y = y + u * self.t(f"{at}.D")[:, None, None]
        y = y.transpose(1, 2).reshape(b, n, inner) * F.silu(gate)
        y = y.view(b, n, groups, -1)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
        return self.lin(y.view(b, n, inner) * self.t(f"{at}.norm.weight"), f"{at}.out_proj")

    def _attention(self, x: Tensor, at: str, _layer: int) -> Tensor:
        dim = self.llm["head_dim"]
        q, k, v = (
            self.lin(x, f"{at}.{n}_proj").unflatten(-1, (-1, dim)).transpose(1, 2) for n in "qkv"
        )
        k, v = (z.repeat_interleave(q.shape[1] // k.shape[1], 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.lin(y.transpose(1, 2).flatten(2), f"{at}.o_proj")

    def _moe(self, x: Tensor, at: str, layer: int) -> Tensor:
        llm, shape = self.llm, x.shape
        x = x.reshape(-1, shape[-1])
        scores = F.linear(x, self.t(f"{at}.gate.weight")).sigmoid()
        choice = scores.detach() + self.t(f"{at}.gate.e_score_correction_bias")
        n_experts = choice.shape[-1]
        ids = choice.topk(llm["num_experts_per_tok"], -1).indices
        weights = scores.gather(-1, ids)
        if llm["norm_topk_prob"]:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = (weights * llm["routed_scaling_factor"]).flatten()
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=n_experts)
        self.load[layer] = counts
        rows = order // ids.shape[1]
        pieces = [
            self._mlp(piece, f"{at}.experts.{e}")
            for e, piece in enumerate(x[rows].split(counts.tolist()))
        ]
        routed = torch.cat(pieces) * weights[order, None]
        y = torch.zeros_like(x).index_add(0, rows, routed.to(x.dtype))
        return (y + self._mlp(x, f"{at}.shared_experts")).view(shape)

    def _mlp(self, x: Tensor, at: str) -> Tensor:
        return self.lin(relu2(self.lin(x, f"{at}.up_proj")), f"{at}.down_proj")

    def balance(self, rate: float) -> None:
        """The router's rule without gradient: busy experts lose bias, idle ones gain."""
        for layer, load in self.load.items():
            name = f"language_model.backbone.layers.{layer}.mixer.gate.e_score_correction_bias"
            load = load.float()
            self.t(name).data += rate * torch.sign(load.mean() - load)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.t(f"{name}.weight"), self.t(f"{name}.bias"), eps)


_WB = ("weight", "bias")


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def selective_scan(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The Mamba2 recurrence h[t] = exp(log_decay[t]) h[t-1] + B[t] x[t], y[t] = C[t] h[t].

    Within a chunk it is attention with decay; between chunks a state is carried.

    Args:
        x: [batch, heads, n, head_dim], times dt.
        log_decay: [batch, heads, n].
        B, C: [batch, groups, n, state].
    Returns:
        [batch, heads, n, head_dim].
    """
    n, repeats = x.shape[2], x.shape[1] // B.shape[1]
    spare = -n % CHUNK
    x, B, C = (F.pad(z, (0, 0, 0, spare)).unflatten(2, (-1, CHUNK)) for z in (x, B, C))
    total = F.pad(log_decay, (0, spare)).unflatten(2, (-1, CHUNK)).cumsum(-1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    # Masked before exp: above the diagonal it overflows, and inf * 0 is a NaN gradient.
    since = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf)
    scores = (C @ B.transpose(-1, -2)).repeat_interleave(repeats, 1) * since.exp()
    B, C = (z.repeat_interleave(repeats, 1) for z in (B, C))
    to_end = (total[..., -1:] - total).exp()[..., None]
    added = B.transpose(-1, -2) @ (x * to_end)
    kept = total[..., -1, None, None].exp()
    states = [torch.zeros_like(added[:, :, 0])]
    for chunk in range(added.shape[2] - 1):
        states.append(states[-1] * kept[:, :, chunk] + added[:, :, chunk])
    y = scores @ x + (C * total.exp()[..., None]) @ torch.stack(states, 2)
    return y.flatten(2, 3)[:, :, :n]


def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """How a tensor starts: by fan-in, except where that would silence a path."""

    def normal(std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    if name.endswith(FROZEN):
        from make_tiny_checkpoint import tensor_values

        if name.endswith(("running_mean", "e_score_correction_bias")):
            return torch.zeros(shape)
        if name.endswith("running_var"):
            return torch.ones(shape)
        return torch.tensor(tensor_values(name, shape, 0)).float()
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(1, 16, generator=generator).log()
    if name.endswith("dt_bias"):
        low, high = math.log(1e-3), math.log(0.1)
        step = torch.empty(shape).uniform_(low, high, generator=generator).exp()
        return step + torch.log(-torch.expm1(-step))  # softplus of it gives the step
    if name.endswith("mixer.D"):
        return torch.ones(shape)
    if name.endswith(("bias", "bias_u", "bias_v")):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    if name.endswith("conv1d.weight"):
        return normal(0.4)
    if name.endswith("embeddings.weight"):
        return normal(0.5)
    if name.endswith(("pos_embed", "cls_token.token")):
        return normal(0.3)
    fan_in = math.prod(shape[1:])
    gain = 1.4 if ".subsampling." in name else 1.0
    if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "fc2.weight")):
        gain = 0.4
    return normal(gain / math.sqrt(fan_in))
