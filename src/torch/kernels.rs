//! The kernels of `diffusion_kernels` over tensors: float32 on the CPU, with weights in any float dtype.
//!
//! Feature maps are channels-last in memory: `[batch, channels, height, width]` with the strides of `[batch, height,
//! width, channels]`. Inputs in another layout are copied; results are always channels-last.

use diffusion_kernels::{self as kernels, Matrix, Shape, Then, Values, Vectors};
use tch::{Device, Kind, Tensor};

use diffusion_core::{Error, Result};

pub use diffusion_kernels::Activation;
pub use diffusion_kernels::pool::set_thread_limit;

/// A matrix or a kernel, and a bias.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// In any float dtype.
    pub weight: &'a Tensor,
    /// float32
    pub bias: Option<&'a Tensor>,
}

/// What follows a linear layer.
#[derive(Clone, Copy)]
pub enum After<'a> {
    /// An activation.
    Activate(Activation),
    /// The sum with a tensor of the result's shape.
    Add(&'a Tensor),
    /// The product of the first half of the columns with the GELU of the second.
    Gate,
}

/// How a 3x3 convolution changes the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Not.
    Same,
    /// The input is enlarged by repetition to this height and width first.
    Enlarge(i64, i64),
    /// Halves the size, with the padding around the map or at its end only.
    Halve {
        /// The padding is at the bottom and at the right.
        pad_end: bool,
    },
}

fn size(value: i64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::internal("a negative size"))
}

/// Checks that the memory of `tensor` may be read as one slice.
fn check(tensor: &Tensor) -> Result<()> {
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return Err(Error::internal("a CPU kernel needs a contiguous tensor on the CPU"));
    }
    Ok(())
}

/// The values of a contiguous float32 tensor.
fn floats(tensor: &Tensor) -> Result<&[f32]> {
    check(tensor)?;
    if tensor.kind() != Kind::Float {
        return Err(Error::internal("a CPU kernel needs float32 values"));
    }
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the tensor has `numel` float32 values one after the other, aligned by its allocator or its file, and lives
    // as long as the borrow. Nothing writes to it meanwhile: weights are frozen, and other tensors are of the calling
    // thread.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) })
}

/// The values of a new contiguous float32 tensor.
fn floats_mut(tensor: &mut Tensor) -> Result<&mut [f32]> {
    floats(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `floats`; the callers pass tensors that they have just made, so no other tensor has this memory.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) })
}

/// The values of a contiguous weight of any float dtype.
fn values(tensor: &Tensor) -> Result<Values<'_>> {
    check(tensor)?;
    let (data, count) = (tensor.data_ptr().cast::<u16>(), tensor.numel());
    let bits = || {
        if count == 0 {
            return &[][..];
        }
        // SAFETY: as in `floats`, for values of 2 bytes.
        unsafe { std::slice::from_raw_parts(data, count) }
    };
    match tensor.kind() {
        Kind::Float => Ok(Values::F32(floats(tensor)?)),
        Kind::Half => Ok(Values::F16(bits())),
        Kind::BFloat16 => Ok(Values::Bf16(bits())),
        kind => Err(Error::internal(format!("a CPU kernel got weights of dtype {kind:?}"))),
    }
}

fn empty(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?)
}

/// Returns the map as `[batch, height, width, channels]`, contiguous: a view if it is channels-last.
fn positions(map: &Tensor) -> Result<Tensor> {
    Ok(map.f_permute([0, 2, 3, 1])?.f_contiguous()?)
}

/// Returns the map of [`positions`].
fn map(positions: &Tensor) -> Result<Tensor> {
    Ok(positions.f_permute([0, 3, 1, 2])?)
}

fn shape(positions: &Tensor) -> Result<Shape> {
    let (batch, height, width, channels) = positions.size4()?;
    Ok(Shape {
        batch: size(batch)?,
        height: size(height)?,
        width: size(width)?,
        channels: size(channels)?,
    })
}

