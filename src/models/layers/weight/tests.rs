#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::models::clip::ClipTextModel;
use crate::models::layers::BatchSplit;
use crate::models::unet::{TimeInput, UNet2DConditionModel, UNetInput};
use crate::weights::{Loader, read_json};

fn noise(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn with_half_precision_weight_gives_its_upcast() {
    // All use the same buffer: the larger weight makes it grow, the smaller one leaves a rest.
    for (kind, shape) in [(Kind::Half, [3, 4]), (Kind::BFloat16, [17, 9]), (Kind::Half, [2, 5])] {
        let half = noise(&shape).to_kind(kind);
        let expected = half.to_kind(Kind::Float);
        let weight = Weight::from(half);
        weight
            .with(Kind::Float, |upcast| {
                assert_eq!(upcast.data_ptr() as usize % 64, 0);
                assert_eq!(upcast, &expected);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn with_nested_uses_another_buffer() {
    let (one, two) = (noise(&[4, 4]), noise(&[4, 4]));
    let half = |tensor: &Tensor| Weight::from(tensor.to_kind(Kind::Half));
    let (first, second) = (half(&one), half(&two));
    first
        .with(Kind::Float, |outer| {
            let before = outer.copy();
            second.with(Kind::Float, |inner| {
                assert_ne!(inner, outer);
                Ok(())
            })?;
            assert_eq!(outer, &before);
            Ok(())
        })
        .unwrap();
}

/// Compares a text encoder and a UNet whose matrices all stay in half precision with the same models upcast at load.
#[test]
fn forward_half_precision_weights_give_the_bytes_of_upcast_ones() {
    let folder = test_support::checkpoint("sd2_base");
    let _no_grad = tch::no_grad_guard();
    let outputs = [0, u64::MAX].map(|least| {
        let mut loader = Loader::new(Device::Cpu).min_lazy_upcast_bytes(least);
        let [text, unet] = [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")]
            .map(|(name, stem)| loader.open(&folder.join(name), stem, Kind::Float).unwrap());
        let mut loaded = loader.load(&|_| {}).unwrap();
        let bytes = loaded.memory.total;
        let config = |name: &str| folder.join(name).join("config.json");
        let text = ClipTextModel::new(read_json(&config("text_encoder")).unwrap(), loaded.take(text).unwrap()).unwrap();
        let unet = UNet2DConditionModel::new(read_json(&config("unet")).unwrap(), loaded.take(unet).unwrap()).unwrap();
        let tokens = Tensor::arange(77, (Kind::Int64, Device::Cpu)).reshape([1, 77]);
        let hidden = text.forward(&tokens, 0).unwrap();
        let time = TimeInput {
            timesteps: &Tensor::from_slice(&[500i64]),
            class_labels: None,
            timestep_cond: None,
            added: None,
        };
        let input = UNetInput {
            sample: &(Tensor::arange(256, (Kind::Float, Device::Cpu)).reshape([1, 4, 8, 8]) / 99.0),
            time_shifts: &unet.time_shifts(&time, BatchSplit::Joint).unwrap(),
            text: &unet.project_text(&hidden, BatchSplit::Joint).unwrap(),
        };
        let sample = unet.forward(&input, BatchSplit::Joint, None).unwrap();
        (bytes, hidden.copy(), sample)
    });
    let [half, float] = outputs;
    assert!(half.0 < float.0, "{} bytes, {} bytes", half.0, float.0);
    assert_eq!(half.1, float.1);
    assert_eq!(half.2, float.2);
}

#[test]
fn with_same_dtype_does_not_copy() {
    let tensor = noise(&[4, 4]);
    let address = tensor.data_ptr();
    let weight = Weight::from(tensor);
    weight
        .with(Kind::Float, |same| {
            assert_eq!(same.data_ptr(), address);
            Ok(())
        })
        .unwrap();
}
