//! A state dict as `torch.save` would write it.

use std::io::{Seek, Write};

use candle_core::{DType, Tensor};
use safetensors::View as _;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::{Error, Result};

/// Writes an `OrderedDict` of tensors, readable by `torch.load(weights_only=True)`, memory mapped too.
pub(in crate::checkpoint) fn write(out: impl Write + Seek, tensors: &[(String, Tensor)]) -> Result<()> {
    let pickle = pickle(tensors)?;
    let mut zip = ZipWriter::new(out);
    let mut entry = |name: &str, data: &[u8]| -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            // A mapped tensor has to start at a multiple of its element size.
            .with_alignment(64)
            .large_file(data.len() as u64 >= u64::from(u32::MAX));
        zip.start_file(format!("archive/{name}"), options).map_err(Error::other)?;
        zip.write_all(data).map_err(Error::other)
    };
    entry("data.pkl", &pickle)?;
    entry("byteorder", b"little")?;
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        entry(&format!("data/{i}"), &tensor.data())?;
    }
    entry("version", b"3\n")?;
    zip.finish().map_err(Error::other)?.flush().map_err(Error::other)
}

/// Protocol 2, without a memo.
fn pickle(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let mut p = vec![0x80, 2];
    p.extend_from_slice(b"ccollections\nOrderedDict\n)R(");
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let class = match tensor.dtype() {
            DType::F32 => "Float",
            DType::F16 => "Half",
            DType::BF16 => "BFloat16",
            DType::F64 => "Double",
            DType::I64 => "Long",
            DType::I32 => "Int",
            DType::I16 => "Short",
            DType::U8 => "Byte",
            other => return Err(Error::shape(format!("dtype of {name}"), "one that torch has", other)),
        };
        text(&mut p, name);
        p.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend_from_slice(format!("ctorch\n{class}Storage\n").as_bytes());
        text(&mut p, &i.to_string());
        text(&mut p, "cpu");
        int(&mut p, tensor.elem_count());
        p.extend_from_slice(b"tQK\0(");
        tensor.dims().iter().for_each(|&d| int(&mut p, d));
        p.extend_from_slice(b"t(");
        let mut stride = 1;
        let mut strides: Vec<usize> = Vec::new();
        for &d in tensor.dims().iter().rev() {
            strides.push(stride);
            stride *= d.max(1);
        }
        strides.iter().rev().for_each(|&s| int(&mut p, s));
        p.extend_from_slice(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend_from_slice(b"u.");
    Ok(p)
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend_from_slice(&(text.len() as u32).to_le_bytes());
    p.extend_from_slice(text.as_bytes());
}

fn int(p: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            p.push(b'J');
            p.extend_from_slice(&value.to_le_bytes());
        }
        Err(_) => {
            // Nine bytes, so that the sign is never taken from the number.
            p.extend_from_slice(&[0x8a, 9]);
            p.extend_from_slice(&(value as u64).to_le_bytes());
            p.push(0);
        }
    }
}
