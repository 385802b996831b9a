//! The kernels against naive twins in float64, for each instruction set of the machine.

mod activation;
mod attention;
mod conv;
mod linear;
mod support;
