//! Decoding, resizing and composing, compared with Pillow. Integer arithmetic is equal on every machine, so every byte must
//! be equal to the committed goldens too.

use diffusion_image::compose::{self, Region};
use diffusion_image::resize::{Filter, depth as resize_depth, resize};
use diffusion_image::{DepthMap, EncodedImage, ImageLimits, Mask, RgbImage, to_base64};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::support::Goldens;

#[derive(Deserialize)]
struct Manifest {
    resize: Vec<Resize>,
    regions: Vec<CropRegion>,
    fitted: Vec<Fitted>,
    overlays: Vec<Overlay>,
    decode: Vec<Decode>,
}

#[derive(Deserialize)]
struct Resize {
    name: String,
    width: u32,
    height: u32,
    filters: Vec<String>,
}

#[derive(Deserialize)]
struct CropRegion {
    name: String,
    width: u32,
    height: u32,
    pad: u32,
    region: Option<[u32; 4]>,
}

#[derive(Deserialize)]
struct Fitted {
    name: String,
    width: u32,
    height: u32,
    fills: bool,
}

#[derive(Deserialize)]
struct Overlay {
    name: String,
    region: Option<[u32; 4]>,
}

#[derive(Deserialize)]
struct Decode {
    name: String,
    bits: Option<u8>,
}

fn filter(name: &str) -> Filter {
    match name {
        "nearest" => Filter::Nearest,
        "bilinear" => Filter::Bilinear,
        "bicubic" => Filter::Bicubic,
        "lanczos" => Filter::Lanczos,
        other => panic!("unknown filter {other}"),
    }
}

