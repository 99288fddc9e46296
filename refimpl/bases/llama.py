"""Llama, a plain causal language model, which EfficientQAT quantises.

Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, arXiv 2302.13971 (2023);
*Llama 2*, arXiv 2307.09288 (2023); *The Llama 3 Herd of Models*, arXiv 2407.21783 (2024). Names of
weights are those of transformers' `LlamaForCausalLM`, whose outputs are the reference.

Four choices set it apart from the transformer of 2017:

    RMSNorm    x / √(mean x² + ε) · w, before each branch: no mean is taken out, no bias is added
    rotary     queries and keys are turned by an angle that grows with their position t: the pair
    positions  (x_i, x_{i + d/2}) by t·base^(−2i/d); ⟨q_t, k_u⟩ then depends on t − u alone
    SwiGLU     W_down (SiLU(W_gate x) ∘ W_up x): one half gates the other
    grouped    a key and a value serve heads/kv_heads queries: a smaller cache while writing
    queries

    h = x + W_o Attention(RMSNorm(x)),  y = h + SwiGLU(RMSNorm(h));  logits = W_head RMSNorm(y_L)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.kernels import transformed
from refimpl.layers import Probe, attention_map
from refimpl.weights import Rules


class RMSNorm(nn.Module):
    """Divide by the root of the mean square: (…, dim) -> (…, dim), computed in float32 at least."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotate(x: Tensor, base: float) -> Tensor:
    """Turn queries or keys by their position: (b, heads, n, d) -> the same shape.

    The pair (x_i, x_{i + d/2}) of position t is turned by the angle t·base^(−2i/d).
    """
    length, width = x.shape[-2:]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps = torch.arange(0, width, 2, device=x.device).to(wide) / width  # 2i/d: (d/2,)
    positions = torch.arange(length, device=x.device).to(wide)
    angles = positions[:, None] * base**-steps  # (n, d/2)
    cos = angles.cos().to(x.dtype)
    sin = angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention, keys and values shared by groups of queries: (b, n, dim) -> (b, n, dim)."""

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, rope_base: float
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.rope_base = rope_base
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.probe = Probe()

    def forward(self, x: Tensor) -> Tensor:
        q = rearrange(self.q_proj(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        k = rearrange(self.k_proj(x), "b n (heads d) -> b heads n d", heads=self.num_kv_heads)
        v = rearrange(self.v_proj(x), "b n (heads d) -> b heads n d", heads=self.num_kv_heads)
        shared = self.num_heads // self.num_kv_heads  # key j serves queries j·shared and on
        q = rotate(q, self.rope_base)
        k = rotate(k, self.rope_base).repeat_interleave(shared, dim=1)
        v = v.repeat_interleave(shared, dim=1)
        length = x.shape[1]
        self.probe(lambda: attention_map(q, k, later_hidden(length, q)), (1, length))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(rearrange(y, "b heads n d -> b n (heads d)"))


def later_hidden(length: int, like: Tensor) -> Tensor:
    """The bias that hides what comes later: (1, n, n), −∞ above the diagonal."""
    return torch.full((1, length, length), -torch.inf).to(like).triu(1)


class SwiGLU(nn.Module):
    """W_down (SiLU(W_gate x) ∘ W_up x): (…, dim) -> (…, dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then SwiGLU, each behind a norm and beside a shortcut: (b, n, dim) -> the same."""

    def __init__(self, dim: int, hidden_dim: int, attention: Attention, norm_eps: float):
        super().__init__()
        self.input_layernorm = RMSNorm(dim, norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(dim, norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids (b, n), integers -> logits of the next token (b, n, vocab_size).

    embed_dim: width of a token; hidden_dim: of SwiGLU; num_kv_heads: keys and values, which must
    divide num_heads (by default equal); head_dim: even, by default embed_dim / num_heads; tied: the
    classifier is the embedding's own matrix. Raises `ValueError` for arguments and ids that do not
    fit.
    """

    def __init__(
        self,
        vocab_size: int = 32_000,
        embed_dim: int = 4096,
        hidden_dim: int = 11_008,
        depth: int = 32,
        num_heads: int = 32,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_base: float = 1e4,
        tied: bool = False,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        checks.integer(
            1, vocab_size=vocab_size, embed_dim=embed_dim, hidden_dim=hidden_dim, depth=depth
        )
        checks.integer(1, num_heads=num_heads, num_kv_heads=num_kv_heads)
        checks.positive(norm_eps=norm_eps, rope_base=rope_base)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads={num_kv_heads} must be at least 1 and divide num_heads={num_heads}"
            )
        if head_dim is None:
            checks.heads(embed_dim, num_heads)
            head_dim = embed_dim // num_heads
        checks.multiple(2, "rotary positions turn pairs", head_dim=head_dim)
        self.vocab_size = vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, embed_dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            heads = Attention(embed_dim, num_heads, num_kv_heads, head_dim, rope_base)
            self.layers.append(Block(embed_dim, hidden_dim, heads, norm_eps))
        self.norm = RMSNorm(embed_dim, norm_eps)
        self.lm_head = None if tied else nn.Linear(embed_dim, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """What enters the first block: (b, n) -> (b, n, embed_dim)."""
        check_ids(ids, self.vocab_size)
        return self.embed_tokens(ids)

    def forward_features(self, ids: Tensor) -> Tensor:
        """What the classifier reads, after the last norm: (b, n, embed_dim)."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        if self.lm_head is None:
            return F.linear(x, self.embed_tokens.weight)
        return self.lm_head(x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(ids))

    def fuse(self) -> Llama:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise a `ValueError` unless these are token ids (b, n) of this vocabulary.

    Their values are not looked at on a GPU, nor while PyTorch records or transforms the model.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids are {ids.dtype}, token ids must be integers: torch.int64 or int32")
    if ids.dim() != 2:
        raise ValueError(f"ids must be (batch, tokens), got {ids.dim()} dimensions")
    if ids.device.type != "cpu" or ids.numel() == 0 or transformed():
        return
    least = int(ids.min())
    most = int(ids.max())
    if least < 0 or most >= vocab_size:
        raise ValueError(
            f"ids run from {least} to {most}, must lie between 0 and {vocab_size - 1}:"
            f" vocab_size={vocab_size}"
        )


def causal_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each next token, in nats: ids (b, n), n ≥ 2 -> scalar."""
    if ids.dim() == 2 and ids.shape[1] < 2:
        raise ValueError(f"ids have {ids.shape[1]} tokens each: a next one needs at least 2")
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long())


VARIANTS: dict[str, dict] = {
    "2_7b": dict(),
    "2_13b": dict(embed_dim=5120, hidden_dim=13_824, depth=40, num_heads=40),
    "2_70b": dict(embed_dim=8192, hidden_dim=28_672, depth=80, num_heads=64, num_kv_heads=8),
    "3_8b": dict(vocab_size=128_256, hidden_dim=14_336, num_kv_heads=8, rope_base=5e5),
    "3_70b": dict(
        vocab_size=128_256,
        embed_dim=8192,
        hidden_dim=28_672,
        depth=80,
        num_heads=64,
        num_kv_heads=8,
        rope_base=5e5,
    ),
}
MODEL = Llama

# transformers' names: a wrapper's prefix, and tables that are computed here. A tied model's file
# may hold the shared matrix under both of its names.
OFFICIAL: Rules = [(r"(rotary_emb\.inv_freq|g_idx)$", None), (r"^model\.", "")]
NAMES: dict[str, Rules] = {
    "official": OFFICIAL,
    "tied": [
        (r"^model\.embed_tokens\.weight$", None),
        (r"^lm_head\.weight$", "embed_tokens.weight"),
        *OFFICIAL,
    ],
}
