//! The memory of a UNet call.

use super::config::{BlockType, UNet2DConfig};
use crate::models::layers::{Footprint, unsigned};

impl UNet2DConfig {
    /// Returns the largest number of values that a call holds at once for each batch entry, with latents of this height and
    /// width. `fast` says whether the CPU kernels of this crate compute the layers.
    pub fn activation_values(&self, height: i64, width: i64, fast: bool) -> u64 {
        let mut footprint = Footprint::new(fast);
        let channels: Vec<u64> = self.block_out_channels.iter().map(|&count| unsigned(count)).collect();
        let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
            return 0;
        };
        let areas: Vec<u64> = (0..channels.len()).map(|level| area(height, width, level)).collect();
        // The skip connections, innermost last.
        let mut skips = Vec::new();
        let mut push = |footprint: &mut Footprint, values: u64| {
            footprint.hold(values);
            skips.push(values);
        };
        push(&mut footprint, first * areas[0]);
        let mut inputs = first;
        for (level, &outputs) in channels.iter().enumerate() {
            let area = areas[level];
            let attends = self.down_block_types.get(level) == Some(&BlockType::CrossAttnDownBlock2D);
            for _ in 0..self.layers_per_block {
                footprint.resnet(inputs, outputs, area);
                if attends {
                    // Its input is the result of the resnet.
                    footprint.hold(outputs * area);
                    footprint.transformer(outputs, area);
                    footprint.release(outputs * area);
                }
                push(&mut footprint, outputs * area);
                inputs = outputs;
            }
            if let Some(&smaller) = areas.get(level + 1) {
                footprint.conv(0, outputs, smaller);
                push(&mut footprint, outputs * smaller);
            }
        }
        let innermost = areas.last().copied().unwrap_or(0);
        footprint.resnet(last, last, innermost);
        footprint.hold(last * innermost);
        footprint.transformer(last, innermost);

        // The map between two layers is held, and so is a layer's input, which joins that map and a skip connection.
        let mut hidden = last * innermost;
        for (level, &outputs) in channels.iter().enumerate().rev() {
            let area = areas[level];
            let block = channels.len() - 1 - level;
            let attends = self.up_block_types.get(block) == Some(&BlockType::CrossAttnUpBlock2D);
            for _ in 0..=self.layers_per_block {
                let skip = skips.pop().unwrap_or(0);
                let joined = hidden + skip;
                footprint.hold(joined);
                footprint.release(hidden + skip);
                footprint.resnet(joined / area.max(1), outputs, area);
                hidden = outputs * area;
                footprint.hold(hidden);
                footprint.release(joined);
                if attends {
                    footprint.transformer(outputs, area);
                }
            }
            if level > 0 {
                let larger = areas[level - 1];
                footprint.upsample(outputs, larger);
                footprint.hold(outputs * larger);
                footprint.release(hidden);
                hidden = outputs * larger;
            }
        }
        footprint.moment(hidden);
        footprint.peak()
    }

    /// Returns the number of values of the largest kernel: that of a convolution over the innermost map and a skip
    /// connection.
    pub fn largest_kernel_values(&self) -> u64 {
        let innermost = self.block_out_channels.last().copied().map_or(0, unsigned);
        9 * innermost * innermost * 2
    }

    /// Returns the number of values of the projected text for each batch entry and token: keys and values of each attention
    /// to the text.
    pub fn text_values(&self) -> u64 {
        let of_block = |level: usize, layers: usize| {
            let attentions = if self.only_cross_attention.at(level) { 2 } else { 1 };
            let channels = self.block_out_channels.get(level).copied().unwrap_or(0);
            let transformers = self.transformer_layers_per_block.at(level);
            2 * unsigned(channels) * (attentions * transformers * layers) as u64
        };
        let blocks = self.block_out_channels.len();
        let mut values = of_block(blocks.saturating_sub(1), 1);
        for level in 0..blocks {
            if self.down_block_types.get(level) == Some(&BlockType::CrossAttnDownBlock2D) {
                values += of_block(level, self.layers_per_block);
            }
            if self.up_block_types.get(blocks - 1 - level) == Some(&BlockType::CrossAttnUpBlock2D) {
                values += of_block(level, self.layers_per_block + 1);
            }
        }
        values
    }
}

/// Returns the positions of a map that has been halved `level` times; odd sides are rounded up.
fn area(height: i64, width: i64, level: usize) -> u64 {
    let side = |side: i64| unsigned(side).div_ceil(1 << level);
    side(height) * side(width)
}
