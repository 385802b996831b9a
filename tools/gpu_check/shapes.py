"""The tensors of a checkpoint's components: names and shapes, from their configurations.

Only what Stable Diffusion 2 and XL have: linear projections in the UNet, an encoder and a decoder with attention in the
middle.
"""


def linear(name, outputs, inputs, bias=True):
    """The tensors of a linear layer."""
    shapes = {f"{name}.weight": [outputs, inputs]}
    return shapes | {f"{name}.bias": [outputs]} if bias else shapes


def conv(name, outputs, inputs, kernel=3):
    """The tensors of a convolution."""
    return {f"{name}.weight": [outputs, inputs, kernel, kernel], f"{name}.bias": [outputs]}


def norm(name, channels):
    """The tensors of a group norm or a layer norm."""
    return {f"{name}.weight": [channels], f"{name}.bias": [channels]}


def resnet(name, outputs, inputs, time=None):
    """The tensors of a resnet; `time` is the size of the timestep's embedding, if the resnet has one."""
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", outputs, inputs)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs)
    if time:
        shapes |= linear(f"{name}.time_emb_proj", outputs, time)
    if inputs != outputs:
        shapes |= conv(f"{name}.conv_shortcut", outputs, inputs, kernel=1)
    return shapes


def attention(name, size, context, bias):
    """The tensors of an attention; `bias` is whether queries, keys and values have one."""
    shapes = linear(f"{name}.to_q", size, size, bias) | linear(f"{name}.to_out.0", size, size)
    return shapes | linear(f"{name}.to_k", size, context, bias) | linear(f"{name}.to_v", size, context, bias)


def transformer(name, size, context, blocks=1):
    """The tensors of a Transformer2DModel."""
    shapes = norm(f"{name}.norm", size)
    shapes |= linear(f"{name}.proj_in", size, size) | linear(f"{name}.proj_out", size, size)
    for index in range(blocks):
        block = f"{name}.transformer_blocks.{index}"
        for number in (1, 2, 3):
            shapes |= norm(f"{block}.norm{number}", size)
        shapes |= attention(f"{block}.attn1", size, size, bias=False)
        shapes |= attention(f"{block}.attn2", size, context, bias=False)
        shapes |= linear(f"{block}.ff.net.0.proj", 8 * size, size) | linear(f"{block}.ff.net.2", size, 4 * size)
    return shapes


def unet(config):
    """The tensors of a UNet2DConditionModel."""
    widths, layers, context = config["block_out_channels"], config["layers_per_block"], config["cross_attention_dim"]
    time = 4 * widths[0]
    shapes = conv("conv_in", widths[0], config["in_channels"])
    shapes |= linear("time_embedding.linear_1", time, widths[0]) | linear("time_embedding.linear_2", time, time)
    if config.get("addition_embed_type"):
        shapes |= linear("add_embedding.linear_1", time, config["projection_class_embeddings_input_dim"])
        shapes |= linear("add_embedding.linear_2", time, time)
    blocks = config.get("transformer_layers_per_block", 1)
    blocks = blocks if isinstance(blocks, list) else [blocks] * len(widths)
    skipped, inputs = [widths[0]], widths[0]
    for index, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
        name = f"down_blocks.{index}"
        for layer in range(layers):
            shapes |= resnet(f"{name}.resnets.{layer}", width, inputs, time)
            if kind.startswith("CrossAttn"):
                shapes |= transformer(f"{name}.attentions.{layer}", width, context, blocks[index])
            inputs = width
            skipped.append(width)
        if index + 1 < len(widths):
            shapes |= conv(f"{name}.downsamplers.0.conv", width, width)
            skipped.append(width)
    for layer in (0, 1):
        shapes |= resnet(f"mid_block.resnets.{layer}", inputs, inputs, time)
    shapes |= transformer("mid_block.attentions.0", inputs, context, blocks[-1])
    for index, (width, kind) in enumerate(zip(reversed(widths), config["up_block_types"], strict=True)):
        name = f"up_blocks.{index}"
        for layer in range(layers + 1):
            shapes |= resnet(f"{name}.resnets.{layer}", width, inputs + skipped.pop(), time)
            if kind.startswith("CrossAttn"):
                shapes |= transformer(f"{name}.attentions.{layer}", width, context, blocks[-1 - index])
            inputs = width
        if index + 1 < len(widths):
            shapes |= conv(f"{name}.upsamplers.0.conv", width, width)
    return shapes | norm("conv_norm_out", widths[0]) | conv("conv_out", config["out_channels"], widths[0])


