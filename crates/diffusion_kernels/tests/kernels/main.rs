//! The kernels against naive twins in float64, for each instruction set of the machine.

mod activation;
mod attention;
mod conv;
mod group_norm;
mod join_channels;
mod layer_norm;
mod linear;
mod misuse;
mod pool;
mod support;
