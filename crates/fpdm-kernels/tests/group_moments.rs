//! What group normalisation is made of, against its definition.

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::{channel_affine, group_moments};

#[test]
fn moments_of_known_numbers() -> Result<()> {
    // Two groups of two channels of 1x2 pixels: 0 1 2 3 and 10 10 14 14.
    let x = Tensor::new(&[0f32, 1., 2., 3., 10., 10., 14., 14.], &Device::Cpu)?.reshape((1, 4, 1, 2))?;
    let (mean, variance) = group_moments(&x, 2)?;
    assert_eq!(mean.flatten_all()?.to_vec1::<f32>()?, [1.5, 12.]);
    assert_eq!(variance.flatten_all()?.to_vec1::<f32>()?, [1.25, 4.]);
    Ok(())
}

#[test]
fn affine_of_known_numbers_and_its_gradients() -> Result<()> {
    let device = Device::Cpu;
    let x = Var::new(&[[[[1f64, 2.]], [[3., 4.]]]], &device)?;
    let (factor, summand) = (Var::new(&[[2f64, 3.]], &device)?, Var::new(&[[10f64, 20.]], &device)?);
    let y = channel_affine(&x, &factor, &summand, false)?;
    assert_eq!(y.flatten_all()?.to_vec1::<f64>()?, [12., 14., 29., 32.]);
    let grads = y.sum_all()?.backward()?;
    let of = |v: &Var| grads.get(v).expect("a gradient").flatten_all()?.to_vec1::<f64>();
    assert_eq!((of(&x)?, of(&factor)?, of(&summand)?), (vec![2., 2., 3., 3.], vec![3., 7.], vec![2., 2.]));
    let silu = channel_affine(&x, &factor, &summand, true)?.flatten_all()?.to_vec1::<f64>()?;
    assert!((silu[0] - 12. / (1. + (-12f64).exp())).abs() < 1e-12);
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let x = Tensor::zeros((2, 6, 3, 3), DType::F32, &Device::Cpu)?;
    let text = |r: Result<()>| r.unwrap_err().to_string();
    assert!(text(group_moments(&x, 4).map(drop)).contains("4 groups"));
    assert!(text(group_moments(&x.flatten_all()?, 1).map(drop)).contains("four dimensions"));
    let (good, bad) =
        (Tensor::zeros((2, 6), DType::F32, &Device::Cpu)?, Tensor::zeros((2, 5), DType::F32, &Device::Cpu)?);
    assert!(text(channel_affine(&x, &good, &bad, false).map(drop)).contains("`summand` must have shape [2, 6]"));
    assert!(text(channel_affine(&x, &good.to_dtype(DType::F64)?, &good, false).map(drop)).contains("`factor`"));
    Ok(())
}
