//! Names of the VAE: those of `ldm/modules/diffusionmodules/model.py` to those of diffusers.

use super::types::{Mapping, TargetTensor, strip_index};

/// The sizes that decide the names of blocks.
pub struct BlockNames {
    /// Levels of the decoder. diffusers counts them from the other end.
    levels: usize,
}

impl BlockNames {
    /// Detects the sizes from the names of all tensors.
    pub fn detect<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let level = |name: &str| Some(strip_index(name.strip_prefix("decoder.up.")?)?.0);
        Self {
            levels: names.filter_map(level).max().map_or(0, |last| last + 1),
        }
    }

    /// Maps a tensor; `None` for one that a VAE does not have.
    pub fn map_tensor(&self, name: &str, shape: &[usize]) -> Option<Mapping> {
        if name.starts_with("loss.") || name.starts_with("model_ema.") {
            return Some(Mapping::Skipped("from the training of the VAE"));
        }
        if name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.") {
            return Some(Mapping::Mapped(vec![TargetTensor::whole(name, shape)]));
        }
        let (half, rest) = name.split_once('.')?;
        if !matches!(half, "encoder" | "decoder") {
            return None;
        }
        let own = self.name(half, rest)?;
        // 1x1 convolutions in the file, linear layers in diffusers: the same values.
        let is_projection = own.contains(".attentions.") && own.ends_with(".weight") && shape.len() > 2;
        let shape = match shape {
            [outputs, inputs, ones @ ..] if is_projection => {
                if ones.iter().any(|&n| n != 1) {
                    return None;
                }
                &[*outputs, *inputs]
            }
            shape => shape,
        };
        Some(Mapping::Mapped(vec![TargetTensor::whole(
            format!("{half}.{own}"),
            shape,
        )]))
    }

    fn name(&self, half: &str, rest: &str) -> Option<String> {
        if rest.starts_with("conv_in.") || rest.starts_with("conv_out.") {
            return Some(rest.to_owned());
        }
        if let Some(rest) = rest.strip_prefix("norm_out.") {
            return Some(format!("conv_norm_out.{rest}"));
        }
        if let Some(rest) = rest.strip_prefix("mid.block_") {
            let (number, rest) = strip_index(rest)?;
            let index = number.checked_sub(1).filter(|index| *index < 2)?;
            return Some(format!("mid_block.resnets.{index}.{}", resnet(rest)?));
        }
        if let Some(rest) = rest.strip_prefix("mid.attn_1.") {
            return Some(format!("mid_block.attentions.0.{}", attention(rest)?));
        }
        let (block, rest) = match half {
            "encoder" => {
                let (level, rest) = strip_index(rest.strip_prefix("down.")?)?;
                (format!("down_blocks.{level}"), rest)
            }
            _ => {
                let (level, rest) = strip_index(rest.strip_prefix("up.")?)?;
                (format!("up_blocks.{}", self.levels.checked_sub(level + 1)?), rest)
            }
        };
        if let Some(rest) = rest.strip_prefix("block.") {
            let (layer, rest) = strip_index(rest)?;
            return Some(format!("{block}.resnets.{layer}.{}", resnet(rest)?));
        }
        let sampler = match half {
            "encoder" => ("downsample.conv.", "downsamplers"),
            _ => ("upsample.conv.", "upsamplers"),
        };
        let rest = rest.strip_prefix(sampler.0)?;
        Some(format!("{block}.{}.0.conv.{rest}", sampler.1))
    }
}

fn resnet(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("nin_shortcut.") {
        return Some(format!("conv_shortcut.{rest}"));
    }
    let known = ["norm1.", "conv1.", "norm2.", "conv2."];
    known
        .iter()
        .any(|begin| name.starts_with(begin))
        .then(|| name.to_owned())
}

fn attention(name: &str) -> Option<String> {
    let renamed = [
        ("norm.", "group_norm."),
        ("q.", "to_q."),
        ("k.", "to_k."),
        ("v.", "to_v."),
        ("proj_out.", "to_out.0."),
    ];
    renamed
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}
