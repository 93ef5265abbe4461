//! Where samples come from: orders, folders, archives, shards, and what is wrong with them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::rng::{Stream, normal, stream};
use fpdm_core::{LatentCodec, Moments, Normalisation, Result};
use fpdm_train::{
    DataSource, Encoded, ImageFolder, ImageSource, LatentIndex, LatentShard, LatentShards, Normalised, NpyFolders,
    Order, Part, Pixels, TarShards, measure_latents,
};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

proptest! {
    #[test]
    fn every_epoch_is_a_permutation(len in 1usize..300, epoch in 0u64..1000, seed: u64) {
        let order = Order::new(len, seed).unwrap();
        let start = epoch * len as u64;
        let seen: BTreeSet<usize> = (start..start + len as u64).map(|p| order.at(p)).collect();
        prop_assert_eq!(seen.len(), len);
        prop_assert!(seen.iter().all(|s| *s < len));
    }
}

#[test]
fn orders_differ_by_epoch_and_seed_and_coins_are_fair() -> Result<()> {
    let order = Order::new(1000, 1)?;
    let epoch = |order: &Order, e: u64| (e * 1000..(e + 1) * 1000).map(|p| order.at(p)).collect::<Vec<_>>();
    assert_ne!(epoch(&order, 0), epoch(&order, 1));
    assert_ne!(epoch(&order, 0), epoch(&Order::new(1000, 2)?, 0));
    // A shuffled sample is a third of the set away from its place, on average.
    let distance: usize = epoch(&order, 3).iter().enumerate().map(|(i, s)| i.abs_diff(*s)).sum();
    assert!((300..370).contains(&(distance / 1000)), "{distance}");
    let heads = (0..10_000).filter(|p| order.coin(*p)).count();
    assert!((4800..5200).contains(&heads), "{heads}");
    assert!(Order::new(0, 1).unwrap_err().to_string().contains("empty"));
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn listed(source: &dyn ImageSource) -> Vec<(String, u32, Vec<u8>)> {
    (0..source.len())
        .map(|i| {
            let (name, class) = source.entry(i);
            (name, class, source.read(i).unwrap())
        })
        .collect()
}

#[test]
fn folders_are_classes() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    for name in ["dog/2.png", "cat/b.JPG", "cat/a.webp", "dog/deep/1.png", "dog/notes.txt", ".hidden/x.png"] {
        put(&root.path().join(name), name.as_bytes());
    }
    let folder = ImageFolder::open(root.path())?;
    assert_eq!(folder.classes(), ["cat", "dog"]);
    let want = [("cat/a.webp", 0), ("cat/b.JPG", 0), ("dog/2.png", 1), ("dog/deep/1.png", 1)];
    assert_eq!(listed(&folder), want.map(|(name, class)| (name.to_owned(), class, name.as_bytes().to_vec())));
    let part = Part::new(folder, 1..3)?;
    assert_eq!(listed(&part).iter().map(|e| e.0.as_str()).collect::<Vec<_>>(), ["cat/b.JPG", "dog/2.png"]);
    assert!(Part::new(part, 1..3).is_err());

    put(&root.path().join("stray.png"), b"");
    let error = ImageFolder::open(root.path()).err().unwrap().to_string();
    assert!(error.contains("stray.png"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(ImageFolder::open(empty.path()).err().unwrap().to_string().contains("no images"));
    put(&empty.path().join("a.png"), b"");
    assert_eq!(ImageFolder::open(empty.path())?.classes(), ["all"]);
    assert!(ImageFolder::open(empty.path().join("nowhere")).err().unwrap().to_string().contains("nowhere"));
    Ok(())
}

/// A tar archive of plain files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in files {
        let long = name.len() > 100;
        if long {
            out.extend(entry("././@LongLink", b'L', name.as_bytes()));
        }
        out.extend(entry(if long { "cut" } else { name }, b'0', bytes));
    }
    out.extend([0; 1024]);
    out
}

fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    header[156] = kind;
    header[257..262].copy_from_slice(b"ustar");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(bytes);
    header.resize(header.len().div_ceil(512) * 512, 0);
    header
}