fn region([left, top, right, bottom]: [u32; 4]) -> Region {
    Region {
        left,
        top,
        right,
        bottom,
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.reshape([-1]).try_into().unwrap()
}

impl Goldens {
    /// Returns width and height of a tensor `[height, width, ...]`.
    fn size(&self, name: &str) -> (u32, u32) {
        let size = self.tensor(name).size();
        (size[1] as u32, size[0] as u32)
    }

    fn image(&self, name: &str) -> RgbImage {
        let (width, height) = self.size(name);
        RgbImage::new(width, height, bytes(&self.tensor(name))).unwrap()
    }

    fn mask(&self, name: &str) -> Mask {
        let (width, height) = self.size(name);
        Mask::new(width, height, bytes(&self.tensor(name))).unwrap()
    }

    fn all_equal(&self) {
        println!("{}: {} compared", self.group, self.compared);
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert!(self.compared > 0, "{}: nothing was compared", self.group);
    }

    fn equal<T: PartialEq>(&mut self, name: &str, ours: &T, theirs: &T) {
        self.compared += 1;
        if ours != theirs {
            self.failures.push(format!("{name}: not equal"));
        }
    }

    fn equal_image(&mut self, name: &str, ours: &RgbImage) {
        let theirs = self.image(name);
        self.equal(name, ours, &theirs);
    }

    fn equal_mask(&mut self, name: &str, ours: &Mask) {
        let theirs = self.mask(name);
        self.equal(name, ours, &theirs);
    }

    /// Compares every bit.
    fn equal_depth(&mut self, name: &str, ours: &DepthMap) {
        let (width, height) = self.size(name);
        assert_eq!((ours.width(), ours.height()), (width, height), "{name}");
        let theirs: Vec<f32> = self.tensor(name).reshape([-1]).try_into().unwrap();
        self.equal(name, &ours.values(), &&theirs[..]);
    }
}

/// Returns the red channel.
fn channel(image: &RgbImage) -> Mask {
    let values = image.rgb().iter().step_by(3).copied().collect();
    Mask::new(image.width(), image.height(), values).unwrap()
}

#[test]
fn resize_equals_pillow() {
    let mut goldens = Goldens::open("pil");
    let cases: Manifest = goldens.manifest();
    assert!(cases.resize.len() >= 20);
    for Resize {
        name,
        width,
        height,
        filters,
    } in cases.resize
    {
        let source = goldens.image(&format!("{name}/source"));
        let gray = channel(&source);
        for kind in &filters {
            let made = resize(&source, width, height, filter(kind)).unwrap();
            goldens.equal_image(&format!("{name}/{kind}"), &made);
            let made = resize(&gray, width, height, filter(kind)).unwrap();
            goldens.equal_mask(&format!("{name}/{kind}/gray"), &made);
        }
        let values = Tensor::from_slice(gray.values()).to_kind(Kind::Float) * 257.0 / 3.0;
        let (w, h) = (gray.width(), gray.height());
        let depth = DepthMap::new(w, h, 16, values.try_into().unwrap()).unwrap();
        let made = resize_depth(&depth, width, height, Filter::Bicubic).unwrap();
        goldens.equal_depth(&format!("{name}/bicubic/depth"), &made);
    }
    goldens.all_equal();
}

#[test]
fn crop_region_equals_diffusers() {
    let mut goldens = Goldens::open("pil");
    let cases: Manifest = goldens.manifest();
    for case in cases.regions {
        let mask = goldens.mask(&format!("{}/mask", case.name));
        let ours = compose::crop_region(&mask, case.width, case.height, case.pad).ok();
        goldens.equal(&case.name, &ours, &case.region.map(region));
    }
    goldens.all_equal();
}

#[test]
fn resize_modes_equal_diffusers() {
    let mut goldens = Goldens::open("pil");
    let cases: Manifest = goldens.manifest();
    for case in cases.fitted {
        let (name, width, height) = (case.name, case.width, case.height);
        let source = goldens.image(&format!("{name}/source"));
        let filled = compose::resize_and_fill(&source, width, height);
        let filled_mask = compose::resize_and_fill(&channel(&source), width, height);
        if case.fills {
            goldens.equal_image(&format!("{name}/fill"), &filled.unwrap());
            goldens.equal_mask(&format!("{name}/fill/gray"), &filled_mask.unwrap());
        } else {
            assert!(filled.is_err() && filled_mask.is_err(), "{name}");
        }
        let cropped = compose::resize_and_crop(&source, width, height).unwrap();
        goldens.equal_image(&format!("{name}/crop"), &cropped);
    }
    goldens.all_equal();
}

#[test]
fn apply_overlay_equals_diffusers() {
    let mut goldens = Goldens::open("pil");
    let cases: Manifest = goldens.manifest();
    for Overlay { name, region: at } in cases.overlays {
        let mask = goldens.mask(&format!("{name}/mask"));
        let init = goldens.image(&format!("{name}/init_image"));
        let image = goldens.image(&format!("{name}/image"));
        let made = compose::apply_overlay(&mask, &init, &image, at.map(region)).unwrap();
        goldens.equal_image(&format!("{name}/made"), &made);
    }
    goldens.all_equal();
}

#[test]
fn mask_from_rgb_equals_pillow() {
    let mut goldens = Goldens::open("pil");
    let gray = Mask::from_rgb(&goldens.image("luma/source"));
    goldens.equal_mask("luma/made", &gray);
    goldens.equal_mask("invert/made", &compose::invert(&gray));
    goldens.all_equal();
}

#[test]
fn decode_equals_pillow() {
    const LIMITS: ImageLimits = ImageLimits {
        max_base64_bytes: 1 << 16,
        max_pixels: 1 << 12,
        max_side: 64,
    };
    let mut goldens = Goldens::open("pil");
    let cases: Manifest = goldens.manifest();
    for Decode { name, bits } in cases.decode {
        let text = to_base64(&bytes(&goldens.tensor(&format!("{name}/file"))));
        let file = EncodedImage::new("image", text.as_bytes(), &LIMITS).unwrap_or_else(|e| panic!("{name}: {e}"));
        let made = file.rgb().unwrap();
        assert_eq!((file.width(), file.height()), (made.width(), made.height()), "{name}");
        goldens.equal_image(&format!("{name}/rgb"), &made);
        let mask = file.mask().unwrap();
        goldens.equal(&name, &mask, &Mask::from_rgb(&made));
        if let Some(bits) = bits {
            let map = file.depth_map().unwrap();
            assert_eq!(map.bits(), bits, "{name}");
            goldens.equal_depth(&format!("{name}/depth"), &map);
        }
    }
    goldens.all_equal();
}
