"""A pretrained Vision Transformer, tuned by few parameters: adapters, low-rank updates, prompts.

Adapters:  Houlsby and others, *Parameter-Efficient Transfer Learning for NLP*, ICML 2019,
           arXiv 1902.00751.
LoRA:      Hu and others, *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022,
           arXiv 2106.09685.
Prompts:   Jia and others, *Visual Prompt Tuning*, ECCV 2022, arXiv 2203.12119 ("deep").
Code:      the forms are those of GATECH-EIC/Hint-Aug @ 575116a (MIT), which has them from
           ZhangYuanhan-AI/NOAH.

Everything that was pretrained is frozen (`freeze`). What learns beside the classifier:

    adapter   x ← x + A(MLP(LN(x))),  A(u) = u + W₂ g(W₁ u + b₁) + b₂,  g(u) = u σ(1.702 u)
    LoRA      [q k v] = W x + B A x,  A (r, dim), B (3 dim, r)
    prompts   before each block P tokens are replaced by the block's own P

LoRA and prompts change what is attended to. An adapter changes what is done with a token
afterwards, and only by way of it what later blocks attend to. A low-rank update is merged into W
for inference (`fuse`) and then costs nothing.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Attention, Block, check_transformer, init_weights
from refimpl.deploy import deploy
from refimpl.layers import Layout, PatchEmbed, attention, attention_map, drop_path_rates

TUNED = ("adapter", "lora", "prompt", "head")  # parts of names of what `freeze` leaves to learn


class Adapter(nn.Module):
    """u + W₂ g(W₁ u + b₁) + b₂: (…, dim) -> (…, dim). Starts as the identity."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.down = nn.Linear(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(hidden_dim, dim)

    def forward(self, u: Tensor) -> Tensor:
        hidden = self.down(u)
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # CLIP's approximation of GELU
        return u + self.up(self.dropout(hidden))

    def start(self) -> None:
        """In place: the identity."""
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


class LowRank(nn.Module):
    """B A x: (…, dim) -> (…, out_dim), through `rank` numbers. Starts as zero."""

    def __init__(self, dim: int, out_dim: int, rank: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.a = nn.Linear(dim, rank, bias=False)
        self.b = nn.Linear(rank, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.dropout(x)))

    def start(self) -> None:
        """In place: B is zero, so that gradients reach B first."""
        nn.init.kaiming_uniform_(self.a.weight, a=5**0.5)
        nn.init.zeros_(self.b.weight)