def vae_half(name, widths, layers, first, last, sampler):
    """The tensors of the VAE's encoder or decoder.

    `widths` are the channels of its blocks, in the order of the computation. `first` and `last` are the channels of its
    input and its output. `sampler` is `down` or `up`.
    """
    inner = widths[-1] if sampler == "down" else widths[0]
    shapes = conv(f"{name}.conv_in", widths[0], first)
    inputs = widths[0]
    for index, width in enumerate(widths):
        block = f"{name}.{sampler}_blocks.{index}"
        for layer in range(layers):
            shapes |= resnet(f"{block}.resnets.{layer}", width, inputs)
            inputs = width
        if index + 1 < len(widths):
            shapes |= conv(f"{block}.{sampler}samplers.0.conv", width, width)
    for layer in (0, 1):
        shapes |= resnet(f"{name}.mid_block.resnets.{layer}", inner, inner)
    shapes |= norm(f"{name}.mid_block.attentions.0.group_norm", inner)
    shapes |= attention(f"{name}.mid_block.attentions.0", inner, inner, bias=True)
    return shapes | norm(f"{name}.conv_norm_out", widths[-1]) | conv(f"{name}.conv_out", last, widths[-1])


def vae(config):
    """The tensors of an AutoencoderKL."""
    widths, layers, latents = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    shapes = vae_half("encoder", widths, layers, config["in_channels"], 2 * latents, "down")
    shapes |= vae_half("decoder", widths[::-1], layers + 1, latents, config["out_channels"], "up")
    return shapes | conv("quant_conv", 2 * latents, 2 * latents, 1) | conv("post_quant_conv", latents, latents, 1)


def text_encoder(config):
    """The tensors of a CLIPTextModel."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "text_model.embeddings.token_embedding.weight": [config["vocab_size"], size],
        "text_model.embeddings.position_embedding.weight": [config["max_position_embeddings"], size],
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"text_model.encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{projection}", size, size)
        shapes |= linear(f"{name}.mlp.fc1", inner, size) | linear(f"{name}.mlp.fc2", size, inner)
        shapes |= norm(f"{name}.layer_norm1", size) | norm(f"{name}.layer_norm2", size)
    return shapes | norm("text_model.final_layer_norm", size)


def vae_tiny_block(name, width):
    """The tensors of a block of an AutoencoderTiny, whose inputs and outputs have equal channels."""
    shapes = {}
    for layer in (0, 2, 4):
        shapes |= conv(f"{name}.conv.{layer}", width, width)
    return shapes


def vae_tiny(config):
    """The tensors of an AutoencoderTiny whose layers all have one width."""
    width = config["block_out_channels"][0]

    def between(name):
        return {f"{name}.weight": [width, width, 3, 3]}

    shapes, at = conv("encoder.layers.0", width, config["in_channels"]), 1
    for stage, blocks in enumerate(config["num_encoder_blocks"]):
        if stage:
            shapes |= between(f"encoder.layers.{at}")
            at += 1
        for _ in range(blocks):
            shapes |= vae_tiny_block(f"encoder.layers.{at}", width)
            at += 1
    shapes |= conv(f"encoder.layers.{at}", config["latent_channels"], width)
    # An activation follows the first layer, and an enlargement the blocks of each stage but the last.
    shapes, at = shapes | conv("decoder.layers.0", width, config["latent_channels"]), 2
    for stage, blocks in enumerate(config["num_decoder_blocks"]):
        for _ in range(blocks):
            shapes |= vae_tiny_block(f"decoder.layers.{at}", width)
            at += 1
        if stage + 1 < len(config["num_decoder_blocks"]):
            shapes |= between(f"decoder.layers.{at + 1}")
            at += 2
    return shapes | conv(f"decoder.layers.{at}", config["out_channels"], width)


def text_encoder_with_projection(config):
    """The tensors of a CLIPTextModelWithProjection."""
    projection = linear("text_projection", config["projection_dim"], config["hidden_size"], bias=False)
    return text_encoder(config) | projection