fn archive(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn archives_have_webdataset_names_or_folders() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 5] =
        [("a/1.x.webp", b"one"), ("a/1.cls", b"4\n"), ("a/2.png", b"two"), ("a/2.cls", b"0"), ("a/2.txt", b"")];
    let named = TarShards::open(&[archive(folder.path(), "named.tar", &tar(&files))])?;
    assert_eq!(named.classes(), ["0", "1", "2", "3", "4"]);
    let got: Vec<_> = listed(&named).into_iter().map(|(_, class, bytes)| (class, bytes)).collect();
    assert_eq!(got, [(4, b"one".to_vec()), (0, b"two".to_vec())]);

    let long = format!("train/{}/3.png", "x".repeat(120));
    let first = archive(folder.path(), "first.tar", &tar(&[("./train/n2/1.webp", b"1"), ("train/n1/2.webp", b"2")]));
    let second = archive(folder.path(), "second.tar", &tar(&[(&long, b"3")]));
    let folders = TarShards::open(&[first, second])?;
    assert_eq!(folders.classes()[..2], ["train/n1", "train/n2"]);
    let got: Vec<_> = listed(&folders).into_iter().map(|(_, class, bytes)| (class, bytes)).collect();
    assert_eq!(got, [(1, b"1".to_vec()), (0, b"2".to_vec()), (2, b"3".to_vec())]);
    Ok(())
}

#[test]
fn broken_archives_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = tar(&[("1.png", &[7; 2000]), ("2.png", b"2")]);
    let error = |name: &str, bytes: &[u8]| {
        let error = TarShards::open(&[archive(folder.path(), name, bytes)]).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    assert!(error("short.tar", &whole[..1500]).contains("truncated"));
    assert!(error("within.tar", &whole[..2700]).contains("truncated"));
    let mut corrupt = whole.clone();
    corrupt[3] ^= 1;
    assert!(error("corrupt.tar", &corrupt).contains("corrupt"));
    assert!(error("empty.tar", &tar(&[("a.txt", b"")])).contains("no images"));
    assert!(error("label.tar", &tar(&[("1.png", b""), ("1.cls", b"cat")])).contains("no number"));
    assert!(error("half.tar", &tar(&[("1.png", b""), ("1.cls", b"1"), ("2.png", b"")])).contains("2.cls"));
}

/// A file of one byte `b` is an image with `b` on its left.
fn half_image(bytes: &[u8]) -> Result<Tensor> {
    match bytes {
        [b] => Ok(Tensor::new(&[f32::from(*b), 0.], &CPU)?.broadcast_as((3, 2, 2))?.contiguous()?),
        _ => Err(fpdm_core::Error::config("image", "not one byte")),
    }
}

#[test]
fn images_become_batches_that_depend_on_their_number_alone() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    for class in 0..3u8 {
        for i in 0..4u8 {
            put(&root.path().join(format!("c{class}/{i}.png")), &[10 * class + i + 1]);
        }
    }
    let data = Pixels::new(ImageFolder::open(root.path())?, half_image, 3, &CPU)?;
    let mut mirrored = 0;
    let mut seen = BTreeSet::new();
    for index in 0..3 {
        let batch = data.batch(index, 4)?;
        batch.check(Labels::Classes(3))?;
        assert_eq!(batch.moments.mean.dims(), [4, 3, 2, 2]);
        let again = data.batch(index, 4)?;
        assert_eq!(
            again.moments.mean.flatten_all()?.to_vec1::<f32>()?,
            batch.moments.mean.flatten_all()?.to_vec1::<f32>()?
        );
        let classes = batch.y.to_vec1::<u32>()?;
        for (i, class) in classes.iter().enumerate() {
            let row = batch.moments.mean.get(i)?.get(0)?.get(0)?.to_vec1::<f32>()?;
            mirrored += usize::from(row[0] == 0.);
            let value = row[0].max(row[1]) as u32;
            assert_eq!((value - 1) / 10, *class);
            seen.insert(value);
        }
    }
    assert_eq!(seen.len(), 12);
    assert!((1..12).contains(&mirrored), "{mirrored}");
    // The sample at a position is the same in batches of another size.
    let (small, large) = (data.batch(5, 2)?, data.batch(2, 5)?);
    assert_eq!(small.positions[0], large.positions[0]);
    assert_eq!(small.y.to_vec1::<u32>()?[0], large.y.to_vec1::<u32>()?[0]);

    put(&root.path().join("c1/9.png"), b"broken");
    let data = Pixels::new(ImageFolder::open(root.path())?, half_image, 3, &CPU)?;
    let error = data.batch(0, 13).unwrap_err().to_string();
    assert!(error.contains("c1/9.png"), "{error}");
    Ok(())
}

