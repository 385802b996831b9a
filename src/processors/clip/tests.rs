#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use serde_json::{Value, json};

fn processor(config: Value) -> Result<ClipImageProcessor> {
    ClipImageProcessor::new(&serde_json::from_value(config).unwrap())
}

/// Makes an image whose red is the column, whose green is the line and whose blue is 7.
fn image(width: u32, height: u32) -> RgbImage {
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7]));
    RgbImage::new(width, height, pixels.collect()).unwrap()
}

/// Crops an image, without resize and arithmetic.
fn cropped(crop: Value, width: u32, height: u32) -> Vec<Vec<Vec<f32>>> {
    let config = json!({
        "do_resize": false, "crop_size": crop, "do_rescale": false, "do_normalize": false,
    });
    let values = processor(config).unwrap().preprocess(&image(width, height));
    Vec::try_from(values.unwrap()).unwrap()
}

#[test]
fn preprocess_crop_of_odd_rest_skips_more_at_the_end() {
    let planes = cropped(json!({"height": 1, "width": 2}), 5, 4);
    assert_eq!(planes[0], [[1.0, 2.0]]);
    assert_eq!(planes[1], [[1.0, 1.0]]);
    assert_eq!(planes[2], [[7.0, 7.0]]);
}

#[test]
fn preprocess_small_image_is_padded_more_at_the_start() {
    let planes = cropped(json!(4), 1, 6);
    // Two columns of padding before the only column, one behind it; lines 1 to 4.
    assert_eq!(planes[2], [[0.0, 0.0, 7.0, 0.0]; 4]);
    assert_eq!(
        planes[1].iter().map(|line| line[2]).collect::<Vec<_>>(),
        [1.0, 2.0, 3.0, 4.0]
    );
}

#[test]
fn preprocess_padding_is_normalized_black() {
    let config = json!({
        "do_resize": false, "crop_size": [1, 3], "image_mean": 0.5, "image_std": [0.5, 0.25, 1],
    });
    let values = processor(config).unwrap().preprocess(&image(1, 1)).unwrap();
    let planes = Vec::<Vec<Vec<f32>>>::try_from(values).unwrap();
    let blue = ((7.0f64 * (1.0 / 255.0)) as f32 - 0.5) / 1.0;
    assert_eq!(planes, [[[-1.0; 3]], [[-2.0; 3]], [[-0.5, blue, -0.5]]]);
}

#[test]
fn new_old_and_new_forms_of_sizes_are_equal() {
    let old = processor(json!({
        "crop_size": 32, "size": 48, "do_convert_rgb": true, "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor",
    }));
    let new = processor(json!({
        "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 48},
        "do_rescale": true, "rescale_factor": 0.00392156862745098, "use_square_size": false,
    }));
    let (old, new) = (old.unwrap(), new.unwrap());
    assert_eq!(old.resize, Some((Target::ShortestEdge(48), Filter::Bicubic)));
    assert_eq!((old.resize, old.crop), (new.resize, new.crop));
    assert_eq!(old.pixel_values, new.pixel_values);
    assert_eq!(old.output_size(), Some((32, 32)));

    let square = processor(json!({"size": 48, "use_square_size": true, "do_center_crop": false}));
    assert_eq!(square.unwrap().output_size(), Some((48, 48)));
    let given = processor(json!({"size": [48, 40], "do_center_crop": false}));
    assert_eq!(given.unwrap().output_size(), Some((48, 40)));
    let depends = processor(json!({"do_center_crop": false})).unwrap();
    assert_eq!(depends.output_size(), None);
    let plain = processor(json!({})).unwrap();
    assert_eq!(plain.output_size(), Some((224, 224)));
    assert_eq!(plain.resized(512, 768), (224, 336));
    assert_eq!(plain.resized(768, 511), (336, 224));
}

#[test]
fn new_bad_value_names_the_key() {
    for (key, config) in [
        ("size", json!({"size": 0})),
        ("size", json!({"size": {"longest_edge": 224}})),
        ("size", json!({"size": {"height": 224}})),
        ("crop_size", json!({"crop_size": {"shortest_edge": 224}})),
        ("crop_size", json!({"crop_size": 4097})),
        ("resample", json!({"resample": 4})),
        ("image_std", json!({"image_std": [0.5, 0.0, 0.5]})),
        ("rescale_factor", json!({"rescale_factor": 1e300})),
    ] {
        let error = processor(config.clone()).unwrap_err().to_string();
        assert!(error.contains(key), "{config}: {error}");
    }
    for config in [json!({"size": "big"}), json!({"image_mean": [0.5]})] {
        assert!(serde_json::from_value::<Preprocessor>(config).is_err());
    }
}

#[test]
fn check_size_extreme_aspect_ratio_is_rejected() {
    let processor = processor(json!({})).unwrap();
    assert!(processor.check_size(8, 10_696).is_ok());
    let error = processor.check_size(8, 10_704).unwrap_err().to_string();
    assert!(error.contains("10704") && error.contains("67108864"), "{error}");
    assert!(processor.check_size(u32::MAX, 1).is_err());
}
