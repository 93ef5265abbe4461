//! Pictures in and out.

use candle_core::{DType, Device, Tensor};
use fpdm_vae::image::{
    DEFAULT_MAX_PIXELS, Filter, Picture, center_crop, decode, from_tensor, grid, psnr, read, resample, to_tensor,
    write_png,
};
use fpdm_vae::{Error, Result};
use image::{DynamicImage, ImageFormat};

fn noise(width: usize, height: usize) -> Picture {
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
    Picture::new(width, height, (0..3 * width * height).map(byte).collect()).unwrap()
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn png_round_trip_is_exact() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let picture = noise(13, 7);
    write_png(&path, &picture)?;
    assert_eq!(read(&path, DEFAULT_MAX_PIXELS)?, picture);
    assert_eq!(from_tensor(&to_tensor(&picture, DType::F32, &Device::Cpu)?)?, std::slice::from_ref(&picture));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(matches!(write_png(folder.path().join("no/a.png"), &picture), Err(Error::Io { .. })));
    Ok(())
}

#[test]
fn other_pictures_become_rgb() -> Result<()> {
    let rgb = image::RgbImage::from_fn(4, 3, |x, y| image::Rgb([x as u8 * 9, y as u8 * 7, 5]));
    let rgb = DynamicImage::ImageRgb8(rgb);
    for (image, format) in [
        (DynamicImage::ImageLuma8(rgb.to_luma8()), ImageFormat::Png),
        (DynamicImage::ImageLumaA8(rgb.to_luma_alpha8()), ImageFormat::Png),
        (DynamicImage::ImageRgba8(rgb.to_rgba8()), ImageFormat::Png),
        (DynamicImage::ImageRgb16(rgb.to_rgb16()), ImageFormat::Png),
        (DynamicImage::ImageLuma8(rgb.to_luma8()), ImageFormat::Jpeg),
        (rgb.clone(), ImageFormat::WebP),
    ] {
        let picture = decode("a", &encoded(&image, format), DEFAULT_MAX_PIXELS)?;
        assert_eq!((picture.width(), picture.height()), (4, 3));
        if format != ImageFormat::Jpeg {
            assert_eq!(picture.data(), image.to_rgb8().as_raw().as_slice());
        }
    }
    // Alpha is dropped, not blended.
    let clear = DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(1, 1, image::Rgba([9, 8, 7, 0])));
    assert_eq!(decode("a", &encoded(&clear, ImageFormat::Png), 10)?.data(), [9, 8, 7]);
    Ok(())
}

/// Palettes of every depth, and grey of fewer than eight bits.
#[test]
fn palettes_are_looked_up() -> Result<()> {
    for (color, depth, bytes, expected) in [
        (png::ColorType::Indexed, png::BitDepth::Eight, vec![2, 0, 1], [7, 8, 9, 1, 2, 3, 4, 5, 6]),
        (png::ColorType::Indexed, png::BitDepth::Four, vec![0x20, 0x10], [7, 8, 9, 1, 2, 3, 4, 5, 6]),
        (png::ColorType::Indexed, png::BitDepth::Two, vec![0b10_00_01_00], [7, 8, 9, 1, 2, 3, 4, 5, 6]),
        (png::ColorType::Grayscale, png::BitDepth::One, vec![0b101_00000], [255, 255, 255, 0, 0, 0, 255, 255, 255]),
        (png::ColorType::Grayscale, png::BitDepth::Two, vec![0b11_01_00_00], [255, 255, 255, 85, 85, 85, 0, 0, 0]),
    ] {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 3, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette((1..=9).collect::<Vec<u8>>());
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&bytes).unwrap();
        writer.finish().unwrap();
        assert_eq!(decode("a", &file, 10)?.data(), expected, "{color:?} {depth:?}");
    }
    Ok(())
}

#[test]
fn other_formats_are_refused_too() {
    for format in [ImageFormat::Jpeg, ImageFormat::WebP] {
        let picture = noise(40, 30);
        let picture = image::RgbImage::from_raw(40, 30, picture.data().to_vec()).unwrap();
        let whole = encoded(&DynamicImage::ImageRgb8(picture), format);
        assert!(decode("good", &whole, 1200).is_ok());
        let said = decode("bad", &whole, 1199).unwrap_err().to_string();
        assert!(said.contains("allowed are 1199"), "{said}");
        for end in (0..whole.len() - 1).step_by(whole.len() / 50) {
            let said = decode("bad", &whole[..end], 1200).map(|_| end).unwrap_err().to_string();
            assert!(said.contains("bad"), "{format:?} {end}: {said}");
        }
    }
}

#[test]
fn bad_pictures_are_refused_by_name() {
    let whole = encoded(&DynamicImage::new_rgb8(40, 30), ImageFormat::Png);
    let message = |bytes: &[u8], limit| decode("bad.png", bytes, limit).unwrap_err().to_string();
    assert!(message(&whole, 1199).contains("40x30 = 1200 pixels, allowed are 1199"));
    assert!(decode("good.png", &whole, 1200).is_ok());
    for end in 0..whole.len() - 12 {
        assert!(message(&whole[..end], 1200).contains("bad.png"));
    }
    assert!(message(b"no picture at all", 10).contains("expected a PNG, JPEG or WebP"));
    // A header that promises four billion pixels, and one with a side of 0.
    for (side, part) in [(65_536u32, "bad.png"), (0, "bad.png")] {
        let mut bomb = whole.clone();
        bomb[16..20].copy_from_slice(&side.to_be_bytes());
        bomb[20..24].copy_from_slice(&side.to_be_bytes());
        assert!(message(&bomb, DEFAULT_MAX_PIXELS).contains(part));
    }
    assert!(matches!(read("no/such.png", 10), Err(Error::Io { .. })));
    assert!(Picture::new(0, 3, vec![]).is_err() && Picture::new(2, 2, vec![0; 11]).is_err());
    assert!(Picture::new(usize::MAX, 3, vec![]).is_err());
}