#[test]
fn a_share_of_images_may_be_broken() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    for i in 0..10u8 {
        put(&root.path().join(format!("{i}.png")), if i % 4 == 1 { b"broken" } else { std::slice::from_ref(&i) });
    }
    let open = |share: f64| -> Result<_> {
        Pixels::new(ImageFolder::open(root.path())?, half_image, 3, &CPU)?.skipping(share)
    };
    let means = |batch: fpdm_train::Batch| values(&batch.moments.mean);
    // Images 1, 5 and 9 are broken: three of ten.
    let data = open(0.3)?;
    let first: Vec<_> = (0..4).map(|i| Ok(means(data.batch(i, 5)?))).collect::<Result<_>>()?;
    assert!(first.iter().flatten().all(|v| [0., 2., 3., 4., 6., 7., 8.].contains(v)), "{first:?}");
    let skipped = data.skipped();
    assert_eq!(skipped.keys().collect::<Vec<_>>(), ["1.png", "5.png", "9.png"]);
    assert!(skipped["5.png"].contains("not one byte"));
    // A batch does not depend on what has come up before.
    assert_eq!(means(open(0.3)?.batch(3, 5)?), first[3]);
    let data = open(0.2)?;
    let error = (0..2).find_map(|i| data.batch(i, 5).err()).unwrap().to_string();
    assert!(["1.png", "5.png", "9.png"].iter().any(|name| error.contains(name)), "{error}");
    assert!(error.contains("2 others are broken"), "{error}");
    // A file that has gone is a broken one.
    let data = open(0.4)?;
    fs::remove_file(root.path().join("3.png")).unwrap();
    for batch in 0..2 {
        data.batch(batch, 5)?;
    }
    assert!(data.skipped().contains_key("3.png"));
    assert!(open(1.5).is_err());
    Ok(())
}

#[test]
fn images_are_encoded_on_the_way() -> Result<()> {
    /// Latents are half the pixels, with a deviation.
    struct Half;
    impl LatentCodec for Half {
        fn encode(&self, pixels: &Tensor) -> Result<Moments> {
            Ok(Moments { mean: (pixels * 0.5)?, std: (pixels.ones_like()? * 0.25)? })
        }
        fn decode(&self, latents: &Tensor) -> Result<Tensor> {
            Ok((latents * 2.)?)
        }
    }
    let root = tempfile::tempdir().unwrap();
    for i in 0..3u8 {
        put(&root.path().join(format!("{i}.png")), &[i + 1]);
    }
    let images = Pixels::new(ImageFolder::open(root.path())?, half_image, 3, &CPU)?;
    let plain = images.batch(1, 4)?;
    let codec: Box<dyn LatentCodec> = Box::new(Half);
    let encoded = Encoded::new(images, codec).batch(1, 4)?;
    assert_eq!(values(&encoded.moments.mean), values(&(plain.moments.mean * 0.5)?));
    assert!(values(&encoded.moments.std).iter().all(|s| *s == 0.25));
    assert_eq!(encoded.positions, plain.positions);
    Ok(())
}