class TunedAttention(Attention):
    """Self-attention whose q, k and v take a low-rank update: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, dim: int, num_heads: int, lora_rank: int, dropout: float, layout: Layout):
        super().__init__(dim, num_heads, layout=layout)
        self.lora = LowRank(dim, 3 * dim, lora_rank, dropout) if lora_rank else None

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> (3, b, heads, n, d)."""
        qkv = self.qkv(x)
        if self.lora is not None:
            qkv = qkv + self.lora(x)
        return rearrange(
            qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )

    def map_of(self, x: Tensor) -> Tensor:
        """Where each token looks: (b, n, dim) -> (b, heads, n, n); rows sum to 1."""
        q, k, _ = self.queries_keys_values(x)
        return attention_map(q, k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        self.probe(lambda: attention_map(q, k))
        y = attention(q, k, v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class Prompts(nn.Module):
    """P tokens of a block's own, behind the class token: (b, 1 + P + n, dim) -> the same shape.

    They take the place of the P tokens that stood there.
    """

    def __init__(self, count: int, dim: int, dropout: float):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, count, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.dropout(self.tokens).expand(x.shape[0], -1, -1)
        behind = 1 + self.tokens.shape[1]
        return torch.cat([x[:, :1], prompts, x[:, behind:]], dim=1)


class TunedBlock(Block):
    """Pre-norm block with what is tuned: (b, 1 + P + n, dim) -> the same shape.

    The adapter stands behind stochastic depth: where the path is dropped, its biases still speak.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
        norm_eps: float,
        layout: Layout,
        adapter_dim: int,
        lora_rank: int,
        num_prompts: int,
        dropout: float,
    ):
        attn = TunedAttention(dim, num_heads, lora_rank, dropout, layout)
        super().__init__(
            dim, num_heads, mlp_ratio, True, drop_path_rate, norm_eps, attn, layout=layout
        )
        self.adapter = Adapter(dim, adapter_dim, dropout) if adapter_dim else nn.Identity()
        self.prompts = Prompts(num_prompts, dim, dropout) if num_prompts else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.prompts(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.adapter(self.drop_path(self.mlp(self.norm2(x))))


class TunedTransformer(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    img_size: pixels, one number for a square or (height, width).
    num_classes: 0 leaves the classifier out; the output then is the class token (b, embed_dim).
    adapter_dim, lora_rank, num_prompts: r and P above; 0 leaves that part out. All 0: the plain
        network, as it was pretrained (timm's `vit_base_patch16_224` has the same names).
    dropout: on what is tuned, in training.
    drop_path_rate: of the last block; it rises linearly from 0 in the first.

    Tokens stand as [class; prompts; patches]; the official code has prompts last, which is nothing
    to attention. `prompts` and `prompts_pos_embed` take part in no result, as released: the first
    block replaces them by its own.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        adapter_dim: int = 0,
        lora_rank: int = 0,
        num_prompts: int = 0,
        dropout: float = 0.1,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        checks.integer(0, adapter_dim=adapter_dim, lora_rank=lora_rank, num_prompts=num_prompts)
        checks.fraction(dropout=dropout)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rows, cols = self.patch_embed.grid
        self.layout = Layout((rows, cols), prefix=1 + num_prompts)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * cols, embed_dim))
        self.prompts = self.prompts_pos_embed = None
        if num_prompts:
            self.prompts = nn.Parameter(torch.zeros(1, num_prompts, embed_dim))
            self.prompts_pos_embed = nn.Parameter(torch.zeros(1, num_prompts, embed_dim))
        tuning = (adapter_dim, lora_rank, num_prompts, dropout)
        self.blocks = nn.ModuleList(
            TunedBlock(embed_dim, num_heads, mlp_ratio, rate, norm_eps, self.layout, *tuning)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "pos_embed", "prompts", "tokens")):
                nn.init.trunc_normal_(parameter, std=0.02)
        for part in self.modules():
            if isinstance(part, (Adapter, LowRank)):
                part.start()

    def forward_tokens(self, images: Tensor, depth: int) -> Tensor:
        """Tokens behind the first `depth` blocks: (b, 1 + P + n, embed_dim)."""
        patches = self.patch_embed(images)
        b = patches.shape[0]  # not len(patches), which a traced model would remember
        first = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        tokens = [first, patches + self.pos_embed[:, 1:]]
        if self.prompts is not None:
            prompts = self.prompts + self.prompts_pos_embed
            tokens.insert(1, prompts.expand(b, -1, -1))
        x = torch.cat(tokens, dim=1)
        for block in self.blocks[:depth]:
            x = block(x)
        return x

    def attention_of(self, images: Tensor, block: int) -> Tensor:
        """Where tokens look in a block (counted from 0): (b, heads, 1 + P + n, 1 + P + n).

        Later blocks are not computed. Raises `ValueError` where there is no such block.
        """
        checks.integer(0, block=block)
        if block >= len(self.blocks):
            raise ValueError(f"block={block} must be at most {len(self.blocks) - 1}, the last one")
        asked = self.blocks[block]
        x = asked.prompts(self.forward_tokens(images, block))
        return asked.attn.map_of(asked.norm1(x))

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (b, 1 + P + n, embed_dim), the class token first."""
        return self.norm(self.forward_tokens(images, len(self.blocks)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from tokens: (b, 1 + P + n, embed_dim) -> (b, num_classes)."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> TunedTransformer:
        """A copy for inference: low-rank updates merged, the last block for the class token alone.

        Its `forward_features` therefore gives (b, 1, embed_dim); it has no `attention_of`.
        """
        return deploy(self)


def adopt(model: TunedTransformer, pretrained: TunedTransformer) -> TunedTransformer:
    """In place: the model takes over what the plain network has learned; returns the model.

    The classifier comes along where both have as many classes; else the model keeps its own, and
    so it does with what is tuned. Raises `ValueError` where the networks do not fit.
    """
    own = model.state_dict()
    given = pretrained.state_dict()
    if model.num_classes != pretrained.num_classes:
        given = {name: tensor for name, tensor in given.items() if not name.startswith("head")}
    for name, tensor in given.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = tuple(own[name].shape) if name in own else "none"
            raise ValueError(
                f"pretrained has {name} of shape {tuple(tensor.shape)}, the model has {wanted}"
            )
    lacking = [n for n in own.keys() - given.keys() if not any(part in n for part in TUNED)]
    if lacking:
        raise ValueError(f"pretrained has no {sorted(lacking)[0]}, which the model needs")
    model.load_state_dict(own | given)
    return model


def freeze(model: TunedTransformer) -> TunedTransformer:
    """In place: only adapters, low-rank updates, prompts and the classifier learn; returns it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in TUNED))
    return model


NAMES = {
    "official": [
        (r"adapter\.sampled_bias_1$", None),  # a second name of adapter.ln2.bias
        (r"adapter\.ln1\.", "adapter.down."),
        (r"adapter\.ln2\.", "adapter.up."),
        (r"attn\.LoRA_a\.", "attn.lora.a."),
        (r"attn\.LoRA_b\.", "attn.lora.b."),
        (r"^visual_prompt_token_pos_embed$", "prompts_pos_embed"),
        (r"^visual_prompt_token$", "prompts"),
        (r"\.visual_prompt_token$", ".prompts.tokens"),
        (r"(norm\d?)\.norm\.1\..*", None),  # switchable norms: both branches share one parameter
        (r"(norm\d?)\.norm\.0\.", r"\1."),
    ]
}
