"""The UNet of Stable Diffusion 1 and 2 in eager PyTorch: what a step costs without this backend.

It calls the operators of diffusers' UNet2DConditionModel (0.36) in the same order, also those that change nothing, such
as the division by `output_scale_factor`. There are no modules, so it spends less time in Python than diffusers does.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

# Switches of the configuration, with the only value that this implementation has.
REQUIRED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
}
DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def timestep_embedding(timesteps, size, flip_sin_to_cos, freq_shift):
    """Sines and cosines of the timesteps `[N]`, as float32 `[N, size]`."""
    half = size // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(exponent / (half - freq_shift))
    angles = timesteps[:, None].float() * frequencies[None, :]
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
    if flip_sin_to_cos:
        embedding = torch.cat([embedding[:, half:], embedding[:, :half]], dim=-1)
    return embedding


class EagerUNet:
    """A UNet from its configuration and its tensors, which have one dtype and one device.

    Raises ValueError if the configuration asks for something that Stable Diffusion 1 and 2 do not have.
    """

    def __init__(self, config, tensors):
        for key, value in REQUIRED.items():
            if config.get(key, value) != value:
                raise ValueError(f"eager UNet: expected {key} {value}, got {config[key]}")
        self.config = config
        self.tensors = tensors
        self.groups = config["norm_num_groups"]
        self.eps = config["norm_eps"]
        self.linear_projection = config["use_linear_projection"]
        self.down = [DOWN_BLOCKS[name] for name in config["down_block_types"]]
        self.up = [UP_BLOCKS[name] for name in config["up_block_types"]]
        heads = config["attention_head_dim"]  # the number of heads, despite the name
        self.heads = heads if isinstance(heads, list) else [heads] * len(self.down)

    @classmethod
    def load(cls, folder, device="cpu", dtype=torch.float32):
        """Loads the component `folder` of a checkpoint."""
        config = json.loads(Path(folder, "config.json").read_text())
        tensors = load_file(Path(folder, "diffusion_pytorch_model.safetensors"), device=device)
        return cls(config, {name: tensor.to(dtype) for name, tensor in tensors.items()})

    def linear(self, name, x):
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], stride, padding)

    def group_norm(self, name, x, eps):
        return F.group_norm(x, self.groups, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], 1e-5)

    def resnet(self, name, x, temb):
        """diffusers' ResnetBlock2D."""
        hidden = F.silu(self.group_norm(f"{name}.norm1", x, self.eps))
        hidden = self.conv(f"{name}.conv1", hidden)
        hidden = hidden + self.linear(f"{name}.time_emb_proj", F.silu(temb))[:, :, None, None]
        hidden = F.silu(self.group_norm(f"{name}.norm2", hidden, self.eps))
        hidden = self.conv(f"{name}.conv2", hidden)
        if f"{name}.conv_shortcut.weight" in self.tensors:
            x = self.conv(f"{name}.conv_shortcut", x.contiguous(), padding=0)
        return (x + hidden) / 1.0

    def attention(self, name, x, context, heads):
        """diffusers' Attention with AttnProcessor2_0."""
        batch, head_size = x.shape[0], x.shape[-1] // heads

        def split(tensor):
            return tensor.view(batch, -1, heads, head_size).transpose(1, 2)

        query = split(self.linear(f"{name}.to_q", x))
        key = split(self.linear(f"{name}.to_k", context))
        value = split(self.linear(f"{name}.to_v", context))
        hidden = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden.transpose(1, 2).reshape(batch, -1, heads * head_size)
        return self.linear(f"{name}.to_out.0", hidden) / 1.0

    def transformer_block(self, name, x, context, heads):
        """diffusers' BasicTransformerBlock."""
        hidden = self.layer_norm(f"{name}.norm1", x)
        x = self.attention(f"{name}.attn1", hidden, hidden, heads) + x
        x = self.attention(f"{name}.attn2", self.layer_norm(f"{name}.norm2", x), context, heads) + x
        hidden = self.linear(f"{name}.ff.net.0.proj", self.layer_norm(f"{name}.norm3", x))
        hidden, gate = hidden.chunk(2, dim=-1)
        return self.linear(f"{name}.ff.net.2", hidden * F.gelu(gate)) + x

    def transformer(self, name, x, context, heads):
        """diffusers' Transformer2DModel with one transformer block."""
        batch, channels, height, width = x.shape
        hidden = self.group_norm(f"{name}.norm", x, 1e-6)
        if not self.linear_projection:
            hidden = self.conv(f"{name}.proj_in", hidden, padding=0)
        hidden = hidden.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if self.linear_projection:
            hidden = self.linear(f"{name}.proj_in", hidden)
        hidden = self.transformer_block(f"{name}.transformer_blocks.0", hidden, context, heads)
        if self.linear_projection:
            hidden = self.linear(f"{name}.proj_out", hidden)
        hidden = hidden.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        if not self.linear_projection:
            hidden = self.conv(f"{name}.proj_out", hidden, padding=0)
        return hidden + x

    def time_embedding(self, timesteps, dtype):
        size = self.config["block_out_channels"][0]
        flip, shift = self.config["flip_sin_to_cos"], self.config["freq_shift"]
        embedding = timestep_embedding(timesteps, size, flip, shift).to(dtype)
        embedding = F.silu(self.linear("time_embedding.linear_1", embedding))
        return self.linear("time_embedding.linear_2", embedding)

    def down_block(self, index, x, temb, context):
        """Returns the outputs of all layers; the last one goes on to the next block."""
        name, outputs = f"down_blocks.{index}", []
        for layer in range(self.config["layers_per_block"]):
            x = self.resnet(f"{name}.resnets.{layer}", x, temb)
            if self.down[index]:
                x = self.transformer(f"{name}.attentions.{layer}", x, context, self.heads[index])
            outputs.append(x)
        if index + 1 < len(self.down):
            padding = self.config.get("downsample_padding", 1)
            outputs.append(self.conv(f"{name}.downsamplers.0.conv", x, stride=2, padding=padding))
        return outputs

    def up_block(self, index, x, skipped, temb, context):
        """Takes the outputs of the down blocks from the end of `skipped`."""
        name, heads = f"up_blocks.{index}", self.heads[-1 - index]
        for layer in range(self.config["layers_per_block"] + 1):
            x = self.resnet(f"{name}.resnets.{layer}", torch.cat([x, skipped.pop()], dim=1), temb)
            if self.up[index]:
                x = self.transformer(f"{name}.attentions.{layer}", x, context, heads)
        if index + 1 < len(self.up):
            # A size that is no multiple of 8 is rounded up on the way down, so the next skip has the right size.
            x = F.interpolate(x, size=skipped[-1].shape[2:], mode="nearest")
            x = self.conv(f"{name}.upsamplers.0.conv", x)
        return x

    def __call__(self, sample, timesteps, context):
        """Predicts `[N, out_channels, height, width]` from latents, timesteps `[N]` and text `[N, tokens, size]`."""
        temb = self.time_embedding(timesteps, sample.dtype)
        x = self.conv("conv_in", sample)
        skipped = [x]
        for index in range(len(self.down)):
            skipped += self.down_block(index, x, temb, context)
            x = skipped[-1]
        x = self.resnet("mid_block.resnets.0", x, temb)
        x = self.transformer("mid_block.attentions.0", x, context, self.heads[-1])
        x = self.resnet("mid_block.resnets.1", x, temb)
        for index in range(len(self.up)):
            x = self.up_block(index, x, skipped, temb, context)
        x = F.silu(self.group_norm("conv_norm_out", x, self.eps))
        return self.conv("conv_out", x)