#[test]
fn features_and_labels_are_matched_by_name() -> Result<()> {
    let (features, labels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // 10 sorts before 9: by order alone, the labels would be mixed up.
    for i in [3i64, 9, 10] {
        Tensor::full(i as f32, (1, 4, 2, 2), &CPU)?.write_npy(features.path().join(format!("{i}.npy")))?;
        Tensor::new(&[i], &CPU)?.write_npy(labels.path().join(format!("{i}.npy")))?;
    }
    let data = NpyFolders::open(features.path(), labels.path(), 0, &CPU)?;
    assert_eq!((data.len(), data.shape()?), (3, vec![4, 2, 2]));
    let batch = data.batch(0, 3)?;
    let means: Vec<f32> = batch.moments.mean.flatten_from(1)?.mean(1)?.to_vec1()?;
    let classes: Vec<f32> = batch.y.to_vec1::<u32>()?.iter().map(|c| *c as f32).collect();
    assert_eq!(means, classes);
    assert!(batch.check(Labels::Classes(10)).unwrap_err().to_string().contains("class 10"));
    batch.check(Labels::Classes(11))?;

    fs::write(features.path().join("9.npy"), b"\x93NUMPY").unwrap();
    let error = NpyFolders::open(features.path(), labels.path(), 0, &CPU)?.batch(0, 3).unwrap_err().to_string();
    assert!(error.contains("9.npy"), "{error}");
    fs::remove_file(labels.path().join("3.npy")).unwrap();
    let error = NpyFolders::open(features.path(), labels.path(), 0, &CPU).err().unwrap().to_string();
    assert!(error.contains("3.npy"), "{error}");
    let nothing = tempfile::tempdir().unwrap();
    let error = NpyFolders::open(nothing.path(), nothing.path(), 0, &CPU).err().unwrap().to_string();
    assert!(error.contains("empty"), "{error}");
    Ok(())
}

/// Two shards of 3 and 2 samples; sample i is all i, its mirror image all −i.
fn encoded(folder: &Path) -> Result<LatentIndex> {
    let mut index = LatentIndex {
        codec: "test".into(),
        source: "numbers".into(),
        images: 6,
        classes: vec!["even".into(), "odd".into()],
        shards: Vec::new(),
        skipped: [("4.png".to_owned(), "broken".to_owned())].into(),
    };
    for (range, end) in [(1..4u32, 3), (4..6, 6)] {
        let values: Vec<f32> = range.clone().map(|i| i as f32).collect();
        let mean = Tensor::from_vec(values, (range.len(), 1, 1, 1), &CPU)?.broadcast_as((range.len(), 4, 2, 2))?;
        let moments = |sign: f64, std: f64| -> Result<Moments> {
            Ok(Moments { mean: (&mean * sign)?, std: (mean.ones_like()? * std)? })
        };
        let classes = range.map(|i| i % 2).collect();
        let shard = LatentShard { upright: moments(1., 0.5)?, flipped: moments(-1., 0.)?, classes };
        index.append(folder, &shard, end)?;
    }
    Ok(index)
}

#[test]
fn shards_give_back_what_was_encoded() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let index = encoded(folder.path())?;
    assert_eq!(LatentIndex::read(folder.path())?, Some(index.clone()));
    assert_eq!((index.done(), index.samples()), (6, 5));
    let data = LatentShards::open(folder.path(), 1, &CPU)?;
    data.verify()?;
    assert_eq!(data.shape(), [4, 2, 2]);
    let (mut seen, mut sides) = (Vec::new(), [0; 2]);
    for index in 0..10 {
        let batch = data.batch(index, 5)?;
        batch.check(Labels::Classes(2))?;
        let means: Vec<f32> = batch.moments.mean.flatten_from(1)?.mean(1)?.to_vec1()?;
        let stds: Vec<f32> = batch.moments.std.flatten_from(1)?.mean(1)?.to_vec1()?;
        for ((mean, std), class) in means.iter().zip(stds).zip(batch.y.to_vec1::<u32>()?) {
            assert_eq!(mean.abs() as u32 % 2, class);
            let flipped = *mean < 0.;
            sides[usize::from(flipped)] += 1;
            assert!(if flipped { std < 1e-6 } else { (std - 0.5).abs() < 1e-3 }, "{mean} has deviation {std}");
        }
        let mut epoch: Vec<u32> = means.iter().map(|m| m.abs() as u32).collect();
        epoch.sort();
        seen.push(epoch);
    }
    assert!(seen.iter().all(|epoch| *epoch == [1, 2, 3, 4, 5]), "{seen:?}");
    assert!(sides.iter().all(|side| *side > 10), "{sides:?}");
    Ok(())
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn shards_in_memory_are_the_shards_on_the_disk() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    encoded(folder.path())?;
    let open = |seed| LatentShards::open(folder.path(), seed, &CPU);
    let (disk, memory) = (open(7)?, open(0)?.into_memory()?.shuffled(7)?);
    for index in 0..4 {
        let (a, b) = (disk.batch(index, 3)?, memory.batch(index, 3)?);
        assert_eq!(values(&a.moments.mean), values(&b.moments.mean));
        assert_eq!(values(&a.moments.std), values(&b.moments.std));
        assert_eq!((a.y.to_vec1::<u32>()?, a.positions), (b.y.to_vec1::<u32>()?, b.positions));
    }
    let path = folder.path().join("latents-000001.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = open(0)?.into_memory().err().unwrap().to_string();
    assert!(error.contains("latents-000001") && error.contains("corrupt"), "{error}");
    Ok(())
}

#[test]
fn normalised_latents_have_unit_variance() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    encoded(folder.path())?;
    let data = LatentShards::open(folder.path(), 1, &CPU)?;
    // Samples are 1 to 5 with deviation 0.5, or −1 to −5 with none.
    let (mut sum, mut square) = (0., 0.);
    for batch in 0..2 {
        let moments = data.batch(batch, 5)?.moments;
        for (mean, std) in values(&moments.mean).into_iter().zip(values(&moments.std)) {
            sum += f64::from(mean);
            square += f64::from(mean * mean + std * std);
        }
    }
    let (mean, square) = (sum / 160., square / 160.);
    let all = measure_latents(&data, 10, false)?;
    assert_eq!(all.mean, [0.]);
    assert!((all.std[0] - (square - mean * mean).sqrt()).abs() < 1e-5, "{all:?}");
    let channels = measure_latents(&data, 10, true)?;
    assert!(channels.mean.iter().all(|m| (m - mean).abs() < 1e-5), "{channels:?} is not {mean}");
    assert!(channels.std.iter().all(|s| (s - all.std[0]).abs() < 1e-5), "{channels:?}");
    for by in [all, channels] {
        let (plain, scaled) = (data.batch(3, 4)?.moments, Normalised::new(&data, by.clone())?.batch(3, 4)?.moments);
        let back = values(&by.undo(&scaled.mean)?);
        assert!(values(&plain.mean).iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-5));
        let spread = values(&scaled.std);
        assert!(values(&plain.std).iter().zip(spread).all(|(a, b)| (a / by.std[0] as f32 - b).abs() < 1e-5));
    }
    let error = Normalisation { mean: vec![0.], std: vec![0.] }.check().unwrap_err().to_string();
    assert!(error.contains("latents.std") && error.contains("positive"), "{error}");
    let two = Normalisation { mean: vec![0.; 2], std: vec![1.; 2] };
    assert!(Normalised::new(&data, two)?.batch(0, 1).is_err(), "2 numbers for 4 channels");
    Ok(())
}

