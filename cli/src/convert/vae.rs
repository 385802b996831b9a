//! The VAE's names: those of `ldm/modules/diffusionmodules/model.py` as diffusers'.

use super::layout::{Fate, Place};
use super::unet::indexed;

/// What must be known of the whole to name its parts.
pub struct Blocks {
    /// Levels of the decoder, which diffusers counts from the other end.
    levels: usize,
}

impl Blocks {
    /// From the names of all tensors.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let level = |name: &str| Some(indexed(name.strip_prefix("decoder.up.")?)?.0);
        Self {
            levels: names.filter_map(level).max().map_or(0, |last| last + 1),
        }
    }

    /// Where a tensor goes; `None` for one that a VAE does not have.
    pub fn fate(&self, name: &str, shape: &[usize]) -> Option<Fate> {
        if name.starts_with("loss.") || name.starts_with("model_ema.") {
            return Some(Fate::LeftOut("of the VAE's training"));
        }
        if name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.") {
            return Some(Fate::Kept(vec![Place::whole(name, shape)]));
        }
        let (half, rest) = name.split_once('.')?;
        if !matches!(half, "encoder" | "decoder") {
            return None;
        }
        let own = self.name(half, rest)?;
        // 1x1 convolutions there, layers over tokens here: the same numbers.
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
        Some(Fate::Kept(vec![Place::whole(format!("{half}.{own}"), shape)]))
    }

    fn name(&self, half: &str, rest: &str) -> Option<String> {
        if rest.starts_with("conv_in.") || rest.starts_with("conv_out.") {
            return Some(rest.to_owned());
        }
        if let Some(rest) = rest.strip_prefix("norm_out.") {
            return Some(format!("conv_norm_out.{rest}"));
        }
        if let Some(rest) = rest.strip_prefix("mid.block_") {
            let (number, rest) = indexed(rest)?;
            let index = number.checked_sub(1).filter(|index| *index < 2)?;
            return Some(format!("mid_block.resnets.{index}.{}", resnet(rest)?));
        }
        if let Some(rest) = rest.strip_prefix("mid.attn_1.") {
            return Some(format!("mid_block.attentions.0.{}", attention(rest)?));
        }
        let (block, rest) = match half {
            "encoder" => {
                let (level, rest) = indexed(rest.strip_prefix("down.")?)?;
                (format!("down_blocks.{level}"), rest)
            }
            _ => {
                let (level, rest) = indexed(rest.strip_prefix("up.")?)?;
                (format!("up_blocks.{}", self.levels.checked_sub(level + 1)?), rest)
            }
        };
        if let Some(rest) = rest.strip_prefix("block.") {
            let (layer, rest) = indexed(rest)?;
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