/// Sums of weights are one, an average is an average, and symmetric pictures stay so.
#[test]
fn resampling_keeps_what_it_must() -> Result<()> {
    let flat = Picture::new(37, 23, vec![77; 3 * 37 * 23])?;
    for filter in [Filter::Box, Filter::Bicubic] {
        for (w, h) in [(1, 1), (18, 11), (37, 23), (50, 90)] {
            assert!(resample(&flat, w, h, filter)?.data().iter().all(|b| *b == 77));
        }
        let picture = noise(20, 16);
        assert_eq!(resample(&picture, 20, 16, filter)?, picture);
        assert!(resample(&picture, 0, 4, filter).is_err());
    }
    let four = Picture::new(2, 2, [[10; 3], [20; 3], [30; 3], [41; 3]].concat())?;
    // Rows first, to 15 and 35.5 → 36; then 25.5 → 26.
    assert_eq!(resample(&four, 1, 1, Filter::Box)?.data(), [26; 3]);
    // Keys' weights at an eighth and three eighths: -9, 111, 29, -3 of 128 in the middle of doubled pixels.
    let line = Picture::new(4, 1, [[0; 3], [0; 3], [128; 3], [128; 3]].concat())?;
    let doubled = resample(&line, 8, 1, Filter::Bicubic)?;
    let grey: Vec<u8> = doubled.data().chunks(3).map(|p| p[0]).collect();
    assert!(
        grey.iter().zip(grey.iter().rev()).all(|(a, b)| (i32::from(*a) + i32::from(*b) - 128).abs() <= 9),
        "{grey:?}"
    );
    Ok(())
}

#[test]
fn the_crop_is_the_centre() -> Result<()> {
    for (w, h, side) in [(64, 64, 64), (300, 200, 64), (65, 200, 32), (10, 7, 16), (129, 64, 32)] {
        let crop = center_crop(&noise(w, h), side)?;
        assert_eq!((crop.width(), crop.height()), (side, side));
    }
    let wide = noise(20, 10);
    assert_eq!(center_crop(&wide, 10)?, wide.crop(5, 0, 10, 10)?);
    let line = Picture::new(1_000_000, 1, vec![0; 3_000_000])?;
    assert!(center_crop(&line, 256).unwrap_err().to_string().contains("256000000x256 before it is cut"));
    assert!(center_crop(&wide, usize::MAX).is_err());
    assert!(center_crop(&wide, 0).is_err() && wide.crop(15, 0, 6, 2).is_err());
    Ok(())
}

/// Byte for byte what Pillow 10.4 to 12.0 makes: `tests/fixtures/crops.py`.
#[test]
fn crops_are_those_of_pillow() -> Result<()> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crops");
    for (w, h, side) in [(64, 64, 24), (93, 70, 16), (65, 200, 32), (10, 7, 24), (129, 64, 31), (37, 53, 37)] {
        let expected = read(folder.join(format!("{w}x{h}-{side}.png")), DEFAULT_MAX_PIXELS)?;
        assert!(center_crop(&noise(w, h), side)? == expected, "{w}x{h} at {side}");
    }
    Ok(())
}

#[test]
fn a_grid_has_padding_all_around() -> Result<()> {
    let pictures: Vec<Picture> = (1..=3).map(|v| Picture::new(2, 1, vec![v; 6])).collect::<Result<_>>()?;
    let all = grid(&pictures, 2, 1)?;
    assert_eq!((all.width(), all.height()), (7, 5));
    let red = |x: usize, y: usize| all.data()[3 * (y * 7 + x)];
    assert_eq!([red(0, 0), red(1, 1), red(2, 1), red(3, 1), red(4, 1), red(1, 3), red(4, 3)], [0, 1, 1, 0, 2, 3, 0]);
    assert!(grid(&[], 2, 1).is_err() && grid(&pictures, 0, 1).is_err() && grid(&pictures, 2, usize::MAX).is_err());
    assert!(grid(&[noise(2, 2), noise(3, 2)], 2, 0).is_err());
    Ok(())
}

#[test]
fn tensors_that_are_no_pictures() -> Result<()> {
    let nan = Tensor::new(&[[[[f32::NAN, 0.]]]], &Device::Cpu)?;
    assert!(matches!(from_tensor(&nan), Err(Error::NonFinite { .. })));
    assert!(from_tensor(&Tensor::zeros((1, 2, 4, 4), DType::F32, &Device::Cpu)?).is_err());
    assert!(from_tensor(&Tensor::zeros((1, 3, 4, 4), DType::U8, &Device::Cpu)?).is_err());
    let grey = Tensor::new(&[[[[-2f32, 0., 2.]]]], &Device::Cpu)?;
    assert_eq!(from_tensor(&grey)?[0].data(), [0, 0, 0, 128, 128, 128, 255, 255, 255]);
    assert_eq!(psnr(&grey, &grey)?, f64::INFINITY);
    assert!(psnr(&grey, &nan).is_err());
    Ok(())
}