#[test]
fn damaged_shards_are_named() -> Result<()> {
    type Damage = (&'static str, fn(Vec<u8>) -> Option<Vec<u8>>);
    let damages: [Damage; 3] = [
        ("truncated", |bytes| Some(bytes[..bytes.len() - 4].to_vec())),
        ("missing", |_| None),
        ("header", |mut bytes| {
            bytes[9] = b'!';
            Some(bytes)
        }),
    ];
    for (word, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        encoded(folder.path())?;
        let path = folder.path().join("latents-000001.safetensors");
        match damage(fs::read(&path).unwrap()) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = LatentShards::open(folder.path(), 0, &CPU).err().unwrap().to_string();
        assert!(error.contains("latents-000001") && error.contains(word), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    encoded(folder.path())?;
    let path = folder.path().join("latents-000000.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = LatentShards::open(folder.path(), 0, &CPU)?.verify().unwrap_err().to_string();
    assert!(error.contains("latents-000000") && error.contains("corrupt"), "{error}");
    let nothing = tempfile::tempdir().unwrap();
    assert!(LatentShards::open(nothing.path(), 0, &CPU).err().unwrap().to_string().contains("index.json"));
    Ok(())
}

#[test]
fn a_set_of_nothing_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let mut index = encoded(folder.path())?;
    index.shards.clear();
    index.write(folder.path())?;
    assert!(LatentShards::open(folder.path(), 0, &CPU).err().unwrap().to_string().contains("empty"));
    // Noise for a shape that does not fit is no batch either.
    let noise = normal((2, 4, 2, 2), &mut stream(0, Stream::Noise, 0), DType::F32, &CPU)?;
    let moments = Moments { std: noise.zeros_like()?, mean: noise };
    let batch = fpdm_train::Batch { moments, y: Tensor::new(&[0u32], &CPU)?, positions: vec![0, 1] };
    assert!(batch.check(Labels::Classes(1)).unwrap_err().to_string().contains("labels"));
    Ok(())
}
