//! Bad arguments are errors that say what is wrong.

use candle_core::{DType, Device, Result, Tensor};
use fpdm_kernels::*;

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

fn f32s(shape: &[usize]) -> Tensor {
    zeros(shape, DType::F32)
}

#[track_caller]
fn message(result: Result<Tensor>, parts: &[&str]) {
    let text = result.expect_err("the arguments are wrong").to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

#[test]
fn shapes() {
    let (x, w, b) = (f32s(&[2, 3, 4]), f32s(&[5, 4]), f32s(&[5]));
    message(linear(&x, &f32s(&[5, 6]), None), &["linear", "`w`", "[5, 4]", "[5, 6]"]);
    message(linear(&x, &f32s(&[5]), None), &["linear", "`w`", "two dimensions", "[5]"]);
    message(linear(&x, &w, Some(&f32s(&[4]))), &["linear", "`b`", "[5]", "[4]"]);
    message(linear(&f32s(&[]), &w, None), &["linear", "`x`", "scalar"]);
    message(linear_gelu(&x, &w, Some(&x)), &["linear_gelu", "`b`"]);
    message(linear_add_gelu(&x, &w, &x), &["linear_add_gelu", "`r`", "[2, 3, 5]", "[2, 3, 4]"]);
    let residual = f32s(&[2, 3, 5]);
    let gate = f32s(&[2, 5]);
    message(linear_gate_residual(&x, &w, &b, &x, &gate), &["linear_gate_residual", "`residual`", "[2, 3, 5]"]);
    message(linear_gate_residual(&x, &w, &b, &residual, &b), &["linear_gate_residual", "`gate`", "[2, 5]", "[5]"]);
    message(linear_gate_residual(&w, &w, &b, &residual, &gate), &["linear_gate_residual", "`x`", "(B, T, D)"]);
    message(layer_norm_modulate(&x, &gate, &gate, 1e-6), &["layer_norm_modulate", "`shift`", "[2, 4]", "[2, 5]"]);
    message(gate_residual(&x, &gate, &x), &["gate_residual", "`gate`", "[2, 4]", "[2, 5]"]);
    message(gate_residual(&x, &f32s(&[2, 4]), &residual), &["gate_residual", "`y`"]);
    message(bias(&x, &b), &["bias", "`b`", "[4]", "[5]"]);
    message(softmax(&f32s(&[])), &["softmax", "`x`", "scalar"]);
}

#[test]
fn heads() {
    message(attention(&f32s(&[1, 2, 12]), 0), &["attention", "`heads` = 0", "12"]);
    message(attention(&f32s(&[1, 2, 12]), 3), &["attention", "`heads` = 3", "12"]);
    message(attention(&f32s(&[2, 12]), 2), &["attention", "`qkv`", "[2, 12]"]);
}

#[test]
fn types() {
    let (x, w) = (f32s(&[2, 3, 4]), zeros(&[5, 4], DType::F64));
    message(linear(&x, &w, None), &["linear", "`w`", "F32", "F64"]);
    message(gelu(&zeros(&[3], DType::U32)), &["gelu", "`x`", "U32"]);
    message(silu(&zeros(&[3], DType::I64)), &["silu", "`x`", "I64"]);
    message(attention(&zeros(&[1, 2, 12], DType::U8), 2), &["attention", "`qkv`", "U8"]);
}
