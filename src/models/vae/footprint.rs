//! The memory of the VAE.

use super::config::AutoencoderKlConfig;
use crate::models::layers::{ChunkSize, Footprint, unsigned};

impl AutoencoderKlConfig {
    /// Returns the largest number of values that decoding holds at once for each image, with latents of this height and
    /// width. `fast` says whether the CPU kernels of this crate compute the layers.
    pub fn decoder_values(&self, height: i64, width: i64, fast: bool) -> u64 {
        let mut footprint = Footprint::new(fast);
        let mut area = unsigned(height) * unsigned(width);
        let (first, last) = self.ends();
        let mut channels = unsigned(last);
        footprint.hold(channels * area);
        self.middle(&mut footprint, channels, area);
        for (index, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            let outputs = unsigned(outputs);
            for _ in 0..=self.layers_per_block {
                footprint.resnet(channels, outputs, area);
                footprint.hold(outputs * area);
                footprint.release(channels * area);
                channels = outputs;
            }
            if index + 1 < self.block_out_channels.len() {
                footprint.upsample(channels, area * 4);
                footprint.hold(channels * area * 4);
                footprint.release(channels * area);
                area *= 4;
            }
        }
        // The norm.
        footprint.hold(unsigned(first) * area);
        footprint.release(channels * area);
        footprint.conv(channels, unsigned(self.out_channels), area);
        footprint.peak()
    }

    /// Returns the largest number of values that decoding in chunks holds at once; arguments as in
    /// [`AutoencoderKlConfig::decoder_values`].
    pub fn chunked_decoder_values(&self, height: i64, width: i64, chunk_size: ChunkSize, fast: bool) -> u64 {
        let mut footprint = Footprint::new(fast);
        let mut area = unsigned(height) * unsigned(width);
        let mut width = unsigned(width);
        let mut channels = unsigned(self.ends().1);
        footprint.hold(channels * area);
        self.middle(&mut footprint, channels, area);
        // Of the map before: it has this size until its first layer has computed the larger one.
        let mut stored = area;
        for (index, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            let outputs = unsigned(outputs);
            for _ in 0..=self.layers_per_block {
                let chunk = unsigned(chunk_size.values).max(4 * width).min(area);
                // The map between the convolutions, the result unless it takes the place of the input, and in each chunk
                // the input, the norm and its activation, and the convolution's maps.
                let is_new = stored != area || channels != outputs;
                footprint.hold(outputs * area);
                let result = if is_new { outputs * area } else { 0 };
                footprint.moment(result + chunk * (3 * channels.max(outputs) + 3 * outputs));
                footprint.hold(result);
                footprint.release(outputs * area);
                footprint.release(if is_new { channels * stored } else { 0 });
                (channels, stored) = (outputs, area);
            }
            if index + 1 < self.block_out_channels.len() {
                (area, width) = (area * 4, width * 2);
            }
        }
        footprint.moment(unsigned(self.out_channels) * area);
        footprint.peak()
    }

    /// Returns the largest number of values that encoding holds at once for each image of this height and width; `fast` as
    /// in [`AutoencoderKlConfig::decoder_values`].
    pub fn encoder_values(&self, height: i64, width: i64, fast: bool) -> u64 {
        let mut footprint = Footprint::new(fast);
        let mut area = unsigned(height) * unsigned(width);
        footprint.hold(unsigned(self.in_channels) * area);
        let mut channels = unsigned(self.ends().0);
        footprint.hold(channels * area);
        for (index, &outputs) in self.block_out_channels.iter().enumerate() {
            let outputs = unsigned(outputs);
            for _ in 0..self.layers_per_block {
                footprint.resnet(channels, outputs, area);
                footprint.hold(outputs * area);
                footprint.release(channels * area);
                channels = outputs;
            }
            if index + 1 < self.block_out_channels.len() {
                // Without the CPU kernels, the padded input is a copy.
                footprint.conv(if fast { 0 } else { channels * 4 }, channels, area.div_ceil(4));
                footprint.hold(channels * area.div_ceil(4));
                footprint.release(channels * area);
                area = area.div_ceil(4);
            }
        }
        self.middle(&mut footprint, channels, area);
        footprint.peak()
    }

    fn middle(&self, footprint: &mut Footprint, channels: u64, area: u64) {
        footprint.resnet(channels, channels, area);
        if self.mid_block_add_attention {
            footprint.vae_attention(channels, area);
        }
    }
}