/// Applies linear layers of one shape to one input; the results stand side by side.
///
/// # Shapes
/// - `input`: `[.., inputs]`
/// - each weight: `[outputs, inputs]`, or `[outputs, inputs, 1, 1]`
/// - returns `[.., outputs · layers]`, or `[.., outputs / 2]` with [`After::Gate`]
pub fn linear(input: &Tensor, layers: &[Weights<'_>], after: After<'_>) -> Result<Tensor> {
    let input = input.f_contiguous()?;
    let mut sizes = input.size();
    let depth = sizes.pop().unwrap_or(1);
    let outputs = layers.first().and_then(|layer| layer.weight.size().first().copied());
    let outputs = size(outputs.unwrap_or_default())?;
    let matrices = layers
        .iter()
        .map(|layer| {
            Ok(Matrix {
                values: values(layer.weight)?,
                bias: layer.bias.map(floats).transpose()?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let added = match after {
        After::Add(tensor) => Some(tensor.f_contiguous()?),
        After::Activate(_) | After::Gate => None,
    };
    let linear = kernels::Linear {
        rows: size(sizes.iter().product())?,
        depth: size(depth)?,
        input: floats(&input)?,
        matrices: &matrices,
        columns: outputs,
        then: match (after, &added) {
            (After::Activate(activation), _) => Then::Activate(activation),
            (After::Gate, _) => Then::Gate,
            (After::Add(_), Some(added)) => Then::Add(floats(added)?),
            (After::Add(_), None) => Then::Activate(Activation::Identity),
        },
    };
    sizes.push(linear.result_columns() as i64);
    let mut output = empty(&sizes)?;
    linear.compute(floats_mut(&mut output)?);
    Ok(output)
}

/// Applies a 3x3 convolution with a padding of 1, and adds a map if there is one.
///
/// # Shapes
/// - `input`: `[batch, inputs, height, width]`
/// - `weights`: `[outputs, inputs, 3, 3]`, with a bias `[outputs]` or `[batch, outputs]`
/// - `add` and the result: `[batch, outputs, height', width']`
pub fn conv3x3(input: &Tensor, weights: Weights<'_>, resize: Resize, add: Option<&Tensor>) -> Result<Tensor> {
    let input = positions(input)?;
    let add = add.map(positions).transpose()?;
    // The biases of a call's entries may be columns of a wider tensor.
    let bias = weights.bias.map(Tensor::f_contiguous).transpose()?;
    let shape = shape(&input)?;
    let (outputs, _, _, _) = weights.weight.size4()?;
    let (stride, pad_end) = match resize {
        Resize::Halve { pad_end } => (2, pad_end),
        Resize::Same | Resize::Enlarge(..) => (1, false),
    };
    let conv = kernels::Conv3x3 {
        input: floats(&input)?,
        shape,
        size: match resize {
            Resize::Enlarge(height, width) => (size(height)?, size(width)?),
            Resize::Same | Resize::Halve { .. } => (shape.height, shape.width),
        },
        stride,
        pad_end,
        weight: values(weights.weight)?,
        outputs: size(outputs)?,
        bias: bias.as_ref().map(floats).transpose()?,
        add: add.as_ref().map(floats).transpose()?,
    };
    let result = conv.result_shape();
    let sides = [result.batch, result.height, result.width, result.channels];
    let mut output = empty(&sides.map(|side| side as i64))?;
    conv.compute(floats_mut(&mut output)?);
    map(&output)
}

/// Applies a 1x1 convolution, and adds a map if there is one.
///
/// # Shapes
/// - `input`: `[batch, inputs, height, width]`
/// - `weights`: `[outputs, inputs, 1, 1]`, with a bias `[outputs]`
/// - `add` and the result: `[batch, outputs, height, width]`
pub fn conv1x1(input: &Tensor, weights: Weights<'_>, add: Option<&Tensor>) -> Result<Tensor> {
    let add = add.map(positions).transpose()?;
    let after = add.as_ref().map_or(After::Activate(Activation::Identity), After::Add);
    map(&linear(&positions(input)?, &[weights], after)?)
}

/// Normalizes groups of channels, and applies an activation.
///
/// # Shapes
/// - `input` and the result: `[batch, channels, height, width]`
/// - `weights`: `[channels]`
pub fn group_norm(
    input: &Tensor,
    groups: i64,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let input = positions(input)?;
    let mut output = empty(&input.size())?;
    let norm = kernels::GroupNorm {
        input: floats(&input)?,
        shape: shape(&input)?,
        groups: size(groups)?,
        weight: floats(weight)?,
        bias: floats(bias)?,
        eps,
        activation,
    };
    norm.compute(floats_mut(&mut output)?);
    map(&output)
}

/// Normalizes the last dimension.
///
/// # Shapes
/// - `input` and the result: `[.., size]`
/// - `weight`, `bias`: `[size]`
pub fn layer_norm(input: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let input = input.f_contiguous()?;
    let mut output = empty(&input.size())?;
    let norm = kernels::LayerNorm {
        input: floats(&input)?,
        weight: floats(weight)?,
        bias: floats(bias)?,
        eps: eps as f32,
    };
    norm.compute(floats_mut(&mut output)?);
    Ok(output)
}

/// Computes softmax(q·kᵀ·scale)·v in each of `heads` heads. The default scale is 1/√(channels of a head).
///
/// # Shapes
/// - `q`: `[batch, queries, channels]`
/// - `k`, `v`: `[batch, keys, channels]`; each may be a part of a wider tensor
/// - returns `[batch, queries, channels]`
pub fn attention([q, k, v]: [&Tensor; 3], heads: i64, scale: Option<f64>, causal: bool) -> Result<Tensor> {
    let (batch, queries, channels) = q.size3()?;
    let (_, keys, _) = k.size3()?;
    let head_size = channels / heads;
    let mut output = empty(&[batch, queries, channels])?;
    let attention = kernels::Attention {
        query: vectors(q)?,
        key: vectors(k)?,
        value: vectors(v)?,
        batch: size(batch)?,
        heads: size(heads)?,
        head_size: size(head_size)?,
        queries: size(queries)?,
        keys: size(keys)?,
        scale: scale.unwrap_or(1.0 / (head_size as f64).sqrt()) as f32,
        causal,
    };
    attention.compute(floats_mut(&mut output)?);
    Ok(output)
}

/// The vectors of a tensor `[batch, rows, channels]` whose channels lie one after the other.
fn vectors(tensor: &Tensor) -> Result<Vectors<'_>> {
    let (batch, rows, channels) = tensor.size3()?;
    let strides = tensor.stride();
    let &[entry_stride, row_stride, 1] = strides.as_slice() else {
        return Err(Error::internal("attention needs channels one after the other"));
    };
    if tensor.device() != Device::Cpu || tensor.kind() != Kind::Float {
        return Err(Error::internal("a CPU kernel needs float32 values on the CPU"));
    }
    let (entry_stride, row_stride) = (size(entry_stride)?, size(row_stride)?);
    let len = if tensor.numel() == 0 {
        0
    } else {
        size(batch - 1)? * entry_stride + size(rows - 1)? * row_stride + size(channels)?
    };
    let values = if len == 0 {
        &[][..]
    } else {
        // SAFETY: as in `floats`; the last value of the tensor is `len - 1` values behind its first.
        unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), len) }
    };
    Ok(Vectors {
        values,
        entry_stride,
        row_stride,
    })
}

/// Joins two maps along the channels.
///
/// # Shapes
/// - `left`, `right`: `[batch, channels, height, width]`, with their own numbers of channels
pub fn join_channels(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (left, right) = (positions(left)?, positions(right)?);
    let (batch, height, width, left_size) = left.size4()?;
    let (_, _, _, right_size) = right.size4()?;
    let mut output = empty(&[batch, height, width, left_size + right_size])?;
    let sizes = (size(left_size)?, size(right_size)?);
    kernels::join_channels(
        floats(&left)?,
        sizes.0,
        floats(&right)?,
        sizes.1,
        floats_mut(&mut output)?,
    );
    map(&output)
}
