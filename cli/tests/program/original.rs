//! The layout of the original code, made from a diffusers folder: the way back of what `convert` does, by replacing parts of
//! names, as diffusers' script `convert_diffusers_to_original_stable_diffusion.py` goes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A tensor: dtype, shape, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a safetensors file.
pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors
        .map(|(name, view)| {
            let tensor = Tensor {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            (name, tensor)
        })
        .collect()
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap();
        (name, view)
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A whole folder in one file's layout; `open_clip` for Stable Diffusion 2.
pub fn original(folder: &Path, open_clip: bool) -> Tensors {
    let weights = |path: &str| read(&folder.join(path));
    let mut all = Tensors::new();
    for (name, tensor) in weights("unet/diffusion_pytorch_model.safetensors") {
        all.insert(format!("model.diffusion_model.{}", unet_name(&name)), tensor);
    }
    for (name, mut tensor) in weights("vae/diffusion_pytorch_model.safetensors") {
        let own = vae_name(&name);
        if own.contains(".attn_1.") && tensor.shape.len() == 2 {
            tensor.shape.extend([1, 1]);
        }
        all.insert(format!("first_stage_model.{own}"), tensor);
    }
    let text = weights("text_encoder/model.safetensors");
    if open_clip {
        for (name, tensor) in open_clip_tensors(&text) {
            all.insert(format!("cond_stage_model.model.{name}"), tensor);
        }
    } else {
        for (name, tensor) in text {
            all.insert(format!("cond_stage_model.transformer.{name}"), tensor);
        }
    }
    all
}

fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    let mut name = name.to_owned();
    for (original, diffusers) in pairs {
        name = name.replace(diffusers, original);
    }
    name
}

fn unet_name(name: &str) -> String {
    let whole = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ];
    if whole.iter().any(|(_, diffusers)| name.starts_with(diffusers)) {
        return replaced(name, &whole);
    }
    let mut name = name.to_owned();
    if name.contains("resnets") {
        let parts = [
            ("in_layers.0", "norm1"),
            ("in_layers.2", "conv1"),
            ("out_layers.0", "norm2"),
            ("out_layers.3", "conv2"),
            ("emb_layers.1", "time_emb_proj"),
            ("skip_connection", "conv_shortcut"),
        ];
        name = replaced(&name, &parts);
    }
    let mut pairs = vec![("middle_block.1.".to_owned(), "mid_block.attentions.0.".to_owned())];
    for i in 0..4 {
        for j in 0..2 {
            let at = 3 * i + j + 1;
            pairs.push((format!("input_blocks.{at}.0."), format!("down_blocks.{i}.resnets.{j}.")));
            pairs.push((
                format!("input_blocks.{at}.1."),
                format!("down_blocks.{i}.attentions.{j}."),
            ));
        }
        for j in 0..3 {
            let at = 3 * i + j;
            pairs.push((format!("output_blocks.{at}.0."), format!("up_blocks.{i}.resnets.{j}.")));
            pairs.push((
                format!("output_blocks.{at}.1."),
                format!("up_blocks.{i}.attentions.{j}."),
            ));
        }
        let down = 3 * (i + 1);
        pairs.push((
            format!("input_blocks.{down}.0.op."),
            format!("down_blocks.{i}.downsamplers.0.conv."),
        ));
        let (up, part) = (3 * i + 2, if i == 0 { 1 } else { 2 });
        pairs.push((
            format!("output_blocks.{up}.{part}."),
            format!("up_blocks.{i}.upsamplers.0."),
        ));
    }
    for j in 0..2 {
        pairs.push((format!("middle_block.{}.", 2 * j), format!("mid_block.resnets.{j}.")));
    }
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    replaced(&name, &pairs)
}

fn vae_name(name: &str) -> String {
    let mut pairs = vec![
        ("nin_shortcut".to_owned(), "conv_shortcut".to_owned()),
        ("norm_out".to_owned(), "conv_norm_out".to_owned()),
        ("mid.attn_1.".to_owned(), "mid_block.attentions.0.".to_owned()),
    ];
    for i in 0..4 {
        for j in 0..2 {
            pairs.push((
                format!("encoder.down.{i}.block.{j}."),
                format!("encoder.down_blocks.{i}.resnets.{j}."),
            ));
        }
        pairs.push((
            format!("down.{i}.downsample."),
            format!("down_blocks.{i}.downsamplers.0."),
        ));
        pairs.push((
            format!("up.{}.upsample.", 3 - i),
            format!("up_blocks.{i}.upsamplers.0."),
        ));
        for j in 0..3 {
            pairs.push((
                format!("decoder.up.{}.block.{j}.", 3 - i),
                format!("decoder.up_blocks.{i}.resnets.{j}."),
            ));
        }
    }
    for j in 0..2 {
        pairs.push((format!("mid.block_{}.", j + 1), format!("mid_block.resnets.{j}.")));
    }
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let name = replaced(name, &pairs);
    if !name.contains("attn_1") {
        return name;
    }
    let parts = [
        ("norm.", "group_norm."),
        ("q.", "to_q."),
        ("k.", "to_k."),
        ("v.", "to_v."),
        ("proj_out.", "to_out.0."),
    ];
    replaced(&name, &parts)
}

fn open_clip_tensors(text: &Tensors) -> Tensors {
    let pairs = [
        ("transformer.resblocks.", "text_model.encoder.layers."),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
        (".attn", ".self_attn"),
        ("ln_final.", "text_model.final_layer_norm."),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        (
            "positional_embedding",
            "text_model.embeddings.position_embedding.weight",
        ),
    ];
    let mut tensors = Tensors::new();
    for (name, tensor) in text {
        if name.contains(".k_proj.") || name.contains(".v_proj.") {
            continue;
        }
        let Some((layer, end)) = name.split_once(".q_proj.") else {
            tensors.insert(replaced(name, &pairs), tensor.clone());
            continue;
        };
        let mut joined = tensor.clone();
        for other in ["k_proj", "v_proj"] {
            joined.data.extend(&text[&format!("{layer}.{other}.{end}")].data);
        }
        joined.shape[0] *= 3;
        tensors.insert(format!("{}.in_proj_{end}", replaced(layer, &pairs)), joined);
    }
    tensors
}
