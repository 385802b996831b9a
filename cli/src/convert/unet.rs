//! Names of the UNet: `input_blocks`, `middle_block` and `output_blocks` of `openaimodel.py` to the blocks of
//! diffusers.

use super::types::{Mapping, TargetTensor, strip_index};

/// The sizes that decide the names of blocks.
pub struct BlockNames {
    /// Resnets of a down block. With its downsampler, the block has one more `input_blocks` than that.
    layers_per_block: usize,
}

impl BlockNames {
    /// Detects the sizes from the names of all tensors.
    pub fn detect<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let number = |name: &str| -> Option<usize> {
            let rest = name.strip_prefix("input_blocks.")?;
            rest.split('.').next()?.parse().ok()
        };
        // The first block is the convolution before the others. The first downsampler ends the first down block.
        let downsampler = names
            .clone()
            .filter(|name| name.ends_with(".0.op.weight"))
            .filter_map(number)
            .min();
        let last = names.filter_map(number).max();
        Self {
            layers_per_block: match (downsampler, last) {
                (Some(index), _) => index.saturating_sub(1),
                (None, last) => last.unwrap_or_default(),
            },
        }
    }

    /// Maps a tensor; `None` for one that a UNet does not have.
    pub fn map_tensor(&self, name: &str, shape: &[usize]) -> Option<Mapping> {
        Some(Mapping::Mapped(vec![TargetTensor::whole(self.name(name)?, shape)]))
    }

    fn name(&self, name: &str) -> Option<String> {
        let (first, rest) = name.split_once('.')?;
        match first {
            "input_blocks" => self.input(rest),
            "output_blocks" => self.output(rest),
            "middle_block" => {
                let (index, rest) = strip_index(rest)?;
                match index {
                    0 | 2 => Some(format!("mid_block.resnets.{}.{}", index / 2, resnet(rest)?)),
                    1 => Some(format!("mid_block.attentions.0.{}", attention(rest)?)),
                    _ => None,
                }
            }
            "time_embed" => match strip_index(rest)? {
                (0, rest) => Some(format!("time_embedding.linear_1.{rest}")),
                (2, rest) => Some(format!("time_embedding.linear_2.{rest}")),
                _ => None,
            },
            "out" => match strip_index(rest)? {
                (0, rest) => Some(format!("conv_norm_out.{rest}")),
                (2, rest) => Some(format!("conv_out.{rest}")),
                _ => None,
            },
            _ => None,
        }
    }

    fn input(&self, rest: &str) -> Option<String> {
        let (block, rest) = strip_index(rest)?;
        let (part, rest) = strip_index(rest)?;
        let Some(index) = block.checked_sub(1) else {
            return (part == 0).then(|| format!("conv_in.{rest}"));
        };
        let length = self.layers_per_block + 1;
        let (block, layer) = (index / length, index % length);
        match part {
            0 => match rest.strip_prefix("op.") {
                Some(rest) => Some(format!("down_blocks.{block}.downsamplers.0.conv.{rest}")),
                None => Some(format!("down_blocks.{block}.resnets.{layer}.{}", resnet(rest)?)),
            },
            1 => Some(format!("down_blocks.{block}.attentions.{layer}.{}", attention(rest)?)),
            _ => None,
        }
    }

    fn output(&self, rest: &str) -> Option<String> {
        let (index, rest) = strip_index(rest)?;
        let (part, rest) = strip_index(rest)?;
        let length = self.layers_per_block + 1;
        let (block, layer) = (index / length, index % length);
        match (part, rest.strip_prefix("conv.")) {
            (0, _) => Some(format!("up_blocks.{block}.resnets.{layer}.{}", resnet(rest)?)),
            // After the attention, or instead of it.
            (1 | 2, Some(rest)) => Some(format!("up_blocks.{block}.upsamplers.0.conv.{rest}")),
            (1, None) => Some(format!("up_blocks.{block}.attentions.{layer}.{}", attention(rest)?)),
            _ => None,
        }
    }
}

fn resnet(name: &str) -> Option<String> {
    let renamed = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("emb_layers.1.", "time_emb_proj."),
        ("skip_connection.", "conv_shortcut."),
    ];
    renamed
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// Names inside a transformer do not change.
fn attention(name: &str) -> Option<&str> {
    let known = ["norm.", "proj_in.", "proj_out.", "transformer_blocks."];
    known.iter().any(|begin| name.starts_with(begin)).then_some(name)
}
