#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use serde_json::{Value, json};

use super::*;
use diffusion_core::ErrorKind;

fn processor(config: Value) -> Result<DptImageProcessor> {
    DptImageProcessor::new(&serde_json::from_value(config).unwrap())
}

fn size_of(config: Value, width: u32, height: u32) -> (f64, f64) {
    let resize = processor(config).unwrap().resize.unwrap();
    let (height, width) = resize.target(height, width);
    (width, height)
}

#[test]
fn check_size_is_read_in_every_spelling() {
    for size in [json!({"height": 24, "width": 24}), json!(24), json!([24, 24])] {
        let made = processor(json!({"size": size})).unwrap();
        made.check(24).unwrap();
        let error = made.check(32).unwrap_err().to_string();
        assert!(error.contains("24x24") && error.contains("32x32"), "{error}");
    }
    processor(json!({})).unwrap().check(384).unwrap();
    let class = json!({"feature_extractor_type": "DPTFeatureExtractor", "do_pad": null});
    processor(class).unwrap();
    // These sizes depend on the image.
    for config in [json!({"do_resize": false}), json!({"keep_aspect_ratio": true})] {
        processor(config).unwrap().check(7).unwrap();
    }
}

#[test]
fn target_keep_aspect_ratio_follows_the_image() {
    let plain = json!({"size": 64});
    let aspect = json!({"size": 64, "keep_aspect_ratio": true});
    let multiple = json!({"size": 64, "keep_aspect_ratio": true, "ensure_multiple_of": 32});
    assert_eq!(size_of(plain, 97, 53), (64.0, 64.0));
    // The scales are 64/53 for the height and 64/97 for the width; the former is closer to 1.
    assert_eq!(size_of(aspect, 97, 53), (117.0, 64.0));
    assert_eq!(size_of(multiple.clone(), 97, 53), (128.0, 64.0));
    // 80 is between 64 and 96: halves round to even.
    assert_eq!(size_of(multiple, 80, 64), (64.0, 64.0));
}

#[test]
fn new_wrong_value_names_the_key() {
    let unsupported = [
        ("image_processor_type", json!("CLIPImageProcessor")),
        ("feature_extractor_type", json!("CLIPFeatureExtractor")),
        ("do_pad", json!(true)),
        ("resample", json!(5)),
    ];
    let invalid = [
        ("size", json!([64, 5000])),
        ("size", json!({"shortest_edge": 384})),
        ("ensure_multiple_of", json!(0)),
        ("image_std", json!([0.5, 0, 0.5])),
    ];
    let refused = |(key, value): (&str, Value), kind| {
        let error = processor(json!({ key: value })).unwrap_err();
        assert_eq!(error.kind(), kind, "{key}");
        assert!(error.to_string().contains(key), "{error}");
    };
    for case in unsupported {
        refused(case, ErrorKind::Unsupported);
    }
    for case in invalid {
        refused(case, ErrorKind::InvalidArgument);
    }
}

#[test]
fn preprocess_extreme_aspect_ratio_is_rejected() {
    let made = processor(json!({"size": 64, "keep_aspect_ratio": true})).unwrap();
    let sliver = RgbImage::new(6400, 1, vec![0; 6400 * 3]).unwrap();
    let error = made.preprocess(&sliver).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn preprocess_channels_are_planes() {
    let config = json!({
        "do_resize": false, "do_rescale": false, "image_mean": [1, 2, 3], "image_std": 2.0
    });
    let image = RgbImage::new(2, 1, vec![1, 2, 3, 11, 12, 13]).unwrap();
    let made = processor(config).unwrap().preprocess(&image).unwrap();
    assert_eq!(made.size(), [1, 3, 1, 2]);
    let values: Vec<f32> = made.view([-1]).try_into().unwrap();
    assert_eq!(values, [0.0, 5.0, 0.0, 5.0, 0.0, 5.0]);
}
